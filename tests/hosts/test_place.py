# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which process this is: options, Slurm, GKE and a metadata server say it."""

import argparse
import http.server
import threading

import pytest

from g2sd_jax.hosts import place

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


def find(*given, **env):
    parser = argparse.ArgumentParser()
    place.arguments(parser)
    return place.find(parser.parse_args(given), env)


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
    assert brief(find(**env)) == expected


def test_a_gpu_per_process_only_where_slurm_did_not_deal_them_out():
    assert find(**SLURM).local_devices is None
    assert find(**SHARED, CUDA_VISIBLE_DEVICES="0,1,2").local_devices == (1,)
    assert find(**SHARED, CUDA_VISIBLE_DEVICES="1").local_devices is None


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
        assert brief(find(**env)) == ("10.0.0.5:8476", 2, 1)
        assert find(**env, TPU_SKIP_MDS_QUERY="1") is None
        monkeypatch.setitem(POD, "agent-worker-number", None)
        assert find(**env) is None  # No worker of a pod.
        server.shutdown()


def test_place_from_the_command_line():
    given = ["--coordinator=h:1", "--processes=2", "--process=1"]
    assert brief(find(*given)) == ("h:1", 2, 1)
    assert brief(find(*given, **SLURM)) == ("h:1", 2, 1)
    assert find("--coordinator=h:1", "--processes=1", "--process=0") is None
    assert brief(find("--processes=3", **SLURM)) == ("node007:61442", 3, 1)


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
        find(*given, **env)
