# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Sheets of an autoencoder's guesses."""

import numpy as np
import pytest

from g2sd_jax.pages import reconstructions


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_pictures_of_any_channels_are_drawn(channels):
    image = np.full((2, 8, 8, channels), 0.5)
    image[:, :4] = np.nan
    sheet = reconstructions.draw({"original": image, "visible": image})
    sheet.canvas.draw()
    note = sheet._supxlabel.get_text() if sheet._supxlabel else ""
    expected = {2: "channel 1 of 2", 4: "channels 1 to 3 of 4"}
    expected[13] = "channels 1 to 3 of 13"
    assert note == expected.get(channels, "")
