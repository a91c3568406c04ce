# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The central table on CIFAR-10, beside controls of equal compute.

    bash launch/cifar10.sh 'DIR/cifar10_{split}.tar.gz' runs/cifar10

Eight minutes of one large GPU, several runs side by side. All seeds share one teacher.
Masked stages come in lengths 1 to 4, each so many times the one before: the FLOPs of a
step of generic distillation, its teacher's forward pass counted, over those of a step
of the student's own autoencoder. So `mae2` costs what `generic1` does, `mae3` what
`generic2` does, and `mae4` what `generic1` and the training of its teacher do together.
In the same way the plain fine-tunings called `long` cost what specific ones do.

Steps stand in the order of their importance, for a launcher that stops at a time: what
answers the question on a tenth of the labels; frozen features; a hundredth; all labels.

`path` names an .npz per split, of `launch/cifar10.sh`: train, test, and `tenth` and
`hundredth`, the first 500 and 50 training pictures of every class.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ml_collections import ConfigDict

from g2sd_jax.configs import common
from g2sd_jax.configs.chains import table

SHAPE = dict(size="custom", image_size=(32, 32), patch=4)
STUDENT = dict(SHAPE, width=96, depth=4, heads=3)
STUDENT_MAE = STUDENT | dict(decoder="dec64d2b", dec_heads=2)
STARTS = ("mae1", "generic1", "dmae1", "mae2", "generic2", "dmae2", "mae3")

PROBE_RATE = 6.4  # The published one, for any batch: LARS takes steps of a share.
ONCE = dict(seed=0)  # A run that all seeds share.
PLAIN = dict(
    crop_area=(0.25, 1.0),
    flip=0.5,
    randaugment="",
    erase=0.0,
    mixup=0.0,
    cutmix=0.0,
)
MIXED = PLAIN | dict(mixup=0.8, cutmix=1.0)

ROWS = (
    ("teacher", "teacher_tenth"),
    ("MAE", "mae2_tenth"),
    ("MAE ms", "mae2_tenth_ms"),
    ("G2SD w/o S.D", "generic2_tenth"),
    ("G2SD", "generic2_tenth_ms"),
    ("DMAE", "dmae2_tenth"),
    ("scratch", "scratch_tenth"),
    ("MAE, masked stage of equal compute", "mae3_tenth"),
    ("MAE, fine-tuning of equal compute", "mae2_tenth_long"),
    ("G2SD w/o S.D, fine-tuning of equal compute", "generic2_tenth_long"),
)
NOTE = (
    "Simplified against the published recipes: students pool over their patches and "
    "have no distillation token, specific distillation matches soft targets at "
    "temperature 2, and crops and flips are the only augmentation of fine-tuning. "
    "The masked stages' rate is 2e-3, above the 6e-4 of the published rule, for they "
    "are short; those of fine-tuning follow the rule. All were set before any run, as "
    "were the lengths, from FLOPs; no seed was chosen by its result. One teacher "
    "serves all seeds: the deviations are those of students."
)

Recipe = tuple[str, dict]  # Its name with arguments, and overrides.


