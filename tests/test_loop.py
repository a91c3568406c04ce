# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whole runs: the same on any mesh, interrupted or not, and refused in one line."""

import json
import os
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

import runs
import slow
from g2sd_jax import (
    checkpoint,
    core,
    loop,
    metrics,
    parallel,
    recipes,
    stages,
    step,
)


def losses(workdir) -> np.ndarray:
    rows = metrics.read_lines(os.path.join(workdir, "metrics.jsonl"))
    return np.array([row["loss"] for row in rows if "loss" in row])


def state(config, workdir):
    """The last state of a run, moments and batch statistics included."""
    mesh = parallel.make_mesh(config.mesh)
    program = step.build(config, stages.build(config), mesh)
    manager = checkpoint.Manager(str(workdir))
    try:
        return jax.device_get(manager.restore(program.state))
    finally:
        manager.close()


def evaluations(workdir) -> dict:
    with open(os.path.join(workdir, "DONE")) as file:
        return {k: v for k, v in json.load(file).items() if not k.startswith("loss")}


def splits(config, mesh_shape) -> set:
    """The placements that a stage's parameters and moments have on a mesh."""
    data, fsdp = mesh_shape
    shape = mesh_shape_of(data, fsdp)
    mesh = parallel.make_mesh(recipes.load("pretrain", {"mesh": shape}).mesh)
    stage = stages.build(config)
    program = step.build(config, stage, mesh)
    return {leaf.sharding.spec for leaf in jax.tree.leaves(program.state)}


def mesh_shape_of(data, fsdp):
    return dict(data=data, fsdp=fsdp)


# Of whole runs. `programs/test_layouts` compares the steps of the other stages.
@pytest.mark.parametrize(
    "stage", slow.parameters(["linprobe", "pretrain"], ["linprobe"])
)
def test_same_numbers_on_any_mesh(stage, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)  # So that even tiny arrays are split.
    told, scored = {}, {}
    for data, fsdp in ((8, 1), (4, 2), (1, 8)):
        folder = str(tmp_path / f"{data}x{fsdp}")
        config = runs.small(stage, mesh=mesh_shape_of(data, fsdp), total_steps=4)
        if stage == "pretrain":
            config.monitor.update(dict(loss=True, neighbours=5))
        loop.run(config, folder)
        told[fsdp], scored[fsdp] = losses(folder), evaluations(folder)
        spread = {axis for spec in splits(config, (data, fsdp)) for axis in spec}
        assert ("fsdp" in spread) == (fsdp > 1)
    assert len(told[1]) == 4
    for fsdp in (2, 8):
        np.testing.assert_allclose(told[fsdp], told[1], rtol=2e-5)
        assert scored[fsdp] == pytest.approx(scored[1], rel=2e-5)


class Killed(Exception):
    pass


def kill_at(monkeypatch, step):
    """The run ends right after `step` was dispatched, as if the machine had gone."""
    swap = metrics.Late.swap

    def killing(self, number, told):
        if number > step:
            raise Killed
        return swap(self, number, told)

    monkeypatch.setattr(metrics.Late, "swap", killing)


