# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run on several hosts begin together, agree, and end.

They meet in the workdir (`meeting`), and from then on JAX's coordination service is
between them (`members`). A run of one process never opens a port.
"""

import argparse
import atexit
import contextlib
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from etils import epath
from jax.experimental import multihost_utils

from g2sd_jax import errors, interrupts, workdir
from g2sd_jax.hosts import meeting, place, relay
from g2sd_jax.hosts import members as processes

# Shares of --timeout. JAX aborts a process whose heartbeats had no answer for
# half of HEARTBEAT: before that it has to have told that process 0 is silent.
HEARTBEAT, PATIENCE = 1 / 5, 1 / 15
LEAST = 10.0  # Seconds for a heartbeat, and for JAX's own start.

arguments = place.arguments
_members: processes.Members | None = None


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Connects the processes of a run before JAX is used, and disconnects them after.

    Args:
        args: options of `arguments`, and `workdir`.

    Raises:
        ValueError: a process did not come in time, or runs other versions.
    """
    global _members
    here = place.find(args, os.environ)
    if here is None:
        yield
        return
    failed = []  # The exit status, once this process has failed.
    # Before JAX's own end, which would wait for processes that are gone.
    atexit.register(lambda: failed and _end(failed[0]))
    _members = _join(here, args.workdir, args.timeout)
    try:
        yield
    except errors.Preempted:
        _members.leave()
        raise
    except BaseException as error:
        failed.append(_exit_status(error))
        line = str(error).splitlines()[0] if str(error) else repr(error)
        _members.leave(line, failed[0], sure=_sure(error))
        raise
    else:
        _members.leave()
    finally:
        _members = None


def _exit_status(error: BaseException) -> int:
    if isinstance(error, errors.Hung):  # An OSError, but no mistake of the user's.
        return errors.EXIT_LOST
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return errors.EXIT_MISTAKE if isinstance(error, errors.MISTAKES) else 1


def _sure(error: BaseException) -> bool:
    """Whether an error can not follow from the loss of another process."""
    causes = (ValueError, FloatingPointError, errors.Hung)
    return isinstance(error, causes) or not isinstance(error, Exception)


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(here: place.Place, path: str, timeout: float) -> processes.Members:
    """Meets the others, then starts JAX's coordination service."""
    print(
        f"process {here.process} of {here.processes} ({here.origin}): meeting in "
        f"{path}, for at most {timeout:g} s",
        flush=True,
    )
    until = time.monotonic() + timeout
    met = meeting.Meeting(epath.Path(path) / "meeting", here, workdir.versions())
    cards = met.meet(timeout)
    members = processes.Members(
        process=here.process,
        hosts=[card["host"] for card in cards],
        timeout=timeout,
        heartbeat=max(LEAST, round(timeout * HEARTBEAT)),
        patience=max(LEAST / 3, timeout * PATIENCE),
    )
    if difference := members.difference("versions", [card["facts"] for card in cards]):
        raise ValueError(difference)
    # JAX's own limit would abort this process, without a name.
    limit = max(LEAST, until - time.monotonic())
    alarm = threading.Timer(
        limit, lambda: members.stop(_late(here, met, members), errors.EXIT_LOST)
    )
    alarm.daemon = True
    alarm.start()
    try:
        _initialize_jax(here, met, members, round(limit) + 60)
    finally:
        alarm.cancel()
    met.close()
    members.watch(processes.service())
    return members


def _late(here: place.Place, met: meeting.Meeting, members: processes.Members) -> str:
    missing = met.remaining() or set(range(here.processes)) - {here.process}
    return (
        f"error: {members.names(missing)} did not reach JAX's coordinator at "
        f"{here.coordinator} in time; see there, and whether that port is open between "
        "the hosts."
    )


def _initialize_jax(
    here: place.Place,
    met: meeting.Meeting,
    members: processes.Members,
    timeout: int,
) -> None:
    address, bind_address = here.coordinator, None
    if here.process:
        lost = lambda: members.lost(0, "closed its connection without a word")
        address = relay.relay(here.address, arrived=met.close, lost=lost)
    else:
        bind_address = _bind_address(here, members.hosts)
    # Who is lost is to be named: without it, all others are aborted before.
    jax.config.update("jax_enable_recoverability", True)
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            coordinator_bind_address=bind_address,
            num_processes=here.processes,
            process_id=here.process,
            local_device_ids=here.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=round(members.heartbeat),
            shutdown_timeout_seconds=round(members.heartbeat),
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"JAX's coordinator at {here.coordinator} did not start: {error}"
        ) from error


def _bind_address(here: place.Place, hosts: Sequence[str]) -> str:
    """Returns where JAX's coordinator is to listen: at its own address alone."""
    host, port = here.address
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # JAX's would share the port with that of another run.
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen at {here.coordinator}: {error.strerror}; another "
            "run holds the port, or the address is not of this host. Choose another "
            "with --coordinator."
        ) from None
    if ipaddress.ip_address(address[0]).is_loopback and len(set(hosts)) > 1:
        # As Debian writes a host's name into its /etc/hosts.
        print(
            f"{host} is {address[0]} here, where other hosts cannot come: "
            "JAX's coordinator listens on all addresses",
            flush=True,
        )
        return f"[::]:{port}"
    return here.coordinator


def agree(what: str, facts: Callable[[], Mapping]) -> None:
    """Waits for all processes, and refuses a run in which they differ in `facts`.

    Args:
        what: a noun for errors, such as "config".
        facts: returns JSON values by name; not called in a run of one process.

    Raises:
        ValueError: names the keys that differ, and the hosts.
    """
    if _members is not None:
        by_process = _members.exchange(what, errors.flatten(facts()))
        if difference := _members.difference(what, by_process):
            raise ValueError(difference)


def exchange(what: str, value: processes.Json) -> list[processes.Json]:
    """Returns the `value` of every process in order; `[value]` in a run of one.

    Args:
        what: a noun that names the value if a process does not send its own.
        value: anything that JSON can hold.
    """
    return [value] if _members is None else _members.exchange(what, value)


class Stop:
    """Handles SIGTERM and Ctrl-C: the run saves at the next step, and ends there."""

    def __init__(self):
        self._asked = False
        # Of several processes each listens to SIGTERM through JAX.
        numbers = interrupts.SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        self._before = {each: signal.signal(each, self._ask) for each in numbers}

    def _ask(self, number: int, _frame) -> None:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
        elif self._asked and number == signal.SIGINT and not interrupts.watching():
            raise KeyboardInterrupt  # Called from Python, not by a verb.
        else:
            self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to save and stop at `step`; the same on all processes."""
        interrupts.defer()  # From the first step on, there is something to save.
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def alone(self) -> bool:
        """Whether to stop before the next step, which only a single process may."""
        return self._asked

    def close(self) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
