# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Reconstructions by an autoencoder: `g2sd reconstruct IMAGE… --out=FILE.png`.

The original, its visible patches, and the reconstruction, one picture a column.
"""

from collections.abc import Sequence

from g2sd_jax import command, finished, parallel
from g2sd_jax.pages import reconstructions


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("reconstruct")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--out", type=command.output_file, required=True, help="FILE.png"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument("--mask_ratio", type=float, help="default: the config's")
    parser.add_argument(
        "--target", default="", help="normalised or raw, if the weights do not say"
    )
    args = finished.parse(parser, argv)
    model = args.finished
    target = reconstructions.target_of(model, args.target)
    ((batch, _),) = model.batches(args.images, at_once=True)
    pictures = reconstructions.reconstruct(
        model, batch, target, args.seed, args.mask_ratio
    )
    reconstructions.draw(pictures).savefig(args.out, dpi=150)
    parallel.print_once(
        f"{args.out}: {model.source} was {reconstructions.EXPLAINED[target]}."
    )
    return 0