# Of the others the loop does nothing else; `programs/test_kill` kills two of them.
@pytest.mark.parametrize(
    "stage",
    slow.parameters(
        ["generic_distill", "dmae_distill", "finetune", "specific_seg"],
        quick=["generic_distill"],
    ),
)
def test_resume_equals_uninterrupted_bit_for_bit(stage, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = runs.small(stage)
    loop.run(config, str(whole))
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            loop.run(config, str(parts))
    assert len(losses(parts)) == 3  # Step 4 was not looked at yet.
    loop.run(config, str(parts))
    np.testing.assert_array_equal(losses(parts), losses(whole))
    chex.assert_trees_all_equal(state(config, parts), state(config, whole))
    assert (parts / "DONE").read_text() == (whole / "DONE").read_text()


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The config, the workdir and the final metrics of a finished run."""
    config = runs.small("finetune", total_steps=2)
    workdir = tmp_path_factory.mktemp("short")
    return config, workdir, loop.run(config, str(workdir))


def test_a_finished_run_is_left_alone(short_run):
    config, workdir, first = short_run
    assert first["eval/count"] == 40
    before = (workdir / "metrics.jsonl").read_text()
    assert loop.run(config, str(workdir)) == first
    assert (workdir / "metrics.jsonl").read_text() == before


def test_killed_between_last_checkpoint_and_done(short_run, tmp_path):
    config, workdir, first = short_run
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "DONE").unlink()
    again = loop.run(config, str(tmp_path))
    assert again == first
    assert json.loads((tmp_path / "DONE").read_text()) == again


def test_an_evaluation_that_fails_costs_no_step(short_run, tmp_path, monkeypatch):
    config, _, first = short_run

    def failing(*_):
        def evaluate(*_):
            raise ValueError("a picture that nobody can read")

        return evaluate

    with monkeypatch.context() as patched:
        patched.setattr(loop.fold, "make_evaluate", failing)
        with pytest.raises(ValueError, match="nobody can read"):
            loop.run(config, str(tmp_path))
    assert checkpoint.Manager(str(tmp_path)).latest() == config.total_steps
    assert loop.run(config, str(tmp_path)) == first


@pytest.mark.slow
def test_a_finished_run_goes_on_to_a_later_end(short_run, tmp_path):
    config, workdir, _ = short_run
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    longer = config.copy_and_resolve_references()
    longer.total_steps = 3
    assert loop.run(longer, str(tmp_path))["step"] == 3
    assert json.loads((tmp_path / "DONE").read_text())["step"] == 3
    rows = metrics.read_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    (tmp_path / "config.json").unlink()  # As by hand: the checkpoint stays.
    with pytest.raises(ValueError, match=r"holds step 3, beyond the 2 steps"):
        loop.run(config, str(tmp_path))


def test_another_mesh_may_continue_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "SMALL", 1)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            loop.run(runs.small("linprobe"), str(tmp_path))
    mesh = dict(data=2, fsdp=4)
    assert loop.run(runs.small("linprobe", mesh=mesh), str(tmp_path))["step"] == 6


def test_another_config_is_refused_with_the_difference(short_run):
    config, workdir, _ = short_run
    config = config.copy_and_resolve_references()
    config.seed = 1
    with pytest.raises(ValueError, match=r"config\.seed was 0, now 1"):
        loop.run(config, str(workdir))


@pytest.mark.slow  # Steps are compared in `test_step`.
def test_accumulation_equals_the_undivided_batch(tmp_path):
    for parts in (1, 4):
        config = runs.small("finetune", accumulate=parts, batch=64, total_steps=3)
        loop.run(config, str(tmp_path / str(parts)))
    one, four = losses(tmp_path / "1"), losses(tmp_path / "4")
    np.testing.assert_allclose(four, one, rtol=2e-5)


class TestNonFinite:
    """A poisoned step: the batch is real, the loss is not."""

    @pytest.fixture
    def poison(self, monkeypatch):
        from g2sd_jax import stages

        build = stages.build

        def poisoned(config):
            stage = build(config)

            def loss(params, model_state, frozen, batch, draws, step):
                given = params, model_state, frozen, batch, draws, step
                value, (state, told) = stage.loss(*given)
                value = jax.numpy.where(step == 2, jax.numpy.nan, value)
                return value, (state, {**told, "loss": value})

            return stage._replace(loss=loss)

        monkeypatch.setattr(stages, "build", poisoned)

    def test_stop_names_the_step(self, poison, tmp_path):
        with pytest.raises(FloatingPointError, match="step 3 is not finite"):
            loop.run(runs.small("linprobe"), str(tmp_path))

    def test_skip_goes_on_within_its_bound(self, poison, tmp_path):
        skip = dict(policy="skip", bound=1)
        final = loop.run(runs.small("linprobe", nonfinite=skip), str(tmp_path))
        assert final["step"] == 6
        assert np.isfinite(final["loss"])
        none = dict(policy="skip", bound=0)
        with pytest.raises(FloatingPointError):
            loop.run(runs.small("linprobe", nonfinite=none), str(tmp_path / "none"))


def test_evaluation_set_is_looked_at_before_step_0(tmp_path):
    np.savez(
        tmp_path / "set.npz",
        train_image=np.zeros((32, 16, 16, 3), np.uint8),
        train_label=np.zeros(32, np.int64),
    )
    config = runs.small("finetune")
    data = dict(source="arrays", path=str(tmp_path / "set.npz"), train_examples=32)
    with config.unlocked():
        config.data.update(data)
    with pytest.raises(ValueError, match="has no split 'val'"):
        loop.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_teacher_is_measured_then_trimmed_and_cast(dtype, capsys):
    config = runs.small("generic_distill", compute_dtype=dtype)
    stage = stages.build(config)
    mesh = parallel.make_mesh(config.mesh)
    image = np.zeros((8, 16, 16, 3), np.uint8)
    frozen, found = stages.frozen_variables(stage, config, {"image": image}, mesh)
    frozen = frozen["params"]
    error = found["teacher/reconstruction_error"]
    assert f"teacher/reconstruction_error: {error:.4g} " in capsys.readouterr().out
    kernel = frozen["decoder_blocks"]["attn"]["qkv"]["kernel"]
    assert len(kernel) == config.distill.teacher_block
    assert kernel.dtype == dtype
    assert "decoder_pred" not in frozen and "decoder_norm" not in frozen


@pytest.mark.slow
def test_profile_traces_the_steps_asked_for(tmp_path):
    config = runs.small("pretrain", profile=(2, 3))
    loop.run(config, str(tmp_path))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_new_random_stream_moves_no_other():
    key = jax.random.key(0)
    few, more = core.stream_keys(key, "a", "b"), core.stream_keys(key, "b", "c", "a")
    assert all(bool((few[name] == more[name]).all()) for name in few)
    assert not bool((few["a"] == few["b"]).all())


BLOCKED = """
import sys

class Hidden:  # A finder that does not know some packages, as if never installed.
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        hidden = ("tensorflow", "tensorflow_datasets", "tensorboard", "tensorboardX")
        if name.split(".")[0] in hidden:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):  # Versions are told as ever.
        return getattr(self.finder, name)

