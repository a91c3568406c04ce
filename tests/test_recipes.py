# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import argparse
import json
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from g2sd_jax import cli, command, errors, recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = """
from g2sd_jax.configs import common
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

def get_config(text=""):
    args = common.arguments(text, student="s16")
    config = ConfigDict(dict(stage="probe", batch=4096, progress=True, names=()))
    config.student = args.student
    config.total_steps = placeholder(int)
    config.total_steps = args.steps or None
    config.cache_dir = placeholder(str)
    config.data = ConfigDict(dict(path="", mean=(0.485, 0.456, 0.406)))
    config.mesh = ConfigDict(dict(data=-1, fsdp=1))
    config.model = ConfigDict(dict(image_size=(224, 224)))
    config.optim = ConfigDict(dict(lr=1.5e-4 * 4096 / 256, wd=0.05))
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return str(path)


def test_a_path_with_arguments(recipe):
    config = recipes.load(f"{recipe}:student=ti16,smoke,steps=7")
    assert (config.student, config.total_steps) == ("ti16", 7)
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.lerning_rate = 1.0


@pytest.mark.parametrize(
    ("key", "given", "held"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", 1, 1.0),
        ("batch", "64", 64),
        ("batch", 64, 64),
        ("progress", "false", False),
        ("progress", True, True),
        ("data.path", "2024", "2024"),
        ("data.path", "true", "true"),
        ("data.mean", "0.5,1,0.5", (0.5, 1.0, 0.5)),
        ("data.mean", [0.5, 0.5, 0.5], (0.5, 0.5, 0.5)),
        ("model.image_size", "(32, 48)", (32, 48)),
        ("model.image_size", "48", (48, 48)),
        ("names", "('a', 'b')", ("a", "b")),
        ("total_steps", "None", None),
        ("total_steps", "12", 12),
        ("cache_dir", "None", None),
        ("cache_dir", "/tmp/cache", "/tmp/cache"),
    ],
)
def test_overrides_take_the_type_of_the_key(recipe, key, given, held):
    config = recipes.load(f"{recipe}:steps=3", {key: given})
    value = config
    for part in key.split("."):
        value = value[part]
    assert value == held
    assert type(value) is type(held)


def test_overrides_may_be_nested(recipe):
    config = recipes.load(recipe, {"optim": {"wd": 0.1}, "mesh.fsdp": 2})
    assert (config.optim.wd, config.mesh.fsdp) == (0.1, 2)


@pytest.mark.parametrize(
    ("key", "given", "told"),
    [
        ("batch", "many", r"config\.batch='many' is not an integer such as 4096"),
        ("batch", 1.5, r"config\.batch=1\.5 is not an integer"),
        ("batch", True, r"config\.batch=True is not an integer"),
        ("batch", None, r"config\.batch=None is not an integer"),
        ("batch", "1e3", r"config\.batch='1e3' is not an integer"),
        (
            "optim.lr",
            "fast",
            r"config\.optim\.lr='fast' is not a number such as 0\.002",
        ),
        ("optim.lr", None, r"config\.optim\.lr=None is not a number"),
        ("progress", "maybe", r"config\.progress='maybe' is not true or false"),
        ("progress", 1, r"config\.progress=1 is not true or false"),
        ("data.path", 3, r"config\.data\.path=3 is not text"),
        ("data.mean", "0.5", r"config\.data\.mean='0\.5' is not a tuple such as"),
        ("data.mean", ("a",), r"config\.data\.mean=\('a',\) is not a tuple such as"),
        ("total_steps", "x", r"config\.total_steps='x' is not an integer or None"),
        ("optim.rl", 1, r"config\.optim\.rl is not a key.*did you mean config\.optim"),
        ("lr", 1, r"config\.lr is not a key.*did you mean config\.optim\.lr\?"),
        ("batch.size", 1, r"config\.batch\.size is not a key"),
        ("qqqqqqqq", 1, r"config\.qqqqqqqq is not a key.*has .*batch.*optim"),
        ("mesh", 1, r"config\.mesh is a group.*config\.mesh\.data, config\.mesh\.fsdp"),
    ],
)
def test_a_wrong_override_names_key_value_and_way_out(recipe, key, given, told):
    with pytest.raises(ValueError, match=told):
        recipes.load(recipe, {key: given})


def test_shipped_recipes_load_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "common" not in recipes.names()
    for name in recipes.names():
        assert isinstance(recipes.load(name), ml_collections.ConfigDict), name


def load_elsewhere(folder, spec, *path):
    """Loads a recipe in another process; returns the stage it prints, or the error."""
    code = (
        "import sys; from g2sd_jax import command, recipes\n"
        "sys.exit(command.guarded(lambda: print(recipes.load(sys.argv[1]).stage)))"
    )
    environment = {"PYTHONPATH": ":".join(map(str, path)), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, spec],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


@pytest.fixture
def user_configs(tmp_path):
    """A folder with a package `configs` that is not ours, and recipes in it."""
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "mine.py").write_text(RECIPE)
    (folder / "old.py").write_text(RECIPE.replace("g2sd_jax.configs", "configs"))
    return folder


def test_a_configs_package_of_the_user_and_ours_do_not_meet(tmp_path, user_configs):
    assert load_elsewhere(tmp_path, "configs/mine.py", tmp_path, ROOT) == "probe\n"
    assert load_elsewhere(ROOT, user_configs / "mine.py", ROOT, tmp_path) == "probe\n"
    # What the user's own provides is the user's.
    (user_configs / "common.py").write_text("from g2sd_jax.configs.common import *")
    assert load_elsewhere(tmp_path, "configs/old.py", tmp_path, ROOT) == "probe\n"


def test_the_old_name_of_the_shipped_recipes_is_told_the_new_one(
    tmp_path, user_configs
):
    old = user_configs / "old.py"
    in_a_checkout = load_elsewhere(ROOT, old, ROOT)
    # Their package has no such module; nor has any that an environment holds.
    old.write_text("\nfrom configs import schedules")
    beside_theirs = load_elsewhere(tmp_path, old, tmp_path, ROOT)
    for printed in (in_a_checkout, beside_theirs):
        assert printed.startswith(f"error: recipe {old}, line 2: ImportError: ")
        assert printed.endswith("are imported `from g2sd_jax.configs`\n")
        assert printed.count("\n") == 1
    old.write_text("import configs_of_mine")
    assert "g2sd_jax.configs" not in load_elsewhere(tmp_path, old, ROOT)


@pytest.mark.parametrize(
    "spec", ["pretrain", "configs/pretrain.py", "configs/chains/digits.py"]
)
def test_a_checkout_finds_its_recipes_by_name_and_by_path(spec):
    name = pathlib.PurePath(spec).with_suffix("").as_posix().removeprefix("configs/")
    assert recipes.load(str(ROOT / spec) if "/" in spec else spec) == recipes.load(name)
    assert recipes.FOLDER == ROOT / "configs"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("import nothing_of_the_kind", "line 1: ModuleNotFoundError"),
        ("\n\ndef get_config(", "line 3: SyntaxError"),
        ("def get_config():\n    return config.x", "line 2: NameError"),
        ("def get_config():\n    return dict(stage=1)", "returned a dict"),
        ("config = 1", "must define get_config"),
        (
            "def get_config(text=''):\n    raise ValueError('sizes: s16')",
            "^sizes: s16$",
        ),
        (
            "from g2sd_jax.configs import common\n\n"
            "def get_config():\n    config = common.base()\n    config.shown = 3\n"
            "    return config",
            "config.shown is called config.first_batch_images now",
        ),
    ],
)
def test_a_broken_recipe_is_a_value_error(tmp_path, text, told):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        recipes.load(str(path))


def test_unknown_recipes_list_the_nearest(monkeypatch, recipe):
    shipped = {"generic_distill": recipe, "chains/digits": recipe}
    monkeypatch.setattr(recipes, "_shipped", lambda: shipped)
    with pytest.raises(ValueError, match=r"generic_distil'.*did you mean generic_dist"):
        recipes.load("generic_distil:student=s16")
    with pytest.raises(ValueError, match=r"there\.py' is not a file.*chains/digits"):
        recipes.load("not/there.py")
    with pytest.raises(ValueError, match="did you mean student"):
        recipes.load("generic_distill:studnet=s16")


def test_parse_keeps_the_parsers_own_arguments(recipe):
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir")
    argv = [f"--config={recipe}", "--config.batch", "8", "--workdir=runs/a"]
    args = recipes.parse(parser, [*argv, "--config.optim.wd=0.2"])
    assert (args.workdir, args.config.batch, args.config.optim.wd) == ("runs/a", 8, 0.2)
    with pytest.raises(ValueError, match=r"--config\.batch has no value"):
        recipes.parse(argparse.ArgumentParser(), [argv[0], "--config.batch"])


def test_an_old_workdir_opens_by_its_new_keys(tmp_path, capsys):
    old = {"stage": "own", "shown": 5, "signal": {"loss": True}, "batch": 4}
    (tmp_path / "config.json").write_text(json.dumps(old))
    for _ in range(2):
        config = recipes.from_workdir(tmp_path, {"monitor.loss": False})
        assert config.to_dict() == {
            "stage": "own",
            "first_batch_images": 5,
            "monitor": {"loss": False},
            "batch": 4,
        }
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        f"{tmp_path}/config.json is of an older version: config.shown is "
        "config.first_batch_images now, config.signal is config.monitor now"
    ]


def test_the_steps_of_an_old_chain_have_their_new_keys():
    step = {"recipe": "pretrain", "signal": {"loss": True}}
    stored = {"seeds": [0], "steps": {"signal": step}}
    renamed = {"recipe": "pretrain", "monitor": {"loss": True}}
    current = {"seeds": [0], "steps": {"signal": renamed}}
    assert recipes.rename_keys(stored) == current
    assert recipes.rename_keys(current) == current


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("shown", "first_batch_images", 3),
        ("signal.neighbours", "monitor.neighbours", 7),
    ],
)
def test_an_old_key_is_taken_as_its_new_name(key, name, value, capsys):
    config = recipes.load("pretrain", {key: str(value)})
    assert errors.flatten(config.to_dict())[name] == value
    line = f"config.{key} is called config.{name} now, and taken so\n"
    assert capsys.readouterr().out == line
    with pytest.raises(ValueError, match=r"config\.monitor\.lost is not a key"):
        recipes.load("pretrain", {"signal.lost": "1"})


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_lists_its_arguments(name):
    with pytest.raises(ValueError, match="and their defaults: smoke=False, "):
        recipes.load(f"{name}:help")


@pytest.mark.parametrize("form", ["--config={}", "--config {}"])
def test_a_recipe_describes_itself_without_other_arguments(form, capsys):
    words = form.format("chains/folder:help").split()
    with pytest.raises(SystemExit) as left:
        cli.main(["chain", *words])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("The whole method on your own pictures")
    assert "    rows=all   " in said and "hours=1.0" in said.splitlines()[-1]


def test_verbs_list_the_recipes_that_they_take():
    for verb, listed in (("chain", True), ("train", False)):
        parser = command.Parser(verb)
        with pytest.raises(ValueError, match="--config"):
            recipes.parse(parser, [])
        assert ("chains/digits" in parser.format_help()) == listed
        assert ("generic_distill" in parser.format_help()) != listed
