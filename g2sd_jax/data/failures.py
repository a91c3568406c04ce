# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Examples that cannot be read: counted, listed once each, too many refused."""

import json
import os
import threading

FILE = "bad_examples.jsonl"


class Listing:
    """The bad examples of one process in one run.

    Args:
        path: of a file of one JSON object a line, `{"split", "index", "name",
            "reason"}`, continued if it exists; None keeps them in memory.
    """

    def __init__(self, path=None):
        self._path, self._lock = path, threading.Lock()
        self._found = {}
        if path is not None and os.path.exists(path):
            self._continue()

    def _continue(self):
        line = "\n"
        with open(self._path, "r+", encoding="utf-8") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:  # Cut short by a killed run; it is met again.
                    continue
                self._found.setdefault(row["split"], {})[row["name"]] = row["reason"]
            if not line.endswith("\n"):
                file.write("\n")

    def add(self, split, index, name, reason) -> int:
        """Notes one; returns how many of the split are known."""
        with self._lock:
            found = self._found.setdefault(split, {})
            if name not in found:
                found[name] = reason
                self._write(dict(split=split, index=index, name=name, reason=reason))
            return len(found)

    def _write(self, row):
        if self._path is None:
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def found(self, split) -> dict[str, str]:
        """{name: reason} so far."""
        with self._lock:
            return dict(self._found.get(split, {}))

    @property
    def where(self) -> str:
        return self._path or "no file (there is no workdir)"


_listing = Listing()


def list_in(workdir, process_index=0) -> None:
    """From now on this process lists bad examples in `workdir`, where others did.

    A run that resumes continues the list, so that nothing counts twice. Several
    processes must not write one file, so each has its own. A workdir of None starts a
    list in memory.
    """
    global _listing
    name = FILE
    if process_index:
        name = FILE.replace(".jsonl", f".{process_index}.jsonl")
    _listing = Listing(workdir and os.path.join(workdir, name))


def note(config, split, count, index, name, reason) -> None:
    """Counts one bad example, and stops the run if there are too many.

    Args:
        config: the recipe.
        split: whose example it is.
        count: examples of that split; its bad ones are compared with this, so that the
            verdict does not depend on when they come.
        index: of the example.
        name: its file.
        reason: why it cannot be read.
    """
    bad, most = _listing.add(split, index, name, str(reason)), config.data.max_bad_share
    if bad > most * count:
        raise ValueError(
            f"{bad} of {count} examples of split {split!r} cannot be read, more than "
            f"config.data.max_bad_share={most} allows; {name}: {reason}. All that were "
            f"met are listed in {_listing.where}: repair or remove them, or raise that "
            "key."
        )
