# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Prepared copies: what is in them, and that no kill and no damage goes unnoticed."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from g2sd_jax import cli, recipes
from g2sd_jax.data import array_records, decoder, order, reading, source
from g2sd_jax.data import folder as folders
from g2sd_jax.data.copies import encoding as packing
from g2sd_jax.data.copies import shards
from g2sd_jax.data.copies import source as prepared
from g2sd_jax.data.copies import writing as copies
from g2sd_jax.tools import prepare

PICTURES = 14  # Of each of two classes, in each split.


def photo(seed, size=(30, 40), form="JPEG", **options):
    """The bytes of a smooth random picture; size is (height, width)."""
    coarse = np.random.default_rng(seed).integers(256, size=(4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train and val of two classes, two of the training pictures unreadable."""
    root = tmp_path_factory.mktemp("set")
    for split, seed in (("train", 0), ("val", 1000)):
        for label, name in enumerate(("ant", "bee")):
            (root / split / name).mkdir(parents=True)
            for i in range(PICTURES):
                data = photo(seed + 100 * label + i)
                (root / split / name / f"{i:02}.jpg").write_bytes(data)
    (root / "train" / "ant" / "03.jpg").write_bytes(b"no picture")
    cut = photo(103)
    (root / "train" / "bee" / "05.jpg").write_bytes(cut[: len(cut) // 2])
    return root


def arguments(folder, out, **options):
    options = dict(size=16, shard=5, workers=2, max_bad_share=0.1) | options
    given = [f"--{key}={value}" for key, value in options.items()]
    return [f"--source={folder}", f"--out={out}", *given]


def recipe(out, **data):
    data = dict(source="prepared", path=str(out), classes=2) | data
    overrides = {f"data.{key}": value for key, value in data.items()}
    overrides["model.image_size"] = (16, 16)
    return recipes.load("finetune", overrides)


def hashes(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def copy(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("copies") / "jpeg"
    prepare.main(arguments(folder, out))
    return out


def test_a_copy_holds_the_set_in_its_order_without_the_unreadable(folder, copy):
    for split, lost in (("train", 2), ("val", 0)):
        config = recipe(copy)
        held = prepared.list_files(config, split)
        config = recipe(folder, source="folder")
        origin = folders.list_files(config, split)
        kept = [i for i in range(origin.count) if i not in unreadable(origin)]
        assert held.count == len(kept) == 2 * PICTURES - lost
        assert held.classes == origin.classes == ("ant", "bee")
        np.testing.assert_array_equal(held.labels, origin.labels[kept])
        for index, other in enumerate(kept):
            assert held.name(index).endswith(origin.name(other).split("/", 1)[1][-9:])
            expected = packing.shrink(origin.read(other), 16, "jpeg")
            assert held.read(index) == expected
    lines = (copy / copies.UNREADABLE).read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert sorted(name[-10:] for name in names) == ["ant/03.jpg", "bee/05.jpg"]


def unreadable(origin):
    ends = ("train/ant/03.jpg", "train/bee/05.jpg")
    return [i for i in range(origin.count) if origin.name(i).endswith(ends)]


def test_pictures_are_shrunk_once_and_never_enlarged():
    wide = photo(0, (40, 61))
    with Image.open(io.BytesIO(packing.shrink(wide, 16, "raw"))) as image:
        assert (image.format, image.size) == ("PPM", (24, 16))  # 61 * 16 / 40 = 24.4
        with Image.open(io.BytesIO(wide)) as whole:
            expected = whole.resize((24, 16), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))
    assert packing.shrink(wide, 40, "jpeg") == wide  # Not encoded twice.
    assert packing.shrink(wide, 999, "jpeg") == wide
    png = photo(0, (40, 61), "PNG")
    with Image.open(io.BytesIO(packing.shrink(png, 999, "jpeg"))) as image:
        assert (image.format, image.size) == ("JPEG", (61, 40))


def test_orientation_and_modes_are_settled():
    tag = Image.Exif()
    tag[decoder.ORIENTATION] = 6
    turned = photo(0, (20, 40), exif=tag.tobytes())
    with Image.open(io.BytesIO(packing.shrink(turned, 999, "jpeg"))) as image:
        assert image.size == (20, 40) and not image.getexif()
    for mode, form in (("L", b"P5"), ("I;16", b"P5"), ("CMYK", b"P6"), ("RGBA", b"P6")):
        file = io.BytesIO()
        Image.new(mode, (9, 9)).save(file, "JPEG" if mode == "CMYK" else "PNG")
        assert packing.shrink(file.getvalue(), 8, "raw").startswith(form)


def test_quality_and_chroma_are_those_asked_for():
    big = photo(3, (64, 64))
    sizes = [
        len(packing.shrink(big, 48, "jpeg", quality=quality, chroma=chroma))
        for quality, chroma in ((95, "444"), (95, "420"), (80, "420"))
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_raw_pictures_are_pixels(folder, tmp_path):
    prepare.main(arguments(folder, tmp_path / "raw", format="raw"))
    record = prepared.list_files(recipe(tmp_path / "raw"), "val").read(7)
    assert isinstance(record, memoryview)
    config = recipe(folder, source="folder")
    origin = folders.list_files(config, "val").read(7)
    assert bytes(record) == packing.shrink(origin, 16, "raw")


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_pictures_are_decoded_as_those_they_came_from(channels):
    for mode in ("L", "RGB"):
        with Image.open(io.BytesIO(photo(0, (40, 61)))) as image:
            file = io.BytesIO()
            image.convert(mode).save(file, "PNG")
        raw = memoryview(packing.shrink(file.getvalue(), 999, "raw"))
        ours, theirs = (
            decoder.open_picture(d, channels) for d in (raw, file.getvalue())
        )
        assert ours.size == theirs.size == (40, 61)
        for box in ((0, 0, 40, 61), (3, 4.5, 20.25, 30)):
            (pixels, inside), (expected, as_well) = (p.cut(box) for p in (ours, theirs))
            np.testing.assert_array_equal(pixels, expected)
            assert inside == tuple(as_well)


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_batches_resume_and_divide_bit_for_bit(folder, tmp_path, form):
    out = tmp_path / "out"
    prepare.main(arguments(folder, out, format=form))
    config = recipe(out, train_examples=26)
    held = source.load(config, "train")
    whole = order.train_batches(held, 8, seed=3)
    whole = [next(whole) for _ in range(5)]
    halves = [order.train_batches(held, 8, 3, 2, p, 2) for p in range(2)]
    for expected in whole[2:]:
        parts = [next(half) for half in halves]
        for name, array in expected.items():
            joined = np.concatenate([part[name] for part in parts])
            assert joined.tobytes() == array.tobytes()
    seen = [i for batch in whole[:3] for i in batch["index"]]
    assert len(set(seen)) == len(seen) == 24


@pytest.mark.parametrize("files", range(27))
def test_killed_after_any_file_it_ends_with_the_same_bytes(
    folder, copy, tmp_path, monkeypatch, files
):
    out, done, replace = tmp_path / "out", [], os.replace

    def die(part, path):
        if len(done) == files:
            raise KeyboardInterrupt
        done.append(replace(part, path))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", die)
        prepare.main(arguments(folder, out))
    if (out / "train").exists():
        (out / "train" / "00002.array_record.part").write_bytes(b"torn by a power cut")
    prepare.main(arguments(folder, out))
    assert hashes(out) == hashes(copy)


@pytest.mark.slow
def test_sigkill_at_any_moment(folder, copy, tmp_path):
    command = [sys.executable, "-m", "g2sd_jax.cli", "prepare"]
    command += arguments(folder, tmp_path / "out")
    for wait in (1.0, 1.4, 1.8):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    assert hashes(tmp_path / "out") == hashes(copy)


def test_what_is_whole_is_kept_and_what_is_damaged_made_again(folder, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.main(arguments(folder, out))
    expected = hashes(out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.array_record")}
    (out / "val" / "00001.array_record").unlink()
    torn = out / "train" / "00000.array_record"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"00000.array_record has .* run the same `g2sd prep"
    ):
        prepared.list_files(recipe(out), "train")
    with pytest.raises(ValueError, match=r"00001.array_record is missing"):
        prepared.list_files(recipe(out), "val")
    prepare.main(arguments(folder, out))
    assert hashes(out) == expected
    kept = [path for path, at in before.items() if path.stat().st_mtime_ns == at]
    assert len(kept) == len(before) - 2


def test_pictures_that_were_mended_are_packed_after_all(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    given = arguments(tmp_path / "set", tmp_path / "out")
    prepare.main(given)
    before = hashes(tmp_path / "out")
    (tmp_path / "set" / "train" / "ant" / "03.jpg").write_bytes(photo(3))
    prepare.main(given)
    after = hashes(tmp_path / "out")
    assert prepared.list_files(recipe(tmp_path / "out"), "train").count == 27
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "train/00001.array_record",
        "train/00001.npz",
        "manifest.json",
        "unreadable.jsonl",
    }


def test_verify_finds_one_changed_bit(folder, tmp_path, capsys):
    out = tmp_path / "out"
    prepare.main(arguments(folder, out))
    expected = hashes(out)
    assert cli.main(["prepare", "--verify", f"--out={out}"]) == 0
    assert "all 12 files are as they were written" in capsys.readouterr().out
    path = out / "train" / "00003.array_record"
    flipped = bytearray(path.read_bytes())
    flipped[100] ^= 1
    path.write_bytes(flipped)
    prepared.list_files(recipe(out), "train")  # The cheap check does not read that far.
    assert cli.main(["prepare", "--verify", f"--out={out}"]) == 2
    assert "00003.array_record is damaged" in capsys.readouterr().err
    prepare.main([*arguments(folder, out), "--verify"])
    assert hashes(out) == expected


def test_another_copy_or_other_files_are_not_written_over(folder, copy, tmp_path):
    for change, message in (
        (dict(size=12), r"size 16 there, 12 now"),
        (dict(format="raw"), r"format 'jpeg' there, 'raw' now"),
        (dict(splits="val"), r"splits.train.count 28 there, None now"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare.main(arguments(folder, copy, **change))
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds something else"):
        prepare.main(arguments(folder, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_at_once_are_refused(folder, copy):
    job = json.loads((copy / prepared.MANIFEST).read_text())["job"]
    with (
        prepare.claim(copy, job),
        pytest.raises(ValueError, match=r"another `g2sd prepare` is at it"),
    ):
        prepare.main(arguments(folder, copy))


def test_too_many_unreadable_pictures_stop_it(folder, tmp_path):
    with pytest.raises(ValueError, match=r"1 of 28 .*--max_bad_share=0.01; .*ant/03"):
        prepare.main(arguments(folder, tmp_path / "out", max_bad_share=0.01))


def test_a_full_disk_is_one_line_and_what_is_finished_stays(
    folder, copy, tmp_path, monkeypatch, capsys
):
    out, write = tmp_path / "out", shards.write

    def full(path, items):
        if path.name == "00002.array_record":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, items)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write", full)
        assert cli.main(["prepare", *arguments(folder, out)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "No space left on device; finished" in told
    with pytest.raises(ValueError, match=r"is not finished; run the same"):
        prepared.list_files(recipe(out), "train")
    prepare.main(arguments(folder, out))
    assert hashes(out) == hashes(copy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=0), r"--size=0 has to be 1 to"),
        (dict(quality=101), r"--quality=101 has to be 1 to 100"),
        (dict(format="webp"), r"--format='webp' is not known"),
        (dict(chroma="411"), r"--chroma='411' is not known"),
        (dict(workers=0), r"--workers=0"),
        (dict(splits="train,test"), r"'?test"),
    ],
)
def test_options_are_checked_before_anything_is_written(
    folder, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        prepare.main(arguments(folder, tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()


def test_refusals_of_the_reader(copy, tmp_path):
    config = recipe(copy)
    with config.unlocked():
        config.model.image_size = (16, 24)
        prepared.list_files(config, "train")
        config.model.image_size = (17, 24)
    with pytest.raises(ValueError, match=r"--size=16, less than .*--size=17 or more"):
        prepared.list_files(config, "train")
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are train, val"):
        prepared.list_files(recipe(copy), "test")
    with pytest.raises(ValueError, match=r"has no manifest.json; .* `g2sd prepare"):
        prepared.list_files(recipe(tmp_path), "train")
    (tmp_path / "manifest.json").write_text('{"layout": 99}')
    with pytest.raises(ValueError, match=r"layout 99, but this version reads 2"):
        prepared.list_files(recipe(tmp_path), "train")


def test_many_files_may_be_open(monkeypatch):
    """ImageNet's 1024 TFRecord files, where a process begins with 1024 in all."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(reading.resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(
        reading.resource, "setrlimit", lambda _, both: limits.append(both)
    )
    reading.raise_open_file_limit(1024, "the set")
    assert limits[-1] == (4096, 4096)
    reading.raise_open_file_limit(3000, "the set")
    assert len(limits) == 2  # Once is enough.
    with pytest.raises(ValueError, match=r"the set has 4000 files .* allows 4096"):
        reading.raise_open_file_limit(4000, "the set")


def test_an_index_that_is_damaged_is_told(folder, tmp_path):
    out = tmp_path / "out"
    prepare.main(arguments(folder, out))
    index = out / "train" / "00001.npz"
    for damaged in (b"", b"short", index.read_bytes()[:-9]):
        index.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"00001.npz is damaged"):
            prepared.list_files(recipe(out), "train")


