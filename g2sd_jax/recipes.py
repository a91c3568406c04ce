# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes by name or by path, and checked overrides of their keys."""

import argparse
import ast
import difflib
import functools
import os
import pathlib
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict, FieldReference

from g2sd_jax import configs, errors, json_files
from g2sd_jax.configs import common, ranges

FOLDER = pathlib.Path(configs.__path__[0])  # Of the shipped recipes.
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
# Keys that are reckoned from one another, see `configs.common.scale_lr`.
TIED = ("batch", "optim.base_lr", "optim.lr")
WORDS = {"true": True, "false": False, "none": None}  # As a command line spells them.
MEND_CONFIG = (
    "delete it, and DONE if there is one, and start the run's own command once more: "
    "it goes on from the last checkpoint"
)
# Keys, or groups of them, that had another name: that of older workdirs.
RENAMED = {"shown": "first_batch_images", "signal": "monitor"}
# Keys that recipes were given later, and what runs from before did: such a run may be
# continued with that value.
ADDED = {
    "model.norm_eps": 1e-6,
    "teacher.model.norm_eps": 1e-6,
    "data.map_orientation": "shown",
    "attention": "auto",
    "teacher.mean": [],
    "teacher.std": [],
    "distill.target": "decoder",
    "distill.view": "visible",
    "distill.relation": 0.0,
    "distill.relation_groups": 12,
    "distill.relation_pairs": ["qq", "qk", "qv", "kq", "kk", "kv", "vq", "vk", "vv"],
    "distill.relation_student_blocks": [],
    "distill.relation_teacher_blocks": [],
    "distill.relation_distance": "kl",
    **{
        f"{group}.variant.{key}": None
        for group in ("model", "teacher.model")
        for key in common.VARIANT
    },
}


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
    config = _open(spec)
    _set(config, overrides or {})
    _expand_paths(config)
    return config.lock()


