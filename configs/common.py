# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every recipe shares: the defaults, every one visible, and the `:arguments`."""

import difflib

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET = 1_281_167  # Training images of ImageNet-1k.

# The decoders the papers give each encoder; dec256d4b is 256 wide and 4 deep.
DECODERS = {"ti16": "dec128d4b", "ti16_12h": "dec128d4b", "s16": "dec256d4b"}


def arguments(text, **known):
    """Reads `student=s16,smoke` into a ConfigDict with the types of `known`.

    A bare word switches a boolean on. Every recipe knows `smoke` (a CPU run of at least
    forty steps on fake data) and `steps` (stop after so many; with smoke, for tests).
    """
    known = {"smoke": False, "steps": 0, **known}
    args = ConfigDict(known)
    for item in filter(None, (text or "").split(",")):
        key, _, value = item.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"recipe argument {item!r} is not known; {hint}")
        default = known[key]
        if isinstance(default, bool):
            if value not in ("", "true", "True", "false", "False"):
                raise ValueError(f"recipe argument {item!r}: {key} is true or false")
            args[key] = value not in ("false", "False")
        else:
            try:
                args[key] = type(default)(value)
            except ValueError:
                kind = type(default).__name__
                raise ValueError(
                    f"recipe argument {item!r}: {key} takes {kind}"
                ) from None
    return args


def base():
    """The keys every stage has."""
    config = ConfigDict()
    config.stage = placeholder(str)
    config.seed = 0
    config.batch = 4096
    config.accumulate = 1  # Micro-batches per step; the step equals the undivided one.
    config.total_epochs = 300.0
    config.total_steps = placeholder(int)  # Instead of total_epochs.
    config.compute_dtype = "bfloat16"  # Parameters, norms, softmax, losses: float32.

    config.data = ConfigDict()
    # digits, arrays, folder, prepared, tfds:NAME, fake; maps for segmentation.
    config.data.source = "arrays"
    config.data.path = ""
    config.data.data_dir = ""  # Of TFDS; "" is its own, ~/tensorflow_datasets.
    config.data.index_dir = "~/.cache/g2sd_jax"  # Where TFRecord files are indexed.
    config.data.shuffle_buffer = 4096  # Examples, where files give no random access.
    config.data.class_list = ""  # Outputs by name: a file, imagenet1k; "" = as sorted.
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.train_examples = IMAGENET  # Per epoch; checked against the real count.
    config.data.classes = 1000
    config.data.mean = (0.485, 0.456, 0.406)  # Of pixels in 0..1, per channel.
    config.data.std = (0.229, 0.224, 0.225)
    config.data.limit = placeholder(int)  # Keep only so many examples of a split.
    config.data.hold_out = 0.0  # Of a folder without splits: the share that evaluates.
    # Of pictures that are decoded as they are needed; those in memory need none.
    config.data.canvas = 1.75  # Times the model's size, cropped there; 0: on the host.
    config.data.eval_crop = placeholder(float)  # None: 0.875 up to 224 pixels, else 1.
    config.data.max_bad_share = 0.02  # Of unreadable examples, beyond which a run ends.
    config.data.workers = placeholder(int)  # Threads; None: one per core.
    config.data.prefetch = 2  # Batches read ahead, and as many ready on the device.
    config.data.timeout = 1800.0  # Seconds without a batch after which a run ends.

    config.mesh = ConfigDict(dict(data=-1, fsdp=1))  # -1: all devices that are left.
    config.scan = True  # One compiled block, looped; False unrolls.
    config.remat = "none"  # none, dots, full: what the backward pass recomputes.

    config.log_every = 50
    config.shown = 32  # Pictures in WORKDIR/first_batch.png; 0 = none.
    config.eval_epochs = 10.0  # Evaluate every so many epochs, and at the end.
    config.checkpoint = ConfigDict(dict(every=1000, keep=2))  # Steps; files.
    config.checkpoint.best = ""  # Keeps the best as well, by a metric as eval/top1.
    config.checkpoint.best_is = "max"  # max, min
    config.nonfinite = ConfigDict(dict(policy="stop", bound=10))  # stop, skip.
    config.cache_dir = placeholder(str)  # Compiled programs; None: WORKDIR/cache.
    config.profile = ()  # (10, 13) traces steps 10 to 12 into WORKDIR/profile.
    config.progress = True
    config.wandb = ""  # Weights & Biases project; "" = off.
    return config


def adamw(preset, **values):
    """AdamW on half a cosine, one of the presets saying what decays."""
    optim = ConfigDict(dict(name="adamw", preset=preset, schedule="cosine"))
    optim.rules = ()  # ((regex, {wd, lr_scale, frozen}), ...) before the preset's.
    optim.lr = 1e-3
    optim.min_lr = 0.0
    optim.warmup_epochs = 0.0
    optim.wd = 0.05
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.eps = 1e-8
    optim.clip = 0.0  # Global norm of the accumulated gradient; 0 = none.
    if preset == "finetune":
        optim.layer_decay = 1.0  # lr_scale of layer id i: this ** (depth + 1 - i).
        optim.decay_dist_token = False  # True: as timm 0.3.2 groups it.
    optim.update(values)
    return optim


