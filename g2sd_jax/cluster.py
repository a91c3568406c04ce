# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run on several hosts find each other, agree, and part.

On a Cloud TPU pod, on GKE with TPUs and under Slurm the surroundings say how many
processes there are; anywhere else `--coordinator`, `--processes` and `--process` do. A
run of one process never opens a port.
"""

import argparse
import atexit
import contextlib
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils

from g2sd_jax import core, wire, workdir
from g2sd_jax import peers as connections

PORT = 8476  # Where process 0 listens, unless the surroundings name another.
MOST = 5  # Differences that one line tells.


class Place(NamedTuple):
    """Which of how many processes this is, and where the first one listens."""

    coordinator: str  # HOST:PORT
    processes: int
    process: int
    found: str  # What told so, for errors.
    local_devices: Sequence[int] | None = None  # None: all this process can see.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `place` reads of a command line."""
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


def place(args: argparse.Namespace, env: Mapping[str, str]) -> Place | None:
    """Where this process stands among the others; None if there are no others.

    Args:
        args: of `arguments`.
        env: the environment variables.
    """
    if args.timeout <= 0:
        raise ValueError(f"--timeout={args.timeout:g} must be positive.")
    if args.coordinator:
        return _given(args)
    if args.process is not None:
        raise ValueError(
            f"--process={args.process} needs --coordinator=HOST:PORT and --processes."
        )
    found = _slurm(env) or _gke(env) or _tpu_vm(env)
    count = found.processes if found else 1
    if args.processes not in (None, count):
        told = f"{found.found} tells of {count}" if found else "nothing tells of others"
        raise ValueError(
            f"--processes={args.processes}, but {told}; correct it, or say where "
            "process 0 is with --coordinator=HOST:PORT --process=INDEX."
        )
    return found if count > 1 else None


def _given(args) -> Place | None:
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
    return Place(args.coordinator, count, index, "--processes") if count > 1 else None


def _slurm(env) -> Place | None:
    # Set by srun alone: a shell of salloc has a job, but no step.
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(name in env for name in needed):
        return None
    count = int(env["SLURM_NTASKS"])
    # The first of `node[001-015],other`, `node001,other` or `node001`.
    prefix, bracket, rest = re.match(r"([^,\[]+)(\[?)(.*)", env[needed[1]]).groups()
    first = prefix + (re.match(r"[^,\-\]]+", rest)[0] if bracket else "")
    port = 61440 + int(env["SLURM_JOB_ID"]) % 4096  # Jobs may share a host.
    local = None
    shared = count > int(env.get("SLURM_STEP_NUM_NODES", count))
    visible = env.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if shared and len(visible) > 1:  # Else Slurm has dealt the GPUs out itself.
        local = (int(env["SLURM_LOCALID"]),)
    return Place(
        f"{first}:{port}", count, int(env["SLURM_PROCID"]), "SLURM_NTASKS", local
    )


def _gke(env) -> Place | None:
    name = "TPU_WORKER_HOSTNAMES"
    hosts = [host for host in env.get(name, "").split(",") if host]
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    if "TPU_WORKER_ID" not in env or len(hosts) * slices < 2:
        return None
    first = env.get("MEGASCALE_COORDINATOR_ADDRESS", "").split(":")[0] or hosts[0]
    index = int(env["TPU_WORKER_ID"])
    index += int(env.get("MEGASCALE_SLICE_ID") or 0) * len(hosts)
    found = name if slices == 1 else f"{name} and MEGASCALE_NUM_SLICES"
    return Place(f"{first}:{PORT}", len(hosts) * slices, index, found)


def _tpu_vm(env) -> Place | None:
    chips = any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))
    if not (chips or "GCE_METADATA_IP" in env) or "TPU_SKIP_MDS_QUERY" in env:
        return None
    server = env.get("GCE_METADATA_IP", "metadata.google.internal")

    def attribute(name):
        url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

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
    told = dict(megascale, TPU_WORKER_HOSTNAMES=hosts, TPU_WORKER_ID=str(index))
    found = _gke(told)
    return found and found._replace(found="the metadata server")


