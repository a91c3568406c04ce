# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""What `g2sd inspect` says of weights, and how files that are none are refused."""

import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath

import finished_runs
import golden_files
from g2sd_jax import checkpoint, cli, recipes
from g2sd_jax import finished as asked
from g2sd_jax.models import vit
from g2sd_jax.tools import inspect
from g2sd_jax.weights import (
    architecture,
    catalogue,
    description,
    graft,
    loading,
    torch_names,
)

# Segmentation's and detection's own parts are read by their own stages.
GOLDENS = sorted(
    path.stem
    for path in golden_files.root().glob("*.npz")
    if any(key.startswith("param/") for key in np.load(path).files)
)


def saved(path, arrays, **told):
    metadata = {"g2sd_jax": json.dumps(told)} if told else None
    safetensors.numpy.save_file(arrays, path, metadata=metadata)
    return str(path)


def arrays_of(name):
    config, _, variables = finished_runs.made(name)
    grid = vit.grid(config.model) if "decoder" in config.model else None
    return torch_names.to_torch(variables["params"], grid)


def inspected(path, capsys):
    assert cli.main(["inspect", path]) == 0
    return capsys.readouterr().out


def test_an_autoencoder(tmp_path, capsys):
    path = saved(tmp_path / "a.safetensors", arrays_of("pretrain"), target="raw")
    told = inspected(path, capsys)
    assert "custom: 2 blocks, 16 wide, heads not told by shapes" in told
    assert "4x4 grid of them (16x16 pixels)" in told
    assert "decoder: 2 blocks, 16 wide, heads not told by shapes, predicts" in told
    assert "pixels it was trained on: raw" in told and "head: none" in told
    assert "config.teacher.checkpoint of generic_distill and dmae_distill" in told
    flags = "--config.teacher.model.decoder=dec16d2b --config.teacher.model.dec_heads=?"
    assert flags in told


def test_a_student_of_stage_2(tmp_path, capsys):
    arrays = arrays_of("specific_cls")
    model = dict(heads=2)
    path = saved(tmp_path / "a.safetensors", arrays, model=model, mean=[0.5], std=[1.0])
    told = inspected(path, capsys)
    assert "head: 5 classes, on the class token, and a distillation token" in told
    assert "2 heads" in told and "mean 0.5; std 1.0" in told and "decoder: none" in told
    assert "serves: config.teacher.checkpoint of specific_cls;" in told
    encoder = next(line for line in told.splitlines() if line.startswith("as encoder"))
    assert "--config.model.heads=2" in encoder and "dist_token" not in encoder


def test_a_student_of_stage_1_is_no_generic_teacher(tmp_path, capsys):
    arrays = arrays_of("generic_distill")
    whole = arrays_of("pretrain")
    pixels = ("decoder_norm", "decoder_pred")
    arrays |= {name: whole[name] for name in whole if name.startswith(pixels)}
    told = inspected(saved(tmp_path / "a.safetensors", arrays), capsys)
    assert "its pixel head was never trained" in told
    assert "of generic_distill:target=encoder and dmae_distill;" in told


def test_what_is_broken_or_unknown_is_said(tmp_path, capsys):
    arrays = arrays_of("finetune")
    arrays["norm1.bias"] = np.full(3, np.nan, np.float32)
    told = inspected(saved(tmp_path / "a.safetensors", arrays), capsys)
    assert "unknown here: norm1.bias (1 in all)" in told
    assert "NOT FINITE: norm1.bias" in told and "serves: nothing" in told


@pytest.mark.parametrize(
    "row, heads, size, known",
    [
        ((768, 12, 16), None, "b16", 12),
        ((192, 12, 16), None, "ti16", None),
        ((192, 12, 16), 12, "ti16_12h", 12),
        ((768, 12, 16), 8, "custom", 8),
        ((768, 11, 16), None, "custom", None),
    ],
)
def test_sizes_are_recognised(row, heads, size, known):
    width, depth, patch = row
    empty = lambda *shape: np.broadcast_to(np.float32(0), shape)
    arrays = {
        "cls_token": empty(1, 1, width),
        "patch_embed.proj.weight": empty(width, 3, patch, patch),
        **{f"blocks.{i}.norm1.bias": empty(width) for i in range(depth)},
        "blocks.0.attn.qkv.weight": empty(3 * width, width),
        "blocks.0.mlp.fc1.weight": empty(4 * width, width),
    }
    shape = architecture.infer(arrays, {"model": dict(heads=heads)}, "a file")
    assert (shape.size, shape.heads) == (size, known)


