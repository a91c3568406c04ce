# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The command `g2sd VERB …`: one line per verb, and one clear line per mistake."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence

import g2sd_jax

VERBS = {  # name -> (the module whose `main(argv)` it is, what it does)
    "train": ("g2sd_jax.main", "train one stage, or resume it"),
    "bench": (
        "g2sd_jax.tools.bench",
        "measure a recipe's step without its data, or its input",
    ),
    "plan": ("g2sd_jax.tools.plan", "compile a recipe's step for a TPU, without one"),
    "prepare": ("g2sd_jax.tools.prepare", "pack pictures for fast reading"),
    "inspect": ("g2sd_jax.tools.inspect", "say what a run's folder or a file holds"),
    "export": ("g2sd_jax.tools.export", "write finished weights for other tools"),
    "chain": ("g2sd_jax.tools.chain", "train a chain of stages and write its report"),
    "evaluate": ("g2sd_jax.tools.evaluate", "judge a finished model, class by class"),
    "predict": ("g2sd_jax.tools.predict", "say what pictures show"),
    "reconstruct": ("g2sd_jax.tools.reconstruct", "draw what an autoencoder guesses"),
    "embed": ("g2sd_jax.tools.embed", "write the features of pictures to a file"),
    "probe": (
        "g2sd_jax.tools.probe",
        "judge features by neighbours and a linear layer",
    ),
    "analyse": ("g2sd_jax.tools.analyse", "compare models: occlusion, CKA, throughput"),
    "report": (
        "g2sd_jax.tools.report",
        "make one page of one run, several, or a chain",
    ),
    "replay": ("g2sd_jax.tools.replay", "run a step that was not finite once more"),
    "doctor": ("g2sd_jax.tools.doctor", "say what looks wrong with a run"),
}


class Parser(argparse.ArgumentParser):
    """The arguments of one verb; a mistake in them is a ValueError."""

    def __init__(self, verb: str, **more):
        super().__init__(
            prog=f"g2sd {verb}",
            description=VERBS[verb][1],
            allow_abbrev=False,
            **more,
        )
        self.add_argument(
            "--debug", action="store_true", help="show the traceback of an error"
        )

    def error(self, message: str):
        raise ValueError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb, and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(argv), debug="--debug" in argv)


def guarded(call: Callable[[], int | None], *, debug: bool = False) -> int:
    """The exit status of `call`: what a user can do wrong becomes one line and 2.

    A run that was asked to stop ends with 75, for whoever started it to start it again.
    """
    try:
        return call() or 0
    except Exception as error:
        # Not at the top: importing jax takes a second, which `g2sd help` need not wait.
        core = importlib.import_module("g2sd_jax.core")
        if isinstance(error, core.Preempted):
            print(error, flush=True)
            return core.EXIT_AGAIN
        hung = isinstance(error, core.Hung)
        if not isinstance(error, core.MISTAKES) or (debug and not hung):
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        if hung:  # A library's own threads may hang as well, and hold Python's exit.
            sys.stdout.flush()
            os._exit(core.EXIT_LOST)
        return core.EXIT_MISTAKE


def _run(argv: list[str]) -> int | None:
    verb, *rest = argv or ["help"]
    if verb == "--version":
        print(g2sd_jax.__version__)
    elif verb in ("help", "-h", "--help"):
        print(_usage())
    else:
        return importlib.import_module(_module(verb)).main(rest)
    return 0


def _module(verb: str) -> str:
    if verb not in VERBS:
        # Not at the top: importing jax takes a second, which `g2sd help` need not wait.
        core = importlib.import_module("g2sd_jax.core")
        core.lookup("verb", verb, {**VERBS, "help": None})
    return VERBS[verb][0]


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        [
            f"g2sd {g2sd_jax.__version__}: {g2sd_jax.__doc__}",
            "",
            "usage: g2sd VERB …, and g2sd VERB --help for what it takes",
            "",
            *lines,
            "",
            "exit status: 0 done; 1 doctor: something looks wrong; 2 a mistake, told",
            "in one line; 75 asked to stop, and saved; 76 another process of the run",
            "died, or no data came. After 75 and 76 the same command goes on from the",
            "last checkpoint.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
