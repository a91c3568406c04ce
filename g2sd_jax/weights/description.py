# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sentences about a weight file that hold for every kind of network."""

import hashlib
import os
from collections.abc import Mapping, Sequence

import numpy as np

from g2sd_jax.weights import catalogue, loading

FIRST_CLASSES = 5  # Names of classes that are listed.


def publication(path: str) -> list[str]:
    """Lines on which published file this is, by its MD5 or its name."""
    if not os.path.isfile(path):
        return []
    digest = md5(path)
    lines = [f"md5: {digest}"]
    by_name, by_md5 = catalogue.by_name(path), catalogue.by_md5(digest)
    if by_md5:
        details = _details(by_md5)
        lines.append(f"published as {by_md5.name} (by its MD5): {details}")
    elif by_name and by_name.md5:
        lines.append(
            f"called like the published {by_name.name}, whose MD5 begins with "
            f"{by_name.md5}: this is another file, or damaged"
        )
    elif by_name:
        lines.append(f"called like the published {by_name.name}: {_details(by_name)}")
    return lines


def _details(file: catalogue.Published) -> str:
    """Content, training target and licence of a published file."""
    pixels = f", trained on {file.target} pixels" if file.target else ""
    return f"{catalogue.CONTENTS[file.holds]}{pixels}; licence {file.licence}"


def md5(path: str) -> str:
    """The file's MD5, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def pictures(describe: Mapping, with_classes: bool) -> list[str]:
    """Lines on the normalisation of pictures and, if wanted, the names of classes."""
    statistics = [
        f"{name} {', '.join(map(str, describe[name]))}"
        for name in ("mean", "std")
        if name in describe
    ]
    lines = [f"pictures normalised by: {'; '.join(statistics) or 'not told'}"]
    names: Sequence[str] = describe.get("class_names") or ()
    if with_classes and names:
        more = ", …" if len(names) > FIRST_CLASSES else ""
        lines.append(f"classes: {', '.join(map(str, names[:FIRST_CLASSES]))}{more}")
    return lines


def not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """A line that names arrays with infinities or NaN, if there are any."""
    broken = loading.not_finite(arrays)
    if not broken:
        return []
    return [f"NOT FINITE: {', '.join(broken[:4])} ({len(broken)} in all)"]
