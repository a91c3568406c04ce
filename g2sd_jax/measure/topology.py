# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The devices a plan is made for: a TPU slice that is not here, or what is here."""

import os
from typing import NamedTuple

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from g2sd_jax import errors
from g2sd_jax.measure import step_speed
from g2sd_jax.models import layers


class Chip(NamedTuple):
    """Figures of one device; None where they are unknown."""

    memory: float  # bytes
    flops: float  # of matrix products, FLOP/s, in the recipe's compute_dtype
    bandwidth: float | None  # of its main memory, bytes/s
    links: float | None  # bytes/s to its neighbours, all links together, one way


# Memory: what libtpu 0.0.42's compiler leaves a program, as its refusal of one that is
# too large says. The rest: Google's page on each generation, such as
# docs.cloud.google.com/tpu/docs/v5e, bfloat16; links are half of the figure for both
# directions, those of v4 from arXiv 2304.01433.
GENERATIONS = {
    "v4": Chip(30.75 * 2**30, 275e12, 1200e9, 300e9),
    "v5e": Chip(15.75 * 2**30, 197e12, 819e9, 200e9),
    "v5p": Chip(95.74 * 2**30, 459e12, 2765e9, 600e9),
    "v6e": Chip(31.25 * 2**30, 918e12, 1638e9, 400e9),
}
# A v4 chip counts as one device only in its megacore form.
OPTIONS = {"v4": dict(chip_config_name="megacore")}
# Any of the generation: without one, libtpu warns that it can not tell its host.
TYPES = {"v4": "v4-8", "v5e": "v5litepod-4", "v5p": "v5p-8", "v6e": "v6e-4"}
# Nobody is to be asked for a TPU's metadata, nor does one hold a lock here.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Slice(NamedTuple):
    """Devices, and the figures of each."""

    name: str
    devices: list[jax.Device]
    hosts: int
    chip: Chip
    measured: bool  # The chip's figures, here; else they are the maker's.


def named(topology: str) -> Slice:
    """Describes a TPU slice such as v5e:8x8, as the compiler sees it."""
    generation = topology.partition(":")[0]
    chip = errors.lookup("--topology", generation, GENERATIONS)
    variables = {**ENVIRONMENT, "TPU_ACCELERATOR_TYPE": TYPES[generation]}
    for key, value in variables.items():
        os.environ.setdefault(key, value)
    if not os.environ.get("JAX_PLATFORMS"):
        # With libtpu installed, JAX would look for a TPU here, and wait for it.
        jax.config.update("jax_platforms", "cpu")
    try:
        description = topologies.get_topology_desc(
            topology_name=topology, platform="tpu", **OPTIONS.get(generation, {})
        )
    except (ImportError, RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(
            f"--topology={topology!r}: {error}. Compiling for a TPU takes libtpu (pip "
            "install 'g2sd_jax[tpu]') and a topology such as v5e:8x8."
        ) from error
    devices = list(description.devices)
    hosts = len({device.process_index for device in devices})
    return Slice(topology, devices, hosts, chip, measured=False)


def here(config: ConfigDict) -> Slice:
    """Describes the devices of this process, their speed measured."""
    devices = jax.devices()
    memory = (devices[0].memory_stats() or {}).get("bytes_limit")
    if memory is None:  # CPU devices share the machine's.
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        memory = machine / len(devices)
    peak = 1e12 * step_speed.matmul_peak(layers.compute_options(config)["dtype"])
    chip = Chip(memory, peak, bandwidth=None, links=None)
    return Slice("local", devices, jax.process_count(), chip, measured=True)
