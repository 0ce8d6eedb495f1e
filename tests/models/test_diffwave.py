"""DiffWave: sizes, padding, pieces, what its noise depends on."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig, NoiseSchedule, sampling_steps
from jaxclone.models.vocoder import context_frames, make_generator
from jaxclone.types import UserError

CONFIG = dataclasses.replace(DiffWaveConfig.tiny(), fast_schedule=(1e-4, 0.01, 0.5))
HOP, FRAMES = CONFIG.hop_length, 20


@pytest.fixture(scope="module")
def params():
    mel = jnp.zeros((1, 4, CONFIG.n_mels))
    params = nn.unbox(jax.jit(DiffWave(CONFIG).init)(jax.random.key(0), mel))
    key = jax.random.key(1)  # the last convolution is 0 at first
    return jax.tree.map(lambda x: x + 0.03 * jax.random.normal(key, x.shape), params)


@pytest.fixture(scope="module")
def mel():
    rng = np.random.default_rng(2)
    return rng.normal(size=(2, FRAMES, CONFIG.n_mels)).astype(np.float32)


@pytest.fixture(scope="module")
def speak(params):
    """A function of (log_mel, length, first_frame), the last two as lists."""
    apply = jax.jit(DiffWave(CONFIG).apply)

    def call(mel, length=None, first=None):
        asked = (None if x is None else jnp.array(x, jnp.int32) for x in (length, first))
        return np.asarray(apply(params, mel, *asked))

    return call


@pytest.mark.parametrize(
    ("config", "count", "published"),
    [
        (DiffWaveConfig.base(), 2_619_971, 2.64e6),
        (DiffWaveConfig.large(), 6_885_315, 6.91e6),
    ],
)
def test_sizes(config, count, published):
    shapes = jax.eval_shape(make_generator(config).init, jax.random.key(0), jnp.zeros((1, 4, 80)))
    found = sum(x.size for x in jax.tree.leaves(shapes))
    assert found == count
    # With the authors' weight norm: a scale for each output of a block's convolutions, of the
    # first and of the skip's, and for each upsampling.
    scales = config.layers * 6 * config.channels + 2 * config.channels + 2
    assert abs(found + scales - published) < 0.01e6


def test_padding_changes_nothing(speak, mel):
    length = 13
    padded = mel.copy()
    padded[1, length:] = 7.0
    both, alone = speak(padded, [FRAMES, length]), speak(mel[1:, :length])
    assert alone.std() > 0.1
    np.testing.assert_allclose(both[1:, : length * HOP], alone, atol=1e-5)
    assert not both[1, length * HOP :].any()
    np.testing.assert_allclose(both[:1], speak(mel[:1]), atol=1e-5)


def test_frames_depend_on_no_more_than_the_context(speak, mel):
    context = context_frames(CONFIG)
    assert context < FRAMES // 2
    changed = mel[:1].copy()
    changed[:, 10] += 1.0
    moved = np.flatnonzero(np.abs(speak(changed) - speak(mel[:1]))[0] > 1e-7) // HOP
    assert moved.size
    assert moved.min() >= 10 - context
    assert moved.max() <= 10 + context


def test_a_piece_that_knows_its_place_is_that_of_the_whole(speak, mel):
    context = context_frames(CONFIG)
    whole, piece = speak(mel[:1]), speak(mel[:1, 3:18], first=[3])
    inner = slice((3 + context) * HOP, (18 - context) * HOP)
    np.testing.assert_allclose(piece[:, context * HOP : -context * HOP], whole[:, inner], atol=1e-5)
    elsewhere = speak(mel[:1, 3:18])
    assert np.abs(elsewhere - piece).max() > 0.1


def test_the_seed_decides(speak, params, mel):
    np.testing.assert_array_equal(speak(mel), speak(mel))
    other = DiffWave(dataclasses.replace(CONFIG, seed=1)).apply(params, mel)
    assert np.abs(np.asarray(other) - speak(mel)).max() > 0.1


def test_the_noise_is_white(params):
    # An untrained network tells no noise, so that what comes out is the noise that went in.
    config = dataclasses.replace(CONFIG, fast_schedule=(1e-4,))
    silent = jax.tree.map(jnp.zeros_like, params)
    noise = np.asarray(DiffWave(config).apply(silent, jnp.zeros((1, 400, 8))))[0]
    # Clipped at one standard deviation.
    assert abs(noise.mean()) < 0.03
    assert abs((np.abs(noise) == 1).mean() - 0.317) < 0.03
    spectrum = np.abs(np.fft.rfft(noise.reshape(-1, HOP), axis=1)[:, 1:-1]) ** 2
    assert spectrum.mean(0).max() < 1.6 * spectrum.mean(0).min()
    repeats = np.corrcoef(noise[:-HOP], noise[HOP:])[0, 1]
    assert abs(repeats) < 0.05


def test_full_sampling_takes_all_steps_of_training():
    steps = sampling_steps(dataclasses.replace(CONFIG, sampling="full"))
    assert steps.index.tolist() == list(range(49, -1, -1))
    np.testing.assert_allclose(steps.time, steps.index)
    assert steps.spread[-1] == 0  # nothing is added to the result


def test_recomputing_gives_the_same_gradient(params, mel):
    def gradient(config):
        def loss(params):
            noisy, time = jnp.ones((2, FRAMES * HOP)), jnp.array([3.0, 4.5])
            return DiffWave(config).apply(params, noisy, time, mel, method="tell_noise").std()

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for kept, again in zip(gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=True))):
        np.testing.assert_allclose(again, kept, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AudioSpec(), "upsample_rates give 16 x 16 = 256 samples a frame, .* hop_length 320"),
        (dataclasses.replace(hifigan_22k(), n_mels=100), "takes n_mels 80, the AudioSpec has 100"),
    ],
)
def test_another_audio_spec_is_refused(spec, message):
    with pytest.raises(UserError, match=message):
        DiffWaveConfig.base().require(spec)
    DiffWaveConfig.base().require(hifigan_22k())
    DiffWaveConfig.mini().require(AudioSpec())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffWaveConfig(fast_schedule=()), "fast_schedule must lie between 0 and 1"),
        (lambda: DiffWaveConfig(fast_schedule=(0.1, 1.0)), "fast_schedule must lie between"),
        (lambda: DiffWaveConfig(fast_schedule=(1e-4, 0.9)), "the noise of training"),
        (lambda: DiffWaveConfig(fast_schedule=(1e-5, 0.1)), "the noise of training"),
        (lambda: DiffWaveConfig(upsample_rates=(16, 0)), "upsample_rates must be above 0"),
        (lambda: NoiseSchedule(10, 0.5, 0.1), "rises to below 1"),
        (lambda: NoiseSchedule(0), "steps must be above 0"),
    ],
)
def test_sizes_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()
