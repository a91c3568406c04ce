# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""How processes meet in a folder, whatever lies in it already."""

import concurrent.futures
import json
import socket
import threading
import time

import fsspec
import pytest
from etils import epath
from etils.epath import backend, gpath

from g2sd_jax.hosts import meeting
from g2sd_jax.hosts.place import Place

HOST = socket.gethostname()


def guest(folder, process, count, facts=()):
    place = Place("localhost:1", count, process, "--processes")
    return meeting.Meeting(epath.Path(folder), place, dict(facts))


class Room:
    """Processes as threads that meet in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.pool = concurrent.futures.ThreadPoolExecutor(8)

    def begin(self, process, count, timeout=5.0):
        meet = guest(self.folder, process, count, {"rank": process}).meet
        return self.pool.submit(meet, timeout)

    def all(self, *processes, count, timeout=5.0):
        """What each of them got, or the text of its error."""
        futures = [self.begin(process, count, timeout) for process in processes]
        return [
            str(future.exception(30)) if future.exception(30) else future.result()
            for future in futures
        ]

    def file(self, name):
        return self.folder / f"{name}.json"

    def start(self):
        """The name of this start, once process 0 has written it."""
        until = time.monotonic() + 5
        while not self.file("roster").exists() and time.monotonic() < until:
            time.sleep(0.01)
        return json.loads(self.file("roster").read_text())["start"]


@pytest.fixture
def room(tmp_path, monkeypatch):
    monkeypatch.setattr(meeting, "PERIOD", 0.02)
    monkeypatch.setattr(meeting, "GRACE", 0.4)
    room = Room(tmp_path / "meeting")
    yield room
    room.pool.shutdown()


def test_all_learn_of_all(room):
    three = room.all(0, 1, 2, count=3)
    assert three[0] == three[1] == three[2]
    assert [card["facts"] for card in three[0]] == [{"rank": rank} for rank in range(3)]
    assert {card["host"] for card in three[0]} == {HOST}


def test_they_meet_in_a_bucket(room, monkeypatch):
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setattr(type(backend.fsspec_backend), "fs", lambda *_: memory)
    guests = [guest("gs://bucket/run/meeting", process, 3) for process in range(3)]
    try:
        three = list(room.pool.map(lambda each: each.meet(5.0), guests))
        assert len(three[0]) == 3 and three[0] == three[1] == three[2]
        assert guests[1].remaining() == [1, 2]
        for each in reversed(guests):
            each.close()
        assert not memory.store
    finally:
        memory.store.clear()


def test_those_that_are_missing_are_named(room):
    errors = room.all(0, 2, count=4, timeout=0.5)
    assert "2 of 4 processes came" in errors[0]
    assert "missing: process 1, 3. " in errors[0] and errors[1] == errors[0]


def test_a_worker_that_starts_alone_says_so(room):
    (error,) = room.all(2, count=4, timeout=0.3)
    assert error.startswith(f"process 2 of 4 ({HOST}) waited 0.3 s for process 0 in ")
    assert "A worker cannot train alone" in error and str(room.folder) in error


def test_another_count_is_refused(room):
    first, other = room.begin(0, 2), room.begin(1, 3)
    error = str(first.exception(9))
    assert f"{HOST} was started as one of 3 processes, but process 0" in error
    assert str(other.exception(9)) == error


@pytest.mark.parametrize("index", [0, 1])
def test_the_same_index_twice_is_refused(room, index):
    errors = room.all(0, index, 1, count=3, timeout=2)
    twins = f"both {HOST} and {HOST} were started as process {index} of 3; number them"
    assert sum(error.startswith(twins) for error in errors) >= 2, errors


def test_an_answer_that_is_not_renamed_yet_is_none(room):
    """Else it would be listed, and refused, by another name than its process."""
    room.folder.mkdir()
    host, worker = guest(room.folder, 0, 2, {}), guest(room.folder, 1, 3, {})
    host._write("roster", start=host._token)
    worker._answer(None)
    room.file(1).rename(room.folder / "half.partial")
    assert host._call(None) == ({}, None)
    worker._answer(None)
    cards, error = host._call(None)
    assert list(cards) == ["0", "1"] and "as one of 3 processes" in error
    assert worker._answer(None) == (cards, error)


def test_before_process_0_calls_nobody_answers_or_is_refused(room):
    """Else the one that is not refused would write over what the other found."""
    twins = [guest(room.folder, 1, 3, {}) for _ in range(2)]
    room.folder.mkdir()
    for twin in twins * 2:
        assert twin._answer(None) == ({}, None)
    assert not room.file(1).exists()


def test_one_that_starts_again_takes_its_place(room):
    first = room.begin(0, 3)
    room.start()
    killed = guest(room.folder, 1, 3, {"rank": "before"})
    killed._answer(None)
    others = room.all(1, 2, count=3)
    assert first.result(5) == others[0] == others[1]
    assert others[0][1]["facts"] == {"rank": 1}


def test_process_0_that_starts_again_is_answered_again(room):
    room.folder.mkdir()
    other = room.begin(1, 2)
    room.file("roster").write_text(json.dumps({"start": "of one that was killed"}))
    while not room.file("1").exists():
        time.sleep(0.01)
    assert room.all(0, count=2) == [other.result(5)]


def test_what_an_earlier_start_left_is_no_answer(room):
    assert len(room.all(0, 1, count=2)[0]) == 2
    left = {path.name for path in room.folder.iterdir()}
    assert left == {"roster.json", "1.json"}
    (alone,) = room.all(1, count=2, timeout=0.3)
    assert "waited 0.3 s for process 0" in alone
    (alone,) = room.all(0, count=2, timeout=0.3)
    assert "missing: process 1. " in alone
    # Nor is the refusal of one: both are told anew, and meet.
    assert len(room.all(0, 1, count=2)[1]) == 2


def test_who_does_not_know_the_start_is_no_member(room):
    room.folder.mkdir()
    for start in (None, "", "guessed", ["x"], {"a": 1}):
        card = dict(host="evil", processes=2, facts={}, token="t", start=start)
        room.file("1").write_text(json.dumps(card))
        (error,) = room.all(0, count=2, timeout=0.2)
        assert "only 1 of 2 processes came" in error


def test_files_that_are_no_answers_are_ignored(room):
    first = room.begin(0, 3)
    start = room.start()
    junk = {
        "2": "[" * 200_000,
        "3": json.dumps(dict(start=start, processes=3, host="x", facts={})),
        "-1": json.dumps(dict(start=start, processes=3, host="x", facts={})),
        "01": json.dumps(dict(start=start, processes=3, host="x", facts={})),
        "x": "\x00",
        "y": json.dumps(dict(start=start, processes=3, host=1, facts=[7])),
        "z": "7",
    }
    for name, text in junk.items():
        room.file(name).write_text(text)
    room.file("large").write_bytes(b'{"a": "' + b" " * meeting.MOST_BYTES + b'"}')
    room.file("bytes").write_bytes(b"\xff\xfe\x00")
    room.file("folder").mkdir()
    others = room.all(1, 2, count=3)
    assert first.result(5) == others[0] == others[1]
    assert [card["facts"] for card in others[0]] == [
        {"rank": rank} for rank in range(3)
    ]


@pytest.mark.parametrize("cards", [[], "x", {"1": 7}, {"1": {"token": []}}, None])
def test_a_roster_of_anything_is_waited_out(room, cards):
    room.folder.mkdir()
    roster = {"start": "s", "cards": cards, "error": "wrong"}
    room.file("roster").write_text(json.dumps(roster))
    (error,) = room.all(1, count=2, timeout=0.2)
    assert "waited 0.2 s for process 0" in error


def test_the_end_of_a_meeting_is_counted_from_its_start(room):
    """Whatever trickles in: answers to other starts, halves of files, new files."""
    done = threading.Event()

    def trickle():
        for count in range(10_000):
            card = {"start": str(count), "processes": 2, "host": "slow", "facts": {}}
            room.file(count % 7).write_text(json.dumps(card)[: count % 60])
            if done.wait(0.005):
                return

    room.folder.mkdir()
    future = room.pool.submit(trickle)
    began = time.monotonic()
    errors = room.all(0, 1, count=3, timeout=1.0)
    done.set()
    future.result(5)
    assert time.monotonic() - began < 2.5
    assert all("missing: process " in e or "waited 1 s" in e for e in errors), errors


def test_what_a_host_is_called_commands_no_terminal(room):
    first = room.begin(0, 2)
    card = dict(start=room.start(), processes=3, host="\x1b[2Jx", facts={}, token="t")
    room.file("1").write_text(json.dumps(card))
    assert r"\x1b[2Jx was started as one of 3" in str(first.exception(5))


def test_who_closed_the_meeting_remains_no_more(room):
    guests = [guest(room.folder, process, 3) for process in range(3)]
    list(room.pool.map(lambda each: each.meet(5.0), guests))
    assert guests[0].remaining() == [1, 2]
    guests[2].close()
    assert guests[0].remaining() == guests[1].remaining() == [1]
    guests[1].close()
    guests[0].close()
    assert not room.folder.exists()
