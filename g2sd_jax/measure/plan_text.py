# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A plan in words: its figures, whether it fits, and what to change."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

UNITS = dict(B=1, kB=1e3, MB=1e6, GB=1e9)


def advice(figures: Mapping[str, Any]) -> list[str]:
    """Lists what to change where memory does not suffice, the best first."""
    memory, mesh = figures["memory"], figures["mesh"]
    sizes = memory["bytes_per_device"]
    lasting = sum(sizes[name] for name in ("parameters", "optimiser", "teacher"))
    changes = []
    if lasting > 0.3 * memory["limit"] and mesh["data"] > 1:
        width = mesh["fsdp"] * min(mesh["data"], max(2, math.ceil(lasting / 1e9)))
        while figures["devices"] % width:
            width += 1
        changes.append(
            f"--config.mesh.fsdp={width} (splits {human(lasting)} that are kept)"
        )
    if sizes.get("activations", math.inf) > 0.3 * memory["limit"]:
        if figures["scan"]:
            changes.append(
                "--config.scan=False (unrolled, fewer residuals are stacked)"
            )
        if figures["remat"] in ("none", "dots", "products"):
            changes.append("--config.remat=full (recomputes instead of keeping)")
        if figures["batch_per_device"] > 1:
            parts = 2 * figures["accumulate"]
            changes.append(f"--config.accumulate={parts} (half the images at once)")
    return changes or ["more devices, or a smaller --config.batch"]


def human(size: float) -> str:
    """Formats bytes for a reader."""
    unit = max((u for u in UNITS if abs(size) >= UNITS[u]), key=UNITS.get, default="B")
    return f"{size / UNITS[unit]:.4g} {unit}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes a sweep's rows, one line each."""
    lines = [
        "images/device  fsdp  batch x parts  memory  fits  images/s at the roofline"
    ]
    for row in rows:
        begin = "{batch_per_device:>13}  {fsdp:>4}  {batch} x {accumulate}".format(
            **row
        )
        if "refusal" in row:
            lines.append(f"{begin}  {row['refusal']}")
            continue
        fits = "yes" if row["fits"] else "no"
        rate = "?"
        if "images_per_s" in row:
            rate = "{images_per_s:.0f} ({bound_by})".format(**row)
        lines.append(f"{begin}  {human(row['total'])}  {fits}  {rate}")
    return "\n".join(lines)


def describe(figures: Mapping[str, Any]) -> str:
    """Writes the figures for a reader, each line with where it comes from."""
    lines = [
        "{stage} on {devices} x {device} ({topology}, {hosts} hosts), {dtype}, batch "
        "{batch} = {batch_per_device} x {devices} x {accumulate}, mesh {mesh}, "
        "scan={scan}, remat={remat}, attention={attention}".format(**figures)
    ]
    shapes = figures["batch_shapes"].items()
    lines.append(
        "  batch of config.data.source={!r}: {}".format(
            figures["source"], ", ".join(f"{name} {shape}" for name, shape in shapes)
        )
    )
    memory = figures["memory"]
    sizes = memory["bytes_per_device"].items()
    lines.append(
        "  memory per device (compiled): "
        + ", ".join(f"{name} {human(size)}" for name, size in sizes)
    )
    count = figures["flops_per_image"]
    compiled = count.get("compiled")
    in_text = "not seen in the text" if compiled is None else f"{compiled / 1e9:.2f}"
    lines.append(
        f"  GFLOP per image: {count['asked'] / 1e9:.2f} asked for (modelled), "
        f"{in_text} compiled"
    )
    if "roofline" in figures:
        lines += _of_the_step(figures)
    for name, row in figures.get("evaluation", {}).items():
        fits = "fits" if row["fits"] else "does not fit"
        lines.append(f"  evaluation {name!r} (compiled): {human(row['total'])}, {fits}")
    return "\n".join(lines + _of_the_recipe(figures["recipe"]))


def _of_the_step(figures: dict) -> list[str]:
    moved, sent = figures["bytes_per_image"], figures["collectives"]
    kinds = ", ".join(
        f"{kind} {human(row['bytes'])} in {row['count']}"
        for kind, row in sent["kinds"].items()
    )
    line = figures["roofline"]
    parts = ", ".join(
        f"{name} {1000 * s:.2f} ms" for name, s in line["seconds"].items()
    )
    groups = ", ".join(
        f"{name} {human(size)}"
        for name, size in [*figures["bytes_by_group"].items()][:8]
    )
    once = len(figures["loops_counted_once"])
    note = f"; {once} loops of unknown length counted once" * bool(once)
    return [
        f"  bytes per image (compiled): {human(moved['memory'])} of main memory, "
        f"{human(moved['all'])} with what stays on the chip{note}",
        f"  most of them in (compiled): {groups}",
        f"  collectives per step (compiled): {kinds or 'none'}",
        f"  roofline (modelled): {parts}; {line['images_per_s']:.0f} images/s, "
        f"{line['images_per_s_per_host']:.0f} per host, bound by {line['bound_by']}",
    ]


def _of_the_recipe(recipe: dict) -> list[str]:
    lines = ["  the recipe: {steps} steps, {epochs:.1f} epochs".format(**recipe)]
    if "hours" in recipe:
        lines.append(
            "  modelled at {efficiency:.0%} of the roofline: {images_per_s:.0f} "
            "images/s, {images_per_s_per_host:.0f} from each host; {hours:.1f} hours, "
            "{chip_hours:.0f} chip hours".format(**recipe)
        )
    if "input" in recipe:
        lines.append(
            "  input (measured): {images_per_s:.0f} images/s from {cores:.0f} cores; "
            "each host wants {wanted:.0f}, which {cores_wanted} such cores would bring"
            "".format(**recipe["input"])
        )
        if recipe["input"]["python_images_per_s"] < recipe["input"]["wanted"]:
            lines.append(
                "    more than one process hands over from any number of cores, "
                "{python_images_per_s:.0f}: prepare a smaller copy, or take more hosts"
                "".format(**recipe["input"])
            )
    if "cost" in recipe:
        lines.append("  at {price} a chip hour: {cost:.0f}".format(**recipe))
    if "hours_given" in recipe:
        lines.append(
            "  in {hours_given} hours: {epochs_done:.1f} epochs, {share_done:.0%} of "
            "the recipe".format(**recipe)
        )
    return lines


def verdict(figures: Mapping[str, Any]) -> str:
    """Writes the last line: yes or no, by how much, and what to change."""
    memory = figures["memory"]
    size = f"{memory['total'] / 1e9:.2f} of {memory['limit'] / 1e9:.2f} GB per device"
    worst = [
        name for name, row in figures.get("evaluation", {}).items() if not row["fits"]
    ]
    if memory["fits"] and not worst:
        return f"fits: yes, {size}, {human(memory['spare'])} to spare"
    if memory["fits"]:
        rows = ", ".join(worst)
        return f"fits: no, training does ({size}) but evaluation {rows} does not"
    if memory["refusal"]:
        size = f"the compiler refused: {memory['refusal']}"
    else:
        size += f", {human(-memory['spare'])} too much"
    return f"fits: no, {size}; try {', '.join(advice(figures))}"
