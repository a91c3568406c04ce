# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Class lists: labels of a source as outputs of a model."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from g2sd_jax import recipes
from g2sd_jax.data import classes, source

SOURCE = ("ant", "bee", "cow")
LABELS = np.array([2, 0, 2, 1], np.int32)


def recipe(tmp_path, text, outputs):
    path = tmp_path / "list.txt"
    path.write_text(text)
    return ConfigDict(dict(data=dict(class_list=str(path), classes=outputs)))


def test_a_list_of_all_outputs_gives_each_class_its_line(tmp_path):
    text = "# of the model\ndog\ncow\n\nant\nfox\nbee\n"
    config = recipe(tmp_path, text, outputs=5)
    mapped = classes.map_labels(config, SOURCE, LABELS, "the set")
    np.testing.assert_array_equal(mapped.labels, [1, 2, 1, 4])
    assert mapped.labels.dtype == np.int32
    assert mapped.names == ("dog", "cow", "ant", "fox", "bee")
    np.testing.assert_array_equal(mapped.among, [1, 2, 4])


def test_only_classes_that_occur_count(tmp_path):
    """TFDS stores ImageNet-A with all 1000 names, of which 200 have pictures."""
    config = recipe(tmp_path, "bee\ncow\n", outputs=2)
    mapped = classes.map_labels(config, SOURCE, np.array([2, 2, 1]), "the set")
    np.testing.assert_array_equal(mapped.labels, [1, 1, 0])
    assert mapped.among is None  # All there are.


def test_several_classes_may_share_an_output(tmp_path):
    text = "ant,0\nbee, 0\ncow,1\n"
    mapped = classes.map_labels(recipe(tmp_path, text, 3), SOURCE, LABELS, "the set")
    np.testing.assert_array_equal(mapped.labels, [1, 0, 1, 0])
    assert mapped.names == ()
    np.testing.assert_array_equal(mapped.among, [0, 1])
    text = "tabby, tabby cat,1\nant,2\nbee,0\n"  # Names may hold commas.
    mapped = classes.map_labels(
        recipe(tmp_path, text, 3), ("tabby, tabby cat", "ant"), LABELS % 2, "the set"
    )
    np.testing.assert_array_equal(mapped.labels, [1, 1, 1, 2])
    assert mapped.names == ("bee", "tabby, tabby cat", "ant")


def test_imagenet_is_shipped():
    config = ConfigDict(dict(data=dict(class_list="imagenet1k", classes=1000)))
    # Outputs 0, 1 and 999 of the published models: tench, goldfish, toilet tissue.
    names = ("n15075141", "n01443537", "n01440764")
    mapped = classes.map_labels(config, names, np.arange(3), "the set")
    np.testing.assert_array_equal(mapped.labels, [999, 1, 0])
    assert len(set(mapped.names)) == 1000 and mapped.among.tolist() == [0, 1, 999]
    config.data.classes = 10
    with pytest.raises(ValueError, match=r"names 1000 classes .*data.classes=10"):
        classes.map_labels(config, names, np.arange(3), "the set")


@pytest.mark.parametrize(
    ("text", "outputs", "message"),
    [
        (
            "ant\nbees\ncow\n",
            3,
            r"lacks 1 of the 3 .*the set: bee; did you mean bees\?",
        ),
        ("x\ny\n", 2, r"lacks 3 .*: ant, bee, cow; it begins x, y"),
        ("ant\nbee\n", 3, r"names 2 classes in order, but config.data.classes=3"),
        ("ant,0\nbee\ncow,2\n", 3, r"'bee' has no output behind a comma"),
        ("ant,0\nbee,3\ncow,2\n", 3, r"bee goes to output 3, .* has 0..2"),
        ("ant,0\nbee,-1\ncow,2\n", 3, r"bee goes to output -1"),
        ("ant\nant\nbee\ncow\n", 4, r"has ant more than once"),
        ("# nothing\n", 3, r"list.txt is empty"),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, text, outputs, message):
    with pytest.raises(ValueError, match=message):
        classes.map_labels(recipe(tmp_path, text, outputs), SOURCE, LABELS, "the set")


def test_sources_without_names_and_missing_files_are_refused(tmp_path):
    config = recipe(tmp_path, "ant\nbee\ncow\n", 3)
    with pytest.raises(ValueError, match=r"the set has none; leave it empty"):
        classes.map_labels(config, (), LABELS, "the set")
    with pytest.raises(ValueError, match=r"labels 0..3, but 3 classes"):
        classes.map_labels(config, SOURCE, LABELS + LABELS // 2, "the set")
    config.data.class_list = "imagenet21k"
    with pytest.raises(
        ValueError, match=r"cannot be read .* or one of camvid, imagenet1k"
    ):
        classes.map_labels(config, SOURCE, LABELS, "the set")


@pytest.mark.parametrize("kind", ["folder", "arrays", "npz"])
def test_every_source_of_pictures_maps(tmp_path, kind):
    for name, value in (("ant", 10), ("cow", 20)):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (value,) * 3).save(
                tmp_path / split / name / "0.png"
            )
    path = tmp_path
    if kind == "npz":
        image = np.repeat(np.uint8([10, 20]), 192).reshape(2, 8, 8, 3)
        arrays = dict(train_image=image, train_label=[0, 1], classes=["ant", "cow"])
        np.savez(path := tmp_path / "set.npz", **arrays)
    (tmp_path / "list.txt").write_text("dog\ncow\nant\n")
    overrides = dict(
        source="folder" if kind == "folder" else "arrays",
        path=str(path),
        class_list=str(tmp_path / "list.txt"),
        classes=3,
        train_examples=2,
    )
    overrides = {f"data.{key}": value for key, value in overrides.items()}
    config = recipes.load("finetune", overrides | {"model.image_size": (8, 8)})
    held = source.load(config, "train")
    assert held.classes == ("dog", "cow", "ant")
    batch = held.fetch(np.arange(2))
    values = [{10: 2, 20: 1}[int(value)] for value in batch["image"][:, 0, 0, 0]]
    assert batch["label"].tolist() == values == [2, 1]
    told = held.original(0)
    assert told["label"] == 2 and told["among"].tolist() == [1, 2]
