# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Examples that fail as they are asked to; in a file that a process can import."""

import os
import signal
import time

import numpy as np

from g2sd_jax.data import decoder


class Odd(Exception):
    """An error that cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Failing:
    """Examples whose item says what happens."""

    def empty(self, count, training):
        return {"image": np.zeros((count, 2), np.uint8)}

    def place(self, batch, row, item, epoch, index):
        batch["image"][row] = 7
        if item == "mistake":
            raise ValueError(f"example {index} is wrong")
        if item == "odd":
            raise Odd(1, 2)
        if item == "bad":
            raise decoder.Unreadable("it is bad")
        if item == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if item == "hang":
            time.sleep(1000)
