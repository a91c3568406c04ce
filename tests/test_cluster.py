# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How processes find each other, agree and part: no JAX starts here, only sockets."""

import argparse
import concurrent.futures
import http.server
import re
import socket
import threading
import types

import pytest

from g2sd_jax import cli, cluster, core, peers, wire, workdir

SLURM = dict(
    SLURM_JOB_ID="4098",
    SLURM_STEP_NODELIST="node[007-008,011]",
    SLURM_NTASKS="3",
    SLURM_STEP_NUM_NODES="3",
    SLURM_PROCID="1",
    SLURM_LOCALID="0",
)
SHARED = dict(SLURM, SLURM_STEP_NUM_NODES="1", SLURM_LOCALID="1")
GKE = dict(TPU_WORKER_HOSTNAMES="a.svc,b.svc", TPU_WORKER_ID="1")
SLICES = dict(
    GKE,
    MEGASCALE_NUM_SLICES="2",
    MEGASCALE_SLICE_ID="1",
    MEGASCALE_COORDINATOR_ADDRESS="c.svc:8080",
)


def place(*given, **env):
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    return cluster.place(parser.parse_args(given), env)


def brief(found):
    return found and (found.coordinator, found.processes, found.process)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        (SLURM, ("node007:61442", 3, 1)),
        (SLURM | {"SLURM_STEP_NODELIST": "gpu1,gpu2"}, ("gpu1:61442", 3, 1)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (GKE, ("a.svc:8476", 2, 1)),
        (dict(TPU_WORKER_HOSTNAMES="localhost", TPU_WORKER_ID="0"), None),
        (SLICES, ("c.svc:8476", 4, 3)),
    ],
)
def test_place_from_the_surroundings(env, expected):
    assert brief(place(**env)) == expected


def test_a_gpu_per_process_only_where_slurm_did_not_deal_them_out():
    assert place(**SLURM).local_devices is None
    assert place(**SHARED, CUDA_VISIBLE_DEVICES="0,1,2").local_devices == (1,)
    assert place(**SHARED, CUDA_VISIBLE_DEVICES="1").local_devices is None


POD = {
    "worker-network-endpoints": "w0:x:10.0.0.5,w1:x:10.0.0.6",
    "agent-worker-number": "1",
    "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\n",
}


class Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        value = POD.get(self.path.rpartition("/")[2])
        known = value is not None and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write((value or "").encode())

    def log_message(self, *_):
        pass


def test_place_from_a_metadata_server(monkeypatch):
    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = dict(GCE_METADATA_IP=f"localhost:{server.server_port}")
        assert brief(place(**env)) == ("10.0.0.5:8476", 2, 1)
        assert place(**env, TPU_SKIP_MDS_QUERY="1") is None
        monkeypatch.setitem(POD, "agent-worker-number", None)
        assert place(**env) is None  # No worker of a pod.
        server.shutdown()


def test_place_from_the_command_line():
    given = ["--coordinator=h:1", "--processes=2", "--process=1"]
    assert brief(place(*given)) == ("h:1", 2, 1)
    assert brief(place(*given, **SLURM)) == ("h:1", 2, 1)
    assert place("--coordinator=h:1", "--processes=1", "--process=0") is None
    assert brief(place("--processes=3", **SLURM)) == ("node007:61442", 3, 1)


@pytest.mark.parametrize(
    ("given", "env", "expected"),
    [
        (["--coordinator=h"], {}, "HOST:PORT"),
        (["--coordinator=h:1", "--processes=2"], {}, "--process=None"),
        (["--coordinator=h:1", "--processes=2", "--process=2"], {}, "counts from 0"),
        (["--process=1"], {}, "needs --coordinator"),
        (["--processes=4"], SLURM, "SLURM_NTASKS tells of 3"),
        (["--processes=4"], {}, "nothing tells of others"),
        (["--timeout=0"], {}, "must be positive"),
    ],
)
def test_place_refused(given, env, expected):
    with pytest.raises(ValueError, match=expected):
        place(*given, **env)


