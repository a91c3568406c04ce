# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Every kind of picture comes out as Pillow has it, upright, or is called bad."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

import files
from g2sd_jax.data import decoder
from g2sd_jax.data.memory import pictures

RGB = Image.fromarray(files.pixels())
SEEN_THROUGH = Image.fromarray(files.pixels(channels=4))
DEEP = Image.fromarray(files.pixels()[..., 0].astype(np.uint16) * 200)
KINDS = {
    "jpeg": files.encode(RGB, quality=85),
    "jpeg 4:2:0": files.encode(RGB, quality=85, subsampling=2),
    "progressive jpeg": files.encode(RGB, progressive=True),
    "grey jpeg": files.encode(RGB.convert("L")),
    "cmyk jpeg": files.encode(RGB.convert("CMYK")),
    "png": files.encode(RGB, "PNG"),
    "grey png": files.encode(RGB.convert("L"), "PNG"),
    "1-bit png": files.encode(RGB.convert("1"), "PNG"),
    "16-bit png": files.encode(DEEP, "PNG"),
    "palette png": files.encode(RGB.quantize(32), "PNG", transparency=3),
    "rgba png": files.encode(SEEN_THROUGH, "PNG"),
    "grey and alpha png": files.encode(SEEN_THROUGH.convert("LA"), "PNG"),
    "webp": files.encode(SEEN_THROUGH, "WEBP"),
    "bmp": files.encode(RGB, "BMP"),
}


def whole(data, channels=3):
    picture = decoder.open_picture(data, channels)
    return picture.cut((0, 0, *picture.size))[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_equals_pillow(kind, channels):
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        expected = np.asarray(decoder.to_mode(image, decoder.MODES[channels]))
    found = whole(KINDS[kind], channels)
    assert found.shape == (40, 60, channels) and found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected.reshape(found.shape))


def test_what_the_kinds_become():
    np.testing.assert_array_equal(
        whole(KINDS["16-bit png"]), whole(KINDS["16-bit png"], 1).repeat(3, -1)
    )
    assert (
        abs(whole(KINDS["16-bit png"], 1)[..., 0] * 1.28 - files.pixels()[..., 0])[
            5:
        ].mean()
        < 2
    )
    np.testing.assert_array_equal(
        whole(KINDS["rgba png"]), files.pixels(channels=4)[..., :3]
    )
    assert decoder.open_picture(KINDS["jpeg"], 3).scales
    assert not decoder.open_picture(KINDS["cmyk jpeg"], 3).scales
    with pytest.raises(
        ValueError, match=r"config.model.channels=4: .* 1 \(grey\) or 3"
    ):
        decoder.check_channels(4)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_orientation(kind, turn):
    tag = Image.Exif()
    tag[decoder.ORIENTATION] = turn
    data = files.encode(files.pixels((83, 125)), kind, exif=tag)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    picture = decoder.open_picture(data, 3)
    assert picture.size == upright.shape[:2]
    cut, box = picture.cut((10, 20, 30, 40))
    np.testing.assert_array_equal(cut, upright[10:40, 20:60])
    assert box == (0, 0, 30, 40)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
@pytest.mark.parametrize("eighths", [3, 4, 5, 7])
def test_a_scaled_cut_shows_the_same_place(turn, eighths):
    """A fraction of a pixel too far on one side doubles the error."""
    tag = Image.Exif()
    tag[decoder.ORIENTATION] = turn
    smooth = np.asarray(Image.fromarray(files.pixels((60, 80))).resize((333, 259)))
    picture = decoder.open_picture(files.encode(smooth, exif=tag, quality=98), 3)
    box = (31, 17, 180, 150)
    expected = pictures.resize(*picture.cut(box), (40, 30))
    scaled, inside = picture.cut(box, eighths)
    assert scaled.shape[0] <= 180 * eighths / 8 + 2
    error = np.abs(pictures.resize(scaled, inside, (40, 30)) - expected.astype(int))
    assert error.mean() < 0.45


JPEG = KINDS["jpeg"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>404</html>", r"a web page, .*read \(JPEG, PNG, WEBP, BMP, TIFF, GIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "is HEIC, .*convert"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000"),
        (b"II*\0" + bytes(99), "TIFF|."),
        (b"P5 x", "no picture that is read|PPM|header|."),
        (b"P6\n3 0\n255\n", "."),
        (b"P5\n9999999 9999999\n255\n", "more than 536 million pixels|."),
        (files.encode(np.zeros((4, 4), np.float32), "TIFF"), "floating point"),
        (files.encode(np.full((4, 4), 2**20, np.int32), "TIFF"), "beyond 16 bits"),
        (JPEG[:2], "no picture"),
        (JPEG[:-300], "truncated"),
        (KINDS["png"][: len(KINDS["png"]) // 2], "truncated|broken"),
        (KINDS["cmyk jpeg"][:-200], "truncated"),
        (JPEG[:200] + bytes(len(JPEG) - 200), "."),
    ],
)
def test_bad_files_have_a_reason(data, reason):
    with pytest.raises(decoder.Unreadable, match=reason):
        whole(data)


def test_what_libjpeg_only_warns_of_is_no_fault():
    # Ten bytes too many before the end; many cameras write such.
    odd = JPEG[:-2] + bytes(10) + JPEG[-2:]
    np.testing.assert_array_equal(whole(odd), whole(JPEG))
    np.testing.assert_array_equal(
        decoder.open_picture(odd, 3).cut((0, 0, 40, 60), 4)[0],
        decoder.open_picture(JPEG, 3).cut((0, 0, 40, 60), 4)[0],
    )


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PPM", "AVIF"])
def test_the_bytes_decide_not_the_name(kind):
    options = dict(quality=100, subsampling="4:4:4") if kind == "AVIF" else {}
    data = files.encode(RGB.quantize(16).convert("RGB"), kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(whole(data), expected)


@pytest.mark.parametrize("depth", [8, 16])
def test_grey_pgm(depth):
    header, scale = f"P5\n# a comment\n3 2\n{2**depth - 1}\n", depth // 8
    values = np.arange(6) * 40 * 256 ** (scale - 1)
    pixels = whole(header.encode() + values.astype(f">u{scale}").tobytes(), 1)
    assert pixels[..., 0].tolist() == [[0, 40, 80], [120, 160, 200]]


@pytest.mark.parametrize("turn", sorted(decoder.TURNS))
def test_a_turned_tiff(turn):
    data = files.encode(RGB, "TIFF", tiffinfo={decoder.ORIENTATION: turn})
    picture = decoder.open_picture(data, 3)
    png = files.encode(RGB, "PNG", exif=orientation(turn))
    expected = whole(png)
    assert tuple(picture.size) == expected.shape[:2]
    assert picture.turn == decoder.open_picture(png, 3).turn == decoder.TURNS[turn]
    np.testing.assert_array_equal(whole(data), expected)


def orientation(turn):
    exif = Image.Exif()
    exif[decoder.ORIENTATION] = turn
    return exif


def test_a_png_may_be_as_large_as_an_aerial_picture(monkeypatch):
    data = files.encode(Image.new("L", (14_000, 13_600), 90), "PNG", compress_level=1)
    assert decoder.open_picture(data, 1).size == (13_600, 14_000)
    monkeypatch.setattr(decoder, "MOST_PIXELS", 100)
    with pytest.raises(decoder.Unreadable, match=r"million pixels; cut it into tiles"):
        decoder.open_picture(data, 1)
