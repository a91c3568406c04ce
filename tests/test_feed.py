# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Batches ahead of the step: in order, bounded, timed, and ended when they end."""

import itertools
import threading
import time

import pytest

from g2sd_jax import feed

SOON = 5.0  # Seconds that no test waits for in full.


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
    fed = feed.Feed(iter(range(50)), lambda batch: -batch, ahead=3, meter=feed.Meter())
    assert list(fed) == [-batch for batch in range(50)]
    with pytest.raises(StopIteration):  # And no wait for what will never come.
        next(fed)
    fed.close()


def test_only_so_many_lie_ahead():
    source = Source()
    fed = feed.Feed(source, lambda batch: batch, ahead=2, meter=feed.Meter())
    until(lambda: source.asked == 2)
    time.sleep(0.05)
    assert source.asked == 2
    assert [next(fed), next(fed), next(fed)] == [1, 2, 3]
    until(lambda: source.asked == 5)
    time.sleep(0.05)
    assert source.asked == 5
    fed.close()
    assert source.closed and not feed_threads()
    assert source.asked == 5


def test_an_error_of_the_source_is_raised_where_a_batch_is_asked_for():
    def broken():
        yield 1
        raise ValueError("too many unreadable pictures")

    fed = feed.Feed(broken(), lambda batch: batch, ahead=2, meter=feed.Meter())
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

    fed = feed.Feed(hanging(), lambda batch: batch, ahead=1, meter=feed.Meter())
    fed.close(patience=0.05)
    gate.set()
    until(lambda: not feed_threads())


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

    fed = feed.Feed(batches(), place, ahead=2, meter=feed.Meter(now))
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
    fed = feed.Feed(iter(range(3)), lambda batch: batch, ahead=3, meter=meter)
    until(lambda: fed._ready.qsize() == 3)
    made, seconds = fed.spent()
    assert made == 3 and 0.15 <= seconds < SOON
    fed.close()