@pytest.mark.parametrize("verb", ["train", "chain"])
def test_a_mistake_in_them_is_one_line(verb, capsys):
    recipe = "pretrain:smoke" if verb == "train" else "chains/digits"
    given = [f"--config={recipe}", "--workdir=/nowhere", "--process=1"]
    assert cli.main([verb, *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --process=1 needs --coordinator")
    assert error.count("\n") == 1


class Pod:
    """Processes as threads; what would end one is collected instead."""

    def __init__(self, capsys):
        self.capsys, self.ends, self.met = capsys, [], []
        self.port = wire.free_port()
        self.pool = concurrent.futures.ThreadPoolExecutor(8)

    def start(self, count, timeout=5.0, who=None, **changes):
        def one(index):
            given = {
                "processes": count,
                "process": index,
                **changes.get(str(index), {}),
            }
            end = lambda code: self.ends.append((index, code))
            address = ("localhost", self.port)
            self.met.append(peers.Peers(address, **given, timeout=timeout, end=end))
            return self.met[-1]

        return self.each(one, range(count) if who is None else who)

    def each(self, call, *items):
        """The results, or the errors, of `call` on all at once."""
        futures = [self.pool.submit(call, *given) for given in zip(*items, strict=True)]
        return [future.exception(30) or future.result() for future in futures]


@pytest.fixture
def pod(capsys, monkeypatch):
    monkeypatch.setattr(peers, "GRACE", 0.3)
    pod = Pod(capsys)
    yield pod
    pod.pool.shutdown()
    for peer in pod.met:
        peer._leaving.set()
        for line in peer._lines.values():
            line.end()
    # Else one test's socket is collected, and complained about, in another.
    wait_for(lambda: not [t for t in threading.enumerate() if "_listen" in t.name])


def wait_for(condition, seconds=10.0):
    done = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        done.wait(0.02)
    raise AssertionError("it did not happen")


def test_they_meet_exchange_and_part(pod):
    three = pod.start(3)
    names = {peer.name(2) for peer in three}
    assert names == {f"process 2 ({socket.gethostname()})"}
    told = pod.each(lambda peer: peer.exchange("rank", peer.process * 10), three)
    assert told == [[0, 10, 20]] * 3
    assert pod.each(lambda peer: peer.leave(), three) == [None] * 3
    threading.Event().wait(0.2)
    assert not pod.ends


def test_one_that_is_missing_at_the_start_is_named(pod):
    first, third = pod.start(3, timeout=0.5, who=[0, 2])
    assert "2 of 3 processes came" in str(first) and "missing: process 1" in str(first)
    assert str(third) == str(first)


def test_a_worker_that_starts_alone_says_so(pod):
    (alone,) = pod.start(4, timeout=0.5, who=[2])
    assert re.search(r"process 2 of 4 .* waited 0.5 s for process 0", str(alone))
    assert "A worker cannot train alone" in str(alone)


def test_another_count_or_the_same_index_is_refused(pod):
    first, second = pod.start(2, **{"1": {"processes": 3}})
    assert "as one of 3 processes, but process 0" in str(first) == str(second)
    pod.port = wire.free_port()
    same = pod.start(3, timeout=1, **{"2": {"process": 1}})
    expected = "were started as process 1 of 3"
    assert [expected in str(peer) for peer in same] == [True] * 3, same


def test_one_that_starts_again_takes_its_own_place(pod):
    future = pod.pool.submit(pod.start, 3, who=[0])
    hello = {"process": 1, "processes": 3, "host": "before"}

    def come_and_go():
        with socket.create_connection(("localhost", pod.port)) as connection:
            wire.Line(connection).send(hello)

    def came():
        try:
            come_and_go()
        except OSError:
            return False
        return True

    wait_for(came)
    others = pod.start(3, who=[1, 2])
    (first,) = future.result(10)
    assert [other.port for other in others] == [first.port] * 2


def test_one_that_dies_is_named_to_all(pod):
    three = pod.start(3)
    three[2]._lines[0]._connection.shutdown(socket.SHUT_RDWR)  # As the system would.
    wait_for(lambda: {(0, 76), (1, 76)} <= set(pod.ends))
    told = pod.capsys.readouterr().err
    assert told.count("process 2") == 2
    assert "closed its connection without a word" in told and "resume" in told


def test_the_first_that_dies_is_named_too(pod):
    two = pod.start(2)
    two[0]._lines[1]._connection.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: (1, 76) in pod.ends)
    assert "error: process 0" in pod.capsys.readouterr().err


def test_one_that_falls_silent_is_named(pod, monkeypatch):
    monkeypatch.setattr(peers.Peers, "_beat", lambda peer: None)
    pod.start(2, timeout=1.5)
    wait_for(lambda: pod.ends)
    assert "was silent for 0.5 s" in pod.capsys.readouterr().err


def test_beats_keep_a_busy_process_alive(pod):
    pod.start(2, timeout=0.9)
    threading.Event().wait(1.5)
    assert not pod.ends


def test_a_mistake_of_one_ends_the_others_with_its_line(pod):
    first, second = pod.start(2)
    second.leave("config.batch=0 is wrong")
    wait_for(lambda: pod.ends)
    assert pod.ends == [(0, 2)]
    told = pod.capsys.readouterr().err
    assert re.search(r"error: process 1 \(.*\) stopped: config.batch=0 is wrong", told)
    first.leave()


def test_a_crash_of_one_is_a_crash_of_all_others(pod):
    three = pod.start(3)
    three[2].leave("out of memory", 1)
    wait_for(lambda: {(0, 1), (1, 1)} <= set(pod.ends))
    assert pod.capsys.readouterr().err.count("stopped: out of memory") == 2


@pytest.mark.parametrize(
    ("error", "status"), [(core.Hung, 76), (OSError, 2), (RuntimeError, 1)]
)
def test_what_ends_one_process_ends_the_others_alike(pod, monkeypatch, error, status):
    ends = types.SimpleNamespace(register=lambda call: None)  # Else pytest's own end.
    monkeypatch.setattr(cluster, "atexit", ends)
    monkeypatch.setattr(cluster, "_start", lambda *_: None)

    def other():
        (peer,) = pod.start(2, who=[1])
        peer.exchange("versions", core.flatten(workdir.versions()))

    future = pod.pool.submit(other)
    given = [f"--coordinator=localhost:{pod.port}", "--processes=2", "--process=0"]
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    with pytest.raises(error), cluster.joined(parser.parse_args(given)):
        future.result(10)
        raise error("no batch for 2 s")
    wait_for(lambda: pod.ends)
    assert pod.ends == [(1, status)]
    assert "stopped: no batch for 2 s" in pod.capsys.readouterr().err


def test_the_same_mistake_of_all_is_told_once_by_each(pod):
    two = pod.start(2)
    pod.each(lambda peer: peer.leave("the same"), two)
    threading.Event().wait(0.5)
    assert not pod.ends and not pod.capsys.readouterr().err


def test_no_answer_in_an_exchange_names_who_owes_it(pod):
    three = pod.start(3, timeout=0.6)
    said = pod.each(lambda peer: peer.exchange("the config", 1), three[:2])
    assert all("no word about the config from process 2" in str(each) for each in said)


def test_differences_are_named_by_host_and_key(pod):
    three = pod.start(3)
    facts = [{"a": {"seed": 1}, "b": 2}, {"a": {"seed": 1}, "b": 2}, {"a": {"seed": 3}}]
    told = pod.each(lambda p, f: cluster.compare(p, "config", f), three, facts)
    assert all(
        "differ in their config: a.seed is 3 on process 2" in str(t) for t in told
    )
    assert "b is None on process 2" in str(told[0])
    facts = [{}, {}, dict.fromkeys("abcdefg", 1)]
    told = pod.each(lambda p, f: cluster.compare(p, "config", f), three, facts)
    assert str(told[0]).count(" is 1 on ") == 5 and " and 2 more. " in str(told[0])
    assert pod.each(lambda p: cluster.compare(p, "data", {"n": 5}), three) == [None] * 3


def test_a_relay_outlives_what_it_leads_to():
    early = wire.free_port()
    port = wire.relay(("localhost", early))
    with socket.create_connection(("localhost", port), timeout=5) as near:
        assert near.recv(1) == b""  # Nobody is there yet; and later, somebody is:
    with socket.create_server(("localhost", early)) as server:
        later = socket.create_connection(("localhost", port))
        far, _ = server.accept()
        far.close()
        later.close()
    with socket.create_server(("localhost", 0)) as server:
        port = wire.relay(("localhost", server.getsockname()[1]))
        with socket.create_connection(("localhost", port), timeout=5) as near:
            far, _ = server.accept()
            near.sendall(b"question")
            assert far.recv(8) == b"question"
            far.sendall(b"answer")
            assert near.recv(6) == b"answer"
            far.close()
            near.settimeout(0.3)
            with pytest.raises(TimeoutError):  # An empty answer would mean closed.
                near.recv(1)
