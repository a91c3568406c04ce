# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches ahead of the step: in order, bounded, timed, and ended when they end."""

import itertools
import subprocess
import sys
import threading
import time

import pytest

import files
import runs
from g2sd_jax import core, errors, feed, loop
from g2sd_jax.data import source
from g2sd_jax.data.processes import threads

SOON = 5.0  # Seconds that no test waits for in full.
PATIENT = feed.Wait("the source", limit=SOON)


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def feed_threads():
    return [each for each in threading.enumerate() if each.name == "feed"]


class Source:
    """Counts up; remembers how often it was asked, and that it was closed."""

    def __init__(self):
        self.asked, self.closed = 0, False

    def __next__(self):
        self.asked += 1
        return self.asked

    def close(self):
        self.closed = True


def test_batches_come_placed_and_in_order():
    fed = feed.Feed(
        iter(range(50)),
        lambda batch: -batch,
        ahead=3,
        meter=feed.Meter(),
        wait=PATIENT,
    )
    assert list(fed) == [-batch for batch in range(50)]
    with pytest.raises(StopIteration):  # And no wait for what will never come.
        next(fed)
    fed.close()


def test_only_so_many_lie_ahead():
    counter = Source()
    fed = feed.Feed(
        counter, lambda batch: batch, ahead=2, meter=feed.Meter(), wait=PATIENT
    )
    until(lambda: counter.asked == 2)
    time.sleep(0.05)
    assert counter.asked == 2
    assert [next(fed), next(fed), next(fed)] == [1, 2, 3]
    until(lambda: counter.asked == 5)
    time.sleep(0.05)
    assert counter.asked == 5
    fed.close()
    assert counter.closed and not feed_threads()
    assert counter.asked == 5


def test_an_error_of_the_source_is_raised_where_a_batch_is_asked_for():
    def broken():
        yield 1
        raise ValueError("too many unreadable pictures")

    fed = feed.Feed(
        broken(), lambda batch: batch, ahead=2, meter=feed.Meter(), wait=PATIENT
    )
    assert next(fed) == 1
    for _ in range(2):
        with pytest.raises(ValueError, match="too many unreadable"):
            next(fed)
    fed.close()


def test_a_source_that_hangs_is_left():
    gate = threading.Event()

    def hanging():
        gate.wait()
        yield

    fed = feed.Feed(
        hanging(), lambda batch: batch, ahead=1, meter=feed.Meter(), wait=PATIENT
    )
    fed.close(seconds=0.05)
    gate.set()
    until(lambda: not feed_threads())


def test_a_source_that_hangs_is_named_and_given_up(capsys):
    gate = threading.Event()

    def hanging():
        yield 1
        gate.wait()

    wait = feed.Wait("the folder", limit=0.25, interval=0.1)
    fed = feed.Feed(hanging(), core.identity, 2, feed.Meter(), wait)
    assert next(fed) == 1
    said = r"^the folder has given no batch for 0 s: config.data.timeout=0\. Look "
    with pytest.raises(errors.Hung, match=said):
        next(fed)
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines == ["the folder has given no batch for 0 s; the run ends after 0 s"] * 2
    )
    gate.set()
    fed.close()


def test_a_slow_source_is_only_talked_about(capsys):
    def slow():
        time.sleep(0.2)
        yield 1

    wait = feed.Wait("the folder", limit=SOON, interval=0.05)
    fed = feed.Feed(slow(), core.identity, 2, feed.Meter(), wait)
    assert next(fed) == 1
    assert "the folder has given no batch" in capsys.readouterr().out
    fed.close()


def test_the_first_batch_alone():
    batches = iter(range(5))
    assert feed.first(batches, PATIENT) == 0
    assert next(batches) == 1 and not feed_threads()


@pytest.fixture
def pictures(tmp_path):
    """A recipe that trains on a folder of pictures, and judges on it."""
    files.write(tmp_path / "set", files.photographs(per_class=8))
    config = runs.small("finetune", total_steps=2, batch=8)
    with config.unlocked():
        config.data.update(source="folder", path=str(tmp_path / "set"), workers=2)
        config.data.update(classes=2, train_examples=16)
    return config


@pytest.mark.slow
def test_a_run_leaves_no_thread_behind(pictures, tmp_path, monkeypatch):
    before, load, kept = set(threading.enumerate()), source.load, []

    def kept_alive(*given, **how):  # Else it is left to chance when threads end.
        kept.append(load(*given, **how))
        return kept[-1]

    monkeypatch.setattr(source, "load", kept_alive)

    def left():
        ours = ("input", "ahead", "feed", "clock")
        found = set(threading.enumerate()) - before
        return [each.name for each in found if each.name.startswith(ours)]

    loop.run(pictures, str(tmp_path / "run"))
    until(lambda: not left())
    assert len(kept) == 2  # Its own, and the evaluator's.


def test_pools_end_with_what_they_were_made_in():
    with threads.closing():
        outer = threads.Pool(1, "input")
        with threads.closing():
            inner = threads.Pool(1, "input")
        assert outer.submit(int).result() == 0
        with pytest.raises(RuntimeError, match="after shutdown"):
            inner.submit(int)
    with pytest.raises(RuntimeError, match="after shutdown"):
        outer.submit(int)


