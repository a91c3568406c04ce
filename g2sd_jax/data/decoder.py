# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Decodes the bytes of one picture file to upright pixels: all, or a part at a scale.

libjpeg-turbo decodes grey and colour JPEGs, at any eighth of their size; Pillow decodes
everything else (CMYK, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF) and whatever the former
refuses, so a picture is unreadable only if Pillow says so. The file's first bytes
decide, never its name. Both give the same pixels at full size.

    grey, palette, 1 bit    the grey level in every channel, the palette's colours
    transparency            dropped: the colours as they are stored
    CMYK                    RGB as Pillow converts it
    16-bit grey             the upper eight bits; more bits, and floats, are refused
    EXIF orientation        turned upright
    several frames          the first
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from g2sd_jax.data import geometry, walk

T = TypeVar("T")

MODES = {1: "L", 3: "RGB"}  # Channels -> Pillow's name.
# Others run interpreters, or are no pictures.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
FORMATS += ("AVIF",) * walk.HAS_AVIF
MOST_PIXELS = (
    2**29
)  # Of one picture, 1.5 GiB of RGB; JPEGs are bounded by their format.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow's own refuses 190 million.
# The PGM and PPM files of a prepared copy, as `packing` writes them.
PIXELS = re.compile(rb"P([56])\n([1-9]\d{0,6}) ([1-9]\d{0,6})\n255\n")
ORIENTATION = 0x0112  # The EXIF tag.
Turn = tuple[bool, bool, bool]  # Exchange the axes, reverse the rows, the columns.
# What each value of the EXIF tag asks for, in this order.
TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
UPRIGHT = (False, False, False)
WHOLE = 8  # Eighths of the full size.
TOO_LARGE = (
    f"it has more than {MOST_PIXELS // 10**6} million pixels; cut it into tiles, or "
    "store it smaller"
)


# What else lies under a picture's name: (pattern, description, advice).
CONVERT = "convert it to JPEG or PNG"
LOOKALIKES = (
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "HEIC", f"{CONVERT} (heif-convert)"),
    (rb"....ftypavi[fs]", "AVIF", f"{CONVERT}, or install a Pillow with AVIF"),
    (rb"....ftyp", "a film or audio (MP4 container)", "extract pictures from it"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", f"{CONVERT} (djxl)"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000", CONVERT),
    (rb"II\*\0|MM\0\*|II\+\0|MM\0\+", "a TIFF of a kind Pillow cannot open", CONVERT),
    (rb"8BPS", "a Photoshop document", CONVERT),
    (rb"%PDF|%!PS", "PDF or PostScript", CONVERT),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch it: git lfs pull"),
    (rb"\s*(<!doctype html|<html)", "a web page", "download the picture again"),
    (rb"\s*(<\?xml|<svg)", "XML or SVG", CONVERT),
    (rb"\s*[{\[]", "JSON or other text", "download the picture again"),
    (rb"\x93NUMPY", "a NumPy array", "read it with config.data.source=arrays"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "an archive", "unpack it"),
    (rb"(?s:\0{16})", "nothing but zeros at its beginning", "copy it again"),
)


class Unreadable(ValueError):
    """The bytes are no picture, or not a whole one; the message is the reason."""


class Picture(NamedTuple):
    """An opened picture, of which the header alone was read."""

    size: geometry.Size  # Upright.
    scales: bool  # Whether it can be decoded at less than its full size.
    # (box, eighths = WHOLE) -> (pixels [h, w, C] uint8, the box inside them)
    cut: Callable[..., tuple[np.ndarray, geometry.Box]]
    turn: Turn = UPRIGHT  # That made it upright, as EXIF asks.


def check_channels(channels: int) -> None:
    """Refuses a number of channels that picture files are not decoded to."""
    if channels not in MODES:
        raise ValueError(
            f"config.model.channels={channels}: picture files are read with 1 (grey) "
            "or 3 (RGB) channels; store others as an .npz."
        )


