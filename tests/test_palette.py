# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Colours of classes are told apart, and drawn where they belong."""

import numpy as np
from PIL import Image

from g2sd_jax import palette


def test_colours_are_told_apart_and_black_is_ignored():
    table = palette.colours()
    assert table.shape == (256, 3) and table.dtype == np.uint8
    assert (table[255] == 0).all()
    lab_views = palette.views(table)
    # To the eye, and to the worse of two that are colour-blind.
    for count, least, blind in ((5, 60, 35), (11, 30, 20), (21, 20, 13), (255, 5, 3)):
        chosen = np.concatenate(
            [lab_views[:, :count], lab_views[:, 255:]], axis=1
        )  # And black.
        apart = np.linalg.norm(chosen[:, :, None] - chosen[:, None], axis=-1)
        apart = apart[:, ~np.eye(count + 1, dtype=bool)]
        assert apart[0].min() > least, count
        assert apart[1:].min() > blind, count
    chroma = np.hypot(*palette.lab(table)[:, 1:].T)
    assert chroma.max() < palette.CHROMA  # Neon green has 118.


def test_colour_blind_eyes_confuse_what_others_tell_apart():
    pair = np.array([[200, 60, 40], [110, 110, 40]], np.uint8)  # A red, an olive.
    eye, without_red, without_green = palette.views(pair)
    distance = lambda places: np.linalg.norm(places[0] - places[1])
    assert distance(eye) > 60
    assert min(distance(without_red), distance(without_green)) < 25
    grey = palette.views(np.array([[128, 128, 128]], np.uint8))
    np.testing.assert_allclose(grey[1:], grey[:1].repeat(2, 0), atol=0.1)


def test_lab_of_known_colours():
    got = palette.lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8))
    want = [[100, 0, 0], [53.2, 80.1, 67.2], [32.3, 79.2, -107.9]]
    np.testing.assert_allclose(got, want, atol=0.15)


def test_pictures_are_tinted_pixel_by_pixel_with_edges():
    image = np.full((3, 4, 3), 100, np.uint8)
    label_map = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [255] * 4], np.uint8)
    got = palette.tint(image, label_map)
    zero, one = palette.colours()[:2].astype(float)
    np.testing.assert_allclose(got[0, 0], 0.5 * zero + 50, atol=0.51)
    np.testing.assert_allclose(got[0, 3], 0.5 * one + 50, atol=0.51)
    np.testing.assert_allclose(got[0, 1], 0.7 * zero, atol=0.51)  # Beside class 1.
    np.testing.assert_allclose(got[1, 3], 0.7 * one, atol=0.51)  # Above the ignored.
    assert (got[2] == 50).all()


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
    drawn = ("sky", "naïve", "Žlutý kůň", "дорога", "δρόμος", "– 5 %")
    assert tuple(palette.drawable_name(name, 7) for name in drawn) == drawn
    assert palette.drawable_name("道路", 7) == "7"
    assert palette.drawable_name("", 7) == ""


def test_an_indexed_picture_keeps_its_labels(tmp_path):
    label_map = np.array([[0, 5], [255, 149]], np.uint8)
    palette.to_indexed(label_map).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), label_map)
        shown = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(shown, palette.colours()[label_map])
