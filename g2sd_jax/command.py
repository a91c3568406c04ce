# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The verbs of `g2sd`: their names, their argument parser, their exit status."""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from g2sd_jax import errors, interrupts

VERBS = {  # Name, also that of its file in tools/ (train's is main.py) -> purpose.
    "train": "train one stage, or resume it",
    "bench": "measure a recipe's step without its data, or its input",
    "plan": "compile a recipe's step for a TPU, without one",
    "prepare": "pack pictures for fast reading",
    "inspect": "say what a run's folder or a file holds",
    "export": "write finished weights for other tools",
    "chain": "train a chain of stages and write its report",
    "evaluate": "judge a finished model, class by class",
    "predict": "say what pictures show",
    "reconstruct": "draw what an autoencoder guesses",
    "embed": "write the features of pictures to a file",
    "probe": "judge features by neighbours and a linear layer",
    "analyse": "compare models: occlusion, CKA, throughput",
    "report": "make one page of one run, several, or a chain",
    "replay": "run a step that was not finite once more",
    "doctor": "say what looks wrong with a run",
}


class Parser(argparse.ArgumentParser):
    """The argument parser of a verb; a mistake on the command line is a ValueError.

    A value that begins with `~` is a path in the home folder: behind an equals sign no
    shell expands it.
    """

    def __init__(self, verb: str, **kwargs):
        super().__init__(
            prog=f"g2sd {verb}",
            description=VERBS[verb],
            allow_abbrev=False,
            **kwargs,
        )
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )

    def parse_known_args(
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        parsed, rest = super().parse_known_args(args, namespace)
        for name, value in vars(parsed).items():
            setattr(parsed, name, _expand_home(value))
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def output_file(path: str) -> str:
    """The argparse type of a file that a verb writes: refused now, not after the work.

    Args:
        path: of the file, or "" where none is asked for.
    """
    path = os.path.expanduser(path)
    try:
        check_output(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from None
    return path


def check_output(path: str) -> None:
    """Refuses the path of a file that can not be written; buckets are not looked at."""
    if not path or "://" in path:
        return
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; name a file in it")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise ValueError(
            f"{path} can not be written: there is no folder {folder}; make it first, "
            "or name another"
        )


def _expand_home(value: Any) -> Any:
    if isinstance(value, list):
        return [_expand_home(each) for each in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def guarded(call: Callable[[], int | None], *, debug: bool = False) -> int:
    """Calls a verb and returns its exit status; a user's mistake becomes one line.

    SIGTERM and Ctrl-C end the process at once, with 75 and 130 and one line, unless the
    verb looks after them (`interrupts.defer`).

    Args:
        call: returns an exit status; None for 0.
        debug: whether to print the traceback of a mistake as well.

    Returns:
        2 (`errors.EXIT_MISTAKE`) after a mistake; 75 (`errors.EXIT_AGAIN`) for a run
        that was asked to stop, and that its launcher may start again.
    """
    for stream in (sys.stdout, sys.stderr):  # A path's bytes may be no UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interrupts.answered():
            return call() or 0
    except Exception as error:
        if isinstance(error, errors.Preempted):
            print(error, flush=True)
            return errors.EXIT_AGAIN
        hung = isinstance(error, errors.Hung)
        if not isinstance(error, errors.MISTAKES) or (debug and not hung):
            raise
        if debug:
            traceback.print_exc()
        line = errors.printable(error, errors.IN_LINES)
        print(f"error: {line}", file=sys.stderr, flush=True)
        if hung:  # A library's own threads may hang as well, and hold Python's exit.
            sys.stdout.flush()
            os._exit(errors.EXIT_LOST)
        return errors.EXIT_MISTAKE
