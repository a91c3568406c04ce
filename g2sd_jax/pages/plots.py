# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The plots of a report: axes with units, light enough to read on paper too."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import figure, rc_context

from g2sd_jax.pages import reconstructions

COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#c77d0a", "#7a4fa3", "#4d4d4d")
ORDERS = {"random": "random patches", "salient": "salient first"}
ORDERS["non-salient"] = "non-salient first"
UNITS = {  # What an axis says beside a metric's name.
    "lr": "learning rate",
    "grad_norm": "norm",
    "images_per_sec": "images/s",
    "step_ms": "ms per step",
    "input_wait": "share of time",
}


def curves(
    plots: Mapping[str, Mapping[str, np.ndarray]], unit: Mapping[str, str]
) -> figure.Figure:
    """One plot per title, one line per label.

    Args:
        plots: {title: {label: [points, 2] step and value}}.
        unit: {title: what the vertical axis says}.
    """
    columns = min(4, len(plots))
    lines = -(-len(plots) // columns)
    sheet = figure.Figure(figsize=(3 * columns, 2.4 * lines), layout="constrained")
    axes = list(sheet.subplots(lines, columns, squeeze=False).flat)
    colours = _colours_of(plots)
    for axis, (title, drawn) in zip(axes, plots.items(), strict=False):
        _draw_curves(axis, title, drawn, unit[title], colours)
    for axis in axes[len(plots) :]:
        axis.set_visible(False)
    _legend(sheet, axes)
    return sheet


def separate_curves(
    plots: Mapping[str, Mapping[str, np.ndarray]], unit: Mapping[str, str]
) -> dict[str, figure.Figure]:
    """{title: a sheet of its own}, for a page that sets as many a row as it can.

    Args:
        plots: {title: {label: [points, 2] step and value}}.
        unit: {title: what the vertical axis says}.
    """
    colours, sheets = _colours_of(plots), {}
    for title, drawn in plots.items():
        sheets[title] = figure.Figure(figsize=(3, 2.4), layout="constrained")
        axis = sheets[title].subplots()
        _draw_curves(axis, title, drawn, unit[title], colours)
        if len(colours) > 1:
            _legend(sheets[title], [axis], columns=2)
    return sheets


def _colours_of(plots):
    """One colour for each label, whichever plots have it."""
    labels = dict.fromkeys(label for drawn in plots.values() for label in drawn)
    return _colours(list(labels))


def _draw_curves(axis, title, drawn, unit, colours):
    for label, points in drawn.items():
        dot = "o" if len(points) == 1 else None  # A single point is no line.
        style = dict(color=colours[label], linewidth=1, marker=dot, markersize=3)
        axis.plot(*points.T, label=label, **style)
    if "%" in unit:  # Without the margin that reaches beyond all and none.
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 100))
    _frame(axis, title, "step", unit)


def occlusion(figures: Mapping) -> figure.Figure:
    """One plot per order of hiding, one line per model.

    Args:
        figures: the part `occlusion` of an analysis.
    """
    sheet = figure.Figure(figsize=(11, 3.4), layout="constrained")
    axes = sheet.subplots(1, len(ORDERS), sharey=True)
    share = 100 * np.array(figures["hidden"]) / figures["patches"]
    colours = _colours(figures["names"])
    unit = figures.get("score_unit", "%")  # Older files have none.
    for axis, (order, title) in zip(axes, ORDERS.items(), strict=True):
        for name, colour in colours.items():
            style = dict(color=colour, linewidth=1.2, marker="o", markersize=3)
            axis.plot(share, figures["curves"][name][order], label=name, **style)
        _frame(axis, title, "hidden patches (%)", "")
        if unit == "%":
            axis.set_ylim(0, 102)
    label = f"{figures['score']} ({unit})" if unit else figures["score"]
    axes[0].set_ylabel(label, fontsize=8)
    _legend(sheet, axes)
    return sheet


def cka(figures: Mapping) -> figure.Figure:
    """One map per model: its blocks against those of the reference.

    Args:
        figures: the part `cka` of an analysis.
    """
    against = figures["against"]
    maps = {
        name: np.array(against[name]["cka"])
        for name in figures["names"]
        if name in against
    }
    columns = min(4, len(maps))
    lines = -(-len(maps) // columns)
    sheet = figure.Figure(figsize=(2.7 * columns, 2.6 * lines), layout="constrained")
    axes = list(sheet.subplots(lines, columns, squeeze=False).flat)
    for axis, (name, values) in zip(axes, maps.items(), strict=False):
        shown = axis.imshow(
            values, origin="lower", aspect="auto", vmin=0, vmax=1, cmap="viridis"
        )
        noise = against[name]["noise"]
        _frame(
            axis, f"{name}\n(noise {noise:.2f})", f"block of {figures['reference']}", ""
        )
        axis.set_ylabel("own block", fontsize=8)
        axis.grid(visible=False)
        for side, count in zip(("y", "x"), values.shape, strict=True):
            ticks = np.arange(0, count, max(1, count // 6))
            axis.set(**{f"{side}ticks": ticks, f"{side}ticklabels": ticks + 1})
        if values.size <= 64:
            for (row, column), value in np.ndenumerate(values):
                colour = "black" if value > 0.6 else "white"
                style = dict(ha="center", va="center", fontsize=7, color=colour)
                axis.text(column, row, f"{value:.2f}", **style)
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    bar = sheet.colorbar(shown, ax=axes[: len(maps)], shrink=0.9, pad=0.02)
    bar.set_label("linear CKA (0 to 1)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return sheet


def pictures(shown: Mapping[str, np.ndarray]) -> figure.Figure:
    """Original, visible and reconstruction, one picture a column."""
    return reconstructions.draw(shown)


def svg(sheet: figure.Figure) -> bytes:
    """The sheet as SVG, the same bytes for the same numbers."""
    file = io.BytesIO()
    with rc_context({"svg.hashsalt": "g2sd"}):
        sheet.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def png(sheet: figure.Figure) -> bytes:
    file = io.BytesIO()
    sheet.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _colours(labels: Sequence[str]) -> dict[str, str]:
    return {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}


def _frame(axis, title, horizontal, vertical):
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(horizontal, fontsize=8)
    axis.set_ylabel(vertical, fontsize=8)
    axis.tick_params(labelsize=7)
    axis.locator_params(nbins=6)
    axis.grid(alpha=0.3)


def _legend(sheet, axes, columns=6):
    """Below the plots, where it covers no line."""
    drawn = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        drawn = dict(zip(labels, handles, strict=True)) | drawn
    if drawn:
        where = dict(
            loc="outside lower center", ncols=min(columns, len(drawn)), fontsize=8
        )
        sheet.legend(drawn.values(), drawn.keys(), **where)
