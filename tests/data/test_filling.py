# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Rows that other processes fill: the same bytes, the same errors, and their end."""

import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time

import jax
import numpy as np
import pytest

import coco_files
import failing_examples
import files
import label_map_files
from g2sd_jax import errors
from g2sd_jax.data import failures, filling, folder, order, source
from g2sd_jax.data import pipeline as pipelines
from g2sd_jax.data.processes import shared_batches, threads, workers

COUNT = 40  # Pictures of the training split.


@pytest.fixture(autouse=True)
def unlisted():
    with threads.closing():
        yield
    failures.list_in(None)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return files.write(root, files.photographs(per_class=COUNT // 2))


def opened(path, split="train", **data):
    config = files.recipe(path, workers=2, **data)
    listed = folder.list_files(config, split)
    return listed, pipelines.dataset(config, listed, split)


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def in_small_parts(dataset, indices, epoch):
    """The batch, of parts that are too small for another process."""
    parts = [
        dataset.fetch(indices[at : at + filling.HERE], epoch)
        for at in range(0, len(indices), filling.HERE)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


SOURCES = {
    "maps": lambda path: label_map_files.recipe(
        files.write(path, label_map_files.pairs())
    ),
    "coco": lambda path: coco_files.recipe(coco_files.write(path)),
    "tar": lambda path: files.recipe(packed(path, "set.tar", "w")),
    "tar.gz": lambda path: files.recipe(packed(path, "set.tar.gz", "w:gz")),
}


def packed(path, name, mode):
    """A tar of photographs."""
    root = files.write(path / "unpacked", files.photographs(per_class=3))
    with tarfile.open(path / name, mode) as tar:
        tar.add(root, ".")
    return path / name


@pytest.mark.parametrize("epoch", [None, 3])
@pytest.mark.parametrize("kind", SOURCES)
def test_processes_fill_the_same_bytes_of_every_source(tmp_path, kind, epoch):
    config = SOURCES[kind](tmp_path)
    config.data.workers = 2
    config.data.train_examples, _ = source.count(config)
    dataset = source.load(config, config.data.train_split)
    indices = np.resize(np.arange(dataset.count), 2 * filling.HERE + 1)
    for turn in range(3):  # Memory that was used before, and for another epoch.
        epochs = None if epoch is None else epoch + turn
        batch = dataset.fetch(indices, epochs)
        same(batch, in_small_parts(dataset, indices, epochs))
        indices = np.roll(indices, 1)


@pytest.mark.parametrize("epoch", [None, 3])
def test_processes_fill_the_same_bytes(path, epoch):
    _, dataset = opened(path)
    indices = np.arange(COUNT)
    for _ in range(3):  # Memory that was used before, too.
        batch = dataset.fetch(indices, epoch)
        same(batch, in_small_parts(dataset, indices, epoch))
        indices = np.roll(indices, 7)
    assert len(workers.pool(files.recipe(path, workers=2)).workers) == 2


def test_memory_is_used_again_once_nobody_refers_to_it(path):
    _, dataset = opened(path)
    fetch = lambda: dataset.fetch(np.arange(20), 0)
    first = fetch()
    address = first["image"].ctypes.data
    second = fetch()
    assert second["image"].ctypes.data != address  # The first is still referred to.
    part = first["crop"][3:5]
    del first
    gc.collect()
    third = fetch()
    assert third["image"].ctypes.data != address  # By a part of another array, too.
    del part
    gc.collect()
    assert fetch()["image"].ctypes.data == address
    same(second, third)


def test_arrays_are_aligned_and_do_not_overlap():
    row = {
        "a": np.zeros((1, 3), np.uint8),
        "b": np.tile(np.float32([0, 0, 1, 1]), (1, 2, 1)),
        "c": np.full((1, 5, 5), 255, np.uint8),
        "d": np.zeros((1, 0, 2), np.int32),
    }
    blocks = shared_batches.Blocks(lambda count, _: row)
    shared = blocks.take(3, True)
    for number, array in enumerate(shared.arrays.values()):
        array[...] = number
    batch = shared_batches.without_extent(shared.arrays)
    assert batch.keys() == row.keys()
    for number, (name, array) in enumerate(batch.items()):
        assert (array == number).all()
        assert array.ctypes.data % shared_batches.ALIGNED == 0
        assert array.dtype == row[name].dtype
        assert array.shape == (3, *row[name].shape[1:])


def test_a_bad_picture_is_read_once_in_all_epochs(tmp_path):
    path = files.write(tmp_path, files.photographs(per_class=COUNT // 2))
    listed, dataset = opened(path, max_bad_share=0.2)
    bad = path / "train/a/3.jpg"
    number = [listed.name(i) for i in range(COUNT)].index(str(bad))
    bad.write_bytes(b"no picture")
    (tmp_path / "run").mkdir()
    failures.list_in(tmp_path / "run")
    batch = dataset.fetch(np.arange(COUNT), 0)
    expected = [number + 1 if i == number else i for i in range(COUNT)]
    assert batch["index"].tolist() == expected and batch["valid"].all()
    assert batch["label"][number] == listed.labels[number + 1]
    bad.unlink()
    os.mkfifo(bad)  # Whoever reads it now waits forever.
    again = dataset.fetch(np.arange(COUNT), 0)
    same(again, batch)
    judged = dataset.fetch(np.arange(COUNT))
    assert np.flatnonzero(~judged["valid"]).tolist() == [number]
    assert not judged["image"][number].any()
    assert len((tmp_path / "run" / failures.FILE).read_text().splitlines()) == 1


def filler(tmp_path):
    config = files.recipe(tmp_path, workers=2, max_bad_share=1.0)
    return filling.Filler(config, "train", 20, failing_examples.Failing())


def candidates(**items):
    odd = {int(key[1:]): item for key, item in items.items()}
    return filling.Candidates(20, lambda i: odd.get(i), str, "the set")


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("mistake", ValueError, "example 13 is wrong"),
        ("odd", RuntimeError, "Odd: 1 and 2"),
        ("death", errors.Hung, r"ended by SIGKILL; .*config.data.workers"),
    ],
)
def test_what_a_process_meets_is_raised_here(tmp_path, item, error, message):
    fill = filler(tmp_path).fill
    with pytest.raises(error, match=message):
        fill(np.arange(20), 0, candidates(_13=item))


def test_an_error_of_a_process_says_where(tmp_path):
    with pytest.raises(ValueError) as raised:
        filler(tmp_path).fill(np.arange(20), 0, candidates(_13="mistake"))
    assert "in place" in raised.value.__notes__[0]


def test_only_the_rows_that_are_wanted_are_filled(tmp_path):
    wanted = np.arange(20) < 12
    batch, used, valid = filler(tmp_path).fill(
        np.arange(20), None, candidates(_3="bad", _15="mistake"), wanted
    )
    expected = wanted & (np.arange(20) != 3)
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(batch["image"], 7 * expected[:, None].repeat(2, 1))
    np.testing.assert_array_equal(used, np.arange(20))


def test_where_all_are_bad_it_is_said(tmp_path):
    everything = {f"_{i}": "bad" for i in range(20)}
    with pytest.raises(ValueError, match="the set: none of 20 examples can be read"):
        filler(tmp_path).fill(np.arange(20), 0, candidates(**everything))


def test_the_end_of_a_run_ends_hung_processes(tmp_path):
    with threads.closing():
        fill = filler(tmp_path).fill
        pool = threads.Pool(1, "asking")
        asked = pool.submit(fill, np.arange(20), 0, candidates(_13="hang"))
        began = time.monotonic()
        processes = workers.pool(files.recipe(tmp_path, workers=2)).workers
        while not processes and time.monotonic() < began + 30:
            time.sleep(0.05)
        time.sleep(0.5)
        [*pids] = [process.pid for process in processes]
        assert pids and not asked.done()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert time.monotonic() < began + 30


def test_processes_read_until_a_run_that_is_asked_to_stop_has_saved(path):
    """Slurm sends SIGTERM to every process of a job, a terminal SIGHUP."""
    _, dataset = opened(path)
    expected = dataset.fetch(np.arange(COUNT), 0)
    processes = workers.pool(files.recipe(path, workers=2)).workers
    for process in processes:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            os.kill(process.pid, number)
    same(dataset.fetch(np.arange(COUNT), 0), expected)
    assert processes and all(alive(process.pid) for process in processes)


def test_memory_of_an_array_on_a_device_is_not_used_again(path):
    _, dataset = opened(path)
    batch = dataset.fetch(np.arange(20), 0)
    placed = jax.device_put(batch["image"])  # On a CPU it may be the same memory.
    expected = batch["image"].copy()
    del batch
    gc.collect()
    for epoch in range(1, 4):
        dataset.fetch(np.arange(20), epoch)
    np.testing.assert_array_equal(np.asarray(placed), expected)


def test_all_data_sets_of_a_run_share_the_processes(path):
    config = files.recipe(path, workers=2)
    pool = workers.pool(config)
    assert workers.pool(config) is pool
    config.data.workers = 3
    assert workers.pool(config) is not pool
    with threads.closing():
        config.data.workers = 2
        assert workers.pool(config) is not pool  # Another run.


def test_recipes_are_pickled_as_their_values(path):
    config = files.recipe(path)
    task = workers.Task(config)
    assert pickle.loads(task.payload).to_dict() == config.to_dict()


SCRIPT = """
    import os, sys, time
    import numpy as np
    import files
    from g2sd_jax.data import folder, pipeline

    config = files.recipe(sys.argv[1], workers=2)
    files = folder.list_files(config, "train")
    dataset = pipeline.dataset(config, files, "train")
    batch = dataset.fetch(np.arange(40), 0)  # At the top of a script, without a guard.
    from g2sd_jax.data.processes import workers
    import gc
    pools = [each for each in gc.get_objects() if isinstance(each, workers.Pool)]
    pids = [worker.pid for pool in pools for worker in pool.workers]
    print("pids", *pids, flush=True)
    print("jax", "jax" in sys.modules, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(1000)
"""


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_processes_need_no_guard_and_end_with_the_script(path, tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    argument = "wait" if end == "kill" else "exit"
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    with subprocess.Popen(
        [sys.executable, script, str(path), argument],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        first = process.stdout.readline()
        pids = [int(pid) for pid in re.findall(r"\d+", first)]
        assert first.startswith("pids") and pids, first
        assert process.stdout.readline() == "jax False\n"
        if end == "kill":
            assert all(alive(pid) for pid in pids)
            process.kill()
        code = process.wait(timeout=60)
    assert code == (-signal.SIGKILL if end == "kill" else 0)
    began = time.monotonic()
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < began + 30, "a process outlives the run"
        time.sleep(0.1)


def alive(pid):
    """Whether a process runs; one that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_batches_start_anywhere_with_processes(path):
    _, dataset = opened(path)
    whole = order.train_batches(dataset, 16, 1)
    batches = [
        {key: array.copy() for key, array in next(whole).items()} for _ in range(7)
    ]
    late = order.train_batches(dataset, 16, 1, 4)
    for expected in batches[4:]:
        same(next(late), expected)


def test_there_is_a_reader_a_core_up_to_what_one_process_can_take(path, monkeypatch):
    config = files.recipe(path, workers=None)
    for cores, readers in ((1, 1), (12, 12), (224, 64)):
        monkeypatch.setattr(threads, "cores", lambda count=cores: list(range(count)))
        assert threads.workers(config) == readers
    config.data.workers = 100
    assert threads.workers(config) == 100
