# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder, on a disk and in a bucket; the bucket is one in memory."""

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import gpath
from ml_collections import ConfigDict

import runs
from g2sd_jax import (
    checkpoint,
    cli,
    command,
    errors,
    json_files,
    metrics,
    nonfinite,
    recipes,
    workdir,
)


def test_a_bucket_is_claimed_checked_and_read(bucket):
    config = ConfigDict(dict(seed=1, batch=4))
    workdir.claim(config, bucket)
    assert json_files.read(f"{bucket}/config.json") == {"seed": 1, "batch": 4}
    assert json_files.read(f"{bucket}/environment.json")["device_count"] == 8
    workdir.check(config, bucket)
    with pytest.raises(ValueError, match=r"config\.seed was 1, now 2"):
        workdir.check(ConfigDict(dict(seed=2, batch=4)), bucket)


def test_metrics_of_a_bucket_are_there_with_every_checkpoint(bucket):
    path = epath.Path(bucket) / "metrics.jsonl"
    lines = metrics.Lines(path, 0)
    lines.write(1, {"loss": 3.0})
    assert metrics.read_lines(path) == []
    lines.sync()
    lines.write(2, {"loss": 2.0})
    assert metrics.read_lines(path) == [{"step": 1, "loss": 3.0}]
    lines.close()
    again = metrics.Lines(path, 1)
    again.write(2, {"loss": 1.0})
    again.close()
    assert [row["loss"] for row in metrics.read_lines(path)] == [3.0, 1.0]


def test_a_writer_of_a_bucket_does_without_what_it_cannot_have(bucket, capsys):
    config = recipes.load("pretrain:smoke", {"progress": False})
    writer = metrics.Writer(bucket, config, 0, 9, main=True)
    writer.write(1, {"loss": 3.0})
    writer.close()
    assert metrics.read_lines(f"{bucket}/metrics.jsonl")[0]["loss"] == 3.0
    assert "no TensorBoard files" in capsys.readouterr().out


def test_a_replay_file_of_a_bucket_is_read(bucket):
    keeper = nonfinite.Keeper(bucket, runs.small("pretrain"), jax.random.key(3), {})
    keeper.hold(5, {"image": np.ones((2, 4, 4, 3), np.uint8)}, None)
    path = keeper.write(5, {"loss": float("nan")}, stopping=False)
    assert path == f"{bucket}/replay/step_5.npz"
    kept = nonfinite.read(path)
    assert (kept.step, kept.batch["image"].shape) == (5, (2, 4, 4, 3))
    assert nonfinite.state_of(path) is None


def test_old_replay_files_of_a_run_that_skips_go(tmp_path):
    config = runs.small("pretrain")
    keeper = nonfinite.Keeper(str(tmp_path), config, jax.random.key(0), {})
    for step in (2, 9, 10, 11, 30):
        keeper.hold(step, {"image": np.zeros(2)}, None)
        keeper.write(step, {"loss": float("inf")}, stopping=False)
    files = sorted((tmp_path / "replay").iterdir(), key=nonfinite.step_number)
    assert [file.name for file in files] == [f"step_{n}.npz" for n in (10, 11, 30)]


def test_paths():
    assert workdir.absolute("gs://b/run") == "gs://b/run"
    assert workdir.absolute("/a/run") == workdir.local_folder("/a/run") == "/a/run"
    assert not workdir.remote(workdir.local_folder("gs://b/run"))
    assert checkpoint.split_step("gs://b/run/checkpoints/40/") == ("gs://b/run", 40)
    assert checkpoint.split_step("gs://b/checkpoints") == ("gs://b/checkpoints", None)