sys.meta_path[:] = [Hidden(finder) for finder in sys.meta_path]
sys.path.insert(0, sys.argv[1])
import runs
from jax.sharding import PartitionSpec as P
from g2sd_jax import loop
for source, path in (("digits", ""), ("arrays", sys.argv[3]), ("fake", "")):
    config = runs.small("pretrain", total_steps=1)
    with config.unlocked():
        config.data.update(dict(source=source, path=path, classes=10, train_examples=
                                1198 if source == "digits" else 32))
        channels = 1 if source == "digits" else 3
        config.model.channels = channels
        config.data.mean = config.data.std = (0.5,) * channels
        config.mesh = dict(data=1, fsdp=1)
    print(source, loop.run(config, f"{sys.argv[2]}/{source}")["step"])
"""


@pytest.mark.slow  # Three runs; that all imports without it is seen quickly.
def test_in_memory_sources_train_without_tensorflow(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (32, 16, 16, 3), np.uint8)
    label = np.arange(32) % 10
    splits = {f"{split}_image": image for split in ("train", "val")}
    splits |= {f"{split}_label": label for split in ("train", "val")}
    np.savez(tmp_path / "small.npz", **splits)
    here = os.path.dirname(__file__)
    given = [here, str(tmp_path), str(tmp_path / "small.npz")]
    environment = dict(os.environ, XLA_FLAGS="", JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] = os.path.dirname(here)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, *given],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trained = [line for line in done.stdout.splitlines() if line.endswith(" 1")]
    assert trained == ["digits 1", "arrays 1", "fake 1"]