LEAVES = """
import sys, time
from g2sd_jax.data import order
from g2sd_jax.data.processes import threads

with threads.closing():
    pool = threads.Pool(2, "input")
    assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
    stuck = pool.submit(time.sleep, 1e6)
    batches = order.read_ahead(lambda wait: pool.submit(time.sleep, wait).result(),
                               iter([0, 1e6, 1e6]), 1)
    next(batches)
sys.exit(75)
"""


def test_threads_that_hang_change_no_end_of_a_process():
    """Those that read ahead of the last batch, or of one nobody waits for any more."""
    done = subprocess.run([sys.executable, "-c", LEAVES], timeout=60)
    assert done.returncode == errors.EXIT_AGAIN


def test_a_pool_works_on_all_its_threads_and_ends_with_its_owner():
    pool = threads.Pool(3, "pool")
    together = threading.Barrier(3)
    assert sorted(pool.map(lambda _: together.wait(SOON), range(3))) == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    gate = threading.Event()
    busy = [pool.submit(gate.wait) for _ in range(3)]
    until(lambda: all(each.running() for each in busy))
    waiting = pool.submit(int)
    pool.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled() and not busy[0].done()
    gate.set()
    pool.shutdown()
    assert busy[0].result() and not any(each.is_alive() for each in pool.threads)
    dropped = threads.Pool(1, "pool")
    assert dropped.submit(int).result() == 0
    (thread,) = dropped.threads
    del dropped
    until(lambda: not thread.is_alive())


HANGS = """
import os, sys
from g2sd_jax import cli
from g2sd_jax.data import folder

list_files = folder.list_files


def with_a_pipe(config, split):
    listed = list_files(config, split)
    if split == "train" and os.path.isfile(listed.places[5]):
        os.remove(listed.places[5])
        os.mkfifo(listed.places[5])  # Whoever opens it waits for a writer.
    return listed


folder.list_files = with_a_pipe
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("batch", [8, 16])  # Read by a thread, and by a process.
def test_a_read_that_hangs_does_not_keep_the_process(tmp_path, batch):
    """As with files of a network that is gone."""
    root = files.write(tmp_path / "set", files.photographs(per_class=8))
    changes = dict(source="folder", path=root, classes=2, train_examples=16, timeout=2)
    command = [sys.executable, "-c", HANGS, "train", "--config=pretrain:smoke"]
    command += [f"--config.data.{key}={value}" for key, value in changes.items()]
    command += [f"--workdir={tmp_path / 'run'}", f"--config.batch={batch}", "--debug"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == errors.EXIT_LOST, done.stderr
    told = done.stderr.splitlines()[-1]
    said = f"error: config.data.source='folder' (config.data.path={str(root)!r}) has "
    assert told.startswith(f"{said}given no batch for 2 s: config.data.timeout=2.")
    assert "Traceback" in done.stderr


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_waiting_for_room_is_not_work():
    now = Time()

    def batches():
        for number in itertools.count():
            now.now += 0.25
            yield number

    def place(batch):
        now.now += 0.5
        return batch

    fed = feed.Feed(batches(), place, ahead=2, meter=feed.Meter(now), wait=PATIENT)
    until(lambda: fed._ready.qsize() == 2)
    now.now += 100.0  # Nobody takes one for a while.
    assert fed.spent() == (2, 1.5)
    assert fed.spent() == (0, 0.0)
    next(fed)
    until(lambda: fed._ready.qsize() == 2)
    assert fed.spent() == (1, 0.75)
    with fed._meter:  # Work on a batch that is not made yet counts with that one.
        now.now += 7.0
    assert fed.spent() == (0, 0.0)
    next(fed)
    until(lambda: fed._ready.qsize() == 2)
    assert fed.spent() == (1, 7.75)
    fed.close()


def test_a_meter_counts_the_time_in_which_anybody_works():
    now = Time()
    meter = feed.Meter(now)

    def pass_(seconds):
        now.now += seconds
        return seconds

    work = meter.around(pass_)
    pass_(10.0)
    with meter:
        pass_(1.0)
        assert work(2.0) == 2.0  # At the same time, so it counts once.
        pass_(3.0)
        assert meter.total() == 6.0  # So far.
        pass_(4.0)
    pass_(20.0)
    assert meter.total() == 10.0
    with pytest.raises(TypeError):
        work()
    pass_(30.0)
    assert meter.total() == 10.0


def test_work_ahead_of_the_feed_is_metered_by_its_own_calls():
    meter = feed.Meter()
    work = meter.around(lambda: time.sleep(0.05))
    for _ in range(3):  # While nobody asks for a batch.
        work()
    fed = feed.Feed(
        iter(range(3)), lambda batch: batch, ahead=3, meter=meter, wait=PATIENT
    )
    until(lambda: fed._ready.qsize() == 3)
    made, seconds = fed.spent()
    assert made == 3 and 0.15 <= seconds < SOON
    fed.close()
