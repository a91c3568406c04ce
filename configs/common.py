# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What every recipe shares: the defaults, every one visible, and the `:arguments`."""

import difflib
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

IMAGENET = 1_281_167  # Training images of ImageNet-1k.

# The decoders the papers give each encoder; dec256d4b is 256 wide and 4 deep.
DECODERS = {"ti16": "dec128d4b", "ti16_12h": "dec128d4b", "s16": "dec256d4b"}

# The networks of smoke runs, by the keys that every model has; a recipe adds its own.
SMALL = dict(size="custom", patch=16, image_size=(96, 96), mlp_ratio=4.0)
SMALL_STUDENT = SMALL | dict(width=192, depth=4, heads=4)
SMALL_TEACHER_SIZE = dict(width=256, depth=6, heads=4)
SMALL_TEACHER = SMALL | SMALL_TEACHER_SIZE
# Of the stages with a masked autoencoder: its decoder, and all there is to monitor.
SMALL_DECODER = dict(decoder="dec128d4b")
SMALL_MONITOR = dict(loss=True, neighbours=5, bank=40)
RELATION_PAIRS = ("qq", "qk", "qv", "kq", "kk", "kv", "vq", "vk", "vv")
RANDOM = "random:0"  # Weights of seed 0, for whatever a recipe loads.


def arguments(text: str, **defaults: bool | int | float | str) -> ConfigDict:
    """Reads `student=s16,smoke` into a ConfigDict with the types of `defaults`.

    A bare word switches a boolean on. Every recipe knows `smoke` (a CPU run of at least
    forty steps on fake data) and `steps` (stop after so many; with smoke, for tests).
    `help` alone is answered with the arguments and their defaults, as a ValueError.
    """
    defaults = {"smoke": False, "steps": 0, **defaults}
    if text == "help":
        listing = ", ".join(f"{key}={value}" for key, value in defaults.items())
        raise ValueError(f"recipe arguments and their defaults: {listing}")
    args = ConfigDict(defaults)
    for item in filter(None, (text or "").split(",")):
        key, _, value = item.partition("=")
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1)
            names = ", ".join(defaults)
            hint = f"did you mean {near[0]}?" if near else f"known: {names}"
            raise ValueError(f"recipe argument {item!r} is not known; {hint}")
        default = defaults[key]
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


def base() -> ConfigDict:
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
    # digits, arrays, folder, prepared, tfds:NAME, fake; maps for segmentation, coco for
    # detection.
    config.data.source = "arrays"
    config.data.path = ""
    config.data.data_dir = ""  # Of TFDS; "" is its own, ~/tensorflow_datasets.
    config.data.index_dir = "~/.cache/g2sd_jax"  # Where TFRecord files are indexed.
    config.data.shuffle_buffer = 4096  # Examples, where files give no random access.
    config.data.class_list = ""  # Outputs by name: a file, imagenet1k; "" = as sorted.
    config.data.train_split = "train"
    config.data.eval_split = "val"
    config.data.train_examples = placeholder(int)  # None: as many as there are.
    config.data.classes = placeholder(int)  # None: as many as there are; 0: no labels.
    # What plan and bench, which read no data, take in the place of a None.
    config.data.assumed = ConfigDict(dict(train_examples=IMAGENET, classes=1000))
    config.data.mean = (0.485, 0.456, 0.406)  # Of pixels in 0..1, per channel.
    config.data.std = (0.229, 0.224, 0.225)
    config.data.limit = placeholder(int)  # Keep only so many examples of a split.
    config.data.hold_out = 0.0  # Of pictures without splits: the share that evaluates.
    # Of pictures that are decoded as they are needed; those in memory need none.
    config.data.canvas = 1.75  # Times the model's size, cropped there; 0: on the host.
    config.data.eval_crop = placeholder(float)  # None: 0.875 up to 224 pixels, else 1.
    config.data.max_bad_share = 0.02  # Of unreadable examples, beyond which a run ends.
    config.data.workers = placeholder(
        int
    )  # Processes that read; None: 1 a core, to 64.
    config.data.prefetch = 2  # Batches read ahead, and as many ready on the device.
    config.data.timeout = 1800.0  # Seconds without a batch after which a run ends.

    config.mesh = ConfigDict(dict(data=-1, fsdp=1))  # -1: all devices that are left.
    config.scan = True  # One compiled block, looped; False unrolls.
    # What the backward pass recomputes: none, dots, products, full (models/layers.py);
    # auto is products on a TPU, else none.
    config.remat = "auto"
    config.attention = "auto"  # auto, xla, heads, loop, cudnn (ops/attention.py).

    config.log_every = 50
    config.first_batch_images = 32  # In WORKDIR/first_batch.png; 0 = none.
    config.eval_epochs = 10.0  # Evaluate every so many epochs, and at the end.
    config.checkpoint = ConfigDict(dict(every=1000, keep=2))  # Steps; files.
    config.checkpoint.best = ""  # Keeps the best as well, by a metric as eval/top1.
    config.checkpoint.best_is = ""  # max, min; "": what is better of that metric.
    config.nonfinite = ConfigDict(dict(policy="stop", bound=10))  # stop, skip.
    config.cache_dir = placeholder(str)  # Compiled programs; None: WORKDIR/cache.
    config.profile = ()  # (10, 13) traces steps 10 to 12 into WORKDIR/profile.
    config.progress = True
    config.wandb = ""  # Weights & Biases project; "" = off.
    return config


