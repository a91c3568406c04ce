# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What processes tell each other over JAX's coordination service, and how they end."""

import concurrent.futures
import threading
import time
import types

import jax
import pytest
from jax._src.lib import _jax

import member
from g2sd_jax.hosts import members

HEARTBEAT = 2  # Seconds; the service counts in whole ones.


class Pod:
    """Clients of one service in this process; what would end one is collected."""

    def __init__(self, count, timeout=5.0):
        address = f"localhost:{member.free_port()}"
        limits = dict(heartbeat_timeout=HEARTBEAT, shutdown_timeout=HEARTBEAT)
        self.service = _jax.get_distributed_runtime_service(
            address, count, recoverable=True, **limits
        )
        self.clients = [
            _jax.get_distributed_runtime_client(
                address, index, init_timeout=9, **limits
            )
            for index in range(count)
        ]
        self.each(lambda client: client.connect(), self.clients)
        self.ends = []
        hosts = [f"host-{index}" for index in range(count)]
        self.all = [
            members.Members(
                process=index,
                hosts=hosts,
                timeout=timeout,
                heartbeat=HEARTBEAT,
                patience=1.0,
                end=lambda code, index=index: self.ends.append((index, code)),
            )
            for index in range(count)
        ]
        for each, client in zip(self.all, self.clients, strict=True):
            each.watch(client)

    def each(self, call, *items):
        """The results, or the errors, of `call` on all at once."""
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(call, *args) for args in zip(*items, strict=True)]
            return [future.exception(30) or future.result() for future in futures]

    def vanish(self, index):
        """Ends a process without a word to the others."""
        self.all[index]._leaving.set()
        for thread in self.all[index]._threads:
            thread.join()
        if self.clients[index] is not None:
            self.clients[index].shutdown()
            self.clients[index] = None

    def close(self):
        for index in reversed(range(len(self.all))):
            self.vanish(index)
        self.service.shutdown()


@pytest.fixture
def pod(monkeypatch):
    monkeypatch.setattr(members, "GRACE", 0.4)
    monkeypatch.setattr(members, "PERIOD", 0.05)
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: None)
    opened = []

    def start(*args, **settings):
        opened.append(Pod(*args, **settings))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def wait_for(condition, seconds=10.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_they_exchange_and_part(pod):
    three = pod(3)
    rank = lambda each: each.exchange("rank", each.process * 10)
    assert three.each(rank, three.all) == [[0, 10, 20]] * 3
    assert three.each(rank, three.all) == [[0, 10, 20]] * 3
    time.sleep(HEARTBEAT + 1)  # Nobody is lost who only takes his time.

    def leave(each):
        each.leave()
        if each.process:
            three.vanish(each.process)

    assert three.each(leave, three.all) == [None] * 3
    assert not three.ends


def test_who_owes_a_value_is_named(pod):
    three = pod(3, timeout=0.6)
    said = three.each(lambda each: each.exchange("the config", 1), three.all[:2])
    expected = "no word about the config from process 2 (host-2) within 0.6 s"
    assert all(str(each).startswith(expected) for each in said)
    # It asks for something else: another command was started there.
    said = three.each(
        lambda each, what: each.exchange(what, 1), three.all, ["a", "a", "b"]
    )
    assert [type(each) for each in said] == [ValueError] * 3


def test_differences_are_named_by_host_and_key(pod):
    (one,) = pod(1).all
    one.hosts = ["a", "b\x1b[2J"]
    assert one.difference("data", [{"n": 5}, {"n": 5}]) is None
    text = one.difference("config", [{"a.seed": 1, "b": 2}, {"a.seed": 3}])
    assert text.startswith(
        "the processes differ in their config: a.seed is 3 on process 1 (b\\x1b[2J), 1 "
        "on process 0 (a); b is None on process 1"
    )
    text = one.difference("config", [{}, dict.fromkeys("abcdefg", 1)])
    assert text.count(" is 1 on ") == 5 and " and 2 more. " in text


def test_one_that_is_lost_is_named_to_all(pod, capfd):
    three = pod(3)
    three.vanish(2)
    began = time.monotonic()
    wait_for(lambda: {(0, 76), (1, 76)} <= set(three.ends))
    assert time.monotonic() - began < HEARTBEAT + 3
    err = capfd.readouterr().err
    assert err.count("error: process 2 (host-2) gave no sign of life for 2 s") == 2
    assert err.count("resume from the last checkpoint") == 2


def test_a_service_that_does_not_answer_is_named(pod, capfd):
    two = pod(2)

    def refused(*_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    for each in two.all:
        each._client = types.SimpleNamespace(
            key_value_dir_get=refused, get_live_nodes=refused
        )
    wait_for(lambda: two.ends)
    assert two.ends == [(1, 76)]  # Process 0 has the service itself.
    assert "error: process 0 (host-0) was silent for 1 s" in capfd.readouterr().err


@pytest.mark.parametrize("code", [1, 2, 76])
def test_what_ends_one_ends_the_others_alike(pod, capfd, code):
    three = pod(3)
    three.all[2].leave("config.batch=0 is wrong", code)
    wait_for(lambda: {(0, code), (1, code)} <= set(three.ends))
    line = "error: process 2 (host-2) stopped: config.batch=0 is wrong"
    assert capfd.readouterr().err.count(line) == 2


def test_the_same_mistake_of_all_is_told_once_by_each(pod, capfd):
    two = pod(2)
    two.each(lambda each: each.leave("the same", 2), two.all)
    time.sleep(0.5)
    assert not two.ends and "the same" not in capfd.readouterr().err


def test_a_loss_comes_before_what_follows_from_it(pod, capfd):
    """An error of the runtime waits for the service to name who was lost."""
    two = pod(2)
    two.vanish(1)
    late = threading.Event()
    thread = threading.Thread(
        target=lambda: (two.all[0].leave("closed by peer", 1, sure=False), late.set())
    )
    thread.start()
    wait_for(lambda: two.ends)
    assert two.ends == [(0, 76)] and not late.is_set()
    assert "error: process 1 (host-1)" in capfd.readouterr().err
    thread.join()


@pytest.mark.parametrize("state", [None, types.SimpleNamespace()])
def test_a_jax_that_has_moved_its_client_is_refused(monkeypatch, state):
    module = types.SimpleNamespace(**({} if state is None else {"global_state": state}))
    monkeypatch.setattr(members.importlib, "import_module", lambda _: module)
    with pytest.raises(ValueError, match="does not show the client of its coordin"):
        members.service()
