# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One run per workdir: whoever lives keeps others out, whoever is dead does not."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from etils import epath

from g2sd_jax import errors, interrupts, lock
from g2sd_jax.hosts import cluster

ROOT = pathlib.Path(__file__).resolve().parents[1]
HOLDS = (
    "import sys, time\nfrom g2sd_jax import lock\n"
    "with lock.alone_in(sys.argv[1]):\n"
    "    print('ready', flush=True)\n    time.sleep(60)\n"
)
# Starts on one folder after the other, each at the moment at which the others do.
RACES = """
import pathlib, sys, time
from g2sd_jax import lock

top, me, count, rounds = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])


def meet(name):
    (top / f"{name}.{me}").touch()
    while sum((top / f"{name}.{each}").exists() for each in range(count)) < count:
        time.sleep(0.0005)


for number in range(rounds):
    mine = None
    meet(f"start{number}")
    try:
        mine = lock.Lock(str(top / "runs" / str(number)))
        print(number)
    except ValueError as error:
        assert "is in use by" in str(error), error
    meet(f"end{number}")
    if mine:
        mine.release()
"""


@pytest.fixture
def fast(monkeypatch):
    """Waits of tenths of a second."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.6)
    monkeypatch.setattr(lock, "SETTLE", 0.3)


@pytest.fixture
def without_kernel_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def record(path, **changes):
    """Writes the file that another process left in `path`."""
    values = dict(
        host="other",
        machine=lock.machine(),
        pid=os.getpid(),
        process_start=lock.process_start(os.getpid()),
        since="2026-11-29T12:00:00+00:00",
        token="another",
        beat=time.time(),
    )
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    (epath.Path(path) / lock.FILE).write_text(json.dumps(values | changes))


def program(body, *arguments):
    command = [sys.executable, "-c", body, *map(str, arguments)]
    env = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS="")
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    )


def test_a_second_start_is_refused_and_told_by_whom(tmp_path):
    path = str(tmp_path / "runs/a")
    with lock.alone_in(path):
        with pytest.raises(ValueError) as error, lock.alone_in(path):
            pass
        pattern = rf"--workdir={path} is in use by process {os.getpid()} on \S+, since "
        assert error.match(pattern + r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()  # Nothing came of it.
    (tmp_path / "runs/a").mkdir(parents=True)
    with lock.alone_in(path):
        (tmp_path / "runs/a/config.json").touch()
    assert [file.name for file in (tmp_path / "runs/a").iterdir()] == ["config.json"]


def test_a_killed_process_is_not_in_the_way(tmp_path):
    process = program(HOLDS, tmp_path)
    try:
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on "):
            lock.Lock(str(tmp_path))
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        with lock.alone_in(str(tmp_path)):
            assert time.monotonic() - began < 1
    finally:
        process.kill()
        process.communicate()


def test_of_two_processes_that_start_at_once_one_wins(tmp_path):
    rounds = 40
    pair = [program(RACES, tmp_path, me, 2, rounds) for me in range(2)]
    wins = [process.communicate(timeout=120)[0].split() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sorted(map(int, wins[0] + wins[1])) == list(range(rounds))


DEAD = {
    "a process that is no more": dict(pid=2**22 + 1),
    "a number that another process has now": dict(process_start="17"),
}


@pytest.mark.parametrize("case", DEAD)
def test_the_dead_are_told_from_the_living(case, tmp_path, fast, without_kernel_locks):
    record(tmp_path, **DEAD[case])
    lock.Lock(str(tmp_path)).release()
    record(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} on other"):
        lock.Lock(str(tmp_path))


@pytest.mark.parametrize("case", DEAD)
def test_the_kernel_tells_the_dead_too(case, tmp_path):
    record(tmp_path, **DEAD[case])
    lock.Lock(str(tmp_path)).release()


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"beat": "x"}', "\0" * 99])
def test_a_damaged_file_is_in_nobodys_way(content, tmp_path):
    (tmp_path / lock.FILE).write_text(content)
    with lock.alone_in(str(tmp_path)), pytest.raises(ValueError, match="in use by"):
        lock.Lock(str(tmp_path))


def test_another_machine_is_watched_for_signs_of_life(tmp_path, fast, capsys):
    elsewhere = dict(machine="another-boot pid:[1]", pid=7)
    record(tmp_path, **elsewhere)
    began = time.monotonic()
    lock.Lock(str(tmp_path)).release()  # It is silent, so it is dead.
    assert time.monotonic() - began > lock.SILENCE
    assert "process 7 on other" in capsys.readouterr().out
    record(tmp_path, **elsewhere, beat=time.time() - lock.ANCIENT - 1)
    lock.Lock(str(tmp_path)).release()
    assert "signs of life" not in capsys.readouterr().out

    record(tmp_path, **elsewhere)
    timer = threading.Timer(0.2, record, [tmp_path], dict(elsewhere, beat=1.0))
    timer.start()
    with pytest.raises(ValueError, match="in use by process 7 on other"):
        lock.Lock(str(tmp_path))
    timer.join()


def test_containers_of_one_machine_need_no_watch(tmp_path, capsys):
    boot = lock.machine().split()[0]
    record(tmp_path, machine=f"{boot} pid:[1]")  # Its lock of the kernel is gone.
    lock.Lock(str(tmp_path)).release()
    assert "signs of life" not in capsys.readouterr().out


def test_a_bucket_is_locked_too(bucket, fast):
    mine = lock.Lock(bucket)
    first = json.loads((epath.Path(bucket) / lock.FILE).read_text())["beat"]
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()}"):
        lock.Lock(bucket)
    time.sleep(4 * lock.BEAT)
    assert json.loads((epath.Path(bucket) / lock.FILE).read_text())["beat"] > first
    mine.release()
    assert not (epath.Path(bucket) / lock.FILE).exists()
    record(bucket, pid=2**22 + 1)  # Killed.
    lock.Lock(bucket).release()


def test_of_several_that_start_at_once_on_a_bucket_one_wins(bucket, fast):
    wins, refused = [], []

    def start():
        try:
            wins.append(lock.Lock(bucket))
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and len(refused) == 4
    wins[0].release()


def test_a_process_that_was_taken_for_dead_ends(bucket, fast, monkeypatch):
    ends, left = [], threading.Event()

    def leave(status, line):
        ends.append((status, line))
        left.set()
        raise OSError("the process is no more")

    monkeypatch.setattr(interrupts, "leave", leave)
    mine = lock.Lock(bucket)
    record(bucket, pid=7)
    assert left.wait(10)
    status, line = ends[0]
    assert status == errors.EXIT_LOST and "process 7 on other" in line
    mine.release()
    content = json.loads((epath.Path(bucket) / lock.FILE).read_text())
    assert content["token"] == "another"  # It is left to the other.


def test_all_processes_of_a_run_are_refused(tmp_path, monkeypatch):
    """Process 0 alone locks; it tells the others."""
    reasons = []
    exchange = lambda what, value: reasons.append(value) or [reasons[0], None]
    monkeypatch.setattr(cluster, "exchange", exchange)
    with lock.alone_in(str(tmp_path)):
        with pytest.raises(ValueError, match="in use by"):
            reasons.clear()
            with lock.alone_in(str(tmp_path)):
                pass
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        with pytest.raises(ValueError, match="in use by"), lock.alone_in("nowhere"):
            pass
    assert not pathlib.Path("nowhere").exists()


def test_a_folder_that_can_not_be_made_is_told_to_all(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file/run")
    with pytest.raises(ValueError, match="file/run"), lock.alone_in(path):
        pass
