from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)


def _logits(seed: int):
    keys = jax.random.split(jax.random.key(seed), 2)
    return [jax.random.normal(keys[0], (4, 9)), jax.random.normal(keys[1], (4, 3, 5))]


def test_discriminator_loss_is_the_sum_of_squares_over_discriminators():
    real, fake = _logits(0), _logits(1)
    loss, metrics = discriminator_loss(real, fake)
    expected = sum(
        np.square(np.asarray(r) - 1).mean() + np.square(np.asarray(f)).mean()
        for r, f in zip(real, fake)
    )
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(metrics["weight"]) == 4
    assert float(metrics["logit_real"]) == pytest.approx(
        np.mean([np.mean(r) for r in real]), rel=1e-5
    )


def test_generator_loss_vanishes_where_the_discriminators_are_fooled():
    assert float(generator_loss([jnp.ones((2, 3))])[0]) == 0
    fake = _logits(2)
    expected = sum(np.square(np.asarray(f) - 1).mean() for f in fake)
    assert float(generator_loss(fake)[0]) == pytest.approx(expected, rel=1e-6)


def test_hinges_leave_alone_what_is_beyond_them():
    real, fake = [jnp.array([[2.0, 1.0]])], [jnp.array([[-1.0, -3.0]])]
    assert float(discriminator_loss(real, fake, "hinge")[0]) == 0
    assert float(discriminator_loss(fake, real, "hinge")[0]) == pytest.approx(3 + 2.5)
    assert float(generator_loss(fake, "hinge")[0]) == pytest.approx(2)
    # What already convinces is not urged on.
    assert float(generator_loss(real, "clamped_hinge")[0]) == 0


def test_feature_matching_weighs_every_layer_alike():
    real = [[jnp.zeros((2, 5, 3)), jnp.zeros((2, 2, 8))], [jnp.zeros((2, 7, 1))]]
    fake = [[jnp.ones((2, 5, 3)), -2 * jnp.ones((2, 2, 8))], [3 * jnp.ones((2, 7, 1))]]
    loss, metrics = feature_matching_loss(real, fake)
    assert float(loss) == pytest.approx(1 + 2 + 3)
    assert float(metrics["weight"]) == 2
