# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Imports point down, the accelerator's part needs no TensorFlow, headers are there."""

import ast
import configparser
import importlib
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

# The parts of the package, from the bottom to the top: a room (a folder), or a file
# beside them. Each imports from the layers below its own and from itself, nothing else.
LAYERS = (
    ("errors", "label_values", "configs"),
    ("interrupts", "json_files"),
    ("core", "command", "recipes"),
    ("ops", "data", "parallel", "workdir", "optim", "feed", "clock", "digest"),
    ("losses", "palette", "hosts", "metrics", "models"),
    ("checkpoint", "lock", "outlines"),
    ("weights", "nonfinite"),
    ("step", "summary", "evaluators", "exports"),
    ("tasks", "open_keys"),
    ("stages",),
    ("kinds",),
    ("finished", "loop"),
    ("measure",),
    ("pages",),
    ("main", "tools"),
    ("api",),
    ("cli",),
)
# Third-party packages of the parts that promise to know only these.
THIRD_PARTY = {
    "ops": {"jax", "jaxtyping", "ml_collections", "numpy", "optax"},
    "losses": {"jax", "jaxtyping", "numpy", "optax"},
    "data": {
        "numpy",
        "etils",
        "PIL",
        "array_record",
        "cv2",
        "ml_collections",
        "pycocotools",
        "shapely",
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


def upward(part: str, ours: set[str]) -> set[str]:
    """Those of the imported parts that do not stand in a layer below `part`."""
    heights = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert part in heights, f"say in LAYERS where {part!r} stands"
    return {other for other in ours - {part} if heights[other] >= heights[part]}


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path):
    part = part_of(module_name(path))
    names = imports_of(path)
    ours = {part_of(name) for name in names if name.split(".")[0] == "g2sd_jax"} - {""}
    # The package itself offers the interface, once it is asked for.
    higher = upward(part, ours) if part else ours - {"api"}
    assert not higher, f"{path} imports {sorted(higher)}, not below {part!r}"
    if part in THIRD_PARTY:
        others = {name.split(".")[0] for name in names} - {"g2sd_jax"}
        others -= set(sys.stdlib_module_names) | THIRD_PARTY[part]
        assert not others, f"{path} imports {sorted(others)}; {part!r} knows none of it"


def test_layers_name_what_there_is():
    named = [name for names in LAYERS for name in names]
    assert sorted(named) == sorted({part_of(module_name(p)) for p in SOURCES} - {""})


def missing_attributes(path: pathlib.Path) -> list[str]:
    """`module.name` in a file where that module of ours has no such name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and part_of(node.module) != "data":
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                if BY_NAME.match(dotted) and is_module(dotted):
                    modules[alias.asname or alias.name] = dotted
    return [
        f"{node.value.id}.{node.attr}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in modules
        if not hasattr(importlib.import_module(modules[node.value.id]), node.attr)
    ]


def is_module(dotted: str) -> bool:
    base = ROOT.joinpath(*dotted.split("."))
    return base.with_suffix(".py").exists() or (base / "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_modules_have_the_names_that_are_asked_of_them(path):
    assert missing_attributes(path) == []


def test_a_name_that_a_module_lacks_is_noticed(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("from g2sd_jax import errors\nerrors.one_of, errors.none_of\n")
    assert missing_attributes(file) == ["errors.none_of, line 2"]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names along one circle of imports, [] where there is none."""
    done: set[str] = set()

    def walk(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph.get(name, ())):
            if found := walk(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next(filter(None, (walk(name, []) for name in sorted(graph))), [])


def test_no_file_imports_itself_by_way_of_others():
    modules = {module_name(path) for path in SOURCES}
    graph = {module_name(path): imports_of(path) & modules for path in SOURCES}
    graph = {name: others - {name, "g2sd_jax"} for name, others in graph.items()}
    assert not circle(graph)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_the_check_sees_what_it_forbids(tmp_path):
    file = tmp_path / "probe.py"
    file.write_text(
        "from g2sd_jax import loop\nimport jax.numpy as jnp\n"
        "def late():\n    from g2sd_jax.tools import chain\n"
        "    importlib.import_module('g2sd_jax.main')\n"
    )
    found = imports_of(file)
    assert {"g2sd_jax.loop", "g2sd_jax.tools", "g2sd_jax.main", "jax.numpy"} <= found
    assert part_of("g2sd_jax.tools") == "tools"
    assert part_of("g2sd_jax") == ""
    assert upward("ops", {"errors", "core", "loop", "data", "ops"}) == {
        "loop",
        "data",
    }


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
    names = imports_of(path)
    ours = {part_of(name) for name in names if name.split(".")[0] == "g2sd_jax"}
    assert ours <= {"configs"}
    others = {name.split(".")[0] for name in names} - {"g2sd_jax"}
    assert others <= set(sys.stdlib_module_names) | {"ml_collections", "numpy"}


def test_train_never_names_a_stage():
    path = PACKAGE / "loop.py"
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


def test_setup_lists_every_folder_of_code():
    """What it does not list is not installed, without a word."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    folders |= {file.parent for file in (ROOT / "configs").rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in folders)
    dotted = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    installed = {re.sub(r"^configs\b", "g2sd_jax.configs", name) for name in dotted}
    assert set(setup["options"]["packages"].split()) == installed


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
