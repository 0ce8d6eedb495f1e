"""Reconstruction and speaker losses on cases worked out by hand."""

import jax.numpy as jnp
import numpy as np

from jaxclone.losses.reconstruction import masked_l1
from jaxclone.losses.speaker import speaker_contrastive


def test_masked_l1_ignores_padding():
    truth = jnp.zeros((2, 4, 3))
    predicted = truth.at[0].set(1.0).at[1, 1:].set(100.0)
    loss, metrics = masked_l1(predicted, truth, jnp.array([4, 1]))
    np.testing.assert_allclose(loss, 4 / 5)
    assert metrics["weight"] == 5


def test_speaker_contrastive_leaves_further_examples_of_a_speaker_out():
    vectors = jnp.eye(3)[jnp.array([0, 0, 1])]
    loss, metrics = speaker_contrastive(vectors, vectors, jnp.array([7, 7, 8]))
    # Rows 0 and 1 are the same speaker: each has one negative, row 2, at a cosine of 0.
    expected = np.mean([np.log1p(np.exp(-10)), np.log1p(np.exp(-10)), np.log1p(2 * np.exp(-10.0))])
    np.testing.assert_allclose(loss, expected, rtol=1e-2)
    assert metrics["speaker_accuracy"] == 1.0


def test_speaker_contrastive_grows_when_speakers_are_mixed_up():
    vectors = jnp.eye(4)
    speakers = jnp.arange(4)
    right, _ = speaker_contrastive(vectors, vectors, speakers)
    wrong, metrics = speaker_contrastive(vectors, jnp.roll(vectors, 1, 0), speakers)
    assert wrong > right + 5
    assert metrics["speaker_accuracy"] == 0
