"""The Gumbel product quantiser."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.nn.quantize import GumbelQuantizer, QuantizerConfig, perplexity
from jaxclone.types import UserError

CONFIG = QuantizerConfig(groups=2, codes=5, width=6)


@pytest.fixture(scope="module")
def setting():
    x = jax.random.normal(rng.root(1), (3, 7, 4))
    quantizer = GumbelQuantizer(CONFIG)
    return quantizer, nn.unbox(quantizer.init(rng.root(0), x)), x


def test_forward_is_one_entry_of_each_codebook(setting):
    quantizer, variables, x = setting
    keys = rng.per_example(rng.root(2), jnp.arange(3))
    quantized = quantizer.apply(variables, x, 0.5, keys)
    codebook = variables["params"]["codebook"]
    rows = [codebook[group][quantized.codes[..., group]] for group in range(2)]
    np.testing.assert_array_equal(quantized.vectors, jnp.concatenate(rows, -1))


def test_without_noise_the_most_probable(setting):
    quantizer, variables, x = setting
    quantized = quantizer.apply(variables, x)
    np.testing.assert_array_equal(quantized.codes, quantized.probabilities.argmax(-1))


def test_gradient_is_that_of_the_soft_choice(setting):
    quantizer, variables, x = setting
    keys = rng.per_example(rng.root(2), jnp.arange(3))

    def soft(x):
        params = variables["params"]
        logits = (x @ params["logits"]["kernel"]).reshape(3, 7, 2, 5)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (7, 2, 5)))(keys)
        choice = jax.nn.softmax((logits + noise) / 0.7)
        return jnp.einsum("bfgv,gvd->bfgd", choice, params["codebook"]).reshape(3, 7, 6)

    weights = jax.random.normal(rng.root(3), (3, 7, 6))
    got = jax.grad(lambda x: (quantizer.apply(variables, x, 0.7, keys).vectors * weights).sum())(x)
    want = jax.grad(lambda x: (soft(x) * weights).sum())(x)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_probabilities_know_neither_noise_nor_temperature(setting):
    quantizer, variables, x = setting
    keys = rng.per_example(rng.root(2), jnp.arange(3))
    np.testing.assert_array_equal(
        quantizer.apply(variables, x, 0.1, keys).probabilities,
        quantizer.apply(variables, x).probabilities,
    )


def test_noise_belongs_to_the_example(setting):
    quantizer, variables, x = setting
    keys = rng.per_example(rng.root(2), jnp.arange(3))
    codes = quantizer.apply(variables, x, 0.5, keys).codes
    assert (codes != quantizer.apply(variables, x).codes).any()
    np.testing.assert_array_equal(quantizer.apply(variables, x[1:], 0.5, keys[1:]).codes, codes[1:])


def test_starts_as_published():
    quantizer = GumbelQuantizer(QuantizerConfig(2, 320, 256))
    params = nn.unbox(quantizer.init(rng.root(0), jnp.zeros((1, 1, 512))))["params"]
    kernel, codebook = params["logits"]["kernel"], params["codebook"]
    assert (kernel.mean(), kernel.std()) == (pytest.approx(0, abs=0.01), pytest.approx(1, abs=0.01))
    assert (codebook.min(), codebook.max()) == (
        pytest.approx(0, abs=1e-3),
        pytest.approx(1, abs=1e-3),
    )
    assert codebook.shape == (2, 320, 128)


def test_perplexity_counts_the_codes_in_use():
    codes = jnp.array([[[0, 1], [1, 1], [2, 1], [3, 1], [4, 4]]])
    valid = jnp.array([[True, True, True, True, False]])
    assert perplexity(jax.nn.one_hot(codes, 5), valid) == pytest.approx(4 + 1)


def test_perplexity_has_a_gradient_where_a_code_is_never_used():
    """A softmax in f32 is 0 from a difference of 104 on, which LARGE's first logits come near."""
    logits = jnp.zeros((1, 5, 2, 4)).at[..., 3].set(-200.0)
    valid = jnp.ones((1, 5), bool)
    assert jax.nn.softmax(logits).min() == 0
    grad = jax.grad(lambda x: perplexity(jax.nn.softmax(x), valid))(logits)
    assert jnp.isfinite(grad).all()
    assert perplexity(jax.nn.softmax(logits), valid) == pytest.approx(2 * 3, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "quantizer: 3 groups do not divide width 256"),
        ({"groups": 0}, "groups must be above 0"),
        ({"codes": 0}, "codes must be above 0"),
    ],
)
def test_bad_sizes(change, message):
    with pytest.raises(UserError, match=message):
        QuantizerConfig(**change)
