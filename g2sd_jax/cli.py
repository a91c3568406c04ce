# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The command `g2sd VERB …`: one line per verb, and one clear line per mistake."""

import importlib
import sys
from collections.abc import Sequence

import g2sd_jax
from g2sd_jax import command, errors


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb, and returns its exit status.

    Args:
        argv: the verb and its arguments; None for those of the command line.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    return command.guarded(lambda: _run(argv), debug="--debug" in argv)


def _run(argv: list[str]) -> int | None:
    verb, *rest = argv or ["help"]
    if verb == "--version":
        print(g2sd_jax.__version__)
    elif verb in ("help", "-h", "--help") and not rest:
        print(_usage())
    elif verb in ("help", "-h", "--help"):
        return _run([rest[0], "--help"])
    else:
        return importlib.import_module(_module(verb)).main(rest)
    return 0


def _module(verb: str) -> str:
    """Returns the name of the module whose `main(argv)` runs the verb."""
    errors.lookup("verb", verb, {**command.VERBS, "help": None})
    return "g2sd_jax.main" if verb == "train" else f"g2sd_jax.tools.{verb}"


def _usage() -> str:
    width = max(map(len, command.VERBS))
    lines = [f"  {verb:{width}}  {text}" for verb, text in command.VERBS.items()]
    return "\n".join(
        [
            f"g2sd {g2sd_jax.__version__}: {g2sd_jax.__doc__}",
            "",
            "usage: g2sd VERB …, and g2sd help VERB for what it takes",
            "",
            *lines,
            "",
            "exit status: 0 done; 1 doctor: something looks wrong; 2 a mistake, told",
            "in one line; 75 asked to stop, and saved; 76 another process of the run",
            "died, or no data came; 130 Ctrl-C where there was nothing to save. After",
            "75, 76 and 130 the same command goes on from the last checkpoint.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