def test_a_damaged_record_is_a_bad_example(folder, tmp_path):
    out = tmp_path / "out"
    prepare.main(arguments(folder, out))
    path = out / "val" / "00000.array_record"
    data = bytearray(path.read_bytes())
    middle = data.index(b"\xff\xd8\xff") + 200
    data[middle : middle + 40] = bytes(40)
    path.write_bytes(data)
    files = prepared.list_files(recipe(out), "val")
    with pytest.raises(OSError, match="record 0 cannot be read"):
        files.read(0)
    assert files.read(3)


def test_other_programs_read_a_copy(folder, copy):
    """As `array_record` and TensorFlow do it, without any of this package."""
    library = pytest.importorskip("array_record.python.array_record_data_source")
    examples = pytest.importorskip("tensorflow.core.example.example_pb2")
    files = prepared.list_files(recipe(copy), "train")
    records = library.ArrayRecordDataSource(
        [str(path) for path in sorted((copy / "train").glob("*.array_record"))]
    )
    assert len(records) == files.count
    for index in range(files.count):
        feature = examples.Example.FromString(records[index]).features.feature
        assert feature["image"].bytes_list.value[0] == files.read(index)
        assert feature["label"].int64_list.value[0] == files.labels[index]
        name = feature["name"].bytes_list.value[0].decode()
        assert files.name(index).endswith(f": {name}")


