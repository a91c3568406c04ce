# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a COCO set that a detector has to learn by heart."""

import json
import pathlib
import subprocess
import sys

import coco_files
from g2sd_jax.data import source

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"


def test_pictures_without_small_objects_are_copied_as_they_are(tmp_path):
    """Objects are of 12 x 16 pixels in pictures of 60 x 48 to 60 x 76."""
    path = coco_files.write(tmp_path / "all", coco_files.content(8), packed=True)
    command = [sys.executable, str(LAUNCH / "coco_subset.py"), f"--path={path}"]
    command += ["--images={split}.tar", "--annotations={split}.json.gz"]
    command += [f"--out={tmp_path / 'some'}", "--canvas=120"]

    def run(*words):
        return subprocess.run([*command, *words], capture_output=True, text=True)

    done = run("--count=3", "--least=24")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "some" / "train.json").read_text())
    ids = [image["id"] for image in content["images"]]
    wanted = coco_files.content(8)
    assert sorted(ids) == [30, 50, 60]  # 10 and 20 are high, and so shown smaller.
    assert content["annotations"] == [
        each for each in wanted["annotations"] if each["image_id"] in ids
    ]
    config = coco_files.recipe(tmp_path / "some", train_examples=3)
    dataset = source.load(config, "train", ("boxes",))
    assert dataset.count == 3
    refused = run("--count=9")
    assert refused.returncode == 2 and "--count=9, but only" in refused.stderr
    none = run("--count=1", "--least=40")
    assert none.returncode == 2 and "only 0 of 8 pictures" in none.stderr
