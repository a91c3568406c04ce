# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A run's folder, on a disk and in a bucket; the bucket is one in memory."""

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend, gpath
from ml_collections import ConfigDict

import runs
from g2sd_jax import checkpoint, cli, metrics, nonfinite, recipes, workdir


@pytest.fixture
def bucket(monkeypatch):
    """A gs:// folder; what Google's own file system would do, fsspec's memory does."""
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    kind = type(backend.fsspec_backend)
    monkeypatch.setattr(kind, "fs", lambda self, path: memory)
    yield "gs://bucket/run"
    memory.store.clear()


def test_a_bucket_is_claimed_checked_and_read(bucket):
    config = ConfigDict(dict(seed=1, batch=4))
    workdir.claim(config, bucket)
    assert workdir.read_json(f"{bucket}/config.json") == {"seed": 1, "batch": 4}
    assert workdir.read_json(f"{bucket}/environment.json")["device_count"] == 8
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
    files = sorted((tmp_path / "replay").iterdir(), key=nonfinite.number_of)
    assert [file.name for file in files] == [f"step_{n}.npz" for n in (10, 11, 30)]


def test_paths():
    assert workdir.absolute("gs://b/run") == "gs://b/run"
    assert workdir.absolute("/a/run") == workdir.local("/a/run") == "/a/run"
    assert not workdir.remote(workdir.local("gs://b/run"))
    assert checkpoint.split_step("gs://b/run/checkpoints/40/") == ("gs://b/run", 40)
    assert checkpoint.split_step("gs://b/checkpoints") == ("gs://b/checkpoints", None)


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
