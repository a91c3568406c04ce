# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import io
import json
import math
import sys
import types

import jax.numpy as jnp
import ml_collections
import pytest

from g2sd_jax import metrics


def config(**changes):
    return ml_collections.ConfigDict(dict(batch=4, progress=False, wandb="") | changes)


def rows(folder):
    return metrics.read_lines(folder / "metrics.jsonl")


def test_lines_are_on_disk_after_each_write(tmp_path):
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    writer.write(1, {"loss": 0.5})
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]
    writer.write(2, {"loss": float("nan"), "lr": 0.1})
    assert rows(tmp_path)[1] == {"step": 2, "loss": None, "lr": 0.1}
    writer.close()


def test_a_resume_drops_what_it_will_repeat(tmp_path):
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    for step in (2, 4, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # Killed in the middle of a line.
    writer = metrics.Writer(tmp_path, config(), 4, 10, main=True)
    writer.write(6, {"loss": 7.0})
    writer.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [
        (2, 2.0),
        (4, 4.0),
        (6, 7.0),
    ]


DAMAGED = {
    "half a line": b'{"step": 3, "lo',
    "zeros": b"\0" * 40,
    "no text": b'{"step": 3, "lo\xffs": 1.0}',
    "another value": b"[3, 0.5]",
    "no step": b'{"loss": 0.5}',
    "another step": b'{"step": "3", "loss": 0.5}',
    "no number": b'{"step": 3, "loss": {"a": 1}}',
    "very deep": b"[" * 200_000,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_line_costs_that_line_and_is_told(case, tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "loss": 0.5}).encode() for n in range(1, 7)]
    lines[2] = DAMAGED[case]
    path.write_bytes(b"\n".join(lines) + b"\n")
    for _ in range(2):  # Told once.
        assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4, 5, 6]
    assert capsys.readouterr().out == f"{path}, line 3: damaged, and left out\n"
    writer = metrics.Writer(tmp_path, config(), 5, 10, main=True)
    writer.write(6, {"loss": 0.25})
    writer.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4, 5, 6]
    assert metrics.last_losses(str(tmp_path)) == {"loss": 0.25}


def test_a_line_cut_short_by_a_kill_is_not_told(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert rows(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert capsys.readouterr().out == ""


def test_a_start_from_nothing_keeps_nothing(tmp_path):
    for _ in range(2):
        writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
        writer.write(0, {"probe/error": 1.0})
        writer.close()
    assert len(rows(tmp_path)) == 1


def test_tensorboard_events_are_written(tmp_path):
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    writer.write(1, {"loss/xent": 0.5})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss/xent" in file.read_bytes()


def test_without_tensorboardx_one_line_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert "tensorboardX is not installed" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 1


def test_other_processes_write_nothing(tmp_path, capsys):
    settings = config(progress=True, wandb="project")
    writer = metrics.Writer(tmp_path, settings, 0, 10, main=False)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")


def test_wandb_is_named_when_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"config.wandb='mine'.*pip install"):
        metrics.Writer(tmp_path, config(wandb="mine"), 0, 10, main=True)


def test_wandb_is_told_project_and_steps(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        log=lambda scalars, step: told.append((step, scalars)),
        finish=lambda: told.append("finish"),
    )
    fake = types.SimpleNamespace(init=lambda **kw: told.append(kw["project"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writer = metrics.Writer(tmp_path, config(wandb="mine"), 0, 10, main=True)
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert told == ["mine", (3, {"loss": 0.5}), "finish"]


def test_plain_lines_off_a_terminal():
    stream = io.StringIO()
    display = metrics.Display(0, 100, stream)
    display.write(50, {"loss": 0.123456, "images_per_sec": 1234.5})
    display.close()
    line = stream.getvalue()
    assert line.startswith("step 50/100  loss 0.1235  images_per_sec 1234  eta 00:0")
    assert line.count("\n") == 1 and "bound" not in line


def test_whole_numbers_are_told_whole():
    stream = io.StringIO()
    told = {"eval/pixels": 48000.0, "eval/mIoU": 33.33333, "lr": 0.0, "loss": math.nan}
    metrics.Display(0, 100, stream).write(50, told)
    assert "  eval/pixels 48000  eval/mIoU 33.33  lr 0  loss nan  " in stream.getvalue()


@pytest.mark.parametrize(("flag", "word"), [(1.0, "input"), (0.0, "compute")])
@pytest.mark.parametrize("terminal", [False, True])
def test_the_slower_side_is_said_in_a_word(flag, word, terminal):
    stream = Terminal() if terminal else io.StringIO()
    display = metrics.Display(0, 100, stream)
    cores = {"input_cores": 9.0} if flag else {}
    display.write(50, {"loss": 0.5, "input_bound": flag, **cores})
    display.close()
    assert f"  {word}-bound" in stream.getvalue()
    assert ("(9 cores a host would do)" in stream.getvalue()) == bool(flag)
    assert "input_bound" not in stream.getvalue()
    assert "input_cores" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    display = metrics.Display(10, 100, stream)
    display.write(50, {"loss": 0.5, "images_per_sec": 800.0})
    display.write(50, {"val/top1": 97.5})
    display.close()
    assert "50/100" in stream.getvalue()
    assert "step 50  val/top1 97.5" in stream.getvalue()


def test_progress_false_is_silent(tmp_path, capsys):
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert capsys.readouterr() == ("", "")


def test_late_hands_back_the_step_before():
    late = metrics.Late()
    first, second = jnp.float32(0.5), jnp.float32(0.25)
    assert late.last() is None
    assert late.swap(1, {"loss": first}) is None
    step, scalars = late.swap(2, {"loss": second})
    assert (step, scalars) == (1, {"loss": 0.5})
    assert type(scalars["loss"]) is float
    assert late.last() == (2, {"loss": 0.25})
    assert late.last() is None


def test_jsonl_is_json_for_every_reader(tmp_path):
    writer = metrics.Writer(tmp_path, config(), 0, 10, main=True)
    writer.write(1, {"loss": float("inf")})
    writer.close()

    def refuse(text):
        raise AssertionError(text)

    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "loss": None}


def test_a_trace_of_a_run_in_a_bucket_goes_there(monkeypatch):
    folders = []
    monkeypatch.setattr(metrics.jax.profiler, "start_trace", folders.append)
    profile = metrics.Profile("gs://b/run", config(profile=(2, 3)), main=True)
    profile.before(2)
    assert folders == ["gs://b/run/profile"]
