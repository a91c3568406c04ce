# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Examples that cannot be read: counted, listed once each, too many refused."""

import json
import threading

from etils import epath
from ml_collections import ConfigDict

FILE = "bad_examples.jsonl"
NAMED = 5  # Examples that an error names where there is no file of them.


class Listing:
    """The bad examples of one process in one run.

    A run that is refused must not leave a folder behind: until it has claimed one,
    lines stay in memory. An object of a bucket cannot grow: there the file is rewritten
    whenever it has doubled, and by `sync`; a resumed run adds again what a kill lost.

    Args:
        path: of a file of one JSON object a line, `{"split", "index", "name",
            "reason"}`, continued if it exists; None for a list in memory.
        claimed: whether the folder is the run's, or will be with the first `sync`.
    """

    def __init__(self, path: str | None = None, claimed: bool = True):
        self._path = None if path is None else epath.Path(path)
        self._grows = "://" not in str(path)
        self._claimed = claimed
        self._lock = threading.Lock()
        self._reasons = {}  # {split: {name: reason}}
        self._lines, self._written = [], 0
        if self._path is not None and self._path.exists():
            self._continue()

    def _continue(self) -> None:
        content = self._path.read_bytes()
        for line in content.splitlines():
            try:
                row = json.loads(line)
                self._reasons.setdefault(row["split"], {})[row["name"]] = row["reason"]
            # Cut short by a killed run, or damaged: it is added again.
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            self._lines.append(json.dumps(row) + "\n")
        self._written = len(self._lines)
        if self._grows and content and not content.endswith(b"\n"):
            self._append("\n")

    def add(self, split: str, index: int, name: str, reason: str) -> int:
        """Adds an example unless it is listed; returns how many of the split are."""
        with self._lock:
            reasons = self._reasons.setdefault(split, {})
            if name not in reasons:
                reasons[name] = reason
                row = dict(split=split, index=index, name=name, reason=reason)
                self._lines.append(json.dumps(row) + "\n")
                if self._grows or len(self._lines) >= 2 * self._written:
                    self._write()
            return len(reasons)

    def sync(self) -> None:
        """Claims the folder, and writes the lines in memory if it exists."""
        self._claimed = True
        self.flush()

    def flush(self) -> None:
        """Writes the lines in memory, if there is a folder for them."""
        with self._lock:
            if len(self._lines) > self._written:
                self._write()

    def _write(self) -> None:
        if self._path is None or not self._claimed or not self._path.parent.exists():
            return
        if self._grows:
            self._append("".join(self._lines[self._written :]))
        else:
            self._path.write_text("".join(self._lines))
        self._written = len(self._lines)

    def _append(self, text: str) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text)

    def where(self, split: str) -> str:
        """The path of the file, or some names of the split where there is none."""
        if self._written:
            return str(self._path)
        with self._lock:
            names = list(self._reasons.get(split, {}))[:NAMED]
        return f"no file, for there is no workdir yet; the first are {', '.join(names)}"


_listing = Listing()


def list_in(workdir: str | None, process_index: int = 0, claimed: bool = True) -> None:
    """Lists this process's bad examples in `workdir` from now on.

    A run that resumes continues the list, so that nothing counts twice. Several
    processes must not write one file, so each has its own. Lines of the list before are
    written first.

    Args:
        workdir: of the run; None for a list in memory, which is how a run ends.
        process_index: of this process.
        claimed: whether the run has its workdir; else it has with the first `sync`.
    """
    global _listing
    _listing.flush()
    name = FILE
    if process_index:
        name = FILE.replace(".jsonl", f".{process_index}.jsonl")
    path = None if workdir is None else f"{str(workdir).rstrip('/')}/{name}"
    _listing = Listing(path, claimed)


def sync() -> None:
    """Writes the list: once a run has claimed its workdir, and with checkpoints."""
    _listing.sync()


def note(
    config: ConfigDict,
    split: str,
    count: int,
    index: int,
    name: str,
    reason: Exception | str,
) -> None:
    """Lists one bad example, and stops the run if there are too many.

    Args:
        config: the recipe.
        split: of the example.
        count: examples of the split; the share of bad ones is taken of all, not of
            those read so far, so that it does not depend on their order.
        index: of the example.
        name: of its file.
        reason: why it cannot be read.
    """
    bad, most = _listing.add(split, index, name, str(reason)), config.data.max_bad_share
    if bad > most * count:
        raise ValueError(
            f"{bad} of {count} examples of split {split!r} cannot be read, more than "
            f"config.data.max_bad_share={most} allows; {name}: {reason}. All that were "
            f"met are listed in {_listing.where(split)}: repair or remove them, or "
            "raise that key."
        )
