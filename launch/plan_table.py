# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/plan.md: python launch/plan_table.py FOLDER [WORD …]

Plans every row that FOLDER does not hold yet, one after the other, each in a process of
its own, and prints the tables of all rows in it. Words choose rows: v6e, h14, fsdp.
"""

import json
import pathlib
import re
import subprocess
import sys

RECIPES = {  # recipe: GFLOP per image of the method, section 14
    "pretrain:model=b16": 58.45,
    "pretrain:model=l16": 124.22,
    "generic_distill:student=ti16": 17.21,
    "generic_distill:student=s16": 25.21,
    "dmae_distill": 81.83,
    "specific_cls:student=s16": 62.76,
}
TOPOLOGIES = ("v5e:8x8", "v5e:4x4", "v4:2x2x4", "v6e:4x4")
SMALL, HUGE = "generic_distill:student=s16", "pretrain:model=h14"
DENSE = ("finetune:task=segmentation,model=b16", "specific_seg:student=s16")
POD, BETWEEN = 256, 6.4e12 / 8  # Chips of a v5e pod; bytes/s out of it, to others.
OTHERS = (  # recipe, topology, changes
    (HUGE, "v5e:8x8", "remat=full"),
    (HUGE, "v5e:8x8", "accumulate=4"),
    (HUGE, "v5e:8x8", "accumulate=4 mesh.fsdp=8"),
    *((recipe, slice, "") for recipe in DENSE for slice in ("v5e:4x4", "v4:2x2x1")),
    (SMALL, "v5e:4x4", "mesh.fsdp=4"),
    (SMALL, "v5e:4x4", "mesh.fsdp=4 batch=1024"),
)


def main(folder: str, *words: str) -> int:
    """Plans the missing rows, and prints the tables."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [(recipe, topology, "") for topology in TOPOLOGIES for recipe in RECIPES]
    for recipe, topology, changes in (*rows, *OTHERS):
        if not all(word in f"{recipe} {topology} {changes}" for word in words):
            continue
        planned = plan(folder, recipe, topology, changes)
        # The published batch on a small slice: as many micro-batches as it takes.
        parts = 1
        while planned and not planned["memory"]["fits"] and not changes and parts < 16:
            parts = max(2 * parts, micro_batches(planned["memory"]))
            planned = plan(folder, recipe, topology, f"accumulate={parts}")
    print(table(folder))
    for path in sorted(folder.glob("v5e_8x8_*.json")):
        figures = json.loads(path.read_text())
        if "roofline" in figures:
            print(f"\n{path.stem}\n\n{scaling(figures)}")
    return 0


def micro_batches(memory: dict) -> int:
    """Returns the power of two of micro-batches with which the total should fit."""
    parts = 1
    while memory["total"] > parts * memory["limit"]:
        parts *= 2
    return parts


def plan(folder: pathlib.Path, recipe: str, topology: str, changes: str) -> dict:
    """Returns the figures of a row, planned unless they are there; {} on failure."""
    name = re.sub(r"\W+", "_", f"{topology} {recipe} {changes}").strip("_")
    out = folder / f"{name}.json"
    if not out.exists():
        command = [sys.executable, "-m", "g2sd_jax.cli", "plan", f"--config={recipe}"]
        command += [f"--topology={topology}", f"--out={out}", "--no-eval"]
        if recipe not in DENSE:  # As files send pictures: on canvases, with boxes.
            command += ["--config.data.source=folder"]
        command += [f"--config.{change}" for change in changes.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        text = done.stdout if out.exists() else done.stderr
        (folder / f"{name}.log").write_text(text)
        print(recipe, topology, changes, text.strip().splitlines()[-1], flush=True)
    return json.loads(out.read_text()) if out.exists() else {}


def table(folder: pathlib.Path) -> str:
    """Returns a Markdown table of all planned rows."""
    columns = [
        *("recipe", "slice", "mesh", "images x parts", "remat", "kept GB"),
        *("activations GB", "all GB", "fits", "GFLOP asked", "compiled", "method"),
        *("MB moved", "all-reduce MB", "all-gather MB", "reduce-scatter MB"),
        *("images/s", "bound by"),
    ]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for path in sorted(folder.glob("*.json")):
        lines.append(row(json.loads(path.read_text())))
    return "\n".join(lines)


def row(figures: dict) -> str:
    """Returns the Markdown row of one plan."""
    memory, size_of = figures["memory"], figures["memory"]["bytes_per_device"]
    count, mesh = figures["flops_per_image"], figures["mesh"]
    gb = lambda size: f"{size / 1e9:.2f}"
    cells = [
        figures["spec"],
        figures["topology"],
        f"{mesh['data']} x {mesh['fsdp']}",
        f"{figures['batch_per_device']} x {figures['accumulate']}",
        figures["remat"],
        gb(sum(size_of[name] for name in ("parameters", "optimiser", "teacher"))),
        gb(size_of["activations"]),
        f"{gb(memory['total'])} of {gb(memory['limit'])}",
        "yes" if memory["fits"] else "no",
        f"{count['asked'] / 1e9:.2f}",
    ]
    if "roofline" in figures:
        kinds, line = figures["collectives"]["kinds"], figures["roofline"]
        sent = ("all-reduce", "all-gather", "reduce-scatter")
        cells += [
            f"{count['compiled'] / 1e9:.2f}",
            str(RECIPES.get(figures["spec"], "")),
            f"{figures['bytes_per_image']['memory'] / 1e6:.0f}",
            *(
                f"{kinds[kind]['bytes'] / 1e6:.1f}" if kind in kinds else ""
                for kind in sent
            ),
            f"{line['images_per_s']:.0f}",
            line["bound_by"],
        ]
    return "| " + " | ".join(cells) + " |"


def scaling(figures: dict) -> str:
    """Returns Markdown: the step of a plan, scaled to 8 to 1,024 chips of v5e.

    Weak scaling: the images per chip stay. Strong scaling: the recipe's batch is split.
    """
    lines = ["| chips | weak: images/s | all-reduce ms | strong: images/s | step ms |"]
    lines.append("|---" * 5 + "|")
    per_chip, seconds = figures["batch_per_device"], figures["roofline"]["seconds"]
    busy = max(seconds["compute"], seconds["memory"])
    bytes_, count = figures["collectives"]["bytes"], figures["devices"]
    link = figures["collectives"]["sent_per_device"] / seconds["collectives"]
    for chips in (8, 16, 32, 64, 128, 256, 512, 1024):
        inside, pods = min(chips, POD), max(1, chips // POD)
        sending = 2 * (inside - 1) / inside * bytes_ / link
        # Between pods each chip has its part of the sum left, and its part of the way.
        sending += 2 * (pods - 1) / pods * bytes_ / BETWEEN
        weak = chips * per_chip / max(busy, sending)
        step = max(busy * count / chips, sending)
        strong = figures["batch"] / step
        lines.append(
            f"| {chips} | {weak:,.0f} | {1e3 * sending:.2f} | {strong:,.0f} | "
            f"{1e3 * step:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
