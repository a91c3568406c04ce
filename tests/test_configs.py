# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every shipped recipe runs in smoke form and has no key that nobody reads."""

import os
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

import files
import slow
from g2sd_jax import errors, loop, recipes
from g2sd_jax.data import source

STAGES = [name for name in recipes.names() if not name.startswith("chains/")]
STAGES += ["finetune:task=segmentation", "finetune:task=detection"]
# Not read by a smoke run of two steps: it counts its steps itself, has no time to warm
# up, and its data are invented.
FILES = ("path", "hold_out", "canvas", "eval_crop", "max_bad_share")
FILES += ("class_list",)
ELSEWHERE = {"total_epochs", "data.workers", "data.prefetch", "optim.warmup_start"}
ELSEWHERE |= {f"data.{key}" for key in FILES}
MAPS = {f"data.{key}" for key in ("images", "labels", "ignore", "reduce_zero_label")}
MAPS |= {"data.map_orientation"}
MAPS |= {f"augment.{key}" for key in ("fit", "scale", "crop_share", "crop_tries")}
OBJECTS = {"data.images", "data.annotations", "data.surplus"}
OBJECTS |= {"augment.flip", "augment.scale"}
# optim.lr reads the first; plan and bench, which have no data, the others.
OPEN = {"optim.base_lr", "data.assumed.train_examples", "data.assumed.classes"}
TFDS = {"data.data_dir", "data.index_dir", "data.shuffle_buffer"}  # test_data_tfds.


class Recorder:
    """Notes which leaves of one config are read, whoever reads them."""

    def __init__(self, config, monkeypatch):
        self.read = set()
        self._prefixes = {}
        self._number(config, "")
        self._quiet = 0
        get, to_dict = (
            ml_collections.ConfigDict.__getitem__,
            ml_collections.ConfigDict.to_dict,
        )

        def getting(config, key):
            prefix = self._prefixes.get(id(config))
            if prefix is not None and not self._quiet:
                self.read.add(f"{prefix}{key}")
            return get(config, key)

        def copying(config, *args, **kwargs):  # Writing it all down is not reading it.
            self._quiet += 1
            try:
                return to_dict(config, *args, **kwargs)
            finally:
                self._quiet -= 1

        monkeypatch.setattr(ml_collections.ConfigDict, "__getitem__", getting)
        monkeypatch.setattr(ml_collections.ConfigDict, "to_dict", copying)

    def _number(self, config, prefix):
        self._prefixes[id(config)] = prefix
        for key, value in config.items():
            if isinstance(value, ml_collections.ConfigDict):
                self._number(value, f"{prefix}{key}.")


def smoke(name, more=""):
    return recipes.load(f"{name}{',' if ':' in name else ':'}smoke{more}")


# One that distils; all stages are seen running by other tests, too.
@pytest.mark.parametrize("name", slow.parameters(STAGES, quick=["generic_distill"]))
def test_smoke_runs_and_reads_every_key(name, tmp_path, monkeypatch):
    config = smoke(name, ",steps=2")
    leaves = set(errors.flatten(config.to_dict()))
    recorder = Recorder(config, monkeypatch)
    final = loop.run(config, str(tmp_path))
    assert final["step"] == 2
    assert np.isfinite(final["loss"])
    elsewhere = ELSEWHERE | TFDS | OPEN
    if "annotations" in config.data:
        elsewhere |= OBJECTS  # data/test_coco.
    elif "images" in config.data:
        elsewhere |= MAPS  # data/test_maps.
    assert leaves - recorder.read - elsewhere == set()


def test_picture_files_read_the_keys_that_invented_data_do_not(tmp_path, monkeypatch):
    path = files.write(tmp_path, files.photographs())
    (path / "train/a/0.jpg").write_bytes(b"")
    config = files.recipe(path, train_examples=12, max_bad_share=0.5)
    recorder = Recorder(config, monkeypatch)
    dataset = source.load(config, "train")
    for epoch in (0, None):
        dataset.fetch(np.arange(12), epoch)
    assert ELSEWHERE - recorder.read == {"total_epochs", "optim.warmup_start"}


def test_recorder_notices_a_key_nobody_reads(monkeypatch):
    config = ml_collections.ConfigDict(dict(read=1, group=dict(read=2, unread=3)))
    recorder = Recorder(config, monkeypatch)
    assert config.read + config.group.read == 3
    config.to_dict()
    assert recorder.read == {"read", "group", "group.read"}


@pytest.mark.parametrize("name", STAGES)
def test_smoke_lasts_long_enough_to_be_interrupted(name):
    config = smoke(name)
    assert config.total_steps >= 40
    assert config.checkpoint.every == 5
    assert config.compute_dtype == "float32"
    assert config.data.source == "fake"


@pytest.mark.parametrize(
    "entry", [["-m", "g2sd_jax.cli", "train"], ["-m", "g2sd_jax.main"]]
)
def test_entries_take_the_same_config_from_any_folder(entry, tmp_path):
    root = os.path.dirname(os.path.dirname(__file__))
    # Refused for its last key, after everything before it was understood.
    arguments = ["--config=pretrain:model=s16,smoke", "--config.batch=0"]
    done = subprocess.run(
        [sys.executable, *entry, *arguments, f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=root),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: config.batch=0")
