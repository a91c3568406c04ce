# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters of a test that run without the option `--all`, and those that do not."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def parameters(cases: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Marks every case as slow that is not among the quick ones.

    Args:
        cases: of `pytest.mark.parametrize`.
        quick: those that also run without `--all`: one of each kind of fault.
    """
    cases = list(cases)
    unknown = [case for case in quick if case not in cases]
    assert not unknown, f"{unknown} are not among {cases}"
    return [
        case
        if case in quick
        else pytest.param(
            *(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow
        )
        for case in cases
    ]
