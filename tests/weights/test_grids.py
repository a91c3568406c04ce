# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
"""Tables of positions come from the grid that a file tells, whatever their length."""

import jax.numpy as jnp
import numpy as np
import pytest

from g2sd_jax.ops import patches, relative, resize
from g2sd_jax.weights import architecture, graft, grids, loading, relative_tables

WIDTH = 8
TABLE = "backbone.blocks.0.attn.relative_position_bias_table"


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def fit(name, table, wanted, grid, describe=None, **others):
    """What is loaded of a table into a model of another grid."""
    leaf = name.rsplit(".", 1)[-1]
    tree = {"params": {leaf: np.zeros(wanted, np.float32)}}
    arrays = {leaf: table, **others}
    weights = loading.Weights("a file", arrays, describe or {})
    got = graft.onto(tree, weights, grid=grid, dropped=tuple(others))
    return got["params"][leaf]


@pytest.mark.parametrize("theirs, grid", [((4, 9), (9, 4)), ((4, 9), (6, 6))])
def test_a_described_grid_of_the_same_count_is_used(theirs, grid):
    table = random(1, 37, WIDTH)
    got = fit("pos_embed", table, (1, 37, WIDTH), grid, {"grid": list(theirs)})
    want = resize.resize_pos_embed(table, theirs, grid)
    np.testing.assert_array_equal(got, want)
    assert not np.allclose(got, table)
    same = fit("pos_embed", table, (1, 37, WIDTH), theirs, {"grid": list(theirs)})
    np.testing.assert_array_equal(same, table)


def test_relative_tables_of_the_same_count_are_turned():
    count = relative.rows((4, 9))
    table = random(count, 2)
    got = fit(TABLE, table, (count, 2), (9, 4), {"grid": [4, 9]})
    want = relative_tables.resize(table, (4, 9), (9, 4))
    np.testing.assert_array_equal(got, want)
    assert not np.allclose(got, table)


def test_an_index_tells_the_grid():
    table = random(relative.rows((2, 8)), 2)
    index = relative.index((2, 8))
    got = fit(TABLE, table, table.shape, (8, 2), relative_position_index=index)
    want = relative_tables.resize(table, (2, 8), (8, 2))
    np.testing.assert_array_equal(got, want)
    assert not np.allclose(got, table)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_a_sincos_table_tells_its_grid(dtype):
    table = patches.sincos_table(WIDTH, (2, 8)).astype(dtype).astype(np.float32)
    assert grids.stated({"pos_embed": table}, {}) == (2, 8)
    assert grids.stated({"decoder_pos_embed": table}, {}) == (2, 8)
    got = fit("pos_embed", table, (1, 17, WIDTH), (4, 4))
    want = resize.resize_pos_embed(table, (2, 8), (4, 4))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "name, table, grid",
    [
        ("pos_embed", random(1, 17, WIDTH), (2, 8)),
        ("pos_embed", random(1, 37, WIDTH), (4, 9)),
        ("pos_embed", random(1, 50, WIDTH), (4, 9)),
        (TABLE, random(relative.rows((4, 9)), 2), (9, 4)),
    ],
)
def test_a_model_that_is_no_square_asks_for_the_grid(name, table, grid):
    with pytest.raises(ValueError, match=r"does not say for which grid.*g2sd_jax='{"):
        fit(name, table, table.shape, grid)


def test_what_is_no_square_is_not_read_as_one():
    no_class = patches.sincos_table(WIDTH, (2, 5))[:, 1:]
    with pytest.raises(ValueError, match="no row for the class token"):
        fit("pos_embed", no_class, (1, 10, WIDTH), (3, 3))
    with pytest.raises(ValueError, match="2x5, for it has no row for the class token"):
        fit("pos_embed", random(1, 10, WIDTH), (1, 10, WIDTH), (3, 3), {"grid": [2, 5]})
    biases = {"relative_position_bias_table": random(relative.rows((2, 8)), 2)}
    with pytest.raises(ValueError, match="is no table of a square grid"):
        fit("pos_embed", random(1, 17, WIDTH), (1, 17, WIDTH), (4, 4), **biases)
    assert grids.likely({"pos_embed": random(1, 17, WIDTH), **biases}, {}) is None
    assert grids.likely({"pos_embed": no_class}, {}) is None
    assert grids.likely({"pos_embed": random(1, 17, WIDTH)}, {}) == (4, 4)


def test_inspect_sees_the_decoders_grid():
    arrays = {
        "patch_embed.proj.weight": random(WIDTH, 3, 4, 4),
        "cls_token": random(1, 1, WIDTH),
        "blocks.0.attn.qkv.weight": random(3 * WIDTH, WIDTH),
        "blocks.0.mlp.fc1.weight": random(16, WIDTH),
        "decoder_pos_embed": patches.sincos_table(16, (2, 8)),
    }
    assert architecture.infer(arrays, {}, "a file").grid == (2, 8)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_rounded_autoencoders_load(dtype):
    rounded = patches.sincos_table(WIDTH, (3, 5)).astype(dtype).astype(np.float32)
    tree = {"params": {"cls_token": np.zeros((1, 1, WIDTH))}}
    arrays = {"cls_token": random(1, 1, WIDTH), "pos_embed": rounded}
    graft.onto(tree, loading.Weights("a file", arrays, {}), grid=(3, 5))
    with pytest.raises(ValueError, match="is not the sin-cos table of a 5x3 grid"):
        graft.onto(tree, loading.Weights("a file", arrays, {}), grid=(5, 3))
    arrays["pos_embed"] = rounded + np.float32(0.02)
    with pytest.raises(ValueError, match="is not the sin-cos table"):
        graft.onto(tree, loading.Weights("a file", arrays, {}), grid=(3, 5))
