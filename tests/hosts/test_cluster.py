# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Processes that join, part, and are killed; what strangers can do to them."""

import argparse
import concurrent.futures
import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import pytest
from etils import epath

import member
from g2sd_jax import cli, errors, workdir
from g2sd_jax.hosts import cluster, meeting, members, place

TESTS = pathlib.Path(__file__).parents[1]
TIMEOUT = 60  # Seconds; a third of it is more than anything here may take.


@pytest.mark.parametrize("verb", ["train", "chain"])
def test_a_mistake_in_the_options_is_one_line(verb, capsys):
    recipe = "pretrain:smoke" if verb == "train" else "chains/digits"
    given = [f"--config={recipe}", "--workdir=/nowhere", "--process=1"]
    assert cli.main([verb, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --process=1 needs --coordinator")
    assert error.count("\n") == 1


class Ends:
    """Stands for `Members`: how this process took leave of the others."""

    def leave(self, error=None, code=0, sure=True):
        self.said = error, code, sure


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (None, (None, 0, True)),
        (errors.Preempted("saved"), (None, 0, True)),
        (errors.Hung("no batch"), ("no batch", 76, True)),
        (ValueError("wrong\nindeed"), ("wrong", 2, True)),
        (KeyboardInterrupt(), ("KeyboardInterrupt()", 130, True)),
        # They may follow from the loss of another process.
        (OSError("no space"), ("no space", 2, False)),
        (RuntimeError("closed by peer"), ("closed by peer", 1, False)),
    ],
)
def test_the_others_hear_how_a_process_ends(monkeypatch, tmp_path, error, said):
    ends = types.SimpleNamespace(register=lambda call: None)  # Else pytest's own end.
    monkeypatch.setattr(cluster, "atexit", ends)
    stand_in = Ends()
    monkeypatch.setattr(cluster, "_join", lambda *_: stand_in)
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    given = ["--coordinator=localhost:1", "--processes=2", "--process=0"]
    args = parser.parse_args(given, argparse.Namespace(workdir=tmp_path))
    expected = contextlib.nullcontext() if error is None else pytest.raises(type(error))
    with expected, cluster.joined(args):
        if error is not None:
            raise error
    assert stand_in.said == said


def test_one_that_met_but_does_not_connect_is_named(monkeypatch, tmp_path):
    """JAX's own time limit would abort all of them, and name nobody."""
    monkeypatch.setattr(meeting, "PERIOD", 0.05)
    monkeypatch.setattr(cluster, "LEAST", 0.5)
    stopped, watched = [], []
    monkeypatch.setattr(members.Members, "stop", lambda _, *line: stopped.append(line))
    monkeypatch.setattr(members.Members, "watch", lambda _, it: watched.append(it))
    monkeypatch.setattr(members, "service", lambda: None)
    connect = lambda **_: time.sleep(2.0)
    monkeypatch.setattr(jax.distributed, "initialize", connect)
    here = place.Place(f"localhost:{member.free_port()}", 2, 0, "--processes")
    folder = epath.Path(tmp_path) / "meeting"
    other = meeting.Meeting(folder, here._replace(process=1), workdir.versions())
    before = jax.config.jax_enable_recoverability
    with concurrent.futures.ThreadPoolExecutor() as pool:
        future = pool.submit(other.meet, 20)
        cluster._join(here, str(tmp_path), 20)
        assert len(future.result()) == 2 and not stopped and len(watched) == 1
        future = pool.submit(other.meet, 1.5)
        monkeypatch.setattr(meeting.Meeting, "close", lambda _: None)
        cluster._join(here, str(tmp_path), 1.5)
    jax.config.update("jax_enable_recoverability", before)
    ((line, code),) = stopped
    assert code == 76
    assert line.startswith(f"error: process 1 ({socket.gethostname()}) did not reach ")


def test_other_versions_are_refused_before_jax_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(meeting, "PERIOD", 0.05)
    here = place.Place("localhost:1", 2, 0, "--processes")
    folder = epath.Path(tmp_path) / "meeting"
    versions = dict(workdir.versions(), jax="0.1")
    other = meeting.Meeting(folder, here._replace(process=1), versions)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        pool.submit(other.meet, 20)
        expected = r"differ in their versions: jax is '0\.1' on process 1"
        with pytest.raises(ValueError, match=expected):
            cluster._join(here, str(tmp_path), 20)


