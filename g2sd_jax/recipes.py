# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes by name or by path, and checked overrides of their keys."""

import argparse
import ast
import difflib
import importlib
import json
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict, FieldReference

from g2sd_jax import core

ROOT = pathlib.Path(__file__).resolve().parents[1]  # Holds this package and `configs`.
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
WORDS = {"true": True, "false": False, "none": None}  # As a command line spells them.


def names() -> tuple[str, ...]:
    """The shipped recipes, such as `generic_distill` and `chains/digits`."""
    return tuple(sorted(_shipped()))


def load(spec: str, overrides: Mapping | None = None) -> ConfigDict:
    """Reads a recipe, sets keys of it, and locks it.

    Args:
        spec: `NAME:arguments` of a shipped recipe, or `PATH.py:arguments` of any.
        overrides: values by key (`{"optim.lr": 1e-3}` or nested), each of the type the
            key has; text stands for the value it spells, as on the command line.
    """
    return changed(_open(spec), overrides)


def of_run(workdir: str, overrides: Mapping | None = None) -> ConfigDict:
    """The config a run left in its workdir, with keys of it set; locked."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{workdir} is not the workdir of a run: it has no {path.name}; name the "
            "--workdir that g2sd train was given, or a step's folder of a chain's."
        )
    config = ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    return changed(config, overrides)


def changed(config: ConfigDict, overrides: Mapping | None) -> ConfigDict:
    """`config` itself with keys of it set as `load` does, locked."""
    for key, value in core.flatten(overrides or {}).items():
        _override(config, key, value)
    return config.lock()


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Reads a command line whose `--config=RECIPE --config.key=value` become `config`.

    `spec` is RECIPE as it was written.

    The other arguments are the parser's own.
    """
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        help="PATH.py or one of " + ", ".join(names()) + "; then :arguments, if any",
    )
    rest, overrides = split(parser, argv)
    args = parser.parse_args(rest)
    args.spec, args.config = args.config, load(args.config, overrides)
    return args


def split(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[list, dict]:
    """The arguments that are the parser's own, and the `--config.KEY=VALUE` by key."""
    parser.epilog = (
        "--config.KEY=VALUE changes a key of the recipe, e.g. --config.seed=1"
    )
    rest, overrides = [], {}
    items = iter(argv)
    for item in items:
        if not item.startswith("--config."):
            rest.append(item)
            continue
        key, given, value = item.removeprefix("--config.").partition("=")
        value = value if given else next(items, None)
        if value is None:
            raise ValueError(f"{item} has no value; write {item}=VALUE")
        overrides[key] = value
    return rest, overrides


def _shipped() -> dict[str, pathlib.Path]:
    folder = ROOT / "configs"
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in folder.rglob("*.py")
        if "\ndef get_config(" in path.read_text(encoding="utf-8")
    }


def _open(spec: str) -> ConfigDict:
    name, _, arguments = spec.partition(":")
    if name.endswith(".py"):
        path = pathlib.Path(name).expanduser()
        if not path.is_file():
            raise ValueError(
                f"recipe {name!r} is not a file; give the path of one, or a shipped "
                f"recipe by its name: {', '.join(names())}"
            )
    else:
        path = core.lookup("recipe", name, _shipped())
    _import_our_configs()
    try:
        make = runpy.run_path(str(path)).get("get_config")
        if make is None:
            raise ValueError(f"recipe {path} must define get_config(arguments='')")
        config = make(arguments) if arguments else make()
    except (ValueError, OSError):
        raise
    except Exception as error:  # A recipe is a user's program: it may raise anything.
        raise ValueError(
            f"recipe {path}, line {_line(error, path)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"recipe {path}: get_config returned a {type(config).__name__}; it must "
            f"return an ml_collections.ConfigDict"
        )
    return config


def _import_our_configs():
    # Recipes say `from configs import common`, and users keep folders of that name, so
    # ours has to be found before the one in the working directory.
    sys.path.insert(0, str(ROOT))
    try:
        importlib.import_module("configs")
    finally:
        sys.path.remove(str(ROOT))


def _line(error: Exception, path: pathlib.Path) -> int | str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return lines[-1] if lines else getattr(error, "lineno", "?")


def _override(config: ConfigDict, key: str, value):
    *groups, leaf = key.split(".")
    parent = config
    for group in groups:
        parent = parent.get(group)
        if not isinstance(parent, ConfigDict):
            raise ValueError(_unknown(config, key))
    if leaf not in parent:
        raise ValueError(_unknown(config, key))
    current = parent[leaf]
    if isinstance(current, ConfigDict):
        inside = ", ".join(f"config.{key}.{name}" for name in current)
        raise ValueError(f"config.{key} is a group of keys; set one of {inside}")
    references = dict(parent.items(preserve_field_references=True))
    placeholder = isinstance(references[leaf], FieldReference)
    parent[leaf] = _typed(key, value, parent.get_type(leaf), current, placeholder)


def _unknown(config: ConfigDict, key: str) -> str:
    known = list(core.flatten(config.to_dict()))
    leaf = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    near = same[:3] or difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if near:
        hint = "did you mean " + " or ".join(f"config.{name}" for name in near) + "?"
    else:
        hint = "this recipe has " + ", ".join(sorted(config))
    return f"config.{key} is not a key of this recipe; {hint}"


def _typed(key, value, kind, current, placeholder):
    """`value` as `kind`, or the error that names what the key takes."""
    read = value
    # Where text is wanted it is not read any further: a folder may be called 2024.
    if isinstance(value, str) and (
        kind is not str or (value == "None" and placeholder)
    ):
        read = _spelled(value)
    if kind is type(None) or (read is None and placeholder):
        return read
    if kind in (tuple, list):
        item = type(current[0]) if current else object
        fits = isinstance(read, tuple | list) and all(
            _fits(each, item) for each in read
        )
        takes = f"a {kind.__name__}"
    else:
        item = None
        fits = _fits(read, kind)
        takes = KINDS.get(kind, f"a {kind.__name__}")
    if not fits:
        such = f" such as {current}" if current not in (None, "", ()) else ""
        such += " or None" if placeholder else ""
        raise ValueError(f"config.{key}={value!r} is not {takes}{such}")
    return kind(map(item, read)) if item in KINDS else kind(read)


def _spelled(text: str):
    """What a text spells on a command line; no literal at all is the text itself."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _fits(value, kind: type) -> bool:
    if isinstance(value, bool):  # Which Python takes for an integer.
        return kind in (bool, object)
    return isinstance(value, int | float if kind is float else kind)
