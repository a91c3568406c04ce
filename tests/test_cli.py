# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import importlib
import io
import pathlib
import subprocess
import sys
import types

import pytest

import g2sd_jax
from g2sd_jax import cli, command

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = """
from ml_collections import ConfigDict

def get_config(text=""):
    return ConfigDict(dict(batch=64, optim=ConfigDict(dict(lr=1e-4))))
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(RECIPE)
    return f"--config={path}"


@pytest.fixture
def trained(monkeypatch):
    """What reached the trainer, as (config, workdir)."""
    calls = []
    run = lambda config, workdir: calls.append((config, workdir)) or {}
    module = types.SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "g2sd_jax.loop", module)
    return calls


def test_train_hands_over_config_and_workdir(recipe, trained):
    argv = ["train", recipe, "--config.optim.lr=1e-3", "--workdir=runs/a"]
    assert cli.main(argv) == 0
    ((config, workdir),) = trained
    assert (config.optim.lr, workdir) == (1e-3, "runs/a")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config.optim.lrr=1"], "error: config.optim.lrr is not a key"),
        (["--config.batch=many"], "error: config.batch='many' is not an integer"),
        (["--config=no_such_recipe"], "error: recipe='no_such_recipe' is not known"),
        (["--wrokers=3"], "error: unrecognized arguments: --wrokers=3; see g2sd train"),
        (["--config"], "error: argument --config: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(recipe, trained, capsys, arguments, told):
    assert cli.main(["train", recipe, "--workdir=runs/a", *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(told)
    assert err.count("\n") == 1
    assert not out
    assert not trained


def test_missing_arguments_are_named(recipe, trained, capsys):
    assert cli.main(["train", recipe]) == 2
    assert "--workdir" in capsys.readouterr().err


def test_an_os_error_of_the_run_is_one_line(recipe, monkeypatch, capsys):
    def run(config, workdir):
        raise PermissionError(13, "Permission denied", workdir)

    monkeypatch.setitem(sys.modules, "g2sd_jax.loop", types.SimpleNamespace(run=run))
    argv = ["train", recipe, "--workdir=runs/a"]
    assert cli.main(argv) == 2
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'runs/a'\n"
    with pytest.raises(PermissionError):
        cli.main([*argv, "--debug"])


def test_a_diverged_run_is_one_line(recipe, monkeypatch, capsys):
    def run(config, workdir):
        raise FloatingPointError("step 7 is not finite")

    monkeypatch.setitem(sys.modules, "g2sd_jax.loop", types.SimpleNamespace(run=run))
    assert cli.main(["train", recipe, "--workdir=runs/a"]) == 2
    assert capsys.readouterr().err == "error: step 7 is not finite\n"


def test_a_defect_keeps_its_traceback(recipe, monkeypatch):
    def run(config, workdir):
        raise KeyError("head")

    monkeypatch.setitem(sys.modules, "g2sd_jax.loop", types.SimpleNamespace(run=run))
    with pytest.raises(KeyError):
        cli.main(["train", recipe, "--workdir=runs/a"])


def test_help_of_a_verb_is_its_own(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "doctor"])
    assert ended.value.code == 0 and "g2sd doctor" in capsys.readouterr().out
    assert cli.main(["help", "docter"]) == 2


def test_help_names_every_verb(capsys):
    assert cli.main([]) == 0
    listed = capsys.readouterr().out
    for verb in command.VERBS:
        assert f"\n  {verb}" in listed
    assert cli.main(["help"]) == cli.main(["--help"]) == 0
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"{g2sd_jax.__version__}\n")


def test_an_unknown_verb_lists_the_nearest(capsys):
    assert cli.main(["trian"]) == 2
    err = capsys.readouterr().err
    assert err == "error: verb='trian' is not known; did you mean train?\n"


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_explains_itself(verb, capsys):
    assert importlib.import_module(cli._module(verb)).main
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: g2sd {verb}")
    assert command.VERBS[verb] in out


@pytest.mark.parametrize("door", [["g2sd_jax.main"], ["g2sd_jax.cli", "train"]])
def test_both_doors_take_the_same_configs(recipe, door, tmp_path):
    command = [sys.executable, "-m", *door, recipe, "--workdir=w", "--config.batc=1"]
    env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: config.batc is not a key of this recipe; did "
    )
    assert done.stderr.count("\n") == 1


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from g2sd_jax import cli; cli.main(['help']); assert 'jax' not in "
    )
    command = [sys.executable, "-c", code + "sys.modules"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def test_the_status_of_a_doctor_who_finds_something_is_told(capsys):
    cli.main(["help"])
    assert "1 doctor: something looks wrong" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["doctor", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "1 something does" in told


FILES = {  # A verb that writes a file, and what else it has to be given.
    "evaluate": ["--workdir=run"],
    "embed": ["--workdir=run"],
    "reconstruct": ["--workdir=run", "picture.png"],
    "analyse": ["run"],
    "report": ["run"],
    "bench": ["--config=pretrain:smoke"],
    "plan": ["--config=pretrain:smoke"],
}


@pytest.mark.parametrize("verb", FILES)
def test_a_file_that_can_not_be_written_is_told_before_the_work(verb, tmp_path, capsys):
    nowhere = tmp_path / "no" / "file.json"
    assert cli.main([verb, *FILES[verb], f"--out={nowhere}"]) == 2
    assert f"there is no folder {tmp_path}/no; make it first" in capsys.readouterr().err
    assert cli.main([verb, *FILES[verb], f"--out={tmp_path}"]) == 2
    assert f"{tmp_path} is a folder; name a file in it" in capsys.readouterr().err


def test_files_that_can_be_written_are_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("", "new.json", f"{tmp_path}/new.json", "gs://bucket/no/new.json"):
        assert command.output_file(path) == path


def test_a_path_that_is_no_utf8_is_printed(monkeypatch):
    written = io.BytesIO()
    strict = io.TextIOWrapper(written, encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", strict)
    assert command.guarded(lambda: print("caf\udce9", flush=True)) == 0
    assert written.getvalue() == b"caf\\udce9\n"
