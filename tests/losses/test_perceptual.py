"""The distance in the features of a frozen encoder, against its definition."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.perceptual import Perceptual, PerceptualConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import UserError

# The gradient into the stem is damped in pretraining; here it must not be.
WAVES = dataclasses.replace(Wav2Vec2Config.tiny(), feature_grad_scale=0.1)
MELS = dataclasses.replace(WAVES, mel=AudioSpec())
LENGTH = np.array([6400, 3200, 6400, 1000], np.int32)


@pytest.fixture(scope="module")
def pair(speech) -> tuple[np.ndarray, np.ndarray]:
    """Recordings of `LENGTH` and noisy copies of them, with rubbish in the copies' padding."""
    truth = np.stack([speech[i : i + 6400] for i in (2000, 8000, 14_000, 20_000)])
    noise = 0.05 * np.random.default_rng(0).standard_normal(truth.shape).astype(np.float32)
    mask = np.arange(6400) < LENGTH[:, None]
    return truth * mask, np.where(mask, truth + noise, 10 * noise)


@pytest.fixture(scope="module")
def params(pair):
    """Parameters of both encoders."""
    return {
        encoder: nn.unbox(
            jax.jit(Wav2Vec2Encoder(encoder).init)(jax.random.key(0), pair[0], LENGTH)["params"]
        )
        for encoder in (WAVES, MELS)
    }


def measure(encoder, params, predicted, truth, length=LENGTH, **config):
    distance = Perceptual(PerceptualConfig(**config), encoder)
    return np.asarray(jax.jit(distance.__call__)(params[encoder], predicted, truth, length))


@pytest.mark.parametrize("distance", ["l1", "normalized"])
@pytest.mark.parametrize("encoder", [WAVES, MELS], ids=["waveforms", "mels"])
def test_it_is_the_weighted_mean_over_layers_and_true_frames(encoder, params, pair, distance):
    truth, copy = pair
    found = measure(
        encoder, params, copy, truth, layers=(0, -1), weights=(3.0, 1.0), distance=distance
    )

    def states(waveform):
        output = Wav2Vec2Encoder(encoder).apply({"params": params[encoder]}, waveform, LENGTH)
        states = np.asarray(output.layers, np.float64)
        if distance == "normalized":
            states = states - states.mean(-1, keepdims=True)
            states /= np.sqrt((states**2).mean(-1, keepdims=True) + 1e-5)
        return states, np.asarray(output.frame_length)

    (here, frames), (there, _) = states(copy), states(truth)
    expected = [
        (0.75 * np.abs(here - there)[0, i, :n] + 0.25 * np.abs(here - there)[2, i, :n]).mean()
        for i, n in enumerate(frames)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found > 0.01).all()


def test_layers_above_the_highest_are_not_needed(params, pair):
    truth, copy = pair
    cut = {
        **params[MELS],
        "layers": jax.tree.map(lambda x: x.at[1:].set(jnp.nan), params[MELS]["layers"]),
    }
    found = measure(MELS, {MELS: cut}, copy, truth, layers=(0, 1))
    np.testing.assert_array_equal(found, measure(MELS, params, copy, truth, layers=(0, 1)))


@pytest.mark.parametrize("encoder", [WAVES, MELS], ids=["waveforms", "mels"])
def test_a_sound_is_at_no_distance_from_itself(encoder, params, pair):
    truth, _ = pair
    rubbish = np.where(np.arange(6400) < LENGTH[:, None], truth, 1.0).astype(np.float32)
    np.testing.assert_allclose(measure(encoder, params, rubbish, truth), 0, atol=1e-6)


@pytest.mark.parametrize("encoder", [WAVES, MELS], ids=["waveforms", "mels"])
def test_each_has_its_own_distance_whatever_it_is_padded_with(encoder, params, pair):
    truth, copy = pair
    together = measure(encoder, params, copy, truth)
    for i, n in enumerate(LENGTH):
        alone = measure(
            encoder, params, copy[i : i + 1, :n], truth[i : i + 1, :n], LENGTH[i : i + 1]
        )
        np.testing.assert_allclose(together[i], alone[0], rtol=2e-4)


def test_nothing_is_at_no_distance(params, pair):
    truth, copy = pair
    nothing = np.zeros(4, np.int32)
    assert measure(MELS, params, copy, truth, nothing).tolist() == [0.0] * 4


def test_mels_are_heard_as_the_waveforms_they_are_of(params, pair):
    truth, copy = pair
    spoken = [np.asarray(log_mel(x, AudioSpec(), LENGTH)) for x in (copy, truth)]
    np.testing.assert_allclose(
        measure(MELS, params, *spoken), measure(MELS, params, copy, truth), rtol=1e-5
    )


def test_the_gradient_is_that_of_the_prediction_and_whole(params, pair):
    truth, copy = (x[:1] for x in pair)
    distance = Perceptual(PerceptualConfig(), WAVES)

    @jax.jit
    def value(predicted, truth):
        return distance(params[WAVES], predicted, truth, LENGTH[:1])[0]

    here, there = jax.grad(value, argnums=(0, 1))(copy, truth)
    assert not np.any(there)
    # Along itself it is its length: against a difference quotient.
    length = np.linalg.norm(here)
    up, down = (value(copy + step * here / length, truth) for step in (1e-3, -1e-3))
    np.testing.assert_allclose((up - down) / 2e-3, length, rtol=0.05)


@pytest.mark.parametrize("encoder", [WAVES, MELS], ids=["waveforms", "mels"])
def test_gradients_are_finite_at_silence(encoder, params, pair):
    truth, _ = pair
    silence = np.zeros_like(truth)
    distance = Perceptual(PerceptualConfig(), encoder)
    slope = jax.jit(jax.grad(lambda x, t: distance(params[encoder], x, t, LENGTH).sum()))
    assert np.isfinite(slope(silence, silence)).all()
    assert np.isfinite(slope(silence, truth)).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": (3,)}, "perceptual.layers holds 3; an encoder of 2 layers has 0 to 2"),
        ({"layers": (-4,)}, "perceptual.layers holds -4"),
        ({"layers": ()}, "needs at least one of perceptual.layers"),
        ({"layers": (1,), "weights": (1.0, 2.0)}, "perceptual.weights has 2 numbers for 1 layers"),
        ({"layers": (1,), "weights": (0.0,)}, "weights must be above 0"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(UserError, match=message):
        Perceptual(PerceptualConfig(**config), WAVES)
