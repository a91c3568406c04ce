# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Instances over pictures: where their colours lie, and masks out of frames."""

import numpy as np

from g2sd_jax import outlines, palette

GREY = np.full((20, 30, 3), 128, np.uint8)


def square(label=0, box=(4.0, 5.0, 14.0, 15.0), **keys):
    mask = np.ones((10, 10), bool)
    return outlines.Outline(label, np.array(box), mask, (4, 5), **keys)


def test_a_mask_is_coloured_and_its_edge_is_darker():
    drawn = np.array(outlines.draw(GREY, [square()], least_side=1))
    colour = palette.colours()[0].astype(float)
    inside = drawn[6:14, 5:13].astype(float)
    mixed = outlines.STRENGTH * colour + (1 - outlines.STRENGTH) * 128
    assert np.abs(inside - mixed).max() <= 1
    outside = np.ones((20, 30), bool)
    outside[5:15, 4:14] = False
    assert (drawn[outside] == 128).all()
    assert (GREY == 128).all()  # It is a copy that is drawn on.
    # The box covers the edge of a mask that fills it; one that does not shows it.
    wide = square(box=(2.0, 3.0, 16.0, 17.0))
    drawn = np.array(outlines.draw(GREY, [wide], least_side=1))
    assert (drawn[5, 4:14] == (0.7 * colour).astype(np.uint8)).all()
    assert (drawn[3, 2:16] == colour.astype(np.uint8)).all()


def test_the_first_is_on_top():
    pair = [square(0), square(1)]
    first, second = (
        np.array(outlines.draw(GREY, each, least_side=1)) for each in (pair, pair[::-1])
    )
    assert (first[5, 4] == palette.colours()[0]).all()
    assert (second[5, 4] == palette.colours()[1]).all()


def test_small_and_grey_pictures_are_enlarged_and_words_are_written():
    image = outlines.draw(GREY[..., :1], [square(words="owl 0.93")], least_side=90)
    assert image.size == (90, 60)
    silent = outlines.draw(GREY[..., :1], [square()], least_side=90)
    assert (np.array(image) != np.array(silent)).any()


def test_masks_and_boxes_may_leave_the_picture():
    mask = np.ones((10, 10), bool)
    each = outlines.Outline(3, np.array([25.0, 15.0, 40.0, 40.0]), mask, (25, 15))
    drawn = np.array(outlines.draw(GREY, [each], least_side=1))
    assert (drawn[16:, 26:] != 128).any() and (drawn[:15] == 128).all()


def test_masks_out_of_their_frames():
    mask = np.zeros((4, 4), np.uint8)
    mask[:, 2:] = 1
    for frame, columns in (
        ((2.0, 3.0, 10.0, 7.0), range(6, 10)),
        ((2.4, 3.0, 10.4, 7.0), range(6, 10)),  # 6.5 is behind the middle, 6.4.
        ((2.6, 3.0, 10.6, 7.0), range(7, 11)),
        ((-4.0, 3.0, 4.0, 7.0), range(0, 4)),
        ((24.0, 3.0, 32.0, 7.0), range(28, 30)),
    ):
        covered, (x, y) = outlines.from_frame(mask, np.array(frame), (20, 30))
        picture = np.zeros((20, 30), bool)
        picture[y : y + covered.shape[0], x : x + covered.shape[1]] = covered
        wanted = np.zeros((20, 30), bool)
        wanted[3:7, list(columns)] = True
        np.testing.assert_array_equal(picture, wanted)
