# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Examples that cannot be read: counted, listed once each, too many refused."""

import json
import threading

from etils import epath

FILE = "bad_examples.jsonl"
NAMED = 5  # Examples that an error names where there is no file of them.


class Listing:
    """The bad examples of one process in one run.

    A run that is refused must not leave a folder behind: until its folder exists,
    lines wait here. An object of a bucket can not grow: there the file is written anew
    whenever it has doubled, and by `sync`; what a kill loses is met again.

    Args:
        path: of a file of one JSON object a line, `{"split", "index", "name",
            "reason"}`, continued if it exists; None keeps them in memory.
    """

    def __init__(self, path=None):
        self._path = None if path is None else epath.Path(path)
        self._grows = "://" not in str(path)
        self._lock = threading.Lock()
        self._found = {}
        self._lines, self._written = [], 0
        if self._path is not None and self._path.exists():
            self._continue()

    def _continue(self):
        text = self._path.read_text(encoding="utf-8")
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # Cut short by a killed run; it is met again.
                continue
            self._found.setdefault(row["split"], {})[row["name"]] = row["reason"]
            self._lines.append(line + "\n")
        self._written = len(self._lines)
        if self._grows and text and not text.endswith("\n"):
            self._append("\n")

    def add(self, split, index, name, reason) -> int:
        """Notes one; returns how many of the split are known."""
        with self._lock:
            found = self._found.setdefault(split, {})
            if name not in found:
                found[name] = reason
                row = dict(split=split, index=index, name=name, reason=reason)
                self._lines.append(json.dumps(row) + "\n")
                if self._grows or len(self._lines) >= 2 * self._written:
                    self._write()
            return len(found)

    def sync(self):
        """Writes what waits, if there is a folder for it."""
        with self._lock:
            if len(self._lines) > self._written:
                self._write()

    def _write(self):
        if self._path is None or not self._path.parent.exists():
            return
        if self._grows:
            self._append("".join(self._lines[self._written :]))
        else:
            self._path.write_text("".join(self._lines))
        self._written = len(self._lines)

    def _append(self, text):
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text)

    def found(self, split) -> dict[str, str]:
        """{name: reason} so far."""
        with self._lock:
            return dict(self._found.get(split, {}))

    def where(self, split) -> str:
        """The file for a reader, or some names where there is none."""
        if self._written:
            return str(self._path)
        some = list(self.found(split))[:NAMED]
        return f"no file, for there is no workdir yet; the first are {', '.join(some)}"


_listing = Listing()


def list_in(workdir, process_index=0) -> None:
    """From now on this process lists bad examples in `workdir`, where others did.

    A run that resumes continues the list, so that nothing counts twice. Several
    processes must not write one file, so each has its own. What the list before has not
    written yet is written first. A workdir of None starts a list in memory, which is
    how a run ends.
    """
    global _listing
    _listing.sync()
    name = FILE
    if process_index:
        name = FILE.replace(".jsonl", f".{process_index}.jsonl")
    path = None if workdir is None else f"{str(workdir).rstrip('/')}/{name}"
    _listing = Listing(path)


def sync() -> None:
    """Writes what waits: once a run has claimed its workdir, and with checkpoints."""
    _listing.sync()


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
            f"met are listed in {_listing.where(split)}: repair or remove them, or "
            "raise that key."
        )
