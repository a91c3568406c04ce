# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From a compiled step to time and money: the modelled half of a plan."""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from g2sd_jax import step
from g2sd_jax.measure import topology

INPUT_FIGURES = ("cores", "images_per_s", "python_images_per_s")


def check(args: argparse.Namespace) -> None:
    """Refuses unusable arguments before anything is compiled."""
    if not 0 < args.efficiency <= 1:
        raise ValueError(
            f"--efficiency={args.efficiency} is a share of the roofline, more than 0 "
            "and at most 1."
        )
    for name in ("price", "hours"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise ValueError(f"--{name}={value} must be more than 0.")
    if args.sweep:
        points(args.sweep)
    if args.input:
        measured_input(args.input)


def points(text: str) -> list[tuple[int, int]]:
    """Reads `32,64:1,4` as [(images per device, fsdp width), ...]."""
    batches, _, widths = text.partition(":")
    try:
        batches = [int(batch) for batch in batches.split(",")]
        widths = [int(width) for width in (widths or "1").split(",")]
    except ValueError:
        batches = []
    if not batches or min(*batches, *widths) < 1:
        raise ValueError(
            f"--sweep={text!r}: write images per device, a colon, and fsdp widths, "
            "such as 32,64,128:1,4"
        )
    return [(batch, width) for width in widths for batch in batches]


def roofline(
    products: float,
    moved: float,
    sent: Mapping[str, Any],
    batch: int,
    where: topology.Slice,
) -> dict[str, Any]:
    """Bounds the seconds of a step from below, by what it would wait for.

    Args:
        products: FLOPs of one device in a step.
        moved: bytes between one device and its memory.
        sent: of `collectives.summary`.
        batch: images of a step.
        where: the devices.
    """
    chip = where.chip
    seconds = dict(compute=products / chip.flops)
    if chip.bandwidth:
        seconds["memory"] = moved / chip.bandwidth
    if chip.links:
        seconds["collectives"] = sent["sent_per_device"] / chip.links
    limit = max(seconds, key=seconds.get)
    rate = batch / seconds[limit]
    return dict(
        seconds=seconds,
        bound_by=limit,
        step_s=seconds[limit],
        images_per_s=rate,
        images_per_s_per_host=rate / where.hosts,
    )


def measured_input(path: str) -> dict[str, Any]:
    """Reads what `g2sd bench --input --out=PATH` measured on some host."""
    try:
        with open(path, encoding="utf-8") as file:
            [figures] = json.load(file)
        return {key: float(figures[key]) for key in INPUT_FIGURES}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--input={path} is no file that `g2sd bench --input --out=` wrote "
            f"({error!r})."
        ) from error


def host_input(path: str, wanted: float) -> dict[str, float]:
    """Compares what a host can read with what its chips take.

    Args:
        path: of `measured_input`.
        wanted: images/s that each host has to hand over.

    Returns:
        The measured figures, `wanted`, and the `cores_wanted` of the measured kind.
    """
    measured = measured_input(path)
    per_core = measured["images_per_s"] / measured["cores"]
    return {
        **measured,
        "wanted": wanted,
        "cores_wanted": math.ceil(wanted / per_core),
    }


def recipe(
    config: ConfigDict, figures: Mapping[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Computes steps, epochs, hours and cost of a recipe, evaluation not counted."""
    _, steps = step.count_steps(config)
    epochs = steps * config.batch / config.data.train_examples
    totals = dict(steps=steps, epochs=epochs, images=steps * config.batch)
    if "roofline" not in figures:
        return totals
    seconds = figures["roofline"]["step_s"] / args.efficiency
    hours = steps * seconds / 3600
    chip_hours = hours * figures["devices"]
    rate = figures["roofline"]["images_per_s_per_host"] * args.efficiency
    totals |= dict(
        efficiency=args.efficiency,
        step_s=seconds,
        images_per_s=config.batch / seconds,
        images_per_s_per_host=rate,
        hours=hours,
        chip_hours=chip_hours,
    )
    if args.input:
        totals |= dict(input=host_input(args.input, rate))
    if args.price is not None:
        totals |= dict(price=args.price, cost=chip_hours * args.price)
    if args.hours is not None:
        totals |= dict(
            hours_given=args.hours,
            share_done=min(1.0, args.hours / hours),
            epochs_done=epochs * min(1.0, args.hours / hours),
        )
    return totals


def sources(where: topology.Slice) -> dict[str, str]:
    """Describes where each group of figures comes from."""
    chip = "measured here" if where.measured else "the maker's figures for the chip"
    return {
        "memory": "compiled: the compiler's own layout of the program",
        "flops_per_image.asked": "modelled: matrix products of the untouched program",
        "flops_per_image.compiled": "compiled: matrix products in the program's text, "
        "loops multiplied by their rounds",
        "bytes_per_image.memory": "compiled: what the program's text moves to or from "
        "main memory, loops multiplied",
        "bytes_per_image.all": "compiled: the same and what stays on the chip, as the "
        "compiler's own figure has it; bounds the traffic from above",
        "collectives": "compiled: read from the program's text, loops multiplied",
        "roofline": f"modelled: the compiled figures over {chip}",
        "recipe": "modelled: the roofline over the assumed efficiency",
    }


def sweep(
    text: str,
    config: ConfigDict,
    where: topology.Slice,
    plan: Callable[..., dict[str, Any]],
) -> list[dict[str, Any]]:
    """Plans the recipe with other images per device and fsdp widths.

    The batch stays the recipe's by accumulation where that divides it; else it becomes
    what the devices hold at once.
    """
    rows, count = [], len(where.devices)
    for per_device, width in points(text):
        changed = config.copy_and_resolve_references()
        with changed.unlocked():
            parts = config.batch / (count * per_device)
            changed.accumulate = max(1, int(parts))
            changed.batch = count * per_device * changed.accumulate
            changed.mesh.data, changed.mesh.fsdp = -1, width
        row = dict(batch_per_device=per_device, fsdp=width, batch=changed.batch)
        row["accumulate"] = changed.accumulate
        try:
            figures = plan(changed, where, evaluate=False)
        except ValueError as error:  # Such as a width that does not divide the devices.
            rows.append(dict(row, refusal=str(error)))
            continue
        memory = figures["memory"]
        row |= dict(total=memory["total"], fits=memory["fits"])
        if "roofline" in figures:
            row |= dict(
                step_s=figures["roofline"]["step_s"],
                images_per_s=figures["roofline"]["images_per_s"],
                bound_by=figures["roofline"]["bound_by"],
                collective_bytes=figures["collectives"]["bytes"],
            )
        rows.append(row)
    return rows
