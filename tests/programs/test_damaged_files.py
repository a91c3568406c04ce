# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""A damaged JSON file of a workdir: one line with its name, from every verb."""

import json

import pytest

import runs
from g2sd_jax import cli, finished, workdir
from g2sd_jax.tools import chain

RECIPE = "pretrain:smoke"
SMALL = [f"--config.model.{k}={v}" for k, v in (runs.SMALL | runs.DECODER).items()]
CONTENTS = {
    "empty": "",
    "blank": "\n\n",
    "cut short": '{"stage": "pretrain", "mod',
    "no JSON": "\0\0\0\0",
    "a list": "[1, 2]",
    "a number": "7",
    "text": '"pretrain"',
    "null": "null",
    "very deep": "[" * 200_000,
}
VERBS = {  # Those that read `config.json`; inspect asks the checkpoint.
    "train": [f"--config={RECIPE}", *SMALL, "--workdir={run}"],
    "evaluate": ["--workdir={run}"],
    "predict": ["--workdir={run}", "picture.png"],
    "reconstruct": ["--workdir={run}", "--out=x.png", "picture.png"],
    "embed": ["--workdir={run}", "--out=x.npz"],
    "report": ["{run}"],
    "analyse": ["--out={run}/out.json", "{run}"],
    "doctor": ["{run}"],
    "chain": ["--config=chains/digits:smoke", "--workdir={run}"],
}


@pytest.fixture
def told(tmp_path, capsys):
    """Writes a file of a workdir, runs a verb, and returns its one line."""

    def run(verb, file, content, arguments):
        (tmp_path / file).write_text(content)
        assert cli.main([verb, *(item.format(run=tmp_path) for item in arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
        return error

    return run


@pytest.mark.parametrize("verb", VERBS)
def test_config(verb, told, tmp_path):
    expected = f"{tmp_path}/config.json is damaged ("
    for content in CONTENTS.values():
        assert expected in told(verb, "config.json", content, VERBS[verb])


WRONG = {
    "stage": (7, "stage is 7"),
    "model": (3, "model is 3 and not a group"),
    "batch": ("many", "batch is 'many' and not a number"),
    "data": ({"mean": 0.5}, "data.mean is 0.5 and not a list"),
    "optim": ({"name": []}, "optim.name is [] and not text"),
}


@pytest.mark.parametrize("key", WRONG)
def test_values_of_another_kind(key, told):
    value, expected = WRONG[key]
    content = json.dumps(workdir.to_json_dict(runs.small("pretrain")) | {key: value})
    for verb in ("evaluate", "report", "doctor"):
        error = told(verb, "config.json", content, VERBS[verb])
        assert "config.json is damaged" in error and expected in error
    for content in ("{}", '{"seeds": 3, "steps": []}'):
        assert "names no stage" in told("report", "config.json", content, ["{run}"])


@pytest.mark.parametrize("case", [*CONTENTS, "no numbers"])
def test_done(case, told, tmp_path):
    content = CONTENTS.get(case, '{"step": "the last"}')
    expected = f"{tmp_path}/DONE is damaged ("
    assert expected in told("train", "DONE", content, VERBS["train"])
    config = json.dumps(workdir.to_json_dict(runs.small("pretrain")))
    (tmp_path / "config.json").write_text(config)
    assert expected in told("report", "DONE", content, ["{run}"])


@pytest.mark.parametrize("case", [*CONTENTS, "seeds", "steps", "rows"])
def test_chain(case, told, tmp_path):
    fine = dict(seeds=[0], steps=[["a", "pretrain", {}]], rows=[["all", "a"]])
    assert finished.chain_config(written(tmp_path, fine)).seeds == [0]
    content = CONTENTS.get(case, json.dumps(fine | {case: [1.5]}))
    expected = f"{tmp_path}/chain.json is damaged ("
    for verb in ("report", "analyse"):
        assert expected in told(verb, finished.CHAIN, content, ["{run}"])
    record = ["{run}", "--record={run}/record.json"]
    assert expected in told("doctor", finished.CHAIN, content, record)


@pytest.mark.parametrize("content", [*CONTENTS.values(), '{"facts": [7]}'])
def test_a_restart_writes_a_damaged_chain_anew(content, tmp_path, capsys):
    assert chain.facts_of(str(tmp_path)) == {}
    written(tmp_path, dict(facts=dict(pictures=7)))
    assert chain.facts_of(str(tmp_path)) == dict(pictures=7)
    (tmp_path / finished.CHAIN).write_text(content)
    assert chain.facts_of(str(tmp_path)) == {}
    assert f"{tmp_path}/chain.json is damaged (" in capsys.readouterr().out


def written(folder, values):
    (folder / finished.CHAIN).write_text(json.dumps(values))
    return folder


def test_the_files_beside_them(told, tmp_path):
    config = json.dumps(workdir.to_json_dict(runs.small("pretrain")))
    (tmp_path / "config.json").write_text(config)
    for file in ("environment.json", "evaluation.json"):
        assert f"{file} is damaged (it is empty)" in told("report", file, "", ["{run}"])
        (tmp_path / file).unlink()
