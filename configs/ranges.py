# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers that every numeric key of every recipe takes: a line a key.

`g2sd_jax.recipes` refuses a config with a number outside of these ranges before
anything is built from it, and a test names the keys of shipped recipes that lack one.
A recipe of your own may add its keys: `ranges.RANGES["distill.gamma"] = ranges.SHARE`.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

INT32 = 2**31 - 1  # Steps and indices of examples are such integers.
TOLD = 1024  # Upper bounds up to here are told with the lower ones.


class Range(NamedTuple):
    """The numbers from `low` to `high`, or tuples of such numbers."""

    low: float
    high: float
    above: bool = False  # `low` itself is excluded.
    below: bool = False  # `high` itself is excluded.
    integer: bool = False  # Where no default says so.
    lengths: tuple[int, ...] | None = None  # Of tuples, () any but 0; None: a number.
    empty: bool = False  # Whether a tuple may be empty, too.
    order: str = ""  # Of a tuple: "", rising (the same twice is fine), strict.
    others: tuple[float, ...] = ()  # Numbers outside that have a meaning of their own.
    hint: str = ""  # What else a user should know.

    def of(self, *lengths: int, empty: bool = False, order: str = "") -> "Range":
        """Tuples of these lengths, or of any; empty ones only where they are allowed.

        Args:
            *lengths: none for any.
            empty: whether () is a value, too.
            order: of the numbers in a tuple, "", rising or strict.
        """
        return self._replace(lengths=lengths, empty=empty, order=order)

    def contains(self, value: Any) -> bool:
        """Whether a key may have this value."""
        if self.lengths is None:
            return self._contains_number(value)
        if not isinstance(value, tuple | list) or not self._fits(len(value)):
            return False
        if not all(map(self._contains_number, value)):
            return False
        pairs = itertools.pairwise(value)
        strict = self.order == "strict"
        return not self.order or all(a < b if strict else a <= b for a, b in pairs)

    def _fits(self, length: int) -> bool:
        if not length:
            return self.empty
        return length in self.lengths or not self.lengths

    def _contains_number(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.integer and not isinstance(value, int):
            return False
        if value in self.others:
            return True
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under  # Neither, if it is not a number.

    def wanted(self, value: Any = None) -> str:
        """What a value must be, to follow "must be".

        Args:
            value: that is refused; a large upper bound is only told to who passed it.
        """
        over = "above" if self.above else "at least"
        under = "below" if self.below else "at most"
        words = f"{over} {self.low:,.10g}"
        numbers = value if isinstance(value, tuple | list) else (value,)
        passed = any(
            number > self.high for number in numbers if isinstance(number, int | float)
        )
        if self.high <= TOLD or (passed and math.isfinite(self.high)):
            words += f" and {under} {self.high:,.10g}"
        if self.integer:
            words = f"an integer {words}"
        if self.others:
            words += " or " + " or ".join(f"{number:g}" for number in self.others)
        if self.lengths is not None:
            count = " or ".join(map(str, self.lengths)) or "one or more"
            words = f"{count} numbers, each {words}"
        if self.order:
            words += ", in rising order"
        words += " or ()" * self.empty
        return words + (f" ({self.hint})" if self.hint else "")


def at_least(low: float, high: float = math.inf, **more: Any) -> Range:
    """Numbers from `low` on."""
    return Range(low, high, **more)


def above(low: float, high: float = math.inf, **more: Any) -> Range:
    """Numbers from `low` on, without it."""
    return Range(low, high, above=True, **more)


SHARE = at_least(0, 1)
PART = at_least(0, 1, below=True)  # A share that leaves something.
PIECE = above(0, 1)  # A share that is something.
FACTOR = at_least(0, 1e6)  # Of a loss, a decay.
COUNT = at_least(1, INT32, integer=True)
COUNT_OR_NONE = at_least(0, INT32, integer=True)
WIDTH = at_least(1, 65_536, integer=True)
DEPTH = at_least(1, 1024, integer=True)
BLOCK = at_least(0, 1023, integer=True)
SIDE = at_least(1, 65_536, integer=True)  # In pixels.
SEED = at_least(0, 2**32 - 1, integer=True)
UNIT = "of pixels in 0..1; divide what is meant for 0..255 by 255"

# By key; a teacher's is the student's unless it has a line. None is taken wherever a
# key may be None. A stage's own range stands behind its name.
RANGES = {
    "seed": SEED,
    "seeds": SEED.of(),  # Of a chain.
    "batch": COUNT,
    "accumulate": COUNT,
    "total_epochs": above(0, 1e6),
    "total_steps": COUNT,
    "data.shuffle_buffer": COUNT,
    "data.train_examples": COUNT,
    "data.classes": at_least(0, 1_000_000, integer=True),
    "data.mean": SHARE.of()._replace(hint=UNIT),
    "data.std": PIECE.of()._replace(hint=UNIT),
    "teacher.mean": SHARE.of(empty=True)._replace(hint=UNIT),
    "teacher.std": PIECE.of(empty=True)._replace(hint=UNIT),
    "epochs.masked": above(0, 1e6),  # Of a chain, as are the next.
    "epochs.tuned": above(0, 1e6),
    "epochs.adapted": above(0, 1e6),
    "data.assumed.train_examples": COUNT,
    "data.assumed.classes": at_least(0, 1_000_000, integer=True),
    "data.max_boxes": at_least(1, 10_000, integer=True),
    "data.mask_size": at_least(1, 1024, integer=True),
    "data.limit": COUNT,
    "data.hold_out": PART,
    "data.ignore": at_least(0, 255, integer=True).of(empty=True),
    "data.canvas": at_least(1, 16, others=(0,)),
    "data.eval_crop": PIECE,
    "data.max_bad_share": SHARE,
    "data.workers": at_least(1, 4096, integer=True),
    "data.prefetch": at_least(1, 4096, integer=True),
    "data.timeout": above(0, 1e9),
    "mesh.data": at_least(1, 1_000_000, integer=True, others=(-1,)),
    "mesh.fsdp": at_least(1, 1_000_000, integer=True, others=(-1,)),
    "log_every": COUNT,
    "first_batch_images": at_least(0, 4096, integer=True),
    "eval_epochs": above(0, 1e9),
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
    "nonfinite.bound": COUNT_OR_NONE,
    "profile": COUNT.of(
        2, empty=True, order="strict"
    ),  # First step, the one after the last.
    "optim.base_lr": at_least(0, 1e4),
    "optim.lr": at_least(0, 1e30),
    "optim.min_lr": at_least(0, 1e4),
    "optim.warmup_epochs": at_least(0, 1e6),
    "optim.warmup_start": SHARE,
    "optim.wd": at_least(0, 100),
    "optim.b1": PART,
    "optim.b2": PART,
    "optim.eps": above(0, 1),
    "optim.clip": at_least(0, 1e9),
    "optim.layer_decay": PIECE,
    "optim.momentum": PART,
    "optim.trust_coefficient": above(0, 1e3),
    "optim.power": at_least(0, 100),
    "optim.decay": PIECE,
    "optim.milestones": SHARE.of(empty=True, order="rising"),
    "augment.crop_area": PIECE.of(2, empty=True, order="rising"),
    "augment.crop_aspect": above(0, 1e3).of(2, order="rising"),
    "augment.crop_tries": at_least(1, 1000, integer=True),
    "augment.crop_share": PIECE,
    "augment.fit": SIDE.of(2),
    "augment.scale": above(0, 100).of(2, order="rising"),
    "augment.flip": SHARE,
    "augment.photometric": SHARE,
    "augment.color_jitter": at_least(0, 10).of(4, empty=True),
    "augment.erase": SHARE,
    "augment.mixup": at_least(0, 1e3),
    "augment.cutmix": at_least(0, 1e3),
    "augment.switch": SHARE,
    "augment.mix_prob": SHARE,
    "augment.smoothing": PART,
    "monitor.neighbours": COUNT_OR_NONE,
    "monitor.bank": COUNT,
    "mask_ratio": SHARE._replace(above=True, below=True),
    "generic_distill mask_ratio": PART,  # 0: nothing is hidden, and no decoder learns.
    "model.width": WIDTH,
    "model.depth": DEPTH,
    "model.heads": WIDTH,
    "model.patch": at_least(1, 1024, integer=True),
    "model.image_size": SIDE.of(2),
    "model.channels": at_least(1, 1024, integer=True),
    "model.mlp_ratio": above(0, 64),
    "model.norm_eps": above(0, 1),
    "model.dec_width": WIDTH,
    "model.dec_depth": DEPTH,
    "model.dec_heads": WIDTH,
    "model.drop_path": PART,
    "model.dropout": PART,
    "model.head_std": SHARE,
    "model.layer_scale": at_least(0, 10),
    "model.taps": BLOCK.of(4),
    "model.head_width": WIDTH,
    "model.aux_width": at_least(0, 65_536, integer=True),
    "model.pool_scales": SIDE.of(),
    "model.variant.registers": at_least(0, 1024, integer=True),
    "model.variant.rotary_theta": above(0, 1e9),
    "model.variant.rotary_grid": SIDE.of(2, empty=True),
    "model.variant.layer_scale": at_least(0, 10),
    "model.pretrain_grid": SIDE.of(2),
    "model.global_blocks": BLOCK.of(empty=True),
    "model.window": at_least(1, 1024, integer=True),
    "model.features": WIDTH,
    "model.head_convs": at_least(0, 64, integer=True),
    "model.hidden": WIDTH,
    "model.box_bins": at_least(1, 256, integer=True),
    "model.mask_bins": at_least(1, 256, integer=True),
    "model.samples": at_least(0, 64, integer=True),  # 0: exact.
    "model.canonical_size": SIDE,
    "model.canonical_level": at_least(0, 16, integer=True),
    "model.anchor_sizes": above(0, 65_536).of(5),
    "model.anchor_ratios": above(0, 1e3).of(),
    "model.adapter": at_least(0, 65_536, integer=True),
    "anchors.count": COUNT,
    "anchors.share": PIECE,
    "anchors.low": SHARE,
    "anchors.high": SHARE,
    "proposals.before": COUNT.of(2),
    "proposals.after": COUNT.of(2),
    "proposals.nms": SHARE,
    "regions.count": COUNT,
    "regions.share": PIECE,
    "regions.overlap": SHARE,
    "loss.group": COUNT,
    "loss.auxiliary": FACTOR,
    "inference.fit": SIDE.of(2),
    "inference.stride": SIDE.of(2),
    "inference.scales": above(0, 100).of(),
    "inference.candidates": COUNT,
    "inference.detections": at_least(1, 10_000, integer=True),
    "inference.least": SHARE,
    "inference.nms": SHARE,
    "distill.student_blocks": BLOCK.of(empty=True),
    "distill.teacher_blocks": BLOCK.of(empty=True),
    "distill.teacher_block": at_least(0, 1024, integer=True),  # 0: after the last norm.
    "distill.weight": FACTOR,
    "specific_cls distill.weight": SHARE,  # What is left weighs the task's label.
    "distill.alpha": FACTOR,
    "distill.beta": FACTOR,
    "generic_distill distill.beta": above(0, 1e6),  # Where smooth-L1 turns linear.
    "distill.temperature": above(0, 1e3),
    "distill.feature": FACTOR,
    "distill.encoder_feature": FACTOR,
    "distill.relation": FACTOR,
    "distill.relation_groups": WIDTH,
    "distill.relation_student_blocks": BLOCK.of(empty=True),
    "distill.relation_teacher_blocks": BLOCK.of(empty=True),
    "distill.class_token": FACTOR,
    "distill.classes": at_least(0, 1_000_000, integer=True),
    "distill.objectness": FACTOR,
    "distill.warmup_steps": COUNT_OR_NONE,
}
RULE = {"wd": RANGES["optim.wd"], "lr_scale": at_least(0, 1e4)}  # Of `optim.rules`.


def find(key: str, stage: str = "") -> Range | None:
    """The range of a key in a recipe of a stage; None where none is declared."""
    both = (key, key.removeprefix("teacher."))
    names = [f"{prefix}{name}" for name in both for prefix in (f"{stage} ", "")]
    return next((RANGES[name] for name in names if name in RANGES), None)


def shown(value: Any) -> str:
    """A value as an error shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({len(text)} characters)"


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about the numbers that no run can have.

    Args:
        values: of a config, by keys such as `optim.lr`.
    """
    stage = values.get("stage") or ""
    for key, value in values.items():
        bounds = find(key, stage)
        if bounds is not None and value is not None and not bounds.contains(value):
            yield f"config.{key}={shown(value)} must be {bounds.wanted(value)}"
    for relation in RELATIONS:
        try:
            yield from relation(values)
        except TypeError:  # Of what is no number, which was told above.
            continue


def _rates(values: Mapping[str, Any]) -> Iterator[str]:
    low, high = values.get("optim.min_lr", 0), values.get("optim.lr", math.inf)
    # A rate that follows a small batch may get there; `open_keys` cuts the other then.
    base, batch = values.get("optim.base_lr", 0), values.get("batch", 0)
    if low <= base and math.isclose(high, base * batch / 256):
        return
    if low > high >= 0:
        yield (
            f"config.optim.min_lr={low} must be at most config.optim.lr={high}, from "
            "which the schedule goes down to it"
        )


def _rules(values: Mapping[str, Any]) -> Iterator[str]:
    """Of `optim.rules`, whose form the optimiser checks."""
    for rule in values.get("optim.rules", ()):
        if len(rule) != 2 or not isinstance(rule[1], Mapping):
            continue
        for name, value in rule[1].items():
            if name in RULE and not RULE[name].contains(value):
                yield (
                    f"config.optim.rules: {name}={value} of {rule[0]!r} must be "
                    f"{RULE[name].wanted(value)}"
                )


def _decoders(values: Mapping[str, Any]) -> Iterator[str]:
    """Of names such as dec512d8b, whose numbers are those of other keys."""
    for key in ("model.decoder", "teacher.model.decoder"):
        match = re.fullmatch(r"dec(\d+)d(\d+)b", values.get(key) or "")
        for name, number in zip(
            ("width", "depth"), match.groups() if match else (), strict=False
        ):
            bounds = RANGES[f"model.dec_{name}"]
            if not bounds.contains(int(number)):
                yield (
                    f"config.{key}={values[key]!r}: its {name} {number} must be "
                    f"{bounds.wanted(int(number))}"
                )


def _channels(values: Mapping[str, Any]) -> Iterator[str]:
    mine, theirs = (values.get(f"{who}model.channels") for who in ("", "teacher."))
    if None not in (mine, theirs) and mine != theirs:
        yield (
            f"config.teacher.model.channels={theirs} must be config.model.channels="
            f"{mine}: both see the same pictures"
        )


def _hue(values: Mapping[str, Any]) -> Iterator[str]:
    jitter = values.get("augment.color_jitter") or ()
    if len(jitter) == 4 and jitter[3] > 0.5:
        yield (
            f"config.augment.color_jitter={jitter}: its last amount, of hue, must be "
            "at most 0.5"
        )


RELATIONS: tuple[Callable[[Mapping[str, Any]], Iterator[str]], ...]
RELATIONS = (_rates, _rules, _decoders, _channels, _hue)