def test_published_files_are_known_by_name_and_by_md5(tmp_path, capsys, monkeypatch):
    arrays = arrays_of("pretrain")
    monkeypatch.setattr(catalogue, "by_name", lambda path: file)
    path = saved(tmp_path / "renamed.safetensors", arrays)
    file = catalogue.FILES["mae_visualize_vit_large.pth"]
    told = inspected(path, capsys)
    assert f"called like the published {file.name}: an encoder and a decoder" in told
    assert "raw pixels; licence CC-BY-NC 4.0" in told
    assert loading.read(path, "a").describe["target"] == "raw"
    file = catalogue.FILES["mae_finetuned_vit_base.pth"]
    assert "MD5 begins with 1b25e9: this is another file" in inspected(path, capsys)
    monkeypatch.setattr(description, "md5", lambda path: "8cad7c0123")
    told = inspected(path, capsys)
    assert "published as mae_pretrain_vit_base.pth (by its MD5): an encoder wi" in told


def test_the_catalogue_names_what_would_do():
    assert catalogue.by_name("/x/mae_pretrain_vit_base (1).pth").size == "b16"
    assert catalogue.by_name("/x/mae_pretrain_vit_base.pt") is None
    assert catalogue.suggestions("classifier", "h14") == "mae_finetuned_vit_huge.pth"
    huge = catalogue.suggestions("encoder", "h14").split(", ")
    assert huge == [
        "mae_pretrain_vit_huge.pth",
        "mae_pretrain_vit_huge_full.pth",
        "mae_visualize_vit_huge.pth",
    ]
    assert len(catalogue.suggestions("classifier", "s16").split(", ")) == 3