_peers: connections.Peers | None = None


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Meets the other processes, if there are any, before JAX is used; parts after.

    Args:
        args: of `arguments`.
    Raises:
        ValueError: somebody did not come in time, or runs other versions.
    """
    global _peers
    where = place(args, os.environ)
    if where is None:
        yield
        return
    host, _, port = where.coordinator.rpartition(":")
    print(
        f"process {where.process} of {where.processes} ({where.found}): meeting at "
        f"{where.coordinator}, for at most {args.timeout:g} s",
        flush=True,
    )
    address = (host, int(port))
    _peers = connections.Peers(address, where.processes, where.process, args.timeout)
    failed = []
    # Before JAX's own end, which would wait for processes that are gone.
    atexit.register(lambda: failed and _end(failed[0]))
    try:
        agree("versions", workdir.versions)
        _start(where, host, round(args.timeout))
        yield
    except core.Preempted:
        _peers.leave()
        raise
    except BaseException as error:
        failed.append(_status(error))
        line = str(error).splitlines()[0] if str(error) else repr(error)
        _peers.leave(line, failed[0])
        raise
    else:
        _peers.leave()
    finally:
        _peers = None


def _status(error: BaseException) -> int:
    if isinstance(error, core.Hung):  # An OSError, but no mistake of the command's.
        return core.EXIT_LOST
    return core.EXIT_MISTAKE if isinstance(error, core.MISTAKES) else 1


def _start(where: Place, host: str, timeout: int) -> None:
    inner = (host, _peers.port) if where.process else ("localhost", _peers.port)
    if where.process:
        inner = ("localhost", wire.relay(inner))
    jax.distributed.initialize(
        f"{inner[0]}:{inner[1]}",
        where.processes,
        where.process,
        local_device_ids=where.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=timeout,
        # Longer than ours, so that our line comes first.
        heartbeat_timeout_seconds=timeout,
        shutdown_timeout_seconds=timeout,
    )


def _end(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def agree(what: str, facts: Callable[[], Mapping]) -> None:
    """Refuses a run whose processes differ in `facts`, by host and key; waits for all.

    Args:
        what: a noun for errors and for who is waited for.
        facts: () -> plain JSON values by name; not asked for in a run of one process.
    """
    if _peers is not None:
        compare(_peers, what, facts())


def compare(peers: connections.Peers, what: str, facts: Mapping) -> None:
    """The comparison of `agree`, on given connections."""
    everybody = peers.exchange(what, core.flatten(facts))
    first = everybody[0]
    differ = [
        f"{key} is {theirs.get(key)!r} on {peers.name(index)}, {first.get(key)!r} on "
        f"{peers.name(0)}"
        for index, theirs in enumerate(everybody)
        for key in sorted(first.keys() | theirs.keys())
        if theirs.get(key) != first.get(key)
    ]
    if differ:
        told = core.few(differ, most=MOST, between="; ")
        raise ValueError(
            f"the processes differ in their {what}: {told}. "
            "Start the same command with the same installation and data on every host."
        )


def everybody(what: str, value) -> list:
    """The plain JSON `value` of every process, in order; of this one if it is alone."""
    return [value] if _peers is None else _peers.exchange(what, value)


class Stop:
    """SIGTERM asks for a checkpoint at the next step, and for the end after it."""

    def __init__(self):
        self._asked = False
        self._before = None
        if jax.process_count() == 1:
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self._asked = True

    def asked(self, step: int) -> bool:
        """Whether to save now; all processes get the same answer at the same step."""
        if jax.process_count() == 1:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def alone(self) -> bool:
        """Whether to save without another step: nobody else has to agree."""
        return self._asked

    def close(self):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
