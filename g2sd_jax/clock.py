# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes: to the step, or to waiting for input."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Protocol

import jax

Outputs = Mapping[str, jax.Array]
SIDES = ("input", "compute")
# The metrics of `Clock.read`: they depend on the machine, all others on the run alone.
TIMES = frozenset(
    (
        "images_per_sec",
        "step_ms",
        "input_wait",
        "input_images_per_sec",
        "compute_images_per_sec",
        "input_bound",
        "input_cores",
    )
)


class Feed(Protocol):
    """The part of `feed.Feed` that a clock uses."""

    def __next__(self): ...

    def spent(self) -> tuple[int, float]: ...


class Clock:
    """Measures the throughput of each logging interval, and that of either side alone.

    Steps are dispatched, not waited for, so a host may wait for a batch while the
    device still computes. Only the time after the device was done counts as waiting for
    input: a thread notes when each step ended.

    Args:
        batch: examples per step, of all processes together.
        feed: iterator over batches, such as a `feed.Feed`.
        now: monotonic clock in seconds.
        follow: outputs of a step -> a future of the time at which they were ready.
        cores: of each host that make its batches.
    """

    def __init__(
        self,
        batch: int,
        feed: Feed,
        now: Callable[[], float] = time.perf_counter,
        follow: Callable[[Outputs], futures.Future] | None = None,
        cores: int = 1,
    ):
        self._batch, self._feed, self._now, self._cores = batch, feed, now, cores
        self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix="clock")
        self._follow = follow or self._in_thread
        self._running = []  # (batch came, future) of steps that may not have ended.
        self._came = self._ended = now()
        self._rates = {}  # The last throughput of either side.
        # Batches made and seconds of work on them; steps ended and seconds of them.
        self._made, self._took, self._ran, self._busy = 0, 0.0, 0, 0.0
        self._restart()

    def _restart(self) -> None:
        self._began, self._waited, self._steps = self._now(), 0.0, 0

    def _in_thread(self, outputs: Outputs) -> futures.Future:
        def end():
            jax.block_until_ready(outputs)
            return self._now()

        return self._pool.submit(end)

    def batches(self) -> Iterator:
        """Iterates over the feed, and counts a step for each batch."""
        while True:
            asked = self._now()
            try:
                batch = next(self._feed)
            except StopIteration:
                return
            self._came = self._now()
            self._collect()
            if not self._running:  # Idle since then, or since the step before ended.
                # It may have ended since the batch came: then nothing was waited for.
                self._waited += max(0.0, self._came - max(asked, self._ended))
            self._steps += 1
            yield batch

    def ran(self, outputs: Outputs) -> None:
        """Notes the end of the step of the last batch, given some of its outputs."""
        self._running.append((self._came, self._follow(outputs)))

    def _collect(self) -> None:
        # All but the newest have ended: the loop looks at each step one step late.
        while len(self._running) > 1 or (self._running and self._running[0][1].done()):
            came, end = self._running.pop(0)
            # A step begins when its batch is there and the step before has ended.
            self._busy += end.result() - max(came, self._ended)
            self._ended = end.result()
            self._ran += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out time that is not training, such as evaluation and saving."""
        began = self._now()
        try:
            yield
        finally:
            self._began += self._now() - began

    def read(self) -> dict[str, float]:
        """Measures the interval since the last call.

        Returns:
            `images_per_sec` and `step_ms`; `input_wait`, the share of the time in which
            the device only waited for a batch; the throughput of either side alone,
            `input_images_per_sec` and `compute_images_per_sec`; `input_bound`, 1 where
            the input is the slower side, else 0; and then `input_cores`, how many of
            each host would do, if every one made as much. {} where there was no step.
        """
        self._collect()
        seconds, steps, waited = self._now() - self._began, self._steps, self._waited
        made, took = self._feed.spent()
        self._made, self._took = self._made + made, self._took + took
        # In a short interval perhaps nothing was finished: it is added to the next one.
        if self._made:
            rate = self._made * self._batch / max(self._took, 1e-9)
            self._rates["input_images_per_sec"] = rate
            self._made, self._took = 0, 0.0
        if self._ran:
            rate = self._ran * self._batch / max(self._busy, 1e-9)
            self._rates["compute_images_per_sec"] = rate
            self._ran, self._busy = 0, 0.0
        self._restart()
        if not steps or seconds <= 0:
            return {}
        measured = {
            "images_per_sec": steps * self._batch / seconds,
            "step_ms": 1000 * seconds / steps,
            "input_wait": waited / seconds,
            **self._rates,
        }
        if len(self._rates) == 2:
            slower = min(self._rates, key=self._rates.get)
            measured["input_bound"] = float(slower == "input_images_per_sec")
            if measured["input_bound"]:
                made, used = (self._rates[f"{s}_images_per_sec"] for s in SIDES)
                measured["input_cores"] = float(math.ceil(self._cores * used / made))
        return measured

    def close(self) -> None:
        self._pool.shutdown(wait=False)