def lars(preset, **values):
    """LARS on half a cosine: momentum, a trust ratio per matrix, no moments."""
    optim = adamw(preset, name="lars", wd=0.0)
    for unused in ("b1", "b2", "eps"):
        del optim[unused]
    optim.momentum = 0.9
    optim.trust_coefficient = 0.001
    optim.update(values)
    return optim


def augment(**values):
    """Nothing random; a recipe names what it wants."""
    return ConfigDict(
        dict(
            crop_area=(),  # Shares of the image; () = no random resized crop.
            crop_aspect=(3 / 4, 4 / 3),
            crop_tries=10,  # Until a crop fits; with 1 it is clamped to the image.
            flip=0.0,  # Chance of a horizontal flip.
            randaugment="",  # rand-mMEAN-mstdDEVIATION-inc1; "" = off.
            color_jitter=(),  # (brightness, contrast, saturation, hue); () = off.
            erase=0.0,  # Chance that a box of the image becomes noise.
            mixup=0.0,  # Alpha of Beta(alpha, alpha); 0 = off.
            cutmix=0.0,
            switch=0.5,  # Chance of cutmix where both are on.
            mix_prob=1.0,  # Share of batches that are mixed.
            smoothing=0.0,
        )
        | values
    )


def supervised_augment():
    """What fine-tuning and stage 2 publish."""
    return augment(
        crop_area=(0.08, 1.0),
        flip=0.5,
        randaugment="rand-m9-mstd0.5-inc1",
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
    )


def signal(**values):
    """What a masked stage measures on the evaluation split, every `eval_epochs`."""
    return ConfigDict(
        dict(
            loss=False,  # Its own loss, without augmentation.
            neighbours=0,  # That vote on a label, by the encoder's features; 0 = off.
            bank=10_000,  # Training pictures they are taken from.
        )
        | values
    )


def vit(size, image=224, **changes):
    """An encoder of `models.vit.SIZES`; a None is taken from that row."""
    model = ConfigDict(dict(size=size, image_size=(image, image), channels=3))
    for key in ("width", "depth", "heads", "patch"):
        model[key] = placeholder(int)
    model.mlp_ratio = 4.0
    model.update(changes)
    return model


def mae(size, decoder, image=224, **changes):
    """An encoder with a decoder such as `dec512d8b`; a None is taken from the name."""
    model = vit(size, image)
    model.decoder = decoder
    for key in ("dec_width", "dec_depth", "dec_heads"):
        model[key] = placeholder(int)
    model.update(changes)
    return model


def classifier(size, image=224, **changes):
    """An encoder with a head; pooled by the class token or over the patches."""
    model = vit(size, image)
    model.pool = "avg"  # cls, avg
    model.dist_token = False
    model.readout = "cls"  # cls, dist, mean: the head, or heads, that evaluation reads.
    model.drop_path = 0.0
    model.head_std = 2e-5  # The head starts near zero on top of a trained encoder.
    model.update(changes)
    return model


def segmentor(size, image=512, **changes):
    """An encoder with relative positions, four taps, and UperNet's two heads."""
    model = vit(size, image)
    # Blocks, counted from 0, whose tokens become strides 4, 8, 16 and 32.
    model.taps = (7, 11, 15, 23) if size == "l16" else (3, 5, 7, 11)
    model.layer_scale = 1.0  # Where the learned factors of the residual branches start.
    model.head_width = placeholder(int)  # Channels of the decode head; None: encoder's.
    model.pool_scales = (1, 2, 3, 6)
    model.aux_width = 256  # Channels of the auxiliary head; 0: no such head.
    model.drop_path = 0.2 if size == "l16" else 0.1
    model.dropout = 0.1  # Of whole channels before either head's classifier.
    model.update(changes)
    return model


TINY = dict(size="custom", patch=16, image_size=(96, 96), mlp_ratio=4.0)
TINY_TEACHER = dict(width=256, depth=6, heads=4)


def smoke(config, args):
    """Any recipe as a short CPU run on fake data, when its arguments ask for it.

    At least forty steps and twenty seconds after compiling on two cores, saving often,
    so that it can be interrupted; with `steps=2` as short as a test wants it.
    """
    if args.smoke:
        config.compute_dtype = "float32"
        config.batch = 16
        config.accumulate = 1
        config.total_steps = 500  # Of 50 to 65 ms each on two cores.
        config.data.source = "fake"
        config.data.train_examples = 256
        config.data.classes = 10
        config.log_every = 1
        config.eval_epochs = 4.0
        config.checkpoint.every = 5
        config.optim.warmup_epochs = 0.5
        models = [(config.model, dict(width=192, depth=4, heads=4))]
        if "signal" in config:
            config.signal = signal(loss=True, neighbours=5, bank=40)
        if "encoder" in config:
            config.encoder.checkpoint = "random:0"
        if "teacher" in config:
            config.teacher.checkpoint = "random:0"
            models.append((config.teacher.model, TINY_TEACHER))
        for model, shape in models:
            model.update(TINY | shape)
            if "decoder" in model:
                model.decoder = "dec128d4b"
            if "taps" in model:
                model.update(taps=(0, 1, 2, 3), head_width=32)
            if "aux_width" in model:
                model.aux_width = 32
        if "inference" in config:
            config.inference.update(fit=(96, 384), stride=(64, 64))
            config.augment.fit = (96, 384)
    if args.steps:
        config.total_steps = args.steps
        config.optim.warmup_epochs = 0.0
    return config
