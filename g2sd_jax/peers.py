# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The processes of one run know each other by name, so that no wait is for nobody.

Process 0 listens, the others connect to it before any of them starts JAX, and the
connections stay. On them go one JSON object a line: what the start-up compares, a beat
now and then, and how a process ends. A connection that closes without a word, or stays
silent, is a process that is gone: it is named, and the others end as well. JAX itself
would abort without saying who, or wait.
"""

import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

from g2sd_jax import core, wire

GRACE = 5.0  # Seconds in which a failure elsewhere may explain our own.


class Peers:
    """The connections of this process; `exchange` and `leave` are what others call.

    Args:
        address: (host, port) of process 0.
        processes: how many there are.
        process: which one this is.
        timeout: seconds after which a wait ends, naming who is missing. A process that
            was silent for a third of it counts as gone.
        end: what a lost run does with its exit code; a test puts its own there.
    """

    def __init__(
        self,
        address: tuple[str, int],
        processes: int,
        process: int,
        timeout: float,
        end: Callable = os._exit,
    ):
        self.processes, self.process, self.timeout = processes, process, timeout
        self.hosts = {process: socket.gethostname()}
        self._end = end
        self._lines = {}  # process -> Line; process 0 has all, the others only its.
        self._said = queue.Queue()  # (process, message) that `exchange` waits for.
        self._left = set()  # Those who said goodbye.
        self._leaving = threading.Event()
        self._verdict = threading.Lock()  # Only one reason is told.
        self._failing = None  # Our own error, if it may be the echo of another's.
        try:
            if process == 0:
                self._gather(address)
            else:
                self._join(address)
        except BaseException:
            self._close()
            raise
        for index in self._lines:
            threading.Thread(target=self._listen, args=(index,), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _close(self):
        for line in self._lines.values():
            line.close()
        self._lines = {}

    def name(self, process: int) -> str:
        host = self.hosts.get(process)
        return f"process {process} ({host})" if host else f"process {process}"

    def exchange(self, what: str, value) -> list:
        """Everybody's `value` (plain JSON), in the order of the processes.

        Raises:
            ValueError: somebody did not say theirs in time; they are named.
        """
        if self.process:
            self._lines[0].send({"say": what, "value": value})
            message = self._wait(time.monotonic() + self.timeout + GRACE)
            if message is None:
                raise ValueError(
                    f"{self.name(0)} did not answer about {what} within "
                    f"{self.timeout:g} s; see its own log."
                )
            if "missing" in message[1]:
                raise ValueError(message[1]["missing"])
            return message[1]["all"]
        values, until = {0: value}, time.monotonic() + self.timeout
        while len(values) < self.processes:
            message = self._wait(until)
            if message is None:
                missing = sorted(set(range(self.processes)) - values.keys())
                names = ", ".join(map(self.name, missing))
                text = (
                    f"no word about {what} from {names} within {self.timeout:g} s; see "
                    "there whether it hangs or another command was started."
                )
                self._tell({"missing": text})
                raise ValueError(text)
            values[message[0]] = message[1]["value"]
        together = [values[index] for index in range(self.processes)]
        self._tell({"all": together})
        return together

    def leave(self, error: str | None = None, code: int = core.EXIT_MISTAKE) -> None:
        """Says goodbye, so that the end of this process alarms nobody.

        Args:
            error: why, where this process failed; the others end with it as well.
            code: the exit status it fails with, which becomes theirs.
        """
        if error is not None and not self._leaving.is_set():
            # Perhaps only the echo of a process that died; that is known in a moment,
            # and then the line that names it is the last one here.
            self._failing = error
            time.sleep(GRACE)
        self._leaving.set()
        self._tell({"bye": error, "code": code})
        for line in self._lines.values():
            line.end()  # Its reader closes it when the other side ends as well.

    # How the connections come about.

    def _gather(self, address):
        until = time.monotonic() + self.timeout
        try:
            # Every address of this machine: the name may mean only one of them.
            server = socket.create_server(("", address[1]), backlog=self.processes)
        except OSError as error:
            raise ValueError(
                f"process 0 cannot listen on port {address[1]}: {error.strerror}; "
                "another run holds it, or choose another with --coordinator."
            ) from None
        with server:
            while self._here() < self.processes:
                server.settimeout(max(0.01, until - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    self._refuse_alone()
                self._welcome(connection)
        port = wire.free_port()
        for index, line in self._lines.items():
            line.send({"port": port, "hosts": self.hosts, "process": index})
        self.port = port

    def _refuse_alone(self):
        missing = sorted(set(range(1, self.processes)) - self._lines.keys())
        text = (
            f"only {len(self.hosts)} of {self.processes} processes came within "
            f"{self.timeout:g} s; missing: {', '.join(map(self.name, missing))}. Start "
            "the same command on every host, or correct --processes."
        )
        self._tell({"error": text})
        raise ValueError(text)

    def _welcome(self, connection):
        line = wire.Line(connection)
        connection.settimeout(GRACE)
        self._here()
        try:
            hello = line.receive()
            index, count = hello["process"], hello["processes"]
            host = str(hello["host"])
        except (OSError, ValueError, TypeError, KeyError):
            return line.close()  # Not one of us: a scanner, or a health check.
        wrong = None
        if count != self.processes:
            wrong = (
                f"{host} was started as one of {count} processes, but process 0 "
                f"({self.hosts[0]}) expects {self.processes}; give all the same number."
            )
        elif index in self.hosts:
            wrong = (
                f"both {self.hosts[index]} and {host} were started as process {index} "
                f"of {count}; number them from 0 to {count - 1}."
            )
        if wrong:
            line.send({"error": wrong})
            line.close()
            self._tell({"error": wrong})
            raise ValueError(wrong)
        self._lines[index], self.hosts[index] = line, host
        return None

    def _here(self):
        """How many are here; one that came and died may come again."""
        for index in [index for index, line in self._lines.items() if line.closed()]:
            self._lines.pop(index).close()
            del self.hosts[index]
        return 1 + len(self._lines)

    def _join(self, address):
        where = f"process 0 at {address[0]}:{address[1]}"
        me = f"process {self.process} of {self.processes} ({self.hosts[self.process]})"
        until, why, answer = time.monotonic() + self.timeout, "", None
        while answer is None:
            left = until - time.monotonic()
            if left <= 0:
                raise ValueError(
                    f"{me} waited {self.timeout:g} s for {where}{why}. A worker "
                    "cannot train alone: start the same command on every host."
                )
            try:
                line = wire.Line(
                    socket.create_connection(address, timeout=min(left, 10))
                )
                self._lines = {0: line}
                line.send(
                    {
                        "process": self.process,
                        "processes": self.processes,
                        "host": self.hosts[self.process],
                    }
                )
                # Process 0 answers when the last one came, or says who did not.
                line.settimeout(max(0.1, until - time.monotonic()) + GRACE)
                answer = line.receive()
            except OSError as error:
                self._close()
                why = f" ({error.strerror or error})"
                time.sleep(min(0.2, max(0.0, until - time.monotonic())))
        if "error" in answer:
            raise ValueError(answer["error"])
        self.hosts = {int(index): host for index, host in answer["hosts"].items()}
        self.port = answer["port"]

    # What happens on them while the run goes on.

    def _tell(self, message: Mapping):
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # Its reader finds out and says so.
                line.send(message)

    def _wait(self, until: float):
        try:
            return self._said.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None

    def _beat(self):
        while not self._leaving.wait(self.timeout / 15):
            self._tell({})

    def _listen(self, index):
        with contextlib.closing(self._lines[index]) as line:
            line.settimeout(self.timeout / 3)
            self._read(index, line)

    def _read(self, index, line):
        while True:
            try:
                message = line.receive()
            except TimeoutError:
                return self._lost(index, f"was silent for {self.timeout / 3:.3g} s")
            except (OSError, ValueError):
                if index in self._left or self._leaving.is_set():
                    return None
                return self._lost(index, "closed its connection without a word")
            if "bye" in message:
                self._left.add(index)
                if message["bye"] is not None:
                    self._failed(index, message["bye"], message["code"])
            elif "gone" in message:  # Process 0 tells of another.
                return self._lost(message["gone"], message["why"])
            elif "failed" in message:
                given = (message[key] for key in ("failed", "why", "code"))
                return self._failed(*given)
            elif message:
                self._said.put((index, message))

    def _lost(self, index, why):
        self._stop(
            {"gone": index, "why": why},
            f"error: {self.name(index)} {why}; the run ends here too. Start all "
            "processes again to resume from the last checkpoint.",
            core.EXIT_LOST,
        )

    def _failed(self, index, why, code):
        if self._failing is None:
            time.sleep(GRACE / 2)  # All may have made the same mistake.
        told = f"error: {self.name(index)} stopped: {why}"
        if self._failing is None:
            self._stop({"failed": index, "why": why, "code": code}, told, code)
        elif self._failing != why:
            print(told, file=sys.stderr, flush=True)

    def _stop(self, message, told, code):
        with self._verdict:
            if self._leaving.is_set():
                return
            self._leaving.set()
            print(told, file=sys.stderr, flush=True)
            if self.process == 0:
                self._tell(message)
            sys.stdout.flush()
            # Nothing else may run: the runtime's own end waits for those who are gone.
            self._end(code)
