# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How many threads read and decode."""

import os


def cores() -> list[int]:
    """The numbers of those this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not everywhere.
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def workers(config) -> int:
    """Threads of a data set, `config.data.workers` or one a core.

    That and `prefetch` are refused where they are too few.
    """
    for key, least in (("workers", 1), ("prefetch", 0)):
        if config.data[key] is not None and config.data[key] < least:
            raise ValueError(
                f"config.data.{key}={config.data[key]} must be at least {least}."
            )
    return config.data.workers or len(cores())
