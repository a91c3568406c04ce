# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page out of sections of text, tables and pictures."""

import base64
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import markupsafe

TEMPLATES = pathlib.Path(__file__).parent / "templates"
NUMBER = re.compile(r"[-+]?[\d,.]+(e[-+]?\d+)?( ± [\d.]+)?( ?[%x])?\Z")


class Section(NamedTuple):
    title: str
    blocks: Sequence[dict]


def text(words: str, source: str = "") -> dict:
    """A paragraph; `source`, here and below, says where its numbers come from."""
    return dict(kind="text", text=words, source=source)


def bullets(lines: Sequence[str], source: str = "") -> dict:
    return dict(kind="list", lines=list(lines), source=source)


def table(header: Sequence[str], rows: Sequence[Sequence], source: str = "") -> dict:
    columns = list(zip(*rows, strict=True)) or [()] * len(header)
    numeric = [all(map(_is_number, column)) for column in columns]
    return dict(kind="table", header=header, rows=rows, numeric=numeric, source=source)


def _is_number(cell) -> bool:
    return cell == "–" or bool(NUMBER.match(str(cell)))


def hidden(title: str, words: str, source: str = "") -> dict:
    """Text that a reader unfolds."""
    return dict(kind="hidden", title=title, text=words, source=source)


def picture(alt: str, data: bytes, source: str = "", *, wide: bool = False) -> dict:
    """An SVG or PNG, inside the page; a wide one is scrolled on a small screen."""
    kind = "png" if data.startswith(b"\x89PNG") else "svg+xml"
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return dict(kind="picture", alt=alt, data=url, source=source, wide=wide)


def pictures(alt_and_data: Sequence[tuple[str, bytes]], source: str = "") -> dict:
    """Pictures beside each other, as many a row as a screen is wide for."""
    shown = [picture(alt, data) for alt, data in alt_and_data]
    return dict(kind="pictures", pictures=shown, source=source)


def html(title: str, sections: Sequence[Section]) -> str:
    """The page; everything it shows is inside it."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    kind = dict(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates = jinja2.Environment(loader=loader, autoescape=True, **kind)
    templates.filters["emphasis"] = emphasis
    return templates.get_template("page.html").render(title=title, sections=sections)


def emphasis(words: object) -> markupsafe.Markup:
    """`**bold**` and `` `code` `` as HTML, everything else as the text it is."""
    safe = str(markupsafe.escape(words))
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return markupsafe.Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", safe))