def adamw(preset: str, **values: object) -> ConfigDict:
    """AdamW on half a cosine; the preset says which parameters decay."""
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


def scale_lr(config: ConfigDict, base_lr: float) -> None:
    """Ties the learning rate to the batch: lr = base_lr * batch / 256.

    `config.batch` and `config.optim.base_lr` may change afterwards; a value of
    `config.optim.lr` replaces the product.

    Args:
        config: a recipe with `optim`.
        base_lr: the learning rate of a batch of 256.
    """
    config.optim.base_lr = base_lr
    batch = config.get_ref("batch").to_float()
    config.optim.lr = config.optim.get_ref("base_lr") * batch / 256


def lars(preset: str, **values: object) -> ConfigDict:
    """LARS on half a cosine: momentum, a trust ratio per matrix, no moments."""
    optim = adamw(preset, name="lars", wd=0.0)
    for unused in ("b1", "b2", "eps"):
        del optim[unused]
    optim.momentum = 0.9
    optim.trust_coefficient = 0.001
    optim.update(values)
    return optim


def augment(**values: object) -> ConfigDict:
    """No augmentation but what is named in `values`."""
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


def supervised_augment() -> ConfigDict:
    """The augmentation of fine-tuning and of stage 2, as published."""
    return augment(
        crop_area=(0.08, 1.0),
        flip=0.5,
        randaugment="rand-m9-mstd0.5-inc1",
        erase=0.25,
        mixup=0.8,
        cutmix=1.0,
        smoothing=0.1,
    )


def monitor(**values: object) -> ConfigDict:
    """Evaluators of a masked stage, which run every `eval_epochs`."""
    return ConfigDict(
        dict(
            loss=False,  # Its own loss, without augmentation.
            neighbours=0,  # That vote on a label, by the encoder's features; 0 = off.
            bank=10_000,  # Training pictures they are taken from.
        )
        | values
    )


# Options of an encoder that is no plain ViT (models/variants.py); None: as the weight
# file says where the size is `file`, else those of a plain ViT.
VARIANT = dict(
    class_token=bool,
    registers=int,
    positions=str,  # learned, none
    resize=str,  # bicubic, bicubic_antialias, bilinear_antialias, bicubic_offset
    rotary=str,  # none, dinov3, eva02
    rotary_theta=float,
    rotary_grid=tuple,  # (rows, columns) that eva02's was trained on.
    patch_bias=bool,
    pre_norm=bool,
    attn_bias=str,  # qkv, qv, none
    attn_norm=bool,
    activation=str,  # gelu, gelu_tanh, quick_gelu, silu
    gated=bool,
    mlp_norm=bool,
    layer_scale=float,  # Where it starts; 0: none.
)


def teacher_size(name: str, default: str) -> str:
    """A teacher's size: a recipe's argument, or that of its weight file if it is "".

    Args:
        name: of a size, `file`, or "".
        default: the paper's, where there is no file.
    """
    return name or f"file or {default}"


def vit(size: str, image: int = 224, **changes: object) -> ConfigDict:
    """An encoder of `models.vit.SIZES`; a None is taken from that row."""
    model = ConfigDict(dict(size=size, image_size=(image, image), channels=3))
    for key in ("width", "depth", "heads", "patch"):
        model[key] = placeholder(int)
    model.mlp_ratio = 4.0
    model.norm_eps = 1e-6  # Added to the variance by every LayerNorm.
    model.update(changes)
    return model


def encoder(size: str, image: int = 224, **changes: object) -> ConfigDict:
    """An encoder that need be no plain ViT."""
    model = vit(size, image)
    model.variant = ConfigDict(
        {key: placeholder(kind) for key, kind in VARIANT.items()}
    )
    model.update(changes)
    return model


def mae(size: str, decoder: str, image: int = 224, **changes: object) -> ConfigDict:
    """An encoder with a decoder such as `dec512d8b`; a None is taken from the name."""
    model = vit(size, image)
    model.decoder = decoder
    for key in ("dec_width", "dec_depth", "dec_heads"):
        model[key] = placeholder(int)
    model.update(changes)
    return model