def open_picture(data: bytes, channels: int) -> Picture:
    """Opens an encoded picture, to be decoded later.

    Args:
        data: the bytes of the file.
        channels: 1 or 3 of the pixels.

    Raises:
        Unreadable: the bytes are no picture.
    """
    if not data:
        raise Unreadable("the file is empty")
    if data[:2] == b"\xff\xd8":
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return open_with_pillow(data, channels)
        if colours in ("YCbCr", "Gray", "RGB"):
            return open_with_turbo(data, channels, (height, width), colours)
    if header := PIXELS.match(data[:32]):
        depth, width, height = (int(group) for group in header.groups())
        depth = 1 if depth == 5 else 3
        if len(data) == header.end() + height * width * depth:
            return open_pixels(data, channels, (height, width, depth))
    return open_with_pillow(data, channels)


def open_with_turbo(
    data: bytes, channels: int, stored: geometry.Size, colours: str
) -> Picture:
    """Opens a JPEG with libjpeg-turbo, which decodes it at any eighth of its size.

    Args:
        data: the bytes of the file.
        channels: 1 or 3 of the pixels.
        stored: (height, width) before the EXIF orientation.
        colours: the colour space that the header names.
    """
    turn = UPRIGHT
    if has_exif(data):  # Only those that carry it pay for having it parsed.
        turn = TURNS.get(translate_errors(lambda: read_orientation(data)), UPRIGHT)
    direct = "GRAY" if channels == 1 and colours == "Gray" else "RGB"

    def cut(box, eighths=WHOLE):
        scale, least = eighths / WHOLE, {}
        if eighths != WHOLE:  # The library takes the smallest that is no smaller.
            rows, columns = (-(-side * eighths // WHOLE) for side in stored)
            least = dict(min_height=rows, min_width=columns)
        try:
            pixels = simplejpeg.decode_jpeg(data, direct, **least)
        except ValueError:  # It stops at what others only warn of, so Pillow decides.
            translate_errors(lambda: open_image(data).load())
            decode = simplejpeg.decode_jpeg
            pixels = translate_errors(
                lambda: decode(data, direct, strict=False, **least)
            )
        box = [side * scale for side in to_stored_box(box, stored, turn)]
        pixels, box = slice_box(pixels, box)
        if channels == 1 and direct == "RGB":
            pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None]
        return to_upright(pixels, box, turn)

    size = stored[::-1] if turn[0] else stored
    return Picture(size, True, cut, turn)


def open_pixels(data: bytes, channels: int, shape: tuple[int, int, int]) -> Picture:
    """Opens the PGM or PPM of a prepared copy, of which only the box is touched.

    Args:
        data: the bytes of the file.
        channels: 1 or 3 of the pixels.
        shape: (height, width, depth) that its header tells.
    """
    height, width, depth = shape
    pixels = np.frombuffer(data, np.uint8)[-height * width * depth :]
    pixels = pixels.reshape(height, width, depth)

    def cut(box, eighths=WHOLE):
        assert eighths == WHOLE, eighths
        part, box = slice_box(pixels, box)
        if depth > channels:
            part = np.asarray(Image.fromarray(part).convert("L"))[..., None]
        return np.broadcast_to(part, (*part.shape[:2], channels)), box

    return Picture((height, width), False, cut)


def open_with_pillow(data: bytes, channels: int) -> Picture:
    """Opens a file of any of `FORMATS`, which is always decoded at its full size."""

    def load():
        with open_image(data) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(to_mode(upright, MODES[channels]))

    def read_header():
        """(size, turn) of the upright picture."""
        with open_image(data) as image:
            turn = TURNS.get(image.getexif().get(ORIENTATION), UPRIGHT)
            # Pillow turns a TIFF by itself, and tells its size so.
            exchanged = turn[0] and image.format != "TIFF"
            return image.size if exchanged else image.size[::-1], turn

    def cut(box, eighths=WHOLE):
        assert eighths == WHOLE, eighths
        pixels = translate_errors(load)
        return slice_box(pixels.reshape(*pixels.shape[:2], channels), box)

    size, turn = translate_errors(read_header)
    return Picture(size, False, cut, turn)


def open_image(data: bytes, formats: Sequence[str] = FORMATS) -> Image.Image:
    """Opens a picture with Pillow, which reads its header alone.

    Args:
        data: the bytes of the file.
        formats: by Pillow's names; others are refused.

    Raises:
        Unreadable: it is no picture of these formats, or too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:  # Its message names an object in memory.
        raise Unreadable(name_contents(data, formats)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(TOO_LARGE) from error
    if image.width * image.height > MOST_PIXELS:
        raise Unreadable(TOO_LARGE)
    return image


def name_contents(data: bytes, formats: Sequence[str]) -> str:
    """The reason why bytes are refused: what they are, as far as they tell."""
    formats = ", ".join(formats)
    head = bytes(data[:256])
    for pattern, name, advice in LOOKALIKES:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return (
                f"the file is {name}, whatever its ending says, and no picture that is "
                f"read ({formats}): {advice}"
            )
    return f"the file is no picture that is read ({formats})"


def translate_errors(call: Callable[[], T]) -> T:
    """Calls a function, and raises `Unreadable` for whatever it raises."""
    try:
        return call()
    except Unreadable:
        raise
    except Exception as error:  # Pillow raises some ten types for broken files.
        raise Unreadable(f"{error}") from error


def has_exif(data: bytes) -> bool:
    """Whether a segment before the pixels of a JPEG is EXIF."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        if data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def read_orientation(data: bytes) -> int | None:
    """The EXIF orientation of a JPEG, None where it carries none."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.getexif().get(ORIENTATION)


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Converts to L or RGB: transparency dropped, 16-bit grey by its upper eight."""
    if image.mode == "F":
        raise Unreadable(
            "its pixels are floating point numbers, whose black and white no file "
            "tells: store 8 or 16 bits a channel, or an .npz"
        )
    if image.mode.startswith("I"):  # 16-bit grey; Pillow itself would clip it at 255.
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() >= 2**16:
            raise Unreadable(
                f"its pixels are {pixels.min()} to {pixels.max()}, beyond 16 bits"
            )
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")  # A palette may hold it; Pillow warns otherwise.
    return image.convert(mode)


def slice_box(pixels: np.ndarray, box: geometry.Box) -> tuple[np.ndarray, geometry.Box]:
    """The pixels [h, w, C] that a box touches, and the box inside them."""
    y, x, height, width = box
    top, left = math.floor(y), math.floor(x)
    # A box that ends on a pixel's edge must not take the next one for a rounding error.
    bottom, right = (math.ceil(end - 1e-6) for end in (y + height, x + width))
    part = pixels[top:bottom, left:right]
    return part, (y - top, x - left, height, width)


def to_stored_box(box: geometry.Box, stored: geometry.Size, turn: Turn) -> geometry.Box:
    """An upright box in the coordinates of the stored picture."""
    exchanged, rows, columns = turn
    size = stored[::-1] if exchanged else stored
    y, x, height, width = box
    y = size[0] - y - height if rows else y
    x = size[1] - x - width if columns else x
    return (x, y, width, height) if exchanged else (y, x, height, width)


def to_upright(
    pixels: np.ndarray, box: geometry.Box, turn: Turn
) -> tuple[np.ndarray, geometry.Box]:
    """Turns stored pixels [h, w, C] and a box inside them upright."""
    exchanged, rows, columns = turn
    if exchanged:
        pixels = pixels.swapaxes(0, 1)
        box = (box[1], box[0], box[3], box[2])
    y, x, height, width = box
    if rows:
        pixels, y = pixels[::-1], len(pixels) - y - height
    if columns:
        pixels, x = pixels[:, ::-1], pixels.shape[1] - x - width
    return pixels, (y, x, height, width)
