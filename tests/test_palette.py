# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of classes are told apart, and drawn where they belong."""

import numpy as np
from PIL import Image, ImageFont

from g2sd_jax import palette
from g2sd_jax.data import geometry
from g2sd_jax.losses import cross_entropy


def test_colours_are_told_apart_and_black_is_ignored():
    table = palette.colours()
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert (table[255] == 0).all()
    places = palette.lab(table)
    for count, least in ((11, 50), (21, 35), (150, 14), (255, 11)):
        chosen = np.concatenate([places[:count], places[255:]])  # And from black.
        apart = np.linalg.norm(chosen[:, None] - chosen[None], axis=-1)
        assert apart[~np.eye(count + 1, dtype=bool)].min() > least, count


def test_what_is_ignored_is_the_same_to_data_and_losses():
    # Neither may import the other.
    assert geometry.IGNORED == cross_entropy.IGNORED == palette.IGNORED == 255


def test_lab_of_known_colours():
    got = palette.lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8))
    want = [[100, 0, 0], [53.2, 80.1, 67.2], [32.3, 79.2, -107.9]]
    np.testing.assert_allclose(got, want, atol=0.15)


def test_pictures_are_tinted_pixel_by_pixel():
    image = np.full((2, 3, 3), 100, np.uint8)
    label_map = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    got = palette.tinted(image, label_map)
    want = np.round(0.6 * palette.colours()[[0, 1, 255]] + 40)
    np.testing.assert_array_equal(got[0], want)
    np.testing.assert_array_equal(got[1, 2], got[0, 0])


def test_a_legend_has_every_colour_and_fits():
    rows = [(label, f"class {label} – näme") for label in (0, 3, 7, 255)]
    for width, columns in ((120, 1), (300, 2)):
        drawn = np.asarray(palette.legend(rows, width))
        assert drawn.shape[1] == max(width, drawn.shape[1])
        assert drawn.shape[0] == -(-4 // columns) * palette.LINE + 4
        for label, _ in rows:
            here = (drawn == palette.colours()[label]).all(axis=-1)
            assert here.sum() >= (palette.SWATCH - 1) ** 2, label


def test_wide_letters_do_not_overlap():
    one = np.asarray(palette.legend([(0, "W" * 20)], 0))
    width = one.shape[1]
    assert (one[:, -4:] == 255).all()  # All of it is there.
    both = np.asarray(palette.legend([(0, "W" * 20), (0, "W" * 20)], 2 * width))
    np.testing.assert_array_equal(both[:, width:], both[:, :width])
    less = palette.legend([(0, "W" * 20), (0, "W" * 20)], 2 * width - 1)
    assert less.height == 2 * palette.LINE + 4


def test_names_the_font_can_not_draw_are_numbers():
    names = [palette.drawable(name, 7) for name in ("sky", "naïve", "道路", "– 5 %")]
    assert names == ["sky", "7", "7", "7"]
    font = ImageFont.load_default()
    box = bytes(font.getmask("\uffff"))  # What it draws for what it lacks.
    ascii = map(chr, range(33, 127))
    assert all(bytes(font.getmask(letter)) != box for letter in ascii)
    assert bytes(font.getmask("ï")) == box  # Once it is drawn, names may have it.


def test_an_indexed_picture_keeps_its_labels(tmp_path):
    label_map = np.array([[0, 5], [255, 149]], np.uint8)
    palette.indexed(label_map).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), label_map)
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, palette.colours()[label_map])