def decoder(size: str) -> str:
    """The decoder that the papers give an encoder; "" is one in proportion to it."""
    return "" if size == "custom" else DECODERS.get(size, "dec512d8b")


def classifier(size: str, image: int = 224, **changes: object) -> ConfigDict:
    """An encoder with a head; pooled by the class token or over the patches."""
    model = encoder(size, image)
    model.pool = "avg"  # cls, avg, norm_avg, attention
    model.dist_token = False
    model.readout = "cls"  # cls, dist, mean: the head, or heads, that evaluation reads.
    model.drop_path = 0.0
    model.head_std = 2e-5  # The head starts near zero on top of a trained encoder.
    model.update(changes)
    return model


def segmentor(size: str, image: int = 512, **changes: object) -> ConfigDict:
    """An encoder with relative positions, four taps, and UperNet's two heads."""
    model = vit(size, image)
    # Blocks, counted from 0, whose tokens become strides 4, 8, 16 and 32; None: after
    # a third, half, two thirds and all of them, as published: (3, 5, 7, 11) of 12.
    model.taps = placeholder(tuple)
    model.layer_scale = 1.0  # Where the learned factors of the residual branches start.
    model.head_width = placeholder(int)  # Channels of the decode head; None: encoder's.
    model.pool_scales = (1, 2, 3, 6)
    # Channels of the auxiliary head; 0: no such head; None: 256, as published, or those
    # of an encoder that has fewer and no published size.
    model.aux_width = placeholder(int)
    model.drop_path = 0.2 if size == "l16" else 0.1
    model.dropout = 0.1  # Of whole channels before either head's classifier.
    model.update(changes)
    return model


def detector(size: str, image: int = 1024, **changes: object) -> ConfigDict:
    """An encoder of windows and few global blocks, a pyramid, and Mask R-CNN's heads.

    The heads cost 270 GFLOP a picture whatever the canvas: small pictures want small
    ones.
    """
    model = vit(size, image)
    model.pretrain_grid = (14, 14)  # Patches of pre-training, of the position table.
    model.window = 14  # Side, in patches, of the windows of all other blocks.
    model.global_blocks = (2, 5, 8, 11)  # Counted from 0.
    model.drop_path = 0.1
    model.features = 256  # Channels of the pyramid and of the proposal head.
    model.head_width = 256  # Channels of the box and the mask head.
    model.head_convs = 4
    model.hidden = 1024  # Of the box head's linear layer.
    model.anchor_sizes = (32, 64, 128, 256, 512)  # Pixels, for strides 4 to 64.
    model.anchor_ratios = (0.5, 1.0, 2.0)  # Height over width.
    model.canonical_size = 224  # Side of a region that is pooled from ...
    model.canonical_level = 4  # ... the map of stride 2 ** 4.
    model.box_bins = 7  # A region is pooled to so many rows and columns,
    model.mask_bins = 14  # for masks to so many.
    # windows, exact: pooled from 40 x 40 cells of a map, which long regions leave (a
    # metric counts them), or from all of it, at fifty times the work.
    model.roi_align = "windows"
    model.adapter = 0  # Channels of a teacher's maps; 0: no adapter to them.
    model.samples = 0  # Of a bin and axis; 0: one for each cell it covers (published).
    model.update(changes)
    return model


def on(
    config: ConfigDict, sets: Mapping[str, Callable[[ConfigDict], None]], data: str
) -> ConfigDict:
    """Sets the keys of a recipe that another data set asks for, and returns it.

    Args:
        config: the recipe.
        sets: name of a data set -> what changes the recipe for it.
        data: one of the names.
    """
    if data not in sets:
        raise ValueError(
            f"recipe argument data={data!r} is not known; known: {', '.join(sets)}"
        )
    sets[data](config)
    return config


def smoke(config: ConfigDict, args: ConfigDict, **small: object) -> ConfigDict:
    """Any recipe as a short CPU run on fake data, when its arguments ask for it.

    At least forty steps and twenty seconds after compiling on two cores, saving often,
    so that it can be interrupted; with `steps=2` as short as a test wants it.

    Args:
        config: the full recipe.
        args: of `arguments`.
        **small: what else becomes smaller, by key, groups as dicts: `model` above all,
            and `teacher`, `augment`, whatever the recipe has.
    """
    if args.smoke:
        config.compute_dtype = "float32"
        config.optim.lr = float(config.optim.lr)  # That of the batch which it replaces.
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
        config.update(small)
    if args.steps:
        config.total_steps = args.steps
        config.optim.warmup_epochs = 0.0
    return config
