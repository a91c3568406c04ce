# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A finished run as other tools load it: `g2sd export --workdir=W --format=F`."""

import os
from collections.abc import Sequence

from g2sd_jax import checkpoint, cli, core, metrics
from g2sd_jax.tools import finished
from g2sd_jax.weights import architecture, exporters, loading, programs, segmentor_files

FORMATS = {
    "safetensors": exporters.safetensors_file,
    "torch": exporters.torch_file,
    "timm": exporters.timm,
    "transformers": exporters.transformers,
    "stablehlo": programs.stablehlo,
    "onnx": programs.onnx,
}
READOUTS = ("cls", "dist", "mean")


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("export")
    parser.add_argument(
        "--workdir", required=True, help="a finished run, or a weight file"
    )
    parser.add_argument("--format", required=True, help=" ".join(FORMATS))
    parser.add_argument(
        "--out", default="", help="folder to write to (default: WORKDIR/export/FORMAT)"
    )
    parser.add_argument(
        "--readout",
        default="",
        help="of two heads, which answer counts: cls, dist or mean (default: as "
        "config.model.readout says, which the run was evaluated with)",
    )
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", default="", help=f"{name} of the channels, where none is told"
        )
    args = parser.parse_args(argv)
    write = core.lookup("--format", args.format, FORMATS)
    weights = loading.read(args.workdir, "--workdir")
    if f"{loading.CONV_SEG}.weight" in weights.arrays:
        write, model = segmentor(args, weights)
    else:
        model = prepare(args, weights)
    folder = args.out or _default_folder(args)
    os.makedirs(folder, exist_ok=True)
    for path in write(model, folder):
        metrics.say(f"{path}: {os.path.getsize(path):,} bytes")
    return 0


def segmentor(args, weights: loading.Weights):
    """How one is written as `args.format`, and all that has to be known about it."""
    reason = segmentor_files.WHY_NOT.get(args.format)
    if reason:
        raise ValueError(f"--format={args.format} takes no segmentor: {reason}.")
    for name in ("readout", "mean", "std"):
        if getattr(args, name):
            raise ValueError(
                f"--{name}={getattr(args, name)} is not for a segmentor, which says "
                "itself how its pictures were normalised, and has one answer."
            )
    told = dict(weights.describe)
    if told.get("kind") == "segmentor" and not os.path.isfile(args.workdir):
        config = finished.config_of(args.workdir)
        told["inference"] = config.inference.to_dict()
    if "inference" not in told:
        raise ValueError(
            f"--workdir={args.workdir!r} is a segmentor that does not say which blocks "
            "are tapped, nor how pictures are cut: start a run from it (config."
            "init_from) and export that run's workdir."
        )
    model = segmentor_files.Segmentor(
        source=args.workdir,
        arrays=weights.arrays,
        told=told,
        preprocessing=segmentor_files.preprocessing(told),
    )
    return segmentor_files.FORMATS[args.format], model


def prepare(args, weights: loading.Weights) -> exporters.Model:
    """The weights of a classifier or autoencoder, and what to know about them."""
    told = dict(weights.describe)
    if told.get("kind") == "probe":
        raise ValueError(
            f"--workdir={args.workdir!r} is a linear probe, whose encoder is not its "
            "own: export the encoder, or fine-tune a classifier."
        )
    shape = architecture.infer(weights.arrays, told, args.workdir)
    if shape.unknown:
        raise ValueError(
            f"--workdir={args.workdir!r} has parts that no exported model computes: "
            f"{', '.join(shape.unknown[:4])} ({len(shape.unknown)} in all)."
        )
    if shape.heads is None or shape.grid is None:
        raise ValueError(
            f"--workdir={args.workdir!r} does not say its number of heads, or its "
            "pictures' aspect, and no known size has its shape; export the workdir of "
            "a run that started from it."
        )
    for name in ("mean", "std"):
        if getattr(args, name):
            told[name] = _numbers(name, getattr(args, name), shape.channels)
        elif name not in told:
            raise ValueError(
                f"--workdir={args.workdir!r} does not say which {name} its pictures "
                f"were normalised with; give --{name}=0.5,0.5,0.5 or whatever it was."
            )
    return exporters.Model(
        source=args.workdir,
        arrays=weights.arrays,
        told=told,
        shape=shape,
        readout=_readout(args, told, shape),
        preprocessing=exporters.preprocessing(told, shape),
    )


def _readout(args, told, shape):
    given = "mean" if shape.dist_token else "cls"
    chosen = args.readout or told.get("model", {}).get("readout", given)
    core.one_of("--readout", chosen, READOUTS)
    if chosen != "cls" and not shape.dist_token:
        raise ValueError(
            f"--readout={chosen} needs a distillation head, which {args.workdir!r} "
            "does not have; leave it out."
        )
    return chosen


def _numbers(name, text, channels):
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--{name}={text!r} is not a list of numbers") from None
    if len(values) not in (1, channels):
        raise ValueError(f"--{name}={text!r} has to be 1 or {channels} numbers")
    return values


def _default_folder(args):
    root, _ = checkpoint.split_step(args.workdir)
    if not os.path.isdir(os.path.join(root, checkpoint.FOLDER)):
        raise ValueError(f"--workdir={args.workdir!r} is no run: say where --out is.")
    return os.path.join(root, "export", args.format)
