# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""From a compiled step to time, money and words: the modelled half of a plan."""

import math
from collections.abc import Callable, Sequence

from g2sd_jax import step as stepping

UNITS = dict(B=1, kB=1e3, MB=1e6, GB=1e9)


def check(args) -> None:
    """Refuses what no figure can be made from, before anything is compiled."""
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


def points(text: str) -> list[tuple[int, int]]:
    """`32,64:1,4` as [(images per device, fsdp width), ...]."""
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


def roofline(products: float, moved: float, sent: dict, batch: int, where) -> dict:
    """Seconds below which no step can be, by what it would wait for.

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


def recipe(config, figures: dict, args) -> dict:
    """Steps, epochs, hours and cost of the whole recipe, evaluation not counted."""
    _, steps = stepping.count(config)
    epochs = steps * config.batch / config.data.train_examples
    found = dict(steps=steps, epochs=epochs, images=steps * config.batch)
    if "roofline" not in figures:
        return found
    seconds = figures["roofline"]["step_s"] / args.efficiency
    hours = steps * seconds / 3600
    chip_hours = hours * figures["devices"]
    rate = figures["roofline"]["images_per_s_per_host"] * args.efficiency
    found |= dict(
        efficiency=args.efficiency,
        step_s=seconds,
        images_per_s=config.batch / seconds,
        images_per_s_per_host=rate,
        hours=hours,
        chip_hours=chip_hours,
    )
    if args.price is not None:
        found |= dict(price=args.price, cost=chip_hours * args.price)
    if args.hours is not None:
        found |= dict(
            hours_given=args.hours,
            share_done=min(1.0, args.hours / hours),
            epochs_done=epochs * min(1.0, args.hours / hours),
        )
    return found


def sources(where) -> dict:
    """Where each group of figures comes from."""
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


def sweep(text: str, config, where, plan: Callable) -> list[dict]:
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


def advice(figures: dict) -> list[str]:
    """What to change where memory does not suffice, the best first."""
    memory, mesh = figures["memory"], figures["mesh"]
    held = memory["bytes_per_device"]
    kept = sum(held[name] for name in ("parameters", "optimiser", "teacher"))
    found = []
    if kept > 0.3 * memory["limit"] and mesh["data"] > 1:
        width = mesh["fsdp"] * min(mesh["data"], max(2, math.ceil(kept / 1e9)))
        while figures["devices"] % width:
            width += 1
        found.append(f"--config.mesh.fsdp={width} (splits {human(kept)} that are kept)")
    if held.get("activations", math.inf) > 0.3 * memory["limit"]:
        if figures["scan"]:
            found.append("--config.scan=False (unrolled, fewer residuals are stacked)")
        if figures["remat"] == "none":
            found.append("--config.remat=dots or full (recomputes instead of keeping)")
        if figures["batch_per_device"] > 1:
            parts = 2 * figures["accumulate"]
            found.append(f"--config.accumulate={parts} (half the images at once)")
    return found or ["more devices, or a smaller --config.batch"]


def human(size: float) -> str:
    """Bytes as a person reads them."""
    unit = max((u for u in UNITS if abs(size) >= UNITS[u]), key=UNITS.get, default="B")
    return f"{size / UNITS[unit]:.4g} {unit}"


def table(rows: Sequence[dict]) -> str:
    """A sweep's rows, one line each."""
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


def describe(figures: dict) -> str:
    """The figures for a reader, each line with where it comes from."""
    lines = [
        "{stage} on {devices} x {device} ({topology}, {hosts} hosts), {dtype}, batch "
        "{batch} = {batch_per_device} x {devices} x {accumulate}, mesh {mesh}, "
        "scan={scan}, remat={remat}".format(**figures)
    ]
    memory = figures["memory"]
    held = memory["bytes_per_device"].items()
    lines.append(
        "  memory per device (compiled): "
        + ", ".join(f"{name} {human(size)}" for name, size in held)
    )
    count = figures["flops_per_image"]
    compiled = count.get("compiled")
    said = "not seen in the text" if compiled is None else f"{compiled / 1e9:.2f}"
    lines.append(
        f"  GFLOP per image: {count['asked'] / 1e9:.2f} asked for (modelled), "
        f"{said} compiled"
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
    once = len(figures["loops_counted_once"])
    note = f"; {once} loops of unknown length counted once" * bool(once)
    return [
        f"  bytes per image (compiled): {human(moved['memory'])} of main memory, "
        f"{human(moved['all'])} with what stays on the chip{note}",
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
    if "cost" in recipe:
        lines.append("  at {price} a chip hour: {cost:.0f}".format(**recipe))
    if "hours_given" in recipe:
        lines.append(
            "  in {hours_given} hours: {epochs_done:.1f} epochs, {share_done:.0%} of "
            "the recipe".format(**recipe)
        )
    return lines


def verdict(figures: dict) -> str:
    """The last line: yes or no, by how much, and what to change."""
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
