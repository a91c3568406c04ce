# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run meet before JAX starts: by small files in the workdir.

JAX's runtime aborts a process that waits for others in vain, and names nobody. So first
process 0 writes a random name of this start into `roster.json`. Others answer to the
name that they read, each in its own file, `INDEX.json`, and process 0 lists those who
answered to it. What an earlier start left behind answers to another name. Nothing
listens: who may write into the workdir may take part.
"""

import json
import secrets
import socket
import time
from collections.abc import Mapping
from typing import Any

from etils import epath

from g2sd_jax import errors
from g2sd_jax.hosts.place import Place

PERIOD = 0.5  # Seconds between two looks at the files.
GRACE = 5.0  # Seconds more that the others wait, for process 0 to name the missing.
MOST_BYTES = 1_000_000  # Of a file that is read.
ROSTER, ANSWER = "roster", ".json"


class Meeting:
    """The meeting of the processes of one start.

    Args:
        folder: that all of them share.
        place: of this process.
        facts: JSON values by name, which all are to know of each other.
    """

    def __init__(self, folder: epath.Path, place: Place, facts: Mapping[str, Any]):
        self._folder, self._index, self._count = folder, place.process, place.processes
        self._token, self._host = secrets.token_hex(16), socket.gethostname()
        self._card = dict(host=self._host, processes=self._count, facts=facts)
        self._start = None  # What this process has answered to.

    def meet(self, timeout: float) -> list[dict]:
        """Waits until all have come; returns `host` and `facts` of each, in order.

        Raises:
            ValueError: one did not come within `timeout` seconds, two have the same
                index, or they expect other numbers of processes.
        """
        until = time.monotonic() + timeout
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._index == 0:
            self._write(ROSTER, start=self._token, host=self._host)
        cards = {}
        while not cards:
            late = time.monotonic() - until
            if self._index == 0:
                cards, error = self._call(timeout if late > 0 else None)
            else:
                cards, error = self._answer(timeout if late > GRACE else None)
            if error:
                raise ValueError(error)
            time.sleep(0 if cards else PERIOD)
        return [cards[str(index)] for index in range(self._count)]

    def close(self) -> None:
        """Takes the file of this process away, and with process 0's all others."""
        if self._index:
            self._path(self._index).unlink(missing_ok=True)
        else:
            self._folder.rmtree()

    def remaining(self) -> list[int]:
        """Returns the processes that have met, but have not closed the meeting."""
        return [index for index in range(1, self._count) if self._path(index).exists()]

    def _call(self, waited: float | None) -> tuple[dict, str | None]:
        """Process 0: reads the answers, and ends the meeting if it can or has to.

        Args:
            waited: seconds, if the time is over.

        Returns:
            The cards of all if they have come, or why nobody can start.
        """
        cards, error = {"0": {"token": self._token, **self._card}}, None
        roster = read(self._path(ROSTER))
        if roster.get("start", self._token) != self._token:
            error = self._twins(roster)
        for path in self._folder.iterdir():
            if path.suffix != ANSWER or path.stem in ("0", ROSTER):
                continue  # Not renamed yet, or our own.
            card = read(path)
            if card.get("start") != self._token:
                continue  # Of another start.
            host = errors.printable(card.get("host"))
            cards[path.stem] = dict(card, host=host, facts=mapping(card.get("facts")))
            if "error" in card:
                error = errors.printable(card["error"])
            elif card.get("processes") != self._count:
                error = (
                    f"{host} was started as one of "
                    f"{errors.printable(card.get('processes'))} processes, but process "
                    f"0 ({self._host}) expects {self._count}; give all the same number."
                )
        missing = [str(i) for i in range(self._count) if str(i) not in cards]
        if waited and missing and not error:
            error = (
                f"only {self._count - len(missing)} of {self._count} processes came "
                f"within {waited:g} s; missing: process {', '.join(missing)}. Start "
                "the same command on every host, with a --workdir that all share, or "
                "correct --processes."
            )
        if missing and not error:
            return {}, None
        self._write(
            ROSTER, start=self._token, host=self._host, error=error, cards=cards
        )
        return cards, error

    def _answer(self, waited: float | None) -> tuple[dict, str | None]:
        """The others: answers to process 0, and reads what it made of the answers.

        Args and returns as of `_call`.
        """
        roster, card = read(self._path(ROSTER)), read(self._path(self._index))
        start, cards = roster.get("start"), mapping(roster.get("cards"))
        if start is None:
            pass  # Nobody has called yet, so there is nothing to answer, or to refuse.
        elif start != self._start or not card:
            self._start = start
            self._write(self._index, start=start, token=self._token, **self._card)
        elif card.get("token") != self._token:
            # Written by a process that began later, while this one is alive.
            error = self._twins(card)
            self._write(self._index, start=start, host=self._host, error=error)
            return {}, error
        if mapping(cards.get(str(self._index))).get("token") == self._token:
            return cards, roster.get("error")
        if not waited:
            return {}, None
        return {}, (
            f"process {self._index} of {self._count} ({self._host}) waited {waited:g} "
            f"s for process 0 in {self._folder}. A worker cannot train alone: start "
            "the same command on every host, with a --workdir that all share."
        )

    def _twins(self, card: Mapping[str, Any]) -> str:
        return (
            f"both {self._host} and {errors.printable(card.get('host'))} were started "
            f"as process {self._index} of {self._count}; number them from 0 to "
            f"{self._count - 1}."
        )

    def _path(self, name: str | int) -> epath.Path:
        return self._folder / f"{name}{ANSWER}"

    def _write(self, name: str | int, **content: Any) -> None:
        # Named by the writer: two may write one file, by mistake.
        partial = self._folder / f"{self._token}.partial"
        partial.write_text(json.dumps(content))
        partial.replace(self._path(name))


def read(path: epath.Path) -> dict:
    """Reads a JSON object that anybody may have written; {} if it is none."""
    try:
        if path.stat().length > MOST_BYTES:
            return {}
        return mapping(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        return {}  # Not there, half written, or no JSON.


def mapping(value: Any) -> dict:
    """Returns a JSON value that ought to be an object; {} if it is none."""
    return value if isinstance(value, dict) else {}
