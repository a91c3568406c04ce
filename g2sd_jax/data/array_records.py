# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""ArrayRecord files: records in any order, read by the library `array_record`."""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Any

from g2sd_jax.data import tfrecord


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Some records of one file, in the form that the library asks for."""

    filename: str
    skip: int  # Records of the file before them.
    take: int
    examples_in_shard: int  # Records of the file in all.


def open_files(parts: Sequence[Any]) -> Any:
    """Opens stretches of files as one sequence of records, which can be pickled.

    Args:
        parts: objects with the fields of `Stretch`.

    Returns:
        An `ArrayRecordDataSource`; its records are bytes.
    """
    library = importlib.import_module("array_record.python.array_record_data_source")
    stretches = [
        Stretch(str(part.filename), part.skip, part.take, part.examples_in_shard)
        for part in parts
    ]
    return library.ArrayRecordDataSource(stretches)


class Pictures:
    """Reads the picture of a `tf.train.Example`; a place is the number of its record.

    Args:
        records: of `open_files`.
        image: the feature with the encoded picture.
    """

    def __init__(self, records: Any, image: str):
        self._records, self._image = records, image

    def read(self, place: int) -> bytes:
        """The encoded picture of a record."""
        record = self._records[place]
        start, end, _ = tfrecord.locate_picture(
            record, 0, len(record), self._image, None
        )
        return record[start:end]