# Copies of older versions.


def texts(values):
    joined = "".join(f"{value}\0" for value in values)
    return np.frombuffer(joined.encode(errors="surrogateescape"), np.uint8)


def write_old(copy, out, form="jpeg"):
    """Writes the pictures of a copy as older versions did, in packs."""
    manifest = json.loads((copy / prepared.MANIFEST).read_text())
    for split, entry in manifest["splits"].items():
        files = prepared.list_files(recipe(copy), split)
        (out / split).mkdir(parents=True)
        entry["packs"] = []
        for number, rows in enumerate(np.array_split(np.arange(files.count), 3)):
            records = [bytes(files.read(row)) for row in rows]
            names = [files.name(row).rpartition(": ")[2] for row in rows]
            index = io.BytesIO()
            np.savez(
                index,
                ends=np.cumsum([len(record) for record in records]),
                labels=files.labels[rows],
                names=texts(names),
                bad=texts([]),
            )
            body = b"".join(records)
            digest = hashlib.sha256(body + index.getvalue()).digest()
            footer = struct.pack("<8sQ32s", b"G2SDPAK1", len(body), digest)
            path = out / split / f"{number:05}.pack"
            path.write_bytes(body + index.getvalue() + footer)
            size = path.stat().st_size
            file = path.relative_to(out).as_posix()
            entry["packs"].append(dict(file=file, bytes=size, sha256=digest.hex()))
        del entry["shards"]
    manifest["job"] |= dict(pack=manifest["job"].pop("shard"), format=form)
    manifest["layout"] = 1
    (out / prepared.MANIFEST).write_text(json.dumps(manifest))
    return out