class Scale(NamedTuple):
    """The size of the teacher and the length of all stages, and the steps of them.

    The methods that take a `start` name the step whose weights a run begins with; one
    that takes a `number` makes the masked stage of that length, from 1 to 4.
    """

    teacher: dict  # Shape of the encoder.
    teacher_mae: dict  # The same with its decoder, four blocks deep.
    # MFLOP of matrix products per image of a step, forward and backward, as `g2sd
    # bench` counts them: masked stages, fine-tuning and specific distillation.
    cost: dict
    epochs: float  # Of the masked stages of length 1.
    batch: int  # Of masked stages.
    rate: float  # Of masked stages.
    subsets: dict  # {name: (training pictures, batch, epochs of fine-tuning)}
    dtype: str

    def length(self, number: int) -> float:
        """Epochs of a masked stage."""
        return self.epochs * (self.cost["generic"] / self.cost["mae"]) ** (number - 1)

    def masked(self, model: dict, epochs: float) -> dict:
        """Overrides of a masked stage."""
        return dict(
            model=model,
            batch=self.batch,
            total_epochs=epochs,
            optim=dict(lr=self.rate, warmup_epochs=epochs / 10),
            monitor=dict(neighbours=20),
            compute_dtype=self.dtype,
        )

    def mae_of_teacher(self) -> Recipe:
        """The teacher's own masked autoencoder; with it `generic1` costs `mae4`."""
        student = self.length(4) - self.length(2)
        epochs = student * self.cost["mae"] / self.cost["teacher_mae"]
        return "pretrain:model=custom", self.masked(self.teacher_mae, epochs) | ONCE

    def mae(self, number: int, **more: object) -> Recipe:
        """The student's own masked autoencoder."""
        changes = self.masked(STUDENT_MAE, self.length(number))
        return "pretrain:model=custom", changes | more

    def generic(self, number: int) -> Recipe:
        """Generic distillation."""
        changes = self.masked(STUDENT_MAE, self.length(number)) | dict(
            teacher=dict(model=self.teacher_mae, checkpoint="{teacher_mae}"),
            distill=dict(teacher_block=2),  # The middle one.
        )
        return "generic_distill:student=custom,teacher=custom", changes

    def dmae(self, number: int) -> Recipe:
        """DMAE, of a fresh student."""
        teacher = dict(model=self.teacher_mae, checkpoint="{teacher_mae}")
        changes = self.masked(STUDENT_MAE, self.length(number)) | dict(
            teacher=teacher | dict(target="normalised"),
            # Three quarters deep, as published.
            distill=dict(student_blocks=(2,), teacher_blocks=(4,)),
        )
        return "dmae_distill:student=custom,teacher=custom", changes

    def tuned(self, subset: str, model: dict, rate: float, times: float = 1.0) -> dict:
        """Overrides of supervised training, `times` the usual length of the subset."""
        count, batch, epochs = self.subsets[subset]
        return dict(
            model=model,
            data=dict(train_split=subset, train_examples=count),
            batch=batch,
            total_epochs=epochs * times,
            optim=dict(lr=rate * batch / 256, warmup_epochs=epochs * times / 20),
            augment=PLAIN,
            compute_dtype=self.dtype,
        )

    def tuned_teacher(self, subset: str) -> Recipe:
        """The teacher, fine-tuned; 5e-4 per 256 is published for its like."""
        changes = self.tuned(subset, self.teacher, 5e-4)
        return "finetune:model=custom", changes | dict(init_from="{teacher_mae}") | ONCE

    def scratch(self, subset: str, **more: object) -> Recipe:
        """The student from nothing: no layer decays, no head starts at zero."""
        changes = self.tuned(subset, STUDENT | dict(head_std=0.02), 1e-3)
        changes["optim"]["layer_decay"] = 1.0
        return "finetune:model=custom", changes | more

    def finetuned(
        self, subset: str, start: str, times: float = 1.0, **more: object
    ) -> Recipe:
        """The student, fine-tuned on the labels."""
        changes = self.tuned(subset, STUDENT, 1e-3, times)
        return "finetune:model=custom", changes | dict(init_from=f"{{{start}}}") | more

    def long(self, subset: str, start: str) -> Recipe:
        """The student, fine-tuned for the FLOPs of specific distillation."""
        times = self.cost["specific"] / self.cost["finetune"]
        return self.finetuned(subset, start, times)

    def specific(self, subset: str, start: str, **more: object) -> Recipe:
        """The student under specific distillation."""
        pooled = dict(pool="avg", dist_token=False, readout="cls")
        changes = self.tuned(subset, STUDENT | pooled, 1e-3) | dict(
            init_from=f"{{{start}}}",
            teacher=dict(model=self.teacher, checkpoint=f"{{teacher_{subset}}}"),
            distill=dict(temperature=2.0),
        )
        return "specific_cls:student=custom,teacher=custom,loss=soft", changes | more

    def probe(self, model: dict, start: str, **more: object) -> Recipe:
        """A linear layer on a frozen encoder, on all labels."""
        changes = dict(
            model=model,
            batch=1024,
            total_epochs=10.0,
            optim=dict(lr=PROBE_RATE, warmup_epochs=1.0),
            compute_dtype=self.dtype,
            encoder=dict(checkpoint=f"{{{start}}}"),
        )
        return "linprobe:model=custom", changes | more


GPU = Scale(
    teacher=dict(SHAPE, width=192, depth=6, heads=6),
    teacher_mae=dict(
        SHAPE, width=192, depth=6, heads=6, decoder="dec96d4b", dec_heads=3
    ),
    cost=dict(
        teacher_mae=471.0, mae=93.4, generic=222.7, finetune=193.2, specific=558.9
    ),
    epochs=20.0,
    batch=1024,
    rate=2e-3,
    subsets={
        "tenth": (5_000, 512, 100.0),
        "hundredth": (500, 100, 200.0),
        "train": (50_000, 512, 20.0),
    },
    dtype="bfloat16",
)


