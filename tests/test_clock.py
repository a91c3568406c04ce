# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Who waited for whom, on a made-up time line and in real runs."""

import time

import jax
import numpy as np
import pytest

import runs
from g2sd_jax import clock, loop, metrics, stages
from g2sd_jax.data import source


class World:
    """A clock, a device that takes `step` seconds a batch, an input that takes `make`.

    The input makes the next batch while the device computes, one ahead.
    """

    def __init__(self, make, step):
        self.now, self._make, self._step = 0.0, make, step
        self._ready, self._free = make, 0.0
        self._made = 0

    def __call__(self):
        return self.now

    def __next__(self):
        self.now = max(self.now, self._ready)
        self._ready = self.now + self._make
        self._made += 1
        return {}

    def spent(self):
        made, self._made = self._made, 0
        return made, made * self._make

    def follow(self, _outputs):
        self._free = max(self.now, self._free) + self._step
        return End(self, self._free)


class End:
    def __init__(self, world, at):
        self._world, self.at = world, at

    def done(self):
        return self._world.now >= self.at

    def result(self):
        self._world.now = max(self._world.now, self.at)
        return self.at


def told_of(world, steps=20, pause=None, each=1):
    """The last interval but the first of a loop like that of `train`."""
    timer = clock.Clock(8, world, now=world, follow=world.follow, cores=3)
    late, told = None, []
    for number, _ in zip(range(1, steps + 1), timer.batches(), strict=False):
        timer.ran({})
        current = timer._running[-1][1]
        if late is not None:
            late.result()  # The loop looks at the step before.
        late = current
        if number % each == 0:
            told.append(timer.read())
        if pause and number == steps // 2:
            with timer.paused():
                world.now += pause
    timer.close()
    return told[1:]


@pytest.mark.parametrize("each", [1, 5])
def test_a_slow_input_is_waited_for(each):
    for told in told_of(World(make=1.0, step=0.25), each=each):
        assert told == {
            "images_per_sec": pytest.approx(8.0),
            "step_ms": pytest.approx(1000.0),
            "input_wait": pytest.approx(0.75),
            "input_images_per_sec": pytest.approx(8.0),
            "compute_images_per_sec": pytest.approx(32.0),
            "input_bound": 1.0,
            "input_cores": 12.0,  # Three make a quarter of what is used.
        }


@pytest.mark.parametrize("each", [1, 5])
def test_a_wait_that_the_step_hides_is_none(each):
    # The host waits half a second for every batch, but the device never does.
    for told in told_of(World(make=0.5, step=1.0), each=each):
        assert told == {
            "images_per_sec": pytest.approx(8.0),
            "step_ms": pytest.approx(1000.0),
            "input_wait": pytest.approx(0.0),
            "input_images_per_sec": pytest.approx(16.0),
            "compute_images_per_sec": pytest.approx(8.0),
            "input_bound": 0.0,
        }


def test_a_pause_is_no_time_of_either_side():
    for make, step in ((1.0, 0.25), (0.25, 1.0)):
        plain = told_of(World(make, step), each=5)
        paused = told_of(World(make, step), each=5, pause=100.0)
        for told in paused:
            assert told["step_ms"] <= plain[0]["step_ms"] + 1e-6
            assert told["input_wait"] <= plain[0]["input_wait"] + 1e-6
            assert told["input_bound"] == plain[0]["input_bound"]
            rate = told["compute_images_per_sec"]
            assert rate == pytest.approx(plain[0]["compute_images_per_sec"])


def test_a_step_that_ends_after_its_successor_came_hid_the_wait():
    world = World(make=0.1, step=1.0)
    ended = End(world, at=0.5)
    ended.done = lambda: True  # Only when it was looked at, after the next batch came.
    timer = clock.Clock(8, world, now=world, follow=lambda _outputs: ended)
    batches = timer.batches()
    next(batches)
    timer.read()
    timer.ran(None)
    next(batches)
    assert timer.read()["input_wait"] == 0
    timer.close()


def test_nothing_is_told_of_no_step():
    world = World(1.0, 1.0)
    timer = clock.Clock(8, world, now=world, follow=world.follow)
    world.now += 1.0
    assert timer.read() == {}
    timer.close()


# For real.

RARELY = dict(every=100, keep=1, best="", best_is="max")
SLEEP = 0.5  # Seconds, longer than a step on a busy machine.
SHORT = dict(total_steps=10, first_batch_images=0, checkpoint=RARELY)


def verdicts(workdir):
    rows = metrics.read_lines(workdir / "metrics.jsonl")
    # At first what was made while the step was compiled is used up.
    return [row for row in rows if "input_bound" in row][-3:]


@pytest.mark.slow  # The verdict's arithmetic is tested above.
def test_a_sleeping_data_set_is_input_bound(tmp_path, monkeypatch):
    load = source.load

    def sleeping(*args, **kwargs):
        dataset = load(*args, **kwargs)

        def fetch(indices, epoch=None):
            time.sleep(SLEEP)
            return dataset.fetch(indices)

        return dataset._replace(fetch=fetch)

    monkeypatch.setattr(source, "load", sleeping)
    loop.run(runs.small("pretrain", **SHORT), str(tmp_path))
    rows = verdicts(tmp_path)
    assert rows and all(row["input_bound"] == 1 for row in rows)
    assert np.median([row["input_wait"] for row in rows]) > 0.5
    assert all(row["input_images_per_sec"] <= 16 / SLEEP for row in rows)


@pytest.mark.slow
def test_a_slow_step_is_compute_bound(tmp_path, monkeypatch):
    build = stages.build

    def slow(config):
        stage = build(config)

        def loss(params, *given):
            value, (state, told) = stage.loss(params, *given)
            slept = jax.pure_callback(nap, np.float32(0), given[-1])
            return value, (state, told | {"slept": slept})

        return stage._replace(loss=loss)

    def nap(_step):
        time.sleep(0.05)
        return np.float32(0)

    monkeypatch.setattr(stages, "build", slow)
    loop.run(runs.small("pretrain", **SHORT), str(tmp_path))
    rows = verdicts(tmp_path)
    assert rows and all(row["input_bound"] == 0 for row in rows)
    assert np.median([row["input_wait"] for row in rows]) < 0.1
    assert all(row["compute_images_per_sec"] <= 16 / 0.05 for row in rows)
