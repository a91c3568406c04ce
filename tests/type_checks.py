# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""The type checker of annotated functions, for `conftest`."""

import beartype

# An int passes for a float, as every static type checker has it (PEP 484).
check = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