def get_config(arguments: str = "") -> ConfigDict:
    args = common.arguments(arguments, seeds=3, path="", epochs=GPU.epochs)
    scale = GPU._replace(epochs=args.epochs)
    return chain(args, {**central(scale), **further(scale)})


def chain(args: ConfigDict, steps: Mapping[str, Recipe]) -> ConfigDict:
    """The chain of some steps, whose overrides name the earlier ones."""
    recipes = {
        name: (recipe, everywhere(args, changes))
        for name, (recipe, changes) in steps.items()
    }
    return table.chain(
        "Distillation on CIFAR-10 beside controls of equal compute",
        NOTE,
        recipes,
        (0,) if args.smoke else range(args.seeds),
        {name: {} for name in recipes},
        ROWS,
    )


def central(scale: Scale) -> dict[str, Recipe]:
    """The steps of the central table on a tenth of the labels, with its controls."""
    steps = {
        # The two longest runs, of which one is waited for.
        "teacher_mae": scale.mae_of_teacher(),
        "mae4": scale.mae(4, **ONCE),
        "mae1": scale.mae(1),
        "mae2": scale.mae(2),
        "mae3": scale.mae(3),
        "scratch_tenth": scale.scratch("tenth"),
        "teacher_tenth": scale.tuned_teacher("tenth"),
        "generic1": scale.generic(1),
        "dmae1": scale.dmae(1),
        "generic2": scale.generic(2),
        "dmae2": scale.dmae(2),
    }
    for start in STARTS:
        steps[f"{start}_tenth"] = scale.finetuned("tenth", start)
    for start in ("mae2", "generic2"):
        steps[f"{start}_tenth_ms"] = scale.specific("tenth", start)
        steps[f"{start}_tenth_long"] = scale.long("tenth", start)
    steps["mae4_tenth"] = scale.finetuned("tenth", "mae4", **ONCE)
    return steps


def further(scale: Scale) -> dict[str, Recipe]:
    """Frozen features, mixed pictures, other numbers of labels, a longer stage."""
    steps = {f"{start}_probe": scale.probe(STUDENT, start) for start in STARTS}
    steps["mae4_probe"] = scale.probe(STUDENT, "mae4", **ONCE)
    steps["teacher_probe"] = scale.probe(scale.teacher, "teacher_mae", **ONCE)
    # Are the teacher's answers too sure? On mixed pictures they are not.
    mixed = dict(augment=MIXED)
    steps["generic2_tenth_mixed"] = scale.finetuned("tenth", "generic2", **mixed)
    steps["generic2_tenth_ms_mixed"] = scale.specific("tenth", "generic2", **mixed)
    for subset, once in (("hundredth", {}), ("train", ONCE)):
        steps |= {
            f"teacher_{subset}": scale.tuned_teacher(subset),
            f"scratch_{subset}": scale.scratch(subset, **once),
            f"mae2_{subset}": scale.finetuned(subset, "mae2", **once),
            f"generic2_{subset}": scale.finetuned(subset, "generic2", **once),
            f"dmae2_{subset}": scale.finetuned(subset, "dmae2", **once),
            f"mae2_{subset}_ms": scale.specific(subset, "mae2", **once),
            f"generic2_{subset}_ms": scale.specific(subset, "generic2", **once),
        }
    steps["generic3"] = scale.generic(3)
    steps["generic3_tenth"] = scale.finetuned("tenth", "generic3")
    steps["generic3_probe"] = scale.probe(STUDENT, "generic3")
    return steps


def everywhere(args: ConfigDict, changes: dict) -> dict:
    """`changes` with the overrides of every step; those of a smoke run win."""
    data = dict(
        path=args.path,
        eval_split="test",
        train_examples=50_000,
        classes=10,
        mean=(0.491, 0.482, 0.447),
        std=(0.247, 0.243, 0.262),
    )
    merged = dict(
        scan=False,  # Shallow: unrolled it compiles about as fast.
        log_every=100,
        eval_epochs=1e6,  # At the end only.
        first_batch_images=0,
        checkpoint=dict(every=1_000_000, keep=1),
    )
    merged |= changes | dict(data=data | changes.get("data", {}))
    if args.smoke:
        merged |= dict(batch=20, compute_dtype="float32", total_steps=40)
        merged["data"] |= dict(source="fake", train_examples=40)
    if args.steps:
        merged["total_steps"] = args.steps
    if args.smoke or args.steps:
        merged["optim"]["warmup_epochs"] = 0.0
        if "monitor" in merged:
            merged["monitor"] = dict(neighbours=5, bank=40)
    return merged