def test_the_coordinator_listens_at_its_own_address_alone(capsys):
    here = lambda address: place.Place(address, 2, 0, "--processes")
    port = member.free_port()
    local = here(f"localhost:{port}")
    assert cluster._bind_address(local, ["a", "a"]) == f"localhost:{port}"
    assert not capsys.readouterr().out
    # A name that only means this host to itself, as in Debian's /etc/hosts.
    assert cluster._bind_address(local, ["a", "b"]) == f"[::]:{port}"
    assert "localhost is 127.0.0.1 here" in capsys.readouterr().out


def test_a_port_that_another_run_holds_is_refused():
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        here = place.Place(address, 2, 0, "--processes")
        with pytest.raises(ValueError, match=f"cannot listen at {address}: Address al"):
            cluster._bind_address(here, ["a", "a"])
    here = here._replace(coordinator="192.0.2.1:8476")  # Of no host: RFC 5737.
    with pytest.raises(ValueError, match="the address is not of this host"):
        cluster._bind_address(here, ["a", "a"])


@contextlib.contextmanager
def started(folder, count=2):
    """Processes of one run that have joined; the path of their go; their port."""
    port, go = member.free_port(), folder / "go"
    command = [sys.executable, str(TESTS / "member.py"), str(folder), str(go)]
    command += [f"--coordinator=localhost:{port}", f"--processes={count}"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), XLA_FLAGS="")
    processes = [
        subprocess.Popen(
            [*command, f"--process={index}", f"--timeout={TIMEOUT}"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        for process in processes:
            lines = iter(process.stdout.readline, "")
            assert any(line == "joined\n" for line in lines), process.poll()
        yield processes, go, port
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def check_named(survivor, victim, seconds):
    """The survivor says who was lost before the runtime says anything, within time."""
    began = time.monotonic()
    text = survivor.communicate(timeout=seconds)[0]
    assert time.monotonic() - began < seconds
    assert survivor.returncode == 76, text
    ours, *_ = (line for line in text.splitlines() if line[:1] in "EFWe")
    assert ours.startswith(f"error: process {victim} ({socket.gethostname()}) "), text
    assert "the run ends here too" in ours


def test_strangers_neither_stall_nor_end_a_run(tmp_path):
    """And a killed process 0 is named to the other."""
    with started(tmp_path) as (processes, go, port), contextlib.ExitStack() as opened:
        assert not (tmp_path / "meeting").exists()
        # At another address of this machine nobody listens.
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), timeout=5)
        connect = lambda: opened.enter_context(
            socket.create_connection(("localhost", port), timeout=5)
        )
        for _ in range(50):
            connect()  # And silence.
        done = threading.Event()
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        slow, flood = connect(), connect()

        def trickle():
            for byte in preface * 100:
                with contextlib.suppress(OSError):
                    slow.send(bytes([byte]))
                if done.wait(0.05):
                    return

        def pour():
            with contextlib.suppress(OSError):
                while not done.is_set():
                    flood.sendall(b"[" * 65536)  # No line ends, no frame.

        strangers = [threading.Thread(target=each) for each in (trickle, pour)]
        for thread in strangers:
            thread.start()
        connect().sendall(preface + b"\xff" * 4096)
        connect().sendall(b'{"process": 1, "processes": 2, "host": "evil"}\n')
        go.touch()
        for process in processes:
            lines = iter(process.stdout.readline, "")
            assert any(line == "[0, 10]\n" for line in lines), process.poll()
        done.set()
        for thread in strangers:
            thread.join()
        processes[0].kill()
        check_named(processes[1], victim=0, seconds=10)


@pytest.mark.slow
def test_a_killed_worker_is_named(tmp_path):
    with started(tmp_path) as (processes, _, _):
        processes[1].kill()
        check_named(processes[0], victim=1, seconds=TIMEOUT / 2)


@pytest.mark.slow
def test_a_process_0_that_stands_still_is_named(tmp_path):
    with started(tmp_path) as (processes, _, _):
        processes[0].send_signal(signal.SIGSTOP)
        check_named(processes[1], victim=0, seconds=TIMEOUT / 3)