def expand_home(value: Any) -> Any:
    """A value in which every text that begins with `~` is a path in the home folder.

    Args:
        value: of a config, or a group of them.
    """
    if isinstance(value, Mapping):
        return {key: expand_home(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(expand_home, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def from_workdir(workdir: str, overrides: Mapping | None = None) -> ConfigDict:
    """The config a run left in its workdir, with keys of it set; locked."""
    path = epath.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(
            f"{workdir} is not the workdir of a run: it has no {path.name}; name the "
            "--workdir that g2sd train was given, or a step's folder of a chain's."
        )
    stored = rename_keys(json_files.read(path, MEND_CONFIG), str(path))
    reason = _damage(stored)
    if reason:
        raise json_files.damaged(path, reason, MEND_CONFIG)
    return with_overrides(ConfigDict(stored), overrides)


def _damage(stored: Mapping) -> str:
    """What of a stored config is of no recipe and no chain; "" if nothing."""
    stage = stored.get("stage")
    if "stage" not in stored:
        seeds, steps = stored.get("seeds"), stored.get("steps")
        is_chain = isinstance(seeds, list) and seeds and isinstance(steps, Mapping)
        return "" if is_chain else "it names no stage"
    if not isinstance(stage, str):
        return f"stage is {repr(stage)[:40]} and no text"
    if stage not in _shipped():
        return ""
    return json_files.other_kind(stored, _open(stage).to_dict())


def with_overrides(config: ConfigDict, overrides: Mapping | None) -> ConfigDict:
    """`config` itself with keys of it set as `load` does and `~` expanded; locked.

    Without any it is not checked once more: an older run stays readable.
    """
    if overrides:
        _set(config, overrides)
    _expand_paths(config)
    return config.lock()


def _expand_paths(config: ConfigDict) -> None:
    """Expands `~` in the texts of a config, which its own files may have, too."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _expand_paths(value)
        elif isinstance(value, str) and value.startswith("~"):
            config[key] = os.path.expanduser(value)


def _set(config: ConfigDict, overrides: Mapping) -> None:
    """Sets keys of a config; one error tells all that can not be set, or not run."""
    problems = []
    for key, value in errors.flatten(overrides).items():
        try:
            _override(config, _current_key(config, key), value)
        except ValueError as error:
            problems.append(str(error))
    check_ranges(config, problems)


def _current_key(config: ConfigDict, key: str) -> str:
    """The name that a key has now; an older one is taken as that, and told."""
    group, dot, rest = key.partition(".")
    if group in config or group not in RENAMED:
        return key
    current = f"{RENAMED[group]}{dot}{rest}"
    print(f"config.{key} is called config.{current} now, and taken so", flush=True)
    return current


def check_ranges(config: ConfigDict, problems: Sequence[str] = ()) -> None:
    """Refuses numbers that no run can have, all of them at once.

    Called before anything is built from a config.

    Args:
        config: of a run or a chain.
        problems: sentences that are told as well.
    Raises:
        ValueError: there are problems, or a key has another value than
            `configs.ranges` allows, or two keys contradict each other.
    """
    values = errors.flatten(config.to_dict())
    problems = [*problems, *ranges.problems(values)]
    if problems:
        raise ValueError("; ".join(problems))


def rename_keys(stored: Mapping, origin: str = "") -> dict:
    """A stored config, or that of a chain with its steps, by the current key names.

    Args:
        stored: as read from JSON.
        origin: its file, which a printed line then names with the keys; "" is silent.
    """
    changed = {key: RENAMED[key] for key in stored if key in RENAMED}
    current = {RENAMED.get(key, key): value for key, value in stored.items()}
    steps = current.get("steps")
    if isinstance(steps, Mapping):  # {name: the recipe and its overrides}
        current["steps"] = {
            name: rename_keys(step, origin) for name, step in steps.items()
        }
    if origin and changed:
        _print_renamed(origin, *changed.items())
    return current


@functools.cache  # A report opens the same run many times.
def _print_renamed(origin: str, *pairs: tuple[str, str]) -> None:
    words = ", ".join(f"config.{old} is config.{new} now" for old, new in pairs)
    print(f"{origin} is of an older version: {words}", flush=True)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Reads a command line whose `--config=RECIPE --config.key=value` become `config`.

    `spec` is RECIPE as it was written, `overrides` the values by key.

    The other arguments are the parser's own.
    """
    chains = parser.prog.endswith(" chain")
    fitting = [name for name in names() if name.startswith("chains/") == chains]
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        action=_Recipe,
        help=f"PATH.py or one of {', '.join(fitting)}; then :arguments, if any, which "
        f"RECIPE:help lists, such as {fitting[0]}:help",
    )
    rest, overrides = split(parser, argv)
    args = parser.parse_args(rest)
    args.spec, args.overrides = args.config, overrides
    args.config = load(args.spec, overrides)
    return args


class _Recipe(argparse.Action):
    """Takes a recipe; `RECIPE:help` describes it and asks for no other argument."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values.endswith(":help"):
            print(describe(values.removesuffix(":help")), flush=True)
            parser.exit()
        setattr(namespace, self.dest, values)


def describe(recipe: str) -> str:
    """What the file of a recipe says of itself, and its arguments with their defaults.

    Args:
        recipe: the path of a file, or the name of a shipped one.
    """
    text = ast.get_docstring(ast.parse(_locate(recipe).read_text(encoding="utf-8")))
    try:
        _open(f"{recipe}:help")
    except ValueError as error:  # So `configs.common.arguments` answers it.
        return "\n\n".join(filter(None, (text, f"{error}")))
    return text or f"{recipe} takes no arguments"


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
        key, equals, value = item.removeprefix("--config.").partition("=")
        value = value if equals else next(items, None)
        if value is None:
            raise ValueError(f"{item} has no value; write {item}=VALUE")
        overrides[key] = value
    return rest, overrides


def _shipped() -> dict[str, pathlib.Path]:
    return {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path
        for path in FOLDER.rglob("*.py")
        if "\ndef get_config(" in path.read_text(encoding="utf-8")
    }


def _locate(name: str) -> pathlib.Path:
    """The file of a recipe."""
    if not name.endswith(".py"):
        return errors.lookup("recipe", name, _shipped())
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"recipe {name!r} is not a file; give the path of one, or a shipped "
            f"recipe by its name: {', '.join(names())}"
        )
    return path


def _open(spec: str) -> ConfigDict:
    name, _, arguments = spec.partition(":")
    path = _locate(name)
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
            f"{_renamed(error)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise ValueError(
            f"recipe {path}: get_config returned a {type(config).__name__}; it must "
            f"return an ml_collections.ConfigDict"
        )
    for old, new in RENAMED.items():
        if old in config:
            raise ValueError(f"recipe {path}: config.{old} is called config.{new} now")
    return config


def _renamed(error: Exception) -> str:
    """What to write instead, where a recipe imports `configs`: it was our name once."""
    if not isinstance(error, ImportError) or not error.name:
        return ""
    if error.name.split(".")[0] != "configs":
        return ""
    return "; the shipped recipes are imported `from g2sd_jax.configs`"


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
    placeholder = isinstance(references[leaf], FieldReference) and key not in TIED
    parent[leaf] = _typed(key, value, parent.get_type(leaf), current, placeholder)


def _unknown(config: ConfigDict, key: str) -> str:
    names = list(errors.flatten(config.to_dict()))
    leaf = key.rpartition(".")[2]
    same = [name for name in names if name.rpartition(".")[2] == leaf]
    near = same[:3] or difflib.get_close_matches(key, names, n=3, cutoff=0.5)
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
        if current and len(set(current)) == 1 and _fits(read, item):
            read = (read,) * len(current)  # image_size=64: a square.
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
        text = ranges.shown(value)
        raise ValueError(f"config.{key}={text} is not {takes}{such}")
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
    if kind is float and isinstance(value, int):
        return abs(value) <= sys.float_info.max
    return isinstance(value, int | float if kind is float else kind)
