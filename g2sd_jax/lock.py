# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One run per workdir: `WORKDIR/RUNNING` names the process that writes there.

On a disk that process holds a lock of the kernel on the file, which ends with it. Where
there are none (a bucket, some network disks), and between machines, what counts is who
wrote the file last, and whether it changes: its owner renews it every few seconds.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import jax
from etils import epath

from g2sd_jax import errors, interrupts, workdir
from g2sd_jax.hosts import cluster

FILE = "RUNNING"
BEAT = 10.0  # Seconds between two signs of life.
SILENCE = 35.0  # Seconds without one after which a process of another machine is dead.
ANCIENT = 600.0  # Seconds since the last one, by the clocks: nobody waits any longer.
SETTLE = 2.0  # Seconds in which of two processes that write the file the last one wins.
SIZE = 1024  # Bytes of the file: it is written over, not anew.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF, errno.EINVAL)


@contextlib.contextmanager
def alone_in(path: str) -> Iterator[None]:
    """Refuses a workdir in which another process runs, and keeps others out.

    Of a run of several processes, process 0 holds the lock, and all are refused.

    Args:
        path: the workdir; made if it is not there, and removed if it stays empty.

    Raises:
        ValueError: names the process that runs there.
    """
    lock, refusal = None, None
    if jax.process_index() == 0:
        try:
            lock = Lock(path)
        except errors.MISTAKES as error:
            refusal = str(error)
    refusal = cluster.exchange("claim of the workdir", refusal)[0]
    if refusal is not None:
        raise ValueError(refusal)
    try:
        yield
    finally:
        if lock:
            lock.release()


class Lock:
    """The claim of this process on a workdir, until `release`.

    Args:
        path: the workdir.

    Raises:
        ValueError: another process has one.
    """

    def __init__(self, path: str):
        self._workdir = path
        self._path = epath.Path(workdir.absolute(path)) / FILE
        folders = [self._path.parent, *self._path.parent.parents]
        self._made = [] if workdir.remote(path) else _absent(folders)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._token = secrets.token_hex(8)
        self._since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._descriptor, self._ended = None, threading.Event()
        interrupts.leaving.append(self._give_up)
        try:
            self._descriptor = None if workdir.remote(path) else self._kernel_lock()
            self._take()
        except BaseException:
            interrupts.leaving.remove(self._give_up)
            self._close()
            raise
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def _kernel_lock(self) -> int | None:
        """Locks the file; None where the file system has no locks."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise self._refusal(self._read()) from None
            except OSError as error:
                os.close(descriptor)
                if error.errno not in NO_LOCKS:
                    raise
                return None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(self._path)):
                    return descriptor
            os.close(descriptor)  # Of a file that its last owner has just removed.

    def _take(self) -> None:
        began, record = time.monotonic(), self._read()
        # The kernel's lock reaches over containers, process numbers do not.
        place = slice(None) if self._descriptor is None else slice(1)
        theirs = str((record or {}).get("machine")).split()
        elsewhere = bool(record) and theirs[place] != machine().split()[place]
        if record and self._alive(record, elsewhere):
            raise self._refusal(record)
        watched = time.monotonic()
        self._write()
        if self._descriptor is not None and not elsewhere:
            return
        # Whoever reads the other's record wins; one that wrote late waits until the
        # other has noticed.
        late = time.monotonic() - (watched if elsewhere else began) > SETTLE
        time.sleep(2 * BEAT if late else SETTLE)
        record = self._read()
        if record and record.get("token") != self._token:
            self._token = None  # It is the other's file.
            raise self._refusal(record)

    def _alive(self, record: Mapping, elsewhere: bool) -> bool:
        """Whether the process of a record runs; waits for signs of another machine."""
        if not elsewhere:  # The kernel's lock would have told of it.
            began = process_start(record.get("pid"))
            return (
                self._descriptor is None
                and began is not None
                and began == record.get("process_start")
            )
        if time.time() - record.get("beat", 0.0) > ANCIENT:
            return False
        print(
            f"{self._path} names {_words(record)}: looking for signs of life, for "
            f"{SILENCE:.0f} s",
            flush=True,
        )
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT / 4))
            now = self._read()
            if now is None:  # It has ended in the meantime.
                return False
            if now and now != record:
                return True
        return False

    def _read(self) -> dict | None:
        """Reads the record; None where there is no file, {} of a damaged one."""
        try:
            record = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        complete = isinstance(record, dict) and isinstance(record.get("beat"), float)
        return record if complete else {}

    def _write(self) -> None:
        record = dict(
            host=socket.gethostname(),
            machine=machine(),
            pid=os.getpid(),
            process_start=process_start(os.getpid()),
            since=self._since,
            token=self._token,
            beat=time.time(),
        )
        if self._descriptor is None:
            workdir.write_text(self._path, json.dumps(record) + "\n")
        else:  # Of one size: a reader sees the one or the other.
            os.pwrite(self._descriptor, json.dumps(record).encode().ljust(SIZE), 0)
            os.fsync(self._descriptor)  # Else other machines see it much later.

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # The next time, perhaps.
                record = self._read()
                if record and record.get("token") != self._token:
                    self._token = None
                    interrupts.leave(
                        errors.EXIT_LOST,
                        f"error: {_words(record)} has taken over {self._workdir}; this "
                        f"process gave no sign of life for {SILENCE:.0f} s or more, "
                        "and ends without another write.",
                    )
                self._write()

    def _refusal(self, record: Mapping | None) -> ValueError:
        words = _words(record) if record else "another process of this machine"
        return ValueError(
            f"--workdir={self._workdir} is in use by {words}. Wait for its end, end "
            "it, or take another workdir."
        )

    def release(self) -> None:
        """Gives the workdir up."""
        interrupts.leaving.remove(self._give_up)
        self._ended.set()
        self._thread.join(BEAT)  # It may be writing.
        self._give_up()

    def _give_up(self) -> None:
        self._ended.set()
        with contextlib.suppress(FileNotFoundError):
            theirs = (self._read() or {}).get("token") != self._token
            # What the kernel has locked is ours, also before we have written to it.
            if self._token and (self._descriptor is not None or not theirs):
                self._path.unlink()
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        for folder in self._made:  # A run that was refused leaves none behind.
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def _absent(folders: list[epath.Path]) -> list[epath.Path]:
    return [folder for folder in folders if not folder.exists()]


def _words(record: Mapping) -> str:
    return errors.printable(
        f"process {record.get('pid')} on {record.get('host')}, since "
        f"{record.get('since')}"
    )


def machine() -> str:
    """Names what process numbers are of: a boot of a machine, or a container on it."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # No Linux.
        return socket.gethostname()


def process_start(pid: int | None) -> str | None:
    """When a process of this machine began, in the kernel's count; None if it ended."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if pathlib.Path("/proc/self/stat").exists() or not isinstance(pid, int):
            return None
        return _running(pid)
    state, *fields = text.rpartition(")")[2].split()  # The name may hold anything.
    return None if state in "ZX" else fields[18]


def _running(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
