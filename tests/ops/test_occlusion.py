# Copyright 2026 The g2sd_jax Authors
# SPDX-License-Identifier: Apache-2.0
import jax
import jax.numpy as jnp
import numpy as np

from g2sd_jax.ops import occlusion, patches


def test_blanked_patches_are_those_of_the_lowest_ranks(rng):
    image = jnp.asarray(rng.normal(size=(2, 4, 6, 3)), jnp.float32)
    ranks = jnp.array([[5, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]])
    shown = np.asarray(patches.patchify(occlusion.blank(image, ranks, 2, 2), 2))
    whole = np.asarray(patches.patchify(image, 2))
    gone = ranks < 2
    assert not shown[gone].any()
    np.testing.assert_array_equal(shown[~gone], whole[~gone])
    np.testing.assert_array_equal(occlusion.blank(image, ranks, 0, 2), image)
    assert not np.asarray(occlusion.blank(image, ranks, 6, 2)).any()


def test_orders():
    scores = jnp.array([[0.1, 0.9, 0.4, 0.2]])
    key = jax.random.key(0)
    rank = lambda order: np.asarray(occlusion.ranks(key, scores, order))[0].tolist()
    assert rank("salient") == [3, 0, 1, 2]
    assert rank("non-salient") == [0, 3, 2, 1]
    assert sorted(rank("random")) == [0, 1, 2, 3]


def test_saliency_is_gradient_times_input_of_the_first_answer(rng):
    """Of a linear classifier, whose gradient is known by hand."""
    weight = rng.normal(size=(3 * 16, 4)).astype(np.float32)
    image = jnp.asarray(rng.normal(size=(5, 4, 4, 3)), jnp.float32)
    answer = lambda image: image.reshape(len(image), -1) @ weight
    logits = np.asarray(answer(image))
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    first = logits.argmax(axis=1)
    gradient = weight.T[first] - share @ weight.T  # d log p_first / dx
    effect = (gradient * image.reshape(5, -1)).reshape(image.shape)
    expected = np.abs(np.asarray(patches.patchify(effect, 2)).sum(axis=-1))
    found = occlusion.saliency(answer, image, 2)
    assert found.shape == (5, 4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
