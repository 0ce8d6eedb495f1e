"""The wav2vec 2.0 encoder: sizes, padding, layers, dropout."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.wav2vec2 import (
    Wav2Vec2Config,
    Wav2Vec2Encoder,
    Wav2Vec2Pretraining,
    Wav2Vec2PretrainingConfig,
)
from jaxclone.nn.masking import MaskingConfig, mask_spans
from jaxclone.tree import n_parameters
from jaxclone.types import UserError

TINY = Wav2Vec2Config.tiny()
LAYER_NORM = dataclasses.replace(TINY, conv_norm="layer", conv_bias=True)
POST_NORM = dataclasses.replace(TINY, norm_first=False, normalize_input=False, pad_input=False)
MEL = dataclasses.replace(TINY, mel=AudioSpec(n_mels=8), pad_input=False)
LENGTH = jnp.array([6400, 3333, 1600])
WAVEFORM = jax.random.normal(rng.root(0), (3, 6400)) * (jnp.arange(6400) < LENGTH[:, None])


@functools.cache
def init(config):
    encoder = Wav2Vec2Encoder(config)
    return nn.unbox(jax.jit(encoder.init)(rng.root(1), WAVEFORM, LENGTH))


@functools.cache
def compiled(config, dtype):
    return jax.jit(Wav2Vec2Encoder(config, dtype).apply)


def encode(config, waveform=WAVEFORM, length=LENGTH, dtype=jnp.float32, **kwargs):
    return compiled(config, dtype)(init(config), waveform, length, **kwargs)


@pytest.mark.parametrize(
    ("config", "millions"),
    [(Wav2Vec2PretrainingConfig.base(), 95.0), (Wav2Vec2PretrainingConfig.large(), 317.4)],
)
def test_published_sizes(config, millions):
    """The counts that the paper gives: 95 M and 317 M."""
    keys = rng.per_example(rng.root(0), jnp.arange(3))
    masked = mask_spans(keys, LENGTH // 320, config.encoder.frame_length(6400), MaskingConfig())
    abstract = jax.eval_shape(
        Wav2Vec2Pretraining(config).init, rng.root(0), WAVEFORM, LENGTH, masked
    )
    assert n_parameters(abstract) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.parametrize("samples", [0, 319, 320, 399, 400, 6399, 6400, 16_000])
def test_frames_of_so_many_samples(samples):
    assert TINY.frame_length(samples) == MEL.frame_length(samples) == samples // 320
    unpadded = Wav2Vec2Config.base().frame_length(samples)
    assert unpadded == max(0, (samples - 400) // 320 + 1)
    assert TINY.frame_length(jnp.array([samples]))[0] == samples // 320


def test_hop_and_receptive_field():
    config = Wav2Vec2Config.base()
    assert (config.hop_length, config.receptive_field, config.padding) == (320, 400, 0)
    assert TINY.padding == 40


@pytest.mark.parametrize("config", [TINY, LAYER_NORM, POST_NORM, MEL])
def test_padding_changes_nothing(config):
    together = encode(config)
    alone = encode(config, WAVEFORM[2:, :1600], LENGTH[2:])
    frames = alone.output.shape[1]
    assert together.frame_length[2] == alone.frame_length[0] == frames
    for name in ("stem", "stem_normalized", "output"):
        got, want = getattr(together, name)[2, :frames], getattr(alone, name)[0]
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(together.layers[:, 2, :frames], alone.layers[:, 0], atol=2e-5)


def test_padding_changes_published_group_norm():
    config = dataclasses.replace(TINY, conv_norm="group")
    alone = encode(config, WAVEFORM[2:, :1600], LENGTH[2:])
    assert abs(encode(config).stem[2, :5] - alone.stem[0]).max() > 1e-2


def test_samples_after_the_end_are_ignored():
    noisy = WAVEFORM + 5.0 * (jnp.arange(6400) >= LENGTH[:, None])
    for config in (TINY, POST_NORM, MEL):
        want, got = encode(config), encode(config, noisy)
        np.testing.assert_array_equal(want.output[2, :4], got.output[2, :4])


def test_empty_example_is_finite():
    output = encode(TINY, length=jnp.array([6400, 0, 5]))
    assert output.frame_length.tolist() == [20, 0, 0]
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(output))


@pytest.mark.parametrize(
    "how",
    [{"scan_unroll": 2, "remat": True}, {"remat": "dots"}, {"remat": "full"}],
    ids=["unrolled", "dots", "full"],
)
def test_how_layers_are_run_does_not_matter(how):
    def grads(config):
        def loss(variables):
            output = Wav2Vec2Encoder(config).apply(variables, WAVEFORM, LENGTH)
            return jnp.square(output.layers).mean()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(init(TINY)))

    other = dataclasses.replace(TINY, **how)
    for got, want in zip(grads(other), grads(TINY)):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_layers_are_the_hidden_states():
    output = encode(TINY)
    assert output.layers.shape == (3, 3, 20, 16)
    last = output.layers[-1]
    normalised = (last - last.mean(-1, keepdims=True)) / jnp.sqrt(last.var(-1) + 1e-5)[..., None]
    np.testing.assert_allclose(output.output, normalised, atol=1e-5)
    output = encode(POST_NORM)
    np.testing.assert_array_equal(output.layers[-1], output.output)


def test_masked_frames_are_hidden_from_the_transformer():
    # Without any normalisation over time, which would tell of the change.
    config = dataclasses.replace(LAYER_NORM, normalize_input=False)
    mask = jnp.zeros((3, 20), bool).at[:, 4:9].set(True)
    got = encode(config, WAVEFORM.at[0, 5 * 320 + 100 : 7 * 320].set(0.0), mask_frames=mask)
    want = encode(config, mask_frames=mask)
    np.testing.assert_allclose(got.output, want.output, atol=1e-6)
    assert abs(got.stem[0, 5:7] - want.stem[0, 5:7]).max() > 0.01


def test_dropout_belongs_to_the_example():
    config = dataclasses.replace(
        TINY,
        input_dropout=0.1,
        dropout=0.1,
        attention_dropout=0.1,
        activation_dropout=0.1,
        layer_drop=0.3,
    )
    keys = rng.per_example(rng.root(7), jnp.arange(3))
    dropped = encode(config, keys=keys).output
    assert abs(dropped - encode(TINY).output).max() > 0.1
    turned = encode(config, WAVEFORM[::-1], LENGTH[::-1], keys=keys[::-1]).output
    np.testing.assert_allclose(turned[::-1], dropped, atol=2e-5)


def test_dropped_layers_pass_their_input_on():
    keys = rng.per_example(rng.root(7), jnp.arange(3))
    output = encode(dataclasses.replace(TINY, layer_drop=1.0), keys=keys)
    np.testing.assert_array_equal(output.layers[0], output.layers[-1])


def test_gradient_of_the_stem_is_scaled():
    def grads(scale):
        encoder = Wav2Vec2Encoder(dataclasses.replace(TINY, feature_grad_scale=scale))

        def loss(variables):
            return jnp.square(encoder.apply(variables, WAVEFORM, LENGTH).stem_normalized).sum()

        return jax.jit(jax.grad(loss))(init(TINY))["params"]

    whole, tenth = grads(1.0), grads(0.1)
    for path, factor in (("stem", 0.1), ("stem_norm", 1.0)):
        for a, b in zip(jax.tree.leaves(whole[path]), jax.tree.leaves(tenth[path])):
            np.testing.assert_allclose(factor * a, b, rtol=1e-4, atol=1e-6)


def test_bf16():
    output = encode(TINY, dtype=jnp.bfloat16).output
    assert output.dtype == jnp.bfloat16
    want = encode(TINY).output
    np.testing.assert_allclose(output[0].astype(jnp.float32), want[0], atol=0.15, rtol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "width 16 must be a multiple of heads 5"),
        ({"conv_strides": (5, 2)}, "conv_kernels and conv_strides differ in number"),
    ],
)
def test_bad_sizes(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)
