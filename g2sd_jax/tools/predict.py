# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Predictions for pictures: `g2sd predict IMAGE… --workdir=DIR`.

Size, normalisation and class names are those of the checkpoint. Its kind says what an
answer is: a class with probabilities, a picture of label maps (`kinds`).
"""

from collections.abc import Sequence

from g2sd_jax import command, errors, finished


def main(argv: Sequence[str]) -> int:
    parser = command.Parser("predict")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument(
        "--out",
        default="",
        help="for all answers: a JSON file; where answers are pictures, a folder "
        "(default: one in the workdir)",
    )
    args = finished.parse(parser, argv)
    model = args.finished
    answers = model.kind.answers(model, args.images, args.out)
    for answer in answers:
        print(f"{answer.image}: {answer.sentence}")
    unread = set(args.images) - {answer.image for answer in answers}
    if unread:
        raise ValueError(
            f"{len(unread)} of {len(args.images)} pictures could not be read: "
            f"{errors.shorten_list(unread)}; repair or remove them."
        )
    return 0
