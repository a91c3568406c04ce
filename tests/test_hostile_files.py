# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Files that were damaged, or made to do harm: read, or refused in one line."""

import io
import json
import pathlib
import random
import struct

import numpy as np
import pytest
import safetensors.numpy

import files
import slow
from g2sd_jax import errors
from g2sd_jax.data import decoder, folder
from g2sd_jax.data.memory import arrays
from g2sd_jax.weights import loading

KINDS = ("safetensors", "header", "JPEG", "PNG", "GIF", "TIFF", "WEBP", "npz", "tar.gz")
KINDS += ("tar",)


def weights() -> bytes:
    """A tiny encoder with its description."""
    rng = np.random.default_rng(0)
    tensors = {
        "cls_token": rng.normal(size=(1, 1, 8)),
        "patch_embed.proj.weight": rng.normal(size=(8, 3, 4, 4)),
        "blocks.0.attn.qkv.weight": rng.normal(size=(24, 8)),
        "blocks.0.mlp.fc1.weight": rng.normal(size=(16, 8)),
    }
    tensors = {name: array.astype(np.float32) for name, array in tensors.items()}
    return safetensors.numpy.save(tensors, {"g2sd_jax": json.dumps({"grid": [2, 2]})})


def sound(kind: str, tmp_path: pathlib.Path) -> bytes:
    """The bytes of a file of that kind with nothing wrong in it."""
    if kind in ("safetensors", "header"):
        return weights()
    if kind == "npz":
        file = io.BytesIO()
        image = np.stack([files.pixels((8, 8), seed) for seed in range(4)])
        np.savez(file, train_image=image, train_label=np.arange(4) % 2)
        return file.getvalue()
    if kind.startswith("tar"):
        mode = "w:gz" if kind.endswith("gz") else "w"
        contents = files.photographs(1, (8, 12), ("train",))
        return files.pack(tmp_path / "sound", contents, mode=mode).read_bytes()
    return files.encode(files.pixels((24, 32)), kind)


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Some bits flipped, bytes cut out, doubled or overwritten, or the end missing."""
    data = bytearray(data)
    # Most often near the beginning, where lengths and types are.
    place = lambda: min(draw.randrange(len(data)), draw.randrange(len(data)))
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = place() if draw.random() < 0.7 else draw.randrange(min(len(data), 128))
        what = draw.randrange(5)
        if what == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            data[at] = draw.choice((0, 255, 127, 128, 10))
        elif what == 2:
            del data[at : at + draw.randrange(1, 40)]
        elif what == 3:
            data[at:at] = data[at : at + draw.randrange(1, 40)]
        else:
            del data[max(1, at) :]
        if len(data) < 2:
            break
    return bytes(data)


def lying_header(draw: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header says what is not so."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    name = draw.choice([name for name in header if name != "__metadata__"])
    wild = (-1, 0, 2**63, 2**64, 1.5, None, "x", [], {}, [-1, 4], [2**40, 2**40], True)
    what = draw.randrange(7)
    if what == 0:
        key = draw.choice(("dtype", "shape", "data_offsets"))
        header[name][key] = draw.choice((*wild, "F8_E4M3", "I64", "BOOL", "F4"))
    elif what == 1:
        header[name] = draw.choice(wild)
    elif what == 2:
        header["__metadata__"] = draw.choice((*wild, {"g2sd_jax": "{"}, {"a": 1}))
    elif what == 3:
        meta = draw.choice(('{"grid": [0, 2]}', '{"grid": 5}', "[]", '{"model": 3}'))
        header["__metadata__"] = {"g2sd_jax": meta}
    elif what == 4:
        header["x\x1b[2J\n" * draw.randrange(1, 9)] = header.pop(name)
    elif what == 5:
        header[name]["data_offsets"] = header["cls_token"]["data_offsets"]
    text = json.dumps(header).encode()
    if what == 6:
        text = b'{"a":' * draw.choice((10, 100_000)) + b"1" + b"}" * 10
    length = draw.choice((len(text),) * 4 + (0, 2**63, len(text) - 1))
    return struct.pack("<Q", length) + text + body


def read(kind: str, path: pathlib.Path) -> None:
    """Reads a file as a run would."""
    if kind in ("safetensors", "header"):
        found = loading.read(str(path), "config.init_from")
        found.summary()
    elif kind == "npz":
        config = files.recipe(path, source="arrays", train_examples=4)
        arrays.load(config, "train")
    elif kind.startswith("tar"):
        listed = folder.list_files(files.recipe(path), "train")
        for index in range(listed.count):
            listed.read(index)
    else:
        picture = decoder.open_picture(path.read_bytes(), 3)
        if np.prod(picture.size) < 10**6:
            picture.cut((0, 0, *picture.size))


def attack(kind: str, count: int, tmp_path: pathlib.Path, seed: int = 0) -> dict:
    """Reads damaged files.

    Returns:
        {"read", "refused": how many}.
    Raises:
        AssertionError: a file ended in a traceback, or commands a terminal.
    """
    draw = random.Random(f"{kind} {seed}")
    data = sound(kind, tmp_path)
    ending = "safetensors" if kind == "header" else kind
    outcomes = {"read": 0, "refused": 0}
    for number in range(count):
        broken = (lying_header if kind == "header" else damaged)(draw, data)
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(broken)
        try:
            read(kind, path)
            outcomes["read"] += 1
        except errors.MISTAKES as error:
            outcomes["refused"] += 1
            assert str(error), f"{kind} {number}"
        except Exception as error:
            raise AssertionError(f"{kind} {number} of seed {seed}") from error
        path.unlink()
    return outcomes


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused(kind, tmp_path):
    read(kind, write(tmp_path, kind))
    outcomes = attack(kind, 40, tmp_path)
    assert outcomes["refused"] > 5


def write(tmp_path: pathlib.Path, kind: str) -> pathlib.Path:
    """A sound file, in a folder."""
    path = tmp_path / f"whole.{'safetensors' if kind == 'header' else kind}"
    path.write_bytes(sound(kind, tmp_path))
    return path


@pytest.mark.parametrize("kind", slow.parameters(KINDS, quick=[]))
def test_more_damaged_files(kind, tmp_path):
    assert attack(kind, 1000, tmp_path, seed=1)["refused"] > 100
