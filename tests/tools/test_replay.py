# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A step that was not finite is kept, and run again until its cause has a name."""

import json
import pathlib
import types

import jax
import numpy as np
import pytest

import finished_runs
import runs
from g2sd_jax import checkpoint, cli, core, loop, nonfinite, parallel, stages, step
from g2sd_jax.data import dataset as datasets
from g2sd_jax.data import order, source
from g2sd_jax.tools import inspect, replay


def blown_up(stage, workdir, lr=1e25, **changes):
    """A run whose second step overflows, for the first one moved it so far."""
    config = runs.small(stage, **changes)
    with config.unlocked():
        config.optim.lr = lr
    with pytest.raises(FloatingPointError, match="step 2 is not finite") as error:
        loop.run(config, str(workdir))
    path = workdir / "replay" / "step_2.npz"
    assert f"g2sd replay {path} " in str(error.value)
    return config, path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return blown_up("pretrain", tmp_path_factory.mktemp("stopped"))


def test_the_file_holds_the_step_and_the_state_before_it(stopped):
    config, path = stopped
    kept = nonfinite.read(str(path))
    assert (kept.step, kept.config["stage"]) == (2, "pretrain")
    assert not np.isfinite(kept.metrics["loss"]) and kept.processes == 1
    assert kept.batch["image"].shape == (16, 16, 16, 3)
    # The state is the one after step 1, whatever was under way when it was noticed.
    held = checkpoint.read_run(
        nonfinite.state_of(str(path)), "key", optimiser_state=True
    )
    assert held.step == 1
    mesh = parallel.make_mesh(config.mesh)
    stage = stages.build(config)
    program = step.build(config, stage, mesh)
    keys = program.keys()
    np.testing.assert_array_equal(*map(jax.random.key_data, (kept.key, keys["step"])))
    state = program.start(program.init(keys["init"]))
    first = next(loop.order.train_batches(loop.source.load(config, "train"), 16, 0))
    state, _ = program.step(state, {}, parallel.to_global(first, mesh), keys["step"])
    for name in ("params", "opt_state"):
        told = inspect.digest(jax.device_get(getattr(state, name)))
        assert name == "opt_state" or inspect.digest(held.state[name]) == told