def test_a_tilde_is_the_home_folder_in_every_argument_and_key(
    tmp_path, monkeypatch, capsys
):
    home = str(tmp_path / "home")
    monkeypatch.setenv("HOME", home)
    monkeypatch.chdir(tmp_path)
    parser = command.Parser("predict")
    parser.add_argument("images", nargs="+")
    parser.add_argument("--out")
    args = parser.parse_args(["~/a.png", "b/~", "--out=~/x"])
    assert args.images == [f"{home}/a.png", "b/~"] and args.out == f"{home}/x"
    config = recipes.load("finetune", {"data.path": "~/set", "init_from": "~"})
    assert (config.data.path, config.init_from) == (f"{home}/set", home)
    with pytest.raises(ValueError, match=f"^recipe '{home}/r.py' is not a file"):
        recipes.parse(command.Parser("train"), ["--config=~/r.py"])
    assert cli.main(["inspect", "~/runs/x"]) == 2
    assert f"{home}/runs/x" in capsys.readouterr().err
    # A run of before, whose config has it as it was written.
    stored = workdir.to_json_dict(config)
    stored["data"]["path"] = "~/set"
    (tmp_path / "run").mkdir()
    workdir.write_json(tmp_path / "run/config.json", stored)
    workdir.check(config, str(tmp_path / "run"))
    assert not (tmp_path / "~").exists()


def test_brackets_in_a_folders_name_are_letters(tmp_path):
    folder = workdir.Folder(tmp_path) / "lr[1e-4] *?"
    folder.mkdir()
    for name in ("step_1.npz", "step_2.npz", "other"):
        (folder / name).touch()
    (tmp_path / "lr1").mkdir()
    assert [path.name for path in sorted(folder.glob("step_*"))] == [
        "step_1.npz",
        "step_2.npz",
    ]
    assert type(epath.Path(folder) / "x") is workdir.Folder  # As Orbax makes them.


def test_a_chain_keeps_to_this_machine(capsys):
    assert cli.main(["chain", "--config=chains/digits", "--workdir=gs://b/chain"]) == 2
    assert "g2sd train takes a bucket" in capsys.readouterr().err


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "DONE"
    workdir.write_text(path, "before")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gpath.PosixGPath, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            workdir.write_text(path, "after")
    assert path.read_text() == "before"
    workdir.write_text(path, "after")
    assert path.read_text() == "after"
    assert [file.name for file in tmp_path.iterdir()] == ["DONE"]


def test_an_older_key_does_not_make_a_config_another(tmp_path, capsys):
    workdir.write_json(tmp_path / "config.json", {"seed": 1, "signal": {"bank": 7}})
    config = ConfigDict(dict(seed=1, monitor=dict(bank=7)))
    workdir.claim(config, str(tmp_path))
    assert capsys.readouterr().out.count("config.signal is config.monitor now") == 1
    stored = json_files.read(tmp_path / "config.json")
    assert stored == {"seed": 1, "monitor": {"bank": 7}}
    config.monitor.bank = 8
    with pytest.raises(ValueError, match=r"config\.monitor\.bank was 7, now 8"):
        workdir.check(config, str(tmp_path))


def test_a_key_of_later_recipes_is_what_a_run_from_before_did(tmp_path):
    """Else no recipe could be given a key without making all older runs end."""
    workdir.write_json(tmp_path / "config.json", {"model": {"patch": 16}})
    config = ConfigDict(dict(model=dict(patch=16, norm_eps=1e-6)))
    workdir.check(config, str(tmp_path))
    config.model.norm_eps = 1e-5
    with pytest.raises(ValueError, match=r"norm_eps was 1e-06, now 1e-05"):
        workdir.check(config, str(tmp_path))
    for key, value in recipes.ADDED.items():  # They are what the recipes say.
        for recipe in ("finetune", "specific_cls", "specific_seg"):
            flat = errors.flatten(recipes.load(recipe).to_dict())
            assert flat.get(key, value) == value, (recipe, key)


def test_figures_that_are_not_finite_are_null():
    figures = {"a": [1.5, float("nan")], "b": {"c": (float("inf"), 2, "nan", None)}}
    assert workdir.finite(figures) == {
        "a": [1.5, None],
        "b": {"c": [None, 2, "nan", None]},
    }


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_workdir_that_is_a_file_is_refused(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"--workdir=.*{tmp_path}/file is no folder"):
        workdir.check(ConfigDict(dict(seed=1)), str(tmp_path / place))
    workdir.check(ConfigDict(dict(seed=1)), str(tmp_path / "new" / "run"))
