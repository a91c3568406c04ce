# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The fenced blocks of README.md and docs/, and whether a command in one is right."""

import configparser
import importlib.util
import pathlib
import re
import shlex
from collections.abc import Sequence

import pytest

from g2sd_jax import cli, command, errors, recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location(
    "make_notebook", ROOT / "launch/make_notebook.py"
)
make_notebook = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_notebook)

# What the scripts of launch/ make, which stand before it.
ENVIRONMENT = [["source", ".venv/bin/activate"]]


def read(name: str) -> str:
    """The text of a page, by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, *languages: str) -> list[make_notebook.Part]:
    """The fenced blocks of a page in some languages, in their order."""
    parts = make_notebook.parts(read(name))
    return [part for part in parts if part.language in languages]


def commands(script: str) -> list[list[str]]:
    """The words of each command of a bash block, comments left out."""
    lines = script.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line]


class _Parsed(Exception):
    """Carries what a verb's parser read out of the verb, before it does anything."""


def inline(name: str) -> list[list[str]]:
    """The words of each `g2sd VERB --FLAG…` in the text and the tables of a page.

    Left out are those with a gap (…) and those that ask for help.
    """
    text = "".join(
        part.text
        for part in make_notebook.parts(read(name))
        if part.language == "markdown"
    )
    spans = [" ".join(span.split()) for span in re.findall(r"`(g2sd [^`]+)`", text)]
    return [
        shlex.split(span)
        for span in spans
        if " --" in span and "…" not in span and "help" not in span
    ]


def check(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, recipe_of: dict[str, str]
) -> None:
    """Raises an exception if a command could not even start.

    Of `g2sd`, the verb has to exist and take the flags; the recipe has to load with its
    arguments and keys. A script has to be there, an extra of pip to be one of ours.

    Args:
        words: of the command.
        monkeypatch: pytest's.
        recipe_of: {workdir: recipe} of the commands before, to which this one is added.
    """
    program, *rest = words
    if program == "g2sd":
        check_verb(rest, monkeypatch, recipe_of)
    elif program == "bash":
        assert (ROOT / rest[0]).is_file(), f"{rest[0]} is not in the repository"
    elif words[:3] == ["pip", "install", "-e"]:
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        extras = rest[2].removeprefix(".").strip("[]").split(",")
        unknown = set(filter(None, extras)) - set(setup["options.extras_require"])
        assert not unknown, f"setup.cfg has no extra {unknown}"
    else:
        assert list(words) in ENVIRONMENT, f"nothing here checks {shlex.join(words)}"


def check_verb(
    argv: Sequence[str], monkeypatch: pytest.MonkeyPatch, recipe_of: dict[str, str]
) -> None:
    """The part of `check` for `g2sd`.

    Args:
        argv: the verb and what follows.
        monkeypatch: pytest's.
        recipe_of: as of `check`.
    """
    verb, *rest = argv
    errors.lookup("verb", verb, command.VERBS)
    parse = command.Parser.parse_args

    def parse_args(self, args=None, namespace=None):
        raise _Parsed(parse(self, args, namespace))

    main = importlib.import_module(cli._module(verb)).main
    with monkeypatch.context() as patched:
        patched.setattr(command.Parser, "parse_args", parse_args)
        with pytest.raises(_Parsed) as parsed:
            main(rest)
    [args] = parsed.value.args
    _, overrides = recipes.split(command.Parser(verb), rest)
    recipe, workdir = getattr(args, "config", ""), getattr(args, "workdir", "")
    if recipe:
        recipe_of[workdir] = recipe
    elif overrides:
        assert workdir in recipe_of, f"{overrides} are keys of no recipe that is named"
        recipe = recipe_of[workdir]
    if recipe:
        recipes.load(recipe, overrides)
