# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs commands and snippets of a page in one process, as a reader would in turn.

    python tests/page_program.py STEPS.json short|loaded

STEPS.json is a list of ["g2sd", its words] and ["python", code]; the snippets share
their names, as the cells of a notebook do. `short` trains one step of tiny networks;
`loaded` trains nothing, but reads each recipe with its settings. Either way nothing may
import TensorFlow.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import g2sd_jax
from g2sd_jax import cli, recipes
from g2sd_jax.tools import chain as chains

TINY = {
    "batch": 8,
    "compute_dtype": "float32",
    "first_batch_images": 0,
    "model.image_size": 16,
}
PLAIN = TINY | {"augment.randaugment": ""}  # Else fifteen operations to compile.
STUDENT = {"model.width": 16, "model.depth": 1, "model.heads": 2, "model.patch": 4}
# Recipe -> what is added to its arguments, of which the last counts, and to its keys.
SHORT = {
    "chains/folder": (
        "epochs=1,steps=1,student=16x1,teacher=24x2,batch=8,rows=g2sd",
        {},
    ),
    "generic_distill": ("student=custom,steps=1", TINY | STUDENT),
    "finetune": ("steps=1", PLAIN),
    "specific_cls": ("steps=1", PLAIN),
}
train, chain = g2sd_jax.train, g2sd_jax.chain


def shorten(recipe: str) -> tuple[str, dict]:
    """The recipe with more arguments, and the keys to add."""
    more, keys = SHORT[recipe.partition(":")[0]]
    return f"{recipe},{more}", dict(keys)


def short_train(recipe: str, workdir: str, **settings: Any) -> dict:
    recipe, keys = shorten(recipe)
    return train(recipe, workdir, **settings | keys)


def short_chain(recipe: str, workdir: str, **settings: Any) -> dict:
    recipe, keys = shorten(recipe)
    return chain(recipe, workdir, **settings | keys)


def load_stage(recipe: str, workdir: str, **settings: Any) -> dict:
    assert "stage" in recipes.load(recipe, settings)
    return {"eval/top1": 0.0}


def load_chain(recipe: str, workdir: str, **settings: Any) -> dict:
    assert chains.plan(recipes.load(recipe, settings), workdir)
    return {}


def run_verb(words: Sequence[str]) -> None:
    """Runs `g2sd` with these words, its recipe shortened."""
    argv = []
    for word in words:
        argv.append(word)
        if word.startswith("--config="):
            recipe, keys = shorten(word.removeprefix("--config="))
            argv[-1] = f"--config={recipe}"
    if argv != list(words):  # The last value of a key counts.
        argv += [f"--config.{key}={value}" for key, value in keys.items()]
    status = cli.main(argv)
    assert status == 0, f"g2sd {' '.join(words)} ended with {status}"


MODES: Mapping[str, dict] = {
    "short": dict(train=short_train, chain=short_chain),
    "loaded": dict(train=load_stage, chain=load_chain),
}


def main(path: str, mode: str) -> None:
    for name, function in MODES[mode].items():
        setattr(g2sd_jax, name, function)
    with open(path, encoding="utf-8") as file:
        steps = json.load(file)
    names: dict[str, Any] = {}
    for kind, content in steps:
        if kind == "g2sd":
            run_verb(content)
        else:
            exec(compile(content, "snippet", "exec"), names)
    loaded = sorted(name for name in sys.modules if name.startswith("tensorflow"))
    assert not loaded, f"imported: {', '.join(loaded[:3])}"


if __name__ == "__main__":
    main(*sys.argv[1:])
