# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Connections between the processes of a run: one of ours, and a relay for JAX's."""

import contextlib
import json
import select
import socket
import threading
from collections.abc import Mapping


class Line:
    """One connection: JSON objects, one a line; several threads may send."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._lock = connection, threading.Lock()
        self._rest = b""

    def settimeout(self, seconds: float):
        self._connection.settimeout(seconds)

    def send(self, message: Mapping):
        with self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict:
        while b"\n" not in self._rest:
            part = self._connection.recv(65536)
            if not part:
                raise ConnectionError("the connection was closed")
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def closed(self) -> bool:
        """Whether the other side has gone, as far as can be seen without waiting."""
        readable, _, _ = select.select([self._connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def end(self):
        """Nothing more is sent; what the other side still sends is read."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self):
        self._connection.close()


def relay(address: tuple[str, int]) -> int:
    """A local port that leads to `address`, and does not close when that one does.

    The runtime aborts a process in the moment the connection to its coordinator closes,
    before anything could be said. Behind a relay it only notices at its next timeout.
    """
    server = socket.create_server(("localhost", 0))

    def serve():
        while True:
            near, _ = server.accept()
            try:
                far = socket.create_connection(address)
            except OSError:  # It does not listen yet: whoever asked asks again.
                near.close()
                continue
            for one, other in ((near, far), (far, near)):
                nodelay = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one.setsockopt(*nodelay)
                threading.Thread(target=pump, args=(one, other), daemon=True).start()

    def pump(source, sink):
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
