# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes: to the step, or to waiting for input."""

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent import futures

import jax

# What `Clock.read` tells: of a run's numbers, those that the machine makes.
TIMES = frozenset(
    (
        "images_per_sec",
        "step_ms",
        "input_wait",
        "input_images_per_sec",
        "compute_images_per_sec",
        "input_bound",
    )
)


class Clock:
    """Measures each logging interval: how fast it was, and how fast each side could be.

    Steps are dispatched, not waited for, so that a host which waits for a batch may do
    so while the device still computes. Only what is left after the device was done
    counts as waiting: a thread notes when each step ended.

    Args:
        batch: examples per step, of all processes together.
        feed: the batches, a `feed.Feed`.
        now: seconds from anywhere, growing.
        follow: outputs of a step -> a future of the time at which they were there.
    """

    def __init__(
        self,
        batch: int,
        feed,
        now: Callable[[], float] = time.perf_counter,
        follow: Callable | None = None,
    ):
        self._batch, self._feed, self._now = batch, feed, now
        self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix="clock")
        self._follow = follow or self._in_thread
        self._running = []  # (batch came, future) of steps whose end is not known yet.
        self._came = self._ended = now()
        self._rates = {}  # Of either side, as last known.
        self._made, self._took, self._ran, self._busy = 0, 0.0, 0, 0.0
        self._restart()

    def _restart(self):
        self._began, self._waited, self._steps = self._now(), 0.0, 0

    def _in_thread(self, outputs):
        def end():
            jax.block_until_ready(outputs)
            return self._now()

        return self._pool.submit(end)

    def batches(self) -> Iterator:
        """Those of the feed; each counts as a step once it was asked for."""
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

    def ran(self, outputs):
        """Takes some outputs of the step that the last batch went to."""
        self._running.append((self._came, self._follow(outputs)))

    def _collect(self):
        # All but the newest have ended: the loop looks at each step one step late.
        while len(self._running) > 1 or (self._running and self._running[0][1].done()):
            came, end = self._running.pop(0)
            # A step begins when its batch is there and the step before has ended.
            self._busy += end.result() - max(came, self._ended)
            self._ended = end.result()
            self._ran += 1

    @contextlib.contextmanager
    def paused(self):
        """Leaves out what is not training: evaluation, the wait for a checkpoint."""
        began = self._now()
        try:
            yield
        finally:
            self._began += self._now() - began

    def read(self) -> dict[str, float]:
        """What the interval since the last call tells.

        Returns:
            `images_per_sec` and `step_ms`; `input_wait`, the share of the time in which
            the device had nothing to do but to wait for a batch; what either side alone
            could do, `input_images_per_sec` and `compute_images_per_sec`; and
            `input_bound`, 1 where the input is the slower of the two, else 0.
        """
        self._collect()
        seconds, steps, waited = self._now() - self._began, self._steps, self._waited
        made, took = self._feed.spent()
        self._made, self._took = self._made + made, self._took + took
        # In a short interval perhaps nothing was finished: then the next one tells.
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
        told = {
            "images_per_sec": steps * self._batch / seconds,
            "step_ms": 1000 * seconds / steps,
            "input_wait": waited / seconds,
            **self._rates,
        }
        if len(self._rates) == 2:
            slower = min(self._rates, key=self._rates.get)
            told["input_bound"] = float(slower == "input_images_per_sec")
        return told

    def close(self):
        self._pool.shutdown(wait=False)
