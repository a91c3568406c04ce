# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a run that trains nothing: `python tests/member.py WORKDIR GO`.

It joins the others, waits until the file GO is there, and asks them for a value.
"""

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

from g2sd_jax import command
from g2sd_jax.hosts import cluster


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser()
    cluster.arguments(parser)
    parser.add_argument("workdir")
    parser.add_argument("go")
    args = parser.parse_args(argv)
    with cluster.joined(args):
        print("joined", flush=True)
        while not os.path.exists(args.go):
            time.sleep(0.05)
        print(cluster.exchange("the rank", args.process * 10), flush=True)
        time.sleep(60)
    return 0


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.create_server(("localhost", 0)) as probe:
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(command.guarded(lambda: main(sys.argv[1:])))
