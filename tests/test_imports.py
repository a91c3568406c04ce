# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point down, the accelerator's part needs no TensorFlow, headers are there."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "g2sd_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEADER = (
    "# Copyright 2026 The g2sd_jax Authors\n# SPDX-License-Identifier: Apache-2.0\n"
)

# What each part may import of the package, beside its own folder. The order is that of
# the map in docs: main > train > stages > tasks > the machine > the mathematics > core.
CORE = {"", "core"}
MATHS = CORE | {"ops", "losses"}
MACHINE = MATHS | {"models", "checkpoint", "weights", "optim", "parallel", "metrics"}
MACHINE |= {"data", "step", "workdir", "feed", "clock", "summary"}
MACHINE |= {"cluster", "evaluation", "nonfinite", "orbax_errors"}
MACHINE |= {"palette", "retention"}
TASKS = MACHINE | {"tasks"}
TRAIN = TASKS | {"stages", "train", "recipes"}
TOP = TRAIN | {"main", "cli", "tools"}
ALLOWED = {
    "": set(),
    "core": {""},
    "palette": {"data"},
    "recipes": CORE,
    "wire": set(),
    "peers": CORE | {"wire"},
    "cluster": MACHINE | {"peers", "wire"},
    "nonfinite": MACHINE,
    "ops": MATHS,
    "losses": MATHS,
    "data": set(),
    "models": MATHS,
    "checkpoint": CORE | {"cluster", "metrics", "orbax_errors", "retention", "workdir"},
    "orbax_errors": set(),
    "retention": CORE,
    "weights": MACHINE,
    "optim": MACHINE,
    "parallel": MACHINE,
    "metrics": MACHINE,
    "step": MACHINE,
    "workdir": MACHINE,
    "feed": CORE,
    "clock": CORE,
    "summary": MACHINE,
    "evaluation": CORE | {"parallel"},
    "tasks": TASKS,
    "stages": TASKS | {"stages"},
    "train": TRAIN,
    "main": TOP,
    "cli": TOP,
    "tools": TOP,
}
# Third-party packages of the parts that promise to know only these.
THIRD_PARTY = {
    "ops": {"jax", "numpy", "optax", "chex"},
    "losses": {"jax", "numpy", "optax", "chex"},
    "data": {
        "numpy",
        "etils",
        "PIL",
        "simplejpeg",
        "sklearn",
        "tensorflow",
        "tensorflow_datasets",
        "tqdm",
    },
    "recipes": {"numpy", "etils", "ml_collections"},
}
BY_NAME = re.compile(r"g2sd_jax(\.\w+)*\Z")


def imports_of(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, by importlib and a literal too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            if node.module == "g2sd_jax":
                found |= {f"g2sd_jax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Constant) and BY_NAME.match(str(node.value)):
            found.add(node.value)
    return found


def part_of(name: str) -> str:
    """`g2sd_jax.ops.resize` -> `ops`."""
    return [*name.split("."), ""][1]


def module_name(path: pathlib.Path) -> str:
    dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    part = part_of(module_name(path))
    assert part in ALLOWED, f"{path}: say in ALLOWED what {part!r} may import"
    names = imports_of(path)
    ours = {part_of(name) for name in names if name.split(".")[0] == "g2sd_jax"}
    upward = ours - ALLOWED[part] - {part}
    assert not upward, f"{path} imports {sorted(upward)}, which stand above {part!r}"
    if part in THIRD_PARTY:
        others = {name.split(".")[0] for name in names} - {"g2sd_jax"}
        others -= set(sys.stdlib_module_names) | THIRD_PARTY[part]
        assert not others, f"{path} imports {sorted(others)}; {part!r} knows none of it"


def test_the_check_sees_what_it_forbids(tmp_path):
    file = tmp_path / "probe.py"
    file.write_text(
        "from g2sd_jax import train\nimport jax.numpy as jnp\n"
        "def late():\n    from g2sd_jax.tools import chain\n"
        "    importlib.import_module('g2sd_jax.main')\n"
    )
    found = imports_of(file)
    assert {"g2sd_jax.train", "g2sd_jax.tools", "g2sd_jax.main", "jax.numpy"} <= found
    assert part_of("g2sd_jax.tools") == "tools"
    assert part_of("g2sd_jax") == ""


def hidden_modules(path: pathlib.Path) -> set[str]:
    """`function: name` of each import of a file that a function binds anew."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    imports = [node for node in tree.body if isinstance(node, ast.Import)]
    imports += [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    given = [alias for node in imports for alias in node.names]
    names = {alias.asname or alias.name.split(".")[0] for alias in given}
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.Lambda):
            continue
        within = list(ast.walk(function))
        bound = {node.arg for node in within if isinstance(node, ast.arg)}
        stored = [node for node in within if isinstance(node, ast.Name)]
        bound |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
        name = getattr(function, "name", "lambda")
        found |= {f"{name}: {each}" for each in bound & names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_no_local_name_hides_a_module(path):
    """Else a later line of the function that means the module gets something else."""
    hidden = hidden_modules(path)
    assert not hidden, f"{path}: {sorted(hidden)} are imported modules; rename them"


def test_the_search_for_hidden_modules_finds_them(tmp_path):
    file = tmp_path / "probe.py"
    file.write_text(
        "import os.path\nfrom g2sd_jax import step, clock as watch, core, feed\n"
        "step = 1\n"
        "def a(step, *, clock): pass\n"
        "def b(*watch): os = core.os = 2\n"
        "c = lambda core: [feed for feed in core]\n"
    )
    expected = {"a: step", "b: watch", "b: os", "lambda: core", "lambda: feed"}
    assert hidden_modules(file) == expected


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").rglob("*.py")), ids=module_name
)
def test_configs_import_no_package_code(path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert roots <= set(sys.stdlib_module_names) | {
        "configs",
        "ml_collections",
        "numpy",
    }


def test_train_never_names_a_stage():
    path = PACKAGE / "train.py"
    stages = {file.stem for file in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
    text = path.read_text(encoding="utf-8")
    named = {stage for stage in stages if re.search(rf"\b{stage}\b", text)}
    assert not named, f"{path} names {sorted(named)}; the loop asks for config.stage"


def test_every_file_has_the_header():
    folders = [PACKAGE, ROOT / "configs", ROOT / "tests", ROOT / "launch"]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    without = [
        str(file)
        for file in files
        if not file.read_text(encoding="utf-8").startswith(HEADER)
    ]
    assert not without


def test_every_folder_of_code_is_a_package():
    # `packages = find:` leaves out, without a word, what has no __init__.py.
    for top in (PACKAGE, ROOT / "configs"):
        for folder in {file.parent for file in top.rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), folder


WITHOUT_TENSORFLOW = """
import importlib, sys

BLOCKED = {"tensorflow", "tensorflow_datasets", "tensorboard", "tensorboardX"}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked by the test")


sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_package_imports_without_tensorflow():
    modules = []
    for path in SOURCES:
        roots = {name.split(".")[0] for name in imports_of(path)}
        needs = {"tensorflow", "tensorflow_datasets"} & roots
        if not needs or part_of(module_name(path)) != "data":
            modules.append(module_name(path))
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
