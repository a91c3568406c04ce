# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written behind the run's back, kept by rule, and never half believed."""

import contextlib
import functools
import gc
import itertools
import os
import pathlib
import resource
import shutil
import signal
import threading
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import runs
from g2sd_jax import (
    checkpoint,
    cli,
    clock,
    command,
    core,
    errors,
    loop,
    metrics,
    parallel,
    stages,
    step,
)
from g2sd_jax.evaluators import fold
from g2sd_jax.hosts import cluster
from g2sd_jax.tools import inspect

CHECKPOINTS = pathlib.Path(__file__).parent / "checkpoints"
DESCRIBE = dict(stage="made up", kind="none")


def state(step, size=64):
    values = jnp.arange(size, dtype=jnp.float32) + step
    return core.TrainState(
        step=jnp.asarray(step, jnp.int32),
        params={"kernel": values, "norm": {"bias": -values}},
        model_state={"batch_stats": {"mean": values * 2}},
        opt_state={"mu": values * 3},
    )


def abstract(of):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of
    )


@pytest.fixture
def manager(tmp_path):
    """Makes managers of one folder, and closes them."""
    made = []

    def make(keep=3, **changes):
        made.append(checkpoint.Manager(str(tmp_path), keep, **changes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def saved(manager, steps, **scores):
    each = manager()
    for number in steps:
        each.save(number, state(number), DESCRIBE)
    each.close()


def test_restored_as_saved_with_the_newest_kept(manager):
    saved(manager, (2, 4, 6, 8))
    again = manager()
    assert again.steps() == [8, 6, 4]
    found = again.restore(abstract(state(0)))
    for one, other in zip(*map(jax.tree.leaves, (found, state(8))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_save_is_exempt_from_the_guard_of_the_loop(manager, monkeypatch):
    """On CPUs a copy to the host is none, so that only the guard itself shows it."""
    writer, saved_state, guards = manager(), state(1), []
    save = writer._orbax.save

    def noting(*args, **kwargs):
        guards.append(jax.config.jax_transfer_guard_device_to_host)
        return save(*args, **kwargs)

    monkeypatch.setattr(writer._orbax, "save", noting)
    with jax.transfer_guard("disallow"):
        writer.save(1, saved_state, DESCRIBE)
        assert jax.config.jax_transfer_guard_device_to_host == "disallow"
    assert guards == ["allow"]


def test_a_save_goes_on_in_the_background_and_is_exact(manager, monkeypatch):
    """The state may be donated at once, and what is written is what it was."""
    orbax = ocp.checkpoint_manager.CheckpointManager
    finalize, order, opened = orbax._finalize, [], threading.Event()

    def finalize_later(*given):
        opened.wait(30)
        order.append("committed")
        return finalize(*given)

    monkeypatch.setattr(orbax, "_finalize", finalize_later)
    each, current = manager(), state(2, size=2**20)
    expected = jax.device_get(current)
    overwrite = jax.jit(
        lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0
    )
    each.save(2, current, DESCRIBE)
    for _ in range(3):
        current = overwrite(current)
    jax.block_until_ready(current)
    order.append("went on")
    opened.set()
    each.wait()
    assert order == ["went on", "committed"]
    found = manager().restore(abstract(current))
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("best_is", "expected"), [("max", 2), ("min", 3)])
def test_the_best_is_kept_beside_the_newest(manager, best_is, expected):
    each = manager(1, best="eval/top1", best_is=best_is)
    for number, top1 in ((1, 50.0), (2, 90.0), (3, 10.0), (5, 70.0)):
        each.save(number, state(number), DESCRIBE, {"eval/top1": top1})
    each.save(6, state(6), DESCRIBE)
    each.close()
    assert manager(1, best="eval/top1", best_is=best_is).steps() == [6, expected]


@pytest.mark.parametrize("best_is", ["max", "min"])
@pytest.mark.parametrize("scores", [(np.nan, 3.0, np.inf), (3.0, np.nan, -np.inf)])
def test_what_is_not_finite_is_never_the_best(manager, best_is, scores):
    each = manager(1, best="eval/top1", best_is=best_is)
    for number, top1 in enumerate(scores, start=1):
        each.save(number, state(number), DESCRIBE, {"eval/top1": top1})
    each.save(4, state(4), DESCRIBE)
    each.close()
    expected = 1 + scores.index(3.0)
    again = manager(1, best="eval/top1", best_is=best_is)
    assert again.steps() == [4, expected]
    assert again.scores() == {expected: {"eval/top1": 3.0}}


def damage(folder, how):
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    if how == "truncated":
        for path in folder.rglob("d/*"):
            os.truncate(path, path.stat().st_size // 2)
    elif how == "emptied":
        for path in files:
            os.truncate(path, 0)
    elif how == "gaps":
        largest.unlink()
        shutil.rmtree(folder / "state" / "d", ignore_errors=True)
    elif how == "foreign":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "notes.txt").write_text("not a checkpoint")


@pytest.mark.parametrize("how", ["truncated", "emptied", "gaps", "foreign"])
def test_a_damaged_newest_is_named_and_left_out(manager, how, tmp_path, capsys):
    saved(manager, (2, 4))
    damage(tmp_path / "checkpoints" / "4", how)
    each = manager()
    found = each.restore(abstract(state(0)))
    assert int(found.step) == 2
    told = capsys.readouterr().out
    assert "checkpoints/4 cannot be read and is left out" in told
    assert told.count("\n") == 1
    # It is out of the way, so that the run can save this step once more.
    assert (tmp_path / "broken_checkpoints" / "4").exists()
    each.save(4, state(4), DESCRIBE)
    each.close()
    assert int(manager().restore(abstract(state(0))).step) == 4


def test_a_reader_names_a_damaged_one_and_moves_nothing(manager, tmp_path, capsys):
    saved(manager, (2, 4))
    damage(tmp_path / "checkpoints" / "4", "truncated")
    held = checkpoint.read_run(str(tmp_path), "config.teacher.checkpoint")
    assert held.step == 2 and "left out" in capsys.readouterr().out
    assert (tmp_path / "checkpoints" / "4").exists()


def test_the_only_one_damaged_is_an_error(manager, tmp_path):
    saved(manager, (2,))
    damage(tmp_path / "checkpoints" / "2", "truncated")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read .step 2: "):
        manager().restore(abstract(state(0)))


def noise(step):
    """A state of numbers that no compression shortens, which is not to hide a bit."""
    rng = np.random.default_rng(step)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    return jax.tree.map(draw, state(step, size=4096)).replace(step=jnp.int32(step))


def flip(file, bit):
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def test_one_flipped_bit_is_seen(manager, tmp_path, rng, capsys):
    """Wherever it is: what comes back is what was saved, or the older step, told."""
    each = manager()
    for number in (2, 4):
        each.save(number, noise(number), DESCRIBE)
    each.close()
    intact = tmp_path / "checkpoints" / "4"
    shutil.copytree(intact, tmp_path / "copy")
    files = [path for path in sorted(intact.rglob("*")) if path.stat().st_size]
    files = [path for path in files if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    silent = 0
    for file in [*files, *[largest] * 8]:
        flip(file, int(rng.integers(8 * file.stat().st_size)))
        reader = checkpoint.Manager(str(tmp_path))
        restored = reader.restore(abstract(state(0, size=4096)))
        reader.close()
        printed = capsys.readouterr().out
        chex.assert_trees_all_equal(restored, noise(int(restored.step)))
        assert (int(restored.step) == 2) == (
            "4 cannot be read and is left out" in printed
        )
        silent += "is not what was saved: bits have changed" in printed
        shutil.rmtree(intact)
        shutil.copytree(tmp_path / "copy", intact)
    assert silent  # Which only the digests tell.


def test_a_changed_description_is_seen(manager, tmp_path, capsys):
    saved(manager, (2, 4))
    file = tmp_path / "checkpoints/4/describe/metadata"
    file.write_text(file.read_text().replace("made up", "made in"))
    loaded = checkpoint.read_run(str(tmp_path), "key")
    assert (loaded.step, loaded.describe) == (2, DESCRIBE)
    assert "describe is not what was saved" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lr[1e-4]", "a*", "what?", "run #1 [x] {y} 100% é"])
def test_any_letter_may_be_in_the_path(name, tmp_path):
    path = str(tmp_path / name / "run")
    each = checkpoint.Manager(path, keep=3)
    each.save(2, state(2), DESCRIBE)
    each.close()
    again = checkpoint.Manager(path, keep=3)
    chex.assert_trees_all_equal(again.restore(abstract(state(0))), state(2))
    again.close()


@pytest.mark.parametrize("when", ["while the run goes on", "at its end"])
def test_what_can_not_be_read_is_not_said_to_be_saved(when, tmp_path, monkeypatch):
    """The first checkpoint is read again; here Orbax loses its arrays."""
    monkeypatch.setattr(checkpoint.workdir, "Folder", epath.Path)
    each = checkpoint.Manager(str(tmp_path / "lr[1e-4]"), keep=3)
    each.save(2, state(2), DESCRIBE)
    with pytest.raises(OSError, match=r"lr\[1e-4\].* could not be read again") as error:
        if when == "at its end":
            each.wait()
        else:
            each.save(4, state(4), DESCRIBE)
            for _ in range(200):
                each.check()
                time.sleep(0.05)
    assert "\n" not in str(error.value)


def test_a_first_checkpoint_that_is_gone_is_no_mistake(tmp_path):
    each = checkpoint.Manager(str(tmp_path), keep=1)
    for number in range(1, 6):
        each.save(number, state(number), DESCRIBE)
        each.check()
    each.close()
    assert each._reading.done() and each._reading.exception() is None


def test_another_states_checkpoint_is_an_error(manager, tmp_path):
    saved(manager, (2,))
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read"):
        manager().restore(abstract(state(0, size=65)))


def test_torn_saves_are_cleaned_by_the_next_writer_alone(manager, tmp_path):
    saved(manager, (2,))
    torn = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", torn)
    assert checkpoint.read_run(str(tmp_path), "key").step == 2
    assert torn.exists()  # Perhaps somebody is writing it.
    each = manager()
    assert each.latest() == 2
    each.save(6, state(6), DESCRIBE)
    each.close()
    assert not torn.exists()


def test_read_without_the_config(manager, tmp_path):
    saved(manager, (2, 4))
    held = checkpoint.read_run(str(tmp_path), "key")
    assert sorted(held.state) == ["model_state", "params"]
    np.testing.assert_array_equal(
        held.state["model_state"]["batch_stats"]["mean"], np.arange(64) * 2.0 + 8
    )
    assert (held.describe["stage"], held.step, held.steps) == ("made up", 4, [4, 2])
    first = checkpoint.read_run(f"{tmp_path}/checkpoints/2", "key")
    assert first.step == 2 and first.state["params"]["kernel"][0] == 2
    with pytest.raises(ValueError, match="no complete checkpoint of step 3"):
        checkpoint.read_run(f"{tmp_path}/checkpoints/3", "key")


def test_checkpoints_of_the_oldest_orbax_are_read_and_continued(manager, tmp_path):
    """The archive was saved by Orbax 0.11.36 on jax 0.10.2, through `item_handlers`.

    Its manager had best="eval/top1" and saved `state(2)` and `state(4)` of this file,
    each scored with its own step.
    """
    shutil.unpack_archive(CHECKPOINTS / "orbax_0.11.36.zip", tmp_path)
    loaded = checkpoint.read_run(str(tmp_path), "key", optimiser_state=True)
    assert (loaded.describe["stage"], loaded.step, loaded.steps) == (
        "made up",
        4,
        [4, 2],
    )
    assert loaded.scores == {4: {"eval/top1": 4.0}, 2: {"eval/top1": 2.0}}
    np.testing.assert_array_equal(
        loaded.state["opt_state"]["mu"], state(4).opt_state["mu"]
    )
    again = manager()
    chex.assert_trees_all_equal(again.restore(abstract(state(0))), state(4))
    again.save(6, state(6), DESCRIBE)
    again.close()
    assert manager().steps() == [6, 4, 2]


def test_inspect_tells_states_apart_by_their_bits(manager, tmp_path, capsys):
    saved(manager, (2, 4))
    assert cli.main(["inspect", str(tmp_path)]) == 0
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert (told["stage"], told["step"], told["checkpoints"]) == (
        "made up",
        "4",
        "4, 2",
    )
    assert told["parameters"] == "128"
    digests = [
        told[f"{name} sha256"] for name in ("params", "model_state", "opt_state")
    ]
    assert len({len(digest) for digest in digests}) == 1 and len(set(digests)) == 3
    other = inspect.run(f"{tmp_path}/checkpoints/2")
    assert f"params sha256: {told['params sha256']}" not in other
    moved = {"a": np.float32([1, 2]), "b": np.float32([])}
    same = {"b": np.float32([]), "a": np.float32([1, 2])}
    assert inspect.digest(moved) == inspect.digest(same)
    assert inspect.digest({"a": np.float32([2, 1])}) != inspect.digest(moved)
    assert cli.main(["inspect", str(tmp_path / "no")]) == 2
    assert "g2sd inspect='" in capsys.readouterr().err


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond a few bytes, as on a disk without space.

    Only inside: the test's own log may be a file as well.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line(tmp_path):
    each = checkpoint.Manager(str(tmp_path), keep=3)
    each.save(2, state(2), DESCRIBE)
    each.wait()
    with full_disk():
        with pytest.raises(OSError, match=r"could not be written: .*space") as error:
            each.save(4, state(4), DESCRIBE)
            each.wait()
        with contextlib.suppress(OSError):  # It may say so again.
            each.close()
    assert "\n" not in str(error.value)
    assert checkpoint.read_run(str(tmp_path), "key").step == 2


def test_a_full_disk_stops_the_log_in_one_line(tmp_path):
    lines = metrics.Lines(tmp_path / "metrics.jsonl", 0)
    written = r"metrics.jsonl can not be written: File too"
    with full_disk(), pytest.raises(OSError, match=written):
        for step in range(9):
            lines.write(step, {"loss": 1.0})
    lines.close()


def test_a_vanished_folder_is_one_line(manager, tmp_path):
    each = manager()
    shutil.rmtree(tmp_path)
    with pytest.raises(OSError, match=r"could not be written: .*vanished") as error:
        each.save(2, state(2), DESCRIBE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["/proc/here", "file/run"])
def test_a_folder_that_cannot_be_made_is_one_line(where, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    workdir = tmp_path / where
    given = [f"--workdir={workdir}", "--config=pretrain:smoke,steps=2"]
    given += [f"--config.model.{k}={v}" for k, v in (runs.SMALL | runs.DECODER).items()]
    assert cli.main(["train", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert str(workdir) in error


def evaluated():
    """The config of a run that evaluates three times."""
    return runs.small("linprobe", eval_epochs=0.5)


def facts(workdir):
    told = inspect.run(workdir).splitlines()
    rows = metrics.read_lines(f"{workdir}/metrics.jsonl")
    rows = [{key: row[key] for key in row.keys() - clock.TIMES} for row in rows]
    return [line for line in told if "sha256" in line], rows


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The facts of a run that nobody stopped."""
    workdir = str(tmp_path_factory.mktemp("undisturbed"))
    loop.run(evaluated(), workdir)
    return facts(workdir)


class TestStopping:
    def asked_at(self, monkeypatch, step):
        """SIGTERM comes while `step` is under way."""
        swap = metrics.Late.swap

        def asking(late, number, told):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return swap(late, number, told)

        monkeypatch.setattr(metrics.Late, "swap", asking)

    def test_sigterm_saves_this_very_step_and_says_so(
        self, undisturbed, tmp_path, monkeypatch
    ):
        before = signal.getsignal(signal.SIGTERM)
        config, parts = evaluated(), str(tmp_path / "parts")
        with monkeypatch.context() as patch:
            self.asked_at(patch, 4)
            with pytest.raises(errors.Preempted, match="step 4 of 6 is saved"):
                loop.run(config, parts)
        assert signal.getsignal(signal.SIGTERM) == before
        assert checkpoint.read_run(parts, "key").step == 4
        loop.run(config, parts)
        assert facts(parts) == undisturbed
        # Each evaluation once, the one of the last step among them.
        _, rows = undisturbed
        assert [row["step"] for row in rows if "eval/top1" in row] == [2, 4, 6]

    @pytest.mark.parametrize("step", [0, 2])
    def test_sigterm_is_answered_while_no_batch_comes(
        self, step, undisturbed, tmp_path, monkeypatch
    ):
        config, parts = evaluated(), str(tmp_path / "parts")
        gate, batches, calls = threading.Event(), loop.order.train_batches, []
        asking = functools.partial(os.kill, os.getpid(), signal.SIGTERM)

        def stalling(*given):
            calls.append(given)
            yield from itertools.islice(batches(*given), step if calls[1:] else 1)
            if not step:
                asking()
            gate.wait(60)
            raise ValueError("SIGTERM was not answered")

        class Stop(cluster.Stop):
            def asked(self, number):
                if number == step:
                    threading.Timer(0.3, asking).start()
                return super().asked(number)

            def alone(self):
                if super().alone():
                    gate.set()  # Else its own thread is waited for.
                return super().alone()

        with monkeypatch.context() as patch:
            patch.setattr(loop.order, "train_batches", stalling)
            patch.setattr(cluster, "Stop", Stop)
            said = f"step {step} of 6 is saved" if step else "no step is made"
            with pytest.raises(errors.Preempted, match=said):
                loop.run(config, parts)
        if step:
            assert checkpoint.read_run(parts, "key").step == step
        loop.run(config, parts)
        assert facts(parts) == undisturbed

    def test_killed_while_judging_judges_again(
        self, undisturbed, tmp_path, monkeypatch
    ):
        """A checkpoint is not there before all that it stands for was told."""
        config = evaluated()
        with config.unlocked():
            config.checkpoint.every = 2
        write, parts = metrics.Writer.write, str(tmp_path / "parts")

        class Killed(Exception):
            pass

        def killed(writer, step, scalars):
            if step == 4 and "eval/top1" in scalars:
                raise Killed
            write(writer, step, scalars)

        with monkeypatch.context() as patch:
            patch.setattr(metrics.Writer, "write", killed)
            with pytest.raises(Killed):
                loop.run(config, parts)
        assert checkpoint.read_run(parts, "key").step == 2
        loop.run(config, parts)
        assert facts(parts) == undisturbed

    def test_the_exit_status_is_the_documented_one(self, capsys):
        def asked():
            raise errors.Preempted("stopped as asked")

        assert command.guarded(asked) == 75
        assert capsys.readouterr().out == "stopped as asked\n"


def in_memory():
    """Bytes of all buffers of all devices; views of the same memory count once."""
    buffers = {}
    for array in jax.live_arrays():
        if not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
            for shard in array.addressable_shards:
                place = shard.device, shard.data.unsafe_buffer_pointer()
                buffers[place] = shard.data.nbytes
    return sum(buffers.values())


@pytest.mark.slow
def test_resume_needs_no_more_memory_than_the_run(tmp_path, monkeypatch):
    """The state is restored where it lives: no initial one is made beside it."""
    config = runs.small("finetune", total_steps=3)
    loop.run(config, str(tmp_path))
    (tmp_path / "DONE").unlink()
    build, restore, grew = step.build, checkpoint.Manager.restore, []

    def without_init(*given):
        def refused(_):
            raise AssertionError("a resumed run initialises nothing")

        return build(*given)._replace(init=refused, start=refused)

    def measured(manager, wanted):
        gc.collect()
        before = in_memory()
        found = restore(manager, wanted)
        gc.collect()
        leaves = jax.tree.leaves(found)
        own = sum(s.data.nbytes for leaf in leaves for s in leaf.addressable_shards)
        grew.append((in_memory() - before) / own)
        return found

    monkeypatch.setattr(step, "build", without_init)
    monkeypatch.setattr(checkpoint.Manager, "restore", measured)
    loop.run(config, str(tmp_path))
    assert grew == [pytest.approx(1.0, abs=0.01)]


@pytest.mark.parametrize(
    "stage, best, told",
    [
        ("finetune", "evl/top1", "did you mean eval/top1"),
        ("finetune", "eval/top3", "did you mean eval/top[15] or eval/top[15]"),
        ("specific_seg", "loss", "known: eval/mIoU, eval/mAcc, eval/aAcc, eval/pixels"),
        ("pretrain", "val/loss", "judges nothing as it is; .*config.monitor.loss=true"),
    ],
)
def test_a_metric_that_no_evaluator_tells_is_refused_at_once(
    stage, best, told, tmp_path, monkeypatch
):
    config = runs.small(stage)
    with config.unlocked():
        config.checkpoint.best = best
    monkeypatch.setattr(loop.source, "load", None)  # Before anything is read.
    with pytest.raises(ValueError, match=rf"config\.checkpoint\.best=.*{told}"):
        loop.run(config, str(tmp_path))


def test_every_evaluator_names_its_metrics_before_it_judges():
    config = runs.small("pretrain", monitor=dict(loss=True, neighbours=3, bank=10))
    assert fold.metric_names(stages.build(config)) == ["val/loss", "knn/top1"]
    known = ["eval/top1", "eval/top5", "eval/count"]
    assert fold.metric_names(stages.build(runs.small("linprobe"))) == known


def test_alone_nothing_is_compared():
    def never():
        raise AssertionError("asked for without need")

    cluster.agree("data", never)
    assert cluster.exchange("a reason", 3) == [3]
    assert parallel.gather_states({"a": 1}) == [{"a": 1}]
