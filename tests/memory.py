# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Whether reading pictures takes more and more memory: `python tests/memory.py 20000`.

Reads that many training batches of sixteen, by two processes, from 64 invented JPEGs of
500 x 375, a few bad ones among them, or from the folder or tar named after the number.
"""

import gc
import os
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import files
from g2sd_jax.data import failures, folder, order, pipeline
from g2sd_jax.data.processes import threads, workers

WARM = 200  # Batches after which buffers and allocator have found their size.


def resident(processes: Sequence[int | str]) -> float:
    """Megabytes of some processes that lie in memory."""
    gc.collect()
    pages = [
        int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1])
        for process in processes
    ]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def photographs(root: str | pathlib.Path) -> pathlib.Path:
    """Writes 64 JPEGs in two classes, one cut off and one that is no picture."""
    root = pathlib.Path(root)
    contents = files.photographs(per_class=32, size=(375, 500), splits=("train",))
    contents["train/a/3.jpg"] = contents["train/a/3.jpg"][:4000]
    contents["train/b/5.jpg"] = b"no picture"
    return files.write(root, contents)


def growth(path: str | pathlib.Path, batches: int) -> list[float]:
    """Megabytes after `WARM` batches, then five times until `batches`."""
    config = files.recipe(path, classes=0, max_bad_share=0.1, workers=2)
    config.model.image_size = (224, 224)
    dataset = pipeline.dataset(config, folder.list_files(config, "train"), "train")
    stream = order.train_batches(dataset, 16, seed=0)
    readers = workers.pool(config).workers  # Of the `closing` around.
    megabytes = []
    for number in range(1, batches + 1):
        next(stream)
        if number == WARM or number % (batches // 5) == 0:
            assert len(readers) == 2
            megabytes.append(resident(["self", *(reader.pid for reader in readers)]))
    return megabytes


if __name__ == "__main__":
    # The threads end before the folder goes that they list bad examples in.
    with tempfile.TemporaryDirectory() as scratch, threads.closing():
        failures.list_in(scratch)
        path = sys.argv[2] if len(sys.argv) > 2 else photographs(scratch + "/set")
        figures = growth(path, int(sys.argv[1]))
    print("MB resident:", *(f"{megabytes:.0f}" for megabytes in figures))