# Files that are not what their name promises.


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a.safetensors", b"", "it is empty; download it again"),
        ("a.safetensors", b"\n<!DOCTYPE html>", "a web page; download the file itself"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("a.safetensors", b"PK\x03\x04rest", "it was written by PyTorch; name it .pth"),
        ("a.safetensors", b"\x80\x02}q\x00", "it was written by PyTorch; name it .pth"),
        ("a.pth", b'\x10\0\0\0\0\0\0\0{"a": 1}', "safetensors file; name it .safet"),
        ("a.safetensors", b"\xff" * 80, "is not a whole safetensors file"),
        ("a.npz", b"PK", "a weight file ends in .safetensors, .pth, .pt, .bin"),
    ],
)
def test_a_file_of_another_kind_is_told(tmp_path, capsys, name, content, told):
    (tmp_path / name).write_bytes(content)
    assert cli.main(["inspect", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_cut_file_is_told(tmp_path):
    path = saved(tmp_path / "a.safetensors", arrays_of("finetune"))
    whole = (tmp_path / "a.safetensors").read_bytes()
    for length in (9, 200, len(whole) - 1):
        (tmp_path / "a.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut short or damaged"):
            loading.read(path, "config.init_from")


def test_a_file_of_something_else_is_told(tmp_path, capsys):
    path = saved(tmp_path / "a.safetensors", {"fc.weight": np.zeros((2, 3))})
    assert cli.main(["inspect", path]) == 2
    told = "holds no vision transformer that is known here: it has no patch_embed.proj"
    assert told in capsys.readouterr().err
    metadata = {"g2sd_jax": "not JSON"}
    safetensors.numpy.save_file({"a": np.zeros(1)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="entry 'g2sd_jax' is not a JSON object"):
        loading.read(path, "config.init_from")
    (tmp_path / "config.json").write_text("{")
    safetensors.numpy.save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        loading.read(str(tmp_path), "config.init_from")


def test_other_heads_than_the_files_are_refused(tmp_path):
    config, stage, variables = finished_runs.made("finetune")
    arrays = torch_names.to_torch(variables["params"])
    path = saved(tmp_path / "a.safetensors", arrays, model=dict(heads=4))
    with config.unlocked():
        config.init_from = path
    with pytest.raises(ValueError, match=r"trained with 4; set --config\.model\.heads"):
        stage.warm_start(variables)


def test_missing_parts_name_a_file_that_has_them():
    model = vit.Vit(768, 12, 12, 16, (224, 224), classes=1000, pool="avg")
    shapes = jax.eval_shape(lambda key: vit.init(model, key), jax.random.key(0))
    weights = loading.Weights("a.pth", {"cls_token": np.zeros((1, 1, 768))}, {})
    told = r"Published files that would do: mae_finetuned_vit_base\.pth\.$"
    with pytest.raises(ValueError, match=told):
        graft.onto(shapes, weights, grid=(14, 14))


# Every state dict of the golden files.


def state_dicts(golden):
    """{prefix: state dict} of a golden file's `param/…` entries."""
    found = {}
    for key, value in golden.items():
        match = re.match(r"param/((?:student|teacher|pretrained)/)?(.+)", key)
        if match:
            found.setdefault(match[1] or "", {})[match[2]] = value
    return found


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_state_dicts_load(name, tmp_path):
    golden = golden_files.load(name)
    found = state_dicts(golden)
    config = lambda key: golden.get(f"config/{key}")
    for prefix, arrays in found.items():
        arrays = {n: np.ascontiguousarray(a) for n, a in arrays.items()}
        path = saved(tmp_path / "golden.safetensors", arrays)
        weights = loading.read(path, "config.init_from")
        assert weights.arrays.keys() == arrays.keys()
        if name == "linear_probe":  # BatchNorm and a linear layer, no transformer.
            continue
        shape = architecture.infer(weights.arrays, {}, path)
        assert not shape.unknown
        who = prefix.replace("/", "_")
        for key, mine in (
            ("embed_dim", shape.width),
            ("depth", shape.depth),
            ("decoder_embed_dim", shape.decoder and shape.decoder.width),
            ("decoder_depth", shape.decoder and shape.decoder.depth),
        ):
            said = config(f"{who}{key}" if prefix != "pretrained/" else key)
            assert said is None or said == mine, key
        if config("patch_size") is not None:
            assert shape.patch == config("patch_size")
        classes = config("num_classes") if "head.weight" in arrays else 0
        assert classes is None or shape.classes == classes


def test_a_run_in_a_bucket_is_looked_for_there(tmp_path, monkeypatch):
    (tmp_path / "run" / checkpoint.FOLDER).mkdir(parents=True)
    config = recipes.load("pretrain:smoke").to_json()
    (tmp_path / "run" / "config.json").write_text(config)
    (tmp_path / "all").mkdir()
    steps = '[["student", "finetune", {}]]'
    steps = f'{{"seeds": [3], "steps": {steps}, "rows": [["ours", "student"]]}}'
    (tmp_path / "all" / asked.CHAIN).write_text(steps)
    local = epath.Path
    bucket = lambda path: local(str(path).replace("gs://b", str(tmp_path)))
    monkeypatch.setattr(epath, "Path", bucket)
    assert asked.config_of("gs://b/run").stage == "pretrain"
    named = {"ours": "gs://b/all/seed3/student"}
    assert asked.expand(["gs://b/all"]) == (named, "gs://b/all")
    assert asked.expand(["gs://b/run"]) == ({"run": "gs://b/run"}, "")

    def read_run(path, *given, **how):
        raise ValueError(f"a run at {path}")

    monkeypatch.setattr(checkpoint, "read_run", read_run)
    monkeypatch.setattr(inspect, "weight_lines", lambda path: ["a file"])
    with pytest.raises(ValueError, match="a run at gs://b/run"):
        inspect.run("gs://b/run")
