# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of a run while it goes on, by JAX's coordination service.

Its key-value store carries what they compare and how each of them ends, its heartbeats
tell who is lost. A process that is lost, or has failed, is named, and the others end as
well; JAX itself would abort without naming it, or wait.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from g2sd_jax import errors

PERIOD = 0.5  # Seconds between two looks at the service.
GRACE = 5.0  # Seconds in which the failure of another process may explain our own.
ENDED = "g2sd/ended/"  # Keys that say how a process ended.

# What JSON can hold.
Json = Mapping | Sequence | str | int | float | bool | None


def service() -> Any:
    """Returns the client of JAX's coordination service.

    Raises:
        ValueError: this version of JAX, which has no public name for it, has moved it.
    """
    client = None
    with contextlib.suppress(ImportError, AttributeError):
        client = importlib.import_module("jax._src.distributed").global_state.client
    if client is None:
        raise ValueError(
            f"jax {jax.__version__} does not show the client of its coordination "
            "service; runs of several processes need one of jax 0.10 to 0.12."
        )
    return client


class Members:
    """The processes of this run, as one of them sees the others.

    Args:
        process: index of this one.
        hosts: of all processes, in order.
        timeout: seconds after which a wait ends with an error that names the missing.
        heartbeat: seconds of silence after which the service counts one as lost.
        patience: seconds in which the service has to answer.
        end: called with the exit status when another process is lost or has failed.
    """

    def __init__(
        self,
        process: int,
        hosts: Sequence[str],
        timeout: float,
        heartbeat: float,
        patience: float,
        end: Callable[[int], None] = os._exit,
    ):
        self.process, self.hosts, self.timeout = process, hosts, timeout
        self.heartbeat, self.patience, self._end = heartbeat, patience, end
        self._all = set(range(len(hosts)))
        self._live = self._all
        self._ended = {}  # process -> {"error": text or None, "code": exit status}
        self._unanswered = 0  # Looks at the clock since the service answered last.
        self._exchanges = 0
        self._leaving = threading.Event()
        self._verdict = threading.Lock()  # Only one reason is printed.
        self._failing = None  # Our own error, if it may follow from another's.

    def watch(self, client: Any) -> None:
        """Looks after the others from now on, with the client of the service."""
        self._client = client
        looks = self._look_for_lost, self._look_for_ended, self._look_at_clock
        self._threads = [
            threading.Thread(target=self._repeat, args=(look,), daemon=True)
            for look in looks
        ]
        for thread in self._threads:
            thread.start()

    def names(self, processes: Iterable[int]) -> str:
        """Names processes, with their hosts."""
        return ", ".join(
            f"process {index} ({errors.printable(self.hosts[index])})"
            for index in sorted(processes)
        )

    def exchange(self, what: str, value: Json) -> list[Json]:
        """Returns the `value` of every process, in their order.

        Args:
            what: a noun that names the value in errors.
            value: of this process.

        Raises:
            ValueError: names the processes that did not send theirs in time.
        """
        self._exchanges += 1  # All make the same ones, in the same order.
        values, sent = (
            f"g2sd/{kind}/{self._exchanges}/{what}/" for kind in ("value", "sent")
        )
        self._client.key_value_set(f"{values}{self.process}", json.dumps(value))
        self._client.key_value_set(f"{sent}{self.process}", "")
        until = time.monotonic() + self.timeout
        # No barrier of the service: Python would not see signals meanwhile.
        while missing := self._all - self._read(sent).keys():
            if time.monotonic() > until:
                raise ValueError(
                    f"no word about {what} from {self.names(missing)} within "
                    f"{self.timeout:g} s; see there whether it hangs or another "
                    "command was started."
                )
            time.sleep(PERIOD / 4)
        by_process = self._read(values)
        return [json.loads(by_process[index]) for index in sorted(self._all)]

    def difference(self, what: str, facts: Sequence[Mapping]) -> str | None:
        """Says in what the processes differ, by key and host; None if in nothing.

        Args:
            what: a noun, such as "versions".
            facts: flat, of each process.
        """
        differences = [
            f"{key} is {other.get(key)!r} on {self.names([index])}, "
            f"{facts[0].get(key)!r} on {self.names([0])}"
            for index, other in enumerate(facts)
            for key in sorted(facts[0].keys() | other.keys())
            if other.get(key) != facts[0].get(key)
        ]
        if not differences:
            return None
        text = errors.shorten_list(differences, most=5, between="; ")
        return (
            f"the processes differ in their {what}: {text}. "
            "Start the same command with the same installation and data on every host."
        )

    def leave(self, error: str | None = None, code: int = 0, sure: bool = True) -> None:
        """Says goodbye, so that the end of this process is no loss to the others.

        Args:
            error: why this process failed, if it did; the others then end as well.
            code: its exit status, which becomes theirs.
            sure: False for an error that may follow from the loss of another process:
                the service tells of that in time, and the line that names it comes
                first.
        """
        self._failing = error
        if not sure:
            time.sleep(self.heartbeat + GRACE)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            report = json.dumps({"error": error, "code": code})
            self._client.key_value_set(f"{ENDED}{self.process}", report)
        if self.process == 0:  # With it the service ends.
            self._wait_for_others(GRACE if error else self.timeout)
        self._leaving.set()
        if error is None:
            for thread in self._threads:
                thread.join(GRACE)
            jax.distributed.shutdown()

    def _wait_for_others(self, seconds: float) -> None:
        """Waits until no other process is connected to the service."""
        until = time.monotonic() + seconds
        while self._live - {0} and time.monotonic() < until:
            time.sleep(PERIOD / 4)

    # What happens to the others.

    def _read(self, folder: str) -> dict[int, str]:
        """Returns the entries of a folder of the key-value store, by process."""
        entries = self._client.key_value_dir_get(folder)
        return {int(key.rpartition("/")[2]): text for key, text in entries}

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._leaving.wait(PERIOD):
            # Of the loss of the service the relay tells.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                look()

    def _look_for_lost(self) -> None:
        self._live = set(self._client.get_live_nodes(sorted(self._all)))
        lost = self._all - self._live
        for index in sorted(lost - self._read(ENDED).keys()):
            self.lost(index, f"gave no sign of life for {self.heartbeat:g} s")

    def _look_for_ended(self) -> None:
        reports = self._read(ENDED)
        self._unanswered = 0
        for index in reports.keys() - self._ended.keys() - {self.process}:
            self._ended[index] = json.loads(reports[index])
            if self._ended[index]["error"] is not None:
                self._failed(index, **self._ended[index])

    def _look_at_clock(self) -> None:
        # Counted, for a process that has stood still itself has no right to judge.
        self._unanswered += 1
        if self.process and self._unanswered * PERIOD > self.patience:
            self.lost(0, f"was silent for {self.patience:g} s")

    def lost(self, index: int, reason: str) -> None:
        """Ends this process because another one is gone without a goodbye."""
        if index not in self._ended:
            self.stop(
                f"error: {self.names([index])} {reason}; the run ends here too. Start "
                "all processes again to resume from the last checkpoint.",
                errors.EXIT_LOST,
            )

    def _failed(self, index: int, error: str, code: int) -> None:
        """Ends this process because another one reported an error."""
        if self._failing is None:
            time.sleep(GRACE / 2)  # All may have made the same mistake.
        line = f"error: {self.names([index])} stopped: {error}"
        if self._failing is None:
            self.stop(line, code)
        elif self._failing != error:
            print(line, file=sys.stderr, flush=True)

    def stop(self, line: str, code: int) -> None:
        """Prints `line`, and ends this process with `code`."""
        with self._verdict:
            if self._leaving.is_set():
                return
            self._leaving.set()
            print(line, file=sys.stderr, flush=True)
            sys.stdout.flush()
            if self.process == 0:  # The others have yet to hear of it.
                time.sleep(GRACE if len(self._all) > 2 else 0)
            # Nothing else may run: JAX's own shutdown waits for the lost processes.
            self._end(code)
