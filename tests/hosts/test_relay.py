# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A relay carries both ways, and stays open when what it leads to is gone."""

import os
import socket
import stat
import threading

import pytest

import member
from g2sd_jax.hosts import relay


class Line:
    """A relay to a port of this machine, and the runtime's side of it."""

    def __init__(self, port):
        self.arrived, self.lost = threading.Event(), threading.Event()
        target = relay.relay(("localhost", port), self.arrived.set, self.lost.set)
        self.path = target.removeprefix("unix:")
        self.near = socket.socket(socket.AF_UNIX)
        self.near.connect(self.path)
        self.near.settimeout(5)


def test_it_outlives_what_it_leads_to():
    with socket.create_server(("localhost", 0)) as server:
        line = Line(server.getsockname()[1])
        far, _ = server.accept()
        with line.near, far:
            line.near.sendall(b"question")
            assert far.recv(8) == b"question"
            far.sendall(b"answer")
            assert line.near.recv(6) == b"answer"
            assert line.arrived.is_set() and not line.lost.is_set()
            far.close()
            assert line.lost.wait(5) and not os.path.exists(line.path)
            line.near.settimeout(0.2)
            with pytest.raises(TimeoutError):  # An empty answer would mean closed.
                line.near.recv(1)


def test_it_waits_for_what_it_leads_to():
    port = member.free_port()
    line = Line(port)
    assert not line.arrived.wait(0.3)
    with socket.create_server(("localhost", port)) as server, line.near:
        far, _ = server.accept()
        assert line.arrived.wait(5)
        far.close()
        assert line.lost.wait(5)


def test_the_end_of_the_runtime_itself_is_no_loss():
    with socket.create_server(("localhost", 0)) as server:
        line = Line(server.getsockname()[1])
        far, _ = server.accept()
        with far:
            line.near.close()
            assert far.recv(1) == b""
        assert not line.lost.wait(0.3)


def test_nobody_else_can_open_it():
    line = Line(member.free_port())
    folder = os.stat(os.path.dirname(line.path))
    assert stat.S_IMODE(folder.st_mode) == 0o700 and folder.st_uid == os.getuid()
    line.near.close()