@pytest.mark.parametrize("form", ["jpeg", "raw"])
def test_copies_of_older_versions_are_read_and_converted(folder, tmp_path, form):
    new = tmp_path / "new"
    prepare.main(arguments(folder, new, format=form))
    old = write_old(new, tmp_path / "old", form)
    for split in ("train", "val"):
        files, expected = (
            prepared.list_files(recipe(each), split) for each in (old, new)
        )
        assert files.count == expected.count and files.classes == expected.classes
        np.testing.assert_array_equal(files.labels, expected.labels)
        for index in range(files.count):
            assert files.read(index) == expected.read(index)
        [note] = files.notes
        assert f"g2sd prepare --source={old} --out=NEW" in note
    converted = tmp_path / "converted"
    prepare.main(arguments(old, converted, format=form))
    names = ("train/00000.array_record", "val/00003.npz")
    for name in names:  # The same records in the same files.
        assert (converted / name).read_bytes() == (new / name).read_bytes()
    with pytest.raises(ValueError, match="older version; --source="):
        prepare.main(arguments(folder, old))


def test_an_old_pack_that_is_damaged_is_told(folder, copy, tmp_path):
    old = write_old(copy, tmp_path / "old")
    path = old / "train" / "00001.pack"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"00001.pack has \d+ bytes of \d+"):
        prepared.list_files(recipe(old), "train")
    path.write_bytes(whole[:-1] + b"\0")
    prepared.list_files(recipe(old), "train")  # A digest that nobody reads any more.
    for damaged, message in (
        (whole[:-48] + b"x" * 48, "is no whole pack"),
        (whole[:-148] + b"x" * 100 + whole[-48:], "index cannot be read"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            prepared.list_files(recipe(old), "train")


def test_work_goes_ahead_in_order_but_not_far():
    begun = []
    with futures.ThreadPoolExecutor(2) as pool:
        results = packing.map_ahead(pool, lambda i: begun.append(i) or i, range(50), 3)
        for expected in range(50):
            assert next(results) == expected
            assert len(begun) <= expected + 5
        assert next(results, None) is None


def test_names_that_are_no_utf8_come_back(tmp_path):
    name, path = os.fsdecode(b"caf\xe9.jpg"), tmp_path / "a.array_record"
    shards.write(path, [(name, 3, b"x"), ("b", 1, b""), ("c", 2, b"yz")])
    index = shards.read_index(path)
    assert index.names == (name, "b", "c") and index.labels.tolist() == [3, 1, 2]
    records = array_records.open_files([array_records.Stretch(str(path), 0, 3, 3)])
    reader = array_records.Parts(records)
    places = [(number, *span) for number, span in enumerate(index.spans.tolist())]
    assert [bytes(reader.read(place)) for place in places] == [b"x", b"", b"yz"]
