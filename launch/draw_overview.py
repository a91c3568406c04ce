# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Draws README's picture: python launch/draw_overview.py --out=docs/overview.svg"""

import argparse
import sys
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib import figure, patches

BLUE, GREEN, ORANGE, GREY = "#dbe7f5", "#dff0dd", "#fbe8d3", "#555555"
BOXES = {  # name: (x, y, width, height, colour, title, text)
    "pictures": (
        0.1,
        1.25,
        2.0,
        1.1,
        BLUE,
        "your pictures",
        "a folder, a tar,\nTFDS, COCO json",
    ),
    "teacher": (
        0.1,
        0.05,
        2.0,
        1.0,
        BLUE,
        "a large teacher",
        "trained here, or\nsomebody's weights",
    ),
    "generic": (
        2.9,
        0.6,
        2.0,
        1.2,
        GREEN,
        "generic",
        "the student learns\nthe teacher's features,\nno labels",
    ),
    "specific": (
        5.5,
        0.6,
        2.0,
        1.2,
        ORANGE,
        "specific",
        "the student learns\nits answers to\nyour task",
    ),
    "student": (
        8.1,
        0.6,
        2.0,
        1.2,
        BLUE,
        "a small student",
        "report, and weights for\ntimm, transformers,\nStableHLO, ONNX",
    ),
}
ARROWS = (  # (from, to): points
    ((2.1, 1.8), (2.9, 1.4)),
    ((2.1, 0.55), (2.9, 1.0)),
    ((4.9, 1.2), (5.5, 1.2)),
    ((7.5, 1.2), (8.1, 1.2)),
)


def draw() -> figure.Figure:
    """Draws what goes in, the two distillations, and what comes out."""
    sheet = figure.Figure(figsize=(10.2, 2.5))
    axes = sheet.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10.2), ylim=(0, 2.5))
    axes.axis("off")
    for x, y, width, height, colour, title, text in BOXES.values():
        axes.add_patch(
            patches.FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour,
                edgecolor=GREY,
                linewidth=0.8,
            )
        )
        middle = x + width / 2
        axes.text(
            middle, y + height - 0.22, title, ha="center", va="center", weight="bold"
        )
        axes.text(
            middle, y + (height - 0.34) / 2, text, ha="center", va="center", fontsize=9
        )
    for start, end in ARROWS:
        axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=GREY))
    return sheet


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="an .svg or .png file")
    args = parser.parse_args(argv)
    # The same bytes from every run: names in the file and its date are fixed.
    mpl.rcParams["svg.hashsalt"] = "g2sd_jax"
    metadata = {"Date": None} if args.out.endswith(".svg") else None
    draw().savefig(args.out, metadata=metadata, dpi=150)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
