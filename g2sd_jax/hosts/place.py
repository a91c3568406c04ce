# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Which process of how many this one is: from the options, or from the surroundings.

JAX detects clusters, too, but under Slurm it shows every process one GPU, and a run of
ours is one process per node, which drives all of them.
"""

import argparse
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import NamedTuple

PORT = 8476  # Where JAX's coordinator listens, unless the environment names another.


class Place(NamedTuple):
    """Index of this process, number of processes, and address of the coordinator."""

    coordinator: str  # HOST:PORT
    processes: int
    process: int
    origin: str  # Option, variable or server that named the processes, for errors.
    local_devices: Sequence[int] | None = None  # None: all this process can see.

    @property
    def address(self) -> tuple[str, int]:
        """The coordinator's (host, port)."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `find` reads."""
    group = parser.add_argument_group(
        "several hosts",
        "TPU pods, TPUs on GKE and Slurm need none of these; with others, start the "
        "same command once per host, each with its own --process.",
    )
    group.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        default=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        help="where process 0 listens; default $JAX_COORDINATOR_ADDRESS",
    )
    group.add_argument(
        "--processes",
        type=int,
        default=os.environ.get("JAX_NUM_PROCESSES"),
        help="how many are expected; any other number is refused",
    )
    group.add_argument(
        "--process",
        type=int,
        default=os.environ.get("JAX_PROCESS_ID"),
        help="which one this is, counted from 0",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="after which a wait for another process ends and names it (300)",
    )


def find(args: argparse.Namespace, env: Mapping[str, str]) -> Place | None:
    """Finds the place of this process in the run; None for a run of one process.

    Args:
        args: options of `arguments`.
        env: environment variables.

    Raises:
        ValueError: the options are incomplete, or contradict the environment.
    """
    if args.timeout <= 0:
        raise ValueError(f"--timeout={args.timeout:g} must be positive.")
    if args.coordinator:
        return _from_options(args)
    if args.process is not None:
        raise ValueError(
            f"--process={args.process} needs --coordinator=HOST:PORT and --processes."
        )
    detected = _from_slurm(env) or _from_gke(env) or _from_tpu_vm(env)
    count = detected.processes if detected else 1
    if args.processes not in (None, count):
        evidence = (
            f"{detected.origin} tells of {count}"
            if detected
            else "nothing tells of others"
        )
        raise ValueError(
            f"--processes={args.processes}, but {evidence}; correct it, or say where "
            "process 0 is with --coordinator=HOST:PORT --process=INDEX."
        )
    return detected if count > 1 else None


def _from_options(args: argparse.Namespace) -> Place | None:
    host, _, port = args.coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator={args.coordinator!r}: write HOST:PORT, such as 10.0.0.2:"
            f"{PORT}."
        )
    count, index = args.processes, args.process
    if count is None or index is None or not 0 <= index < count:
        raise ValueError(
            f"--coordinator={args.coordinator} with --processes={count} --process="
            f"{index}: both are needed, and --process counts from 0."
        )
    if count == 1:
        return None
    return Place(
        coordinator=args.coordinator,
        processes=count,
        process=index,
        origin="--processes",
    )


def _from_slurm(env: Mapping[str, str]) -> Place | None:
    # Set by srun alone: a shell of salloc has a job, but no step.
    required = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(name in env for name in required):
        return None
    count = int(env["SLURM_NTASKS"])
    # The first of `node[001-015],other`, `node001,other` or `node001`.
    nodes = re.match(r"([^,\[]+)(\[?)(.*)", env["SLURM_STEP_NODELIST"])
    prefix, bracket, rest = nodes.groups()
    host = prefix + (re.match(r"[^,\-\]]+", rest)[0] if bracket else "")
    port = 61440 + int(env["SLURM_JOB_ID"]) % 4096  # Jobs may share a host.
    local_devices = None
    shared = count > int(env.get("SLURM_STEP_NUM_NODES", count))
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if shared and len(visible) > 1:  # Else Slurm has dealt the GPUs out itself.
        local_devices = (int(env["SLURM_LOCALID"]),)
    return Place(
        coordinator=f"{host}:{port}",
        processes=count,
        process=int(env["SLURM_PROCID"]),
        origin="SLURM_NTASKS",
        local_devices=local_devices,
    )


def _from_gke(env: Mapping[str, str]) -> Place | None:
    variable = "TPU_WORKER_HOSTNAMES"
    hosts = [host for host in env.get(variable, "").split(",") if host]
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    if "TPU_WORKER_ID" not in env or len(hosts) * slices < 2:
        return None
    host = env.get("MEGASCALE_COORDINATOR_ADDRESS", "").split(":")[0] or hosts[0]
    index = int(env["TPU_WORKER_ID"])
    index += int(env.get("MEGASCALE_SLICE_ID") or 0) * len(hosts)
    return Place(
        coordinator=f"{host}:{PORT}",
        processes=len(hosts) * slices,
        process=index,
        origin=variable if slices == 1 else f"{variable} and MEGASCALE_NUM_SLICES",
    )


def _from_tpu_vm(env: Mapping[str, str]) -> Place | None:
    chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    if not (chips or "GCE_METADATA_IP" in env) or "TPU_SKIP_MDS_QUERY" in env:
        return None
    server = env.get("GCE_METADATA_IP", "metadata.google.internal")

    def attribute(name: str) -> str:
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read().decode()

    try:
        # Names, or triples whose last part is the address.
        workers = attribute("worker-network-endpoints").split(",")
        index = int(attribute("agent-worker-number"))
        megascale = dict(
            re.findall(r"(MEGASCALE_\w+): '([^']*)'", attribute("tpu-env"))
        )
    except (urllib.error.URLError, OSError, ValueError):
        return None  # A GPU host, or a TPU that is no worker of a pod.
    hosts = ",".join(worker.split(":")[-1] for worker in workers)
    as_on_gke = dict(megascale, TPU_WORKER_HOSTNAMES=hosts, TPU_WORKER_ID=str(index))
    detected = _from_gke(as_on_gke)
    return detected and detected._replace(origin="the metadata server")