def test_the_verb_names_the_module(stopped, capsys):
    _, path = stopped
    assert cli.main(["replay", str(path)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2].startswith("step 2 of pretrain, as it was: ")
    assert "loss nan" in told[-2]
    assert told[-1].startswith("in float32: the first module that is not finite is ")
    assert told[-1].split()[-1].startswith("blocks.0.")


@pytest.mark.slow  # A state that is made again is that of the next test, too.
def test_a_run_that_skips_is_replayed_from_its_own_beginning(tmp_path, capsys):
    skip = dict(policy="skip", bound=0)
    _, path = blown_up("finetune", tmp_path, lr=1e12, nonfinite=skip)
    assert nonfinite.state_of(str(path)) is None
    told = replay.run(str(path))
    assert "made again from step 0" in capsys.readouterr().out
    assert "the first module that is not finite is" in told


@pytest.mark.slow
def test_the_state_is_made_again_from_the_batches_of_all_processes(
    stopped, tmp_path, monkeypatch
):
    """A stream's order depends on how many processes read it."""
    config, path = stopped
    kept = nonfinite.read(str(path))
    kept = kept._replace(processes=2, workdir=str(tmp_path), step=2)
    rng, asked = np.random.default_rng(0), []
    image = rng.integers(0, 256, kept.batch["image"].shape, np.uint8)

    def train_batches(batch, seed, start, process, processes):
        asked.append((start, process, processes))
        rows = order.process_rows(batch, process, processes)
        while True:  # Two processes see these in the order of the file, one reversed.
            yield {"image": (image if processes == 2 else image[::-1])[rows]}

    streamed = datasets.Dataset(
        16, (), None, None, stream=types.SimpleNamespace(train_batches=train_batches)
    )
    monkeypatch.setattr(source, "load", lambda *_: streamed)
    state = replay.state_before(str(tmp_path / "step_2.npz"), kept, config)
    assert asked == [(0, 0, 2), (0, 1, 2)]
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    program = step.build(config, stages.build(config), mesh)
    keys = program.keys()
    whole = parallel.to_global({"image": image}, mesh)
    expected = program.start(program.init(keys["init"]))
    expected, _ = program.step(expected, {}, whole, keys["step"])
    for one, other in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def sound(stopped, tmp_path):
    """The kept step with a sound state: (replay, state, config) of `examine`."""
    _, path = stopped
    kept = nonfinite.read(str(path))
    config = replay.recipe(kept.config, compute_dtype="float32")
    mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
    program = step.build(config, stages.build(config), mesh)
    return kept, program.start(program.init(program.keys()["init"])), config


def spoilt(state, *path, value=np.nan, at=()):
    """The state with one parameter spoilt, at one place of its array."""
    params = jax.device_get(state.params)
    node = params
    for name in path[:-1]:
        node[name] = node = dict(node[name])
    array = np.array(node[path[-1]])
    array[at] = value
    node[path[-1]] = array
    return state.replace(params=params)


def test_sound_is_told_as_sound(sound):
    assert replay.examine(*sound).startswith("everything is finite, the loss is ")


def test_parameters_that_are_not_finite_come_first(sound):
    kept, state, config = sound
    state = spoilt(state, "blocks", "mlp", "fc1", "bias", at=(1, 3))
    assert "blocks.1.mlp.fc1.bias among them" in replay.examine(kept, state, config)


@pytest.mark.parametrize("block", [0, 1])
def test_the_block_of_a_loop_is_named(sound, block):
    kept, state, config = sound
    kernel = ("blocks", "mlp", "fc1", "kernel")
    state = spoilt(state, *kernel, value=3e38, at=block)
    told = replay.examine(kept, state, config)
    assert told == f"the first module that is not finite is blocks.{block}.mlp.fc1"


def test_the_teacher_is_told_from_the_student():
    config, stage, variables = finished_runs.made("generic_distill")
    state = core.TrainState(jax.numpy.int32(0), variables["params"], {}, {})
    example = {"image": np.zeros((16, 16, 16, 3), np.uint8)}
    kept = nonfinite.Replay(1, example, jax.random.key(0), {}, {}, "", 1)
    frozen = jax.tree.map(lambda x: x * 1e38, stage.trim(stage.frozen()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "frozen_variables", lambda *_: (frozen, {}))
        told = replay.examine(kept, state, config)
    assert told.endswith("of what is frozen")


def test_a_gradient_alone_is_told_by_its_last_module(sound, monkeypatch):
    kept, state, config = sound
    build = stages.build

    def rooted(config):
        stage = build(config)

        def loss(params, *given):
            value, aux = stage.loss(params, *given)
            # The root of zero: its value is sound, its slope is not.
            zero = (params["decoder_pred"]["bias"] * 0).sum()
            return value + jax.numpy.sqrt(zero), aux

        return stage._replace(loss=loss)

    monkeypatch.setattr(stages, "build", rooted)
    told = replay.examine(kept, state, config)
    assert "its gradient is not" in told and "meets decoder_pred.bias first" in told


def test_a_file_that_does_not_tell_the_number_of_processes(stopped, tmp_path):
    with np.load(stopped[1]) as arrays:
        arrays = dict(arrays)
    about = json.loads(str(arrays["about"]))
    del about["processes"]
    np.savez(tmp_path / "step_2.npz", **(arrays | {"about": json.dumps(about)}))
    with pytest.raises(ValueError, match="files told the number of processes, on"):
        nonfinite.read(str(tmp_path / "step_2.npz"))


@pytest.mark.parametrize("content", [None, b"not a zip"])
def test_no_such_file_is_one_line(content, tmp_path, capsys):
    path = pathlib.Path(tmp_path) / "step_3.npz"
    if content:
        path.write_bytes(content)
    assert cli.main(["replay", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and error.count("\n") == 1
