"""Normalisation over time and of waveforms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.nn.norm import TimeNorm, normalize_waveform

LENGTH = jnp.array([40, 11, 1, 0])


@pytest.fixture
def x():
    mask = (jnp.arange(40) < LENGTH[:, None])[..., None]
    return (3 + jax.random.normal(rng.root(0), (4, 40, 5))) * mask


def norm(x, length, masked):
    return TimeNorm(masked).init_with_output(rng.root(0), x, length)[0]


def test_unmasked_is_group_norm(x):
    torch = pytest.importorskip("torch")
    want = torch.nn.functional.group_norm(torch.tensor(np.asarray(x).transpose(0, 2, 1)), 5)
    got = norm(x, LENGTH, masked=False)
    np.testing.assert_allclose(got, want.numpy().transpose(0, 2, 1), atol=1e-5)


def test_masked_does_not_see_padding(x):
    got = norm(x, LENGTH, masked=True)
    for example, length in enumerate(LENGTH[:3]):
        alone = norm(x[example : example + 1, :length], LENGTH[example : example + 1], masked=True)
        np.testing.assert_allclose(got[example, :length], alone[0], atol=1e-5)
    np.testing.assert_allclose(got[1, :11].std(0), 1, atol=1e-3)
    assert jnp.isfinite(got).all()


def test_waveforms_by_their_true_samples():
    waveform = jax.random.normal(rng.root(0), (4, 40)) * 0.3 + 0.1  # noise after the end, too
    got = normalize_waveform(waveform, LENGTH)
    np.testing.assert_allclose(got[1, :11].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(got[1, :11].std(), 1, atol=1e-3)
    assert not got[1, 11:].any()
    assert jnp.isfinite(got).all()
