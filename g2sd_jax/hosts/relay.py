# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What lies between JAX's runtime in a worker and the coordinator of process 0.

The runtime aborts a process as soon as the connection to its coordinator closes, also
with `jax_enable_recoverability`, and names nobody: the closed socket ends the call in
which it waits for errors (jax 0.10.2). Behind the relay the connection stays open, and
the process has the time to say whom it lost.

The relay listens at a Unix socket, in a folder that this user alone can open.
"""

import atexit
import contextlib
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable


def relay(
    address: tuple[str, int], arrived: Callable[[], None], lost: Callable[[], None]
) -> str:
    """Opens a local socket that leads to `address`, and outlives what is there.

    Args:
        address: (host, port) of JAX's coordinator.
        arrived: called when it was reached.
        lost: called when it closes the connection.

    Returns:
        The socket, as gRPC writes an address.
    """
    folder = tempfile.mkdtemp(prefix="g2sd")
    remove = lambda: shutil.rmtree(folder, ignore_errors=True)
    atexit.register(remove)
    path = os.path.join(folder, "coordinator")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve():
        while True:
            near, _ = server.accept()
            threading.Thread(target=connect, args=(near,), daemon=True).start()

    def connect(near: socket.socket):
        while True:
            try:
                far = socket.create_connection(address)
                break
            except OSError:  # It does not listen yet; the runtime has a time limit.
                time.sleep(0.1)
        arrived()
        parted = threading.Event()  # The runtime itself has closed the connection.
        threading.Thread(target=send, args=(near, far, parted), daemon=True).start()
        with far:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            forward(far, near)
        if not parted.is_set():
            remove()  # This process may end without its `atexit`.
            lost()

    def send(near: socket.socket, far: socket.socket, parted: threading.Event):
        with near:
            forward(near, far)
            parted.set()
            with contextlib.suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

    def forward(source: socket.socket, sink: socket.socket):
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                with contextlib.suppress(OSError):  # It has ended.
                    sink.sendall(chunk)

    threading.Thread(target=serve, daemon=True).start()
    return f"unix:{path}"
