# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Run lengths: read as pycocotools writes them, and refused where it would not."""

import numpy as np
import pytest

from g2sd_jax.data.coco import run_lengths


def test_strings_are_read_as_they_are_written(rng):
    for trial in range(100):
        height, width = (int(side) for side in rng.integers(1, 60, 2))
        mask = (rng.random((height, width)) < rng.random()).astype(np.uint8)
        if trial % 3 == 0:  # Long runs take several characters.
            mask[:] = 0
            mask[height // 3 : height // 2 + 1, width // 4 :] = 1
        encoded = run_lengths.encode(mask)
        lengths = run_lengths.parse(encoded["counts"])
        flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
        np.testing.assert_array_equal(flat.reshape(width, height).T, mask)
        for counts in (lengths, encoded["counts"].decode()):
            again = run_lengths.compress(dict(size=[height, width], counts=counts))
            assert again["counts"] == encoded["counts"]
        assert run_lengths.area([encoded]) == [mask.sum()]


@pytest.mark.parametrize(
    "counts", ["", "zzz", b"\x00", [1, 2], [20, -8], ["a"], "P", [[12]], b"0" * 40]
)
def test_counts_that_do_not_fill_a_mask(counts):
    """pycocotools itself decodes some of them to whatever lies in memory."""
    with pytest.raises(ValueError, match=r"they cover|no whole numbers"):
        run_lengths.compress(dict(size=[3, 4], counts=counts))


def test_polygons():
    squares = [
        np.array([[x, 1], [x + 2, 1], [x + 2, 3], [x, 3]], float) for x in (1, 4)
    ]
    mask = run_lengths.decode(run_lengths.from_polygons(squares, (5, 8)))
    wanted = np.zeros((5, 8), np.uint8)
    wanted[1:3, [1, 2, 4, 5]] = 1
    np.testing.assert_array_equal(mask, wanted)
    [box] = run_lengths.boxes([run_lengths.encode(mask)])
    assert box.tolist() == [1, 1, 5, 2]


@pytest.mark.parametrize("count", [0, 1, 255, 256, 600])
def test_any_number_of_masks(count):
    masks = [run_lengths.encode(np.ones((1, 1 + i % 7))) for i in range(count)]
    areas = run_lengths.area(masks)
    np.testing.assert_array_equal(areas, [1 + i % 7 for i in range(count)])
    boxes = run_lengths.boxes(masks)
    np.testing.assert_array_equal(boxes[:, 2:].prod(axis=1), areas)
