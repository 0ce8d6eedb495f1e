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
from jaxclone.models.vocoder import make_generator
from jaxclone.types import UserError

CONFIG = dataclasses.replace(DiffWaveConfig.tiny(), fast_schedule=(1e-4, 0.01, 0.5))
HOP, FRAMES = CONFIG.hop_length, 20


@pytest.fixture(scope="module")
def params():
    mel = jnp.zeros((1, 4, CONFIG.n_mels))
    params = nn.unbox(jax.jit(DiffWave(CONFIG).init)(jax.random.key(0), mel))
    key = jax.random.key(1)
    params = jax.tree.map(lambda x: x + 0.03 * jax.random.normal(key, x.shape), params)
    # The last convolution is 0 at first; here it tells about as much noise as there is.
    params["params"]["last"]["kernel"] *= 30
    return params


@pytest.fixture(scope="module")
def mel():
    rng = np.random.default_rng(2)
    return rng.normal(size=(2, FRAMES, CONFIG.n_mels)).astype(np.float32)


@pytest.fixture(scope="module")
def speak(params):
    """A function of (log_mel, list of lengths)."""
    apply = jax.jit(DiffWave(CONFIG).apply)

    def call(mel, length=None):
        return np.asarray(apply(params, mel, None if length is None else jnp.array(length)))

    return call


@pytest.fixture(scope="module")
def tell(params):
    """A function of (noisy, log_mel, true)."""
    network = DiffWave(CONFIG)

    @jax.jit
    def call(noisy, mel, true=None):
        time = jnp.linspace(3.0, 30.0, len(mel))
        return network.apply(params, noisy, time, mel, true, method="tell_noise")

    return call


@pytest.fixture(scope="module")
def noisy():
    return np.random.default_rng(3).normal(size=(2, FRAMES * HOP)).astype(np.float32)


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


def test_the_network_has_its_say(speak, params, mel):
    """Else the other tests would compare noise with itself, or silence, or clipping."""
    silent = jax.tree.map(jnp.zeros_like, params)
    changed = np.abs(speak(mel) - np.asarray(DiffWave(CONFIG).apply(silent, mel)))
    assert changed.mean() > 0.2
    assert (np.abs(speak(mel)) < 1).mean() > 0.3


def test_padding_changes_nothing(speak, mel):
    length = 13
    padded = mel.copy()
    padded[1, length:] = 7.0
    both, alone = speak(padded, [FRAMES, length]), speak(mel[1:, :length])
    np.testing.assert_allclose(both[1:, : length * HOP], alone, atol=1e-5)
    assert not both[1, length * HOP :].any()
    np.testing.assert_allclose(both[:1], speak(mel[:1]), atol=1e-5)


def test_what_is_not_true_changes_no_noise_told(tell, noisy, mel):
    true = np.zeros((2, FRAMES), bool)
    true[0, :4] = true[1, 5:17] = True
    spoilt = np.where(true[..., None], mel, 9.0)
    samples = np.repeat(true, HOP, axis=1)
    both = tell(np.where(samples, noisy, -5.0), spoilt, true)
    assert not both[~samples].any()
    for row, frames in enumerate((slice(0, 4), slice(5, 17))):
        inner = slice(frames.start * HOP, frames.stop * HOP)
        alone = tell(*(np.stack([x[row, cut]] * 2) for x, cut in ((noisy, inner), (mel, frames))))
        assert alone[row].std() > 0.3
        np.testing.assert_allclose(both[row, inner], alone[row], atol=1e-5)


def test_noise_told_depends_on_no_more_than_the_context(tell, noisy, mel):
    context = CONFIG.context_frames
    assert context < FRAMES // 4
    plain = tell(noisy, mel)
    changed = mel.copy()
    changed[:, 10] += 1.0
    for told in (tell(noisy, changed), tell(noisy + np.repeat(changed - mel, HOP, 1)[..., 0], mel)):
        moved = np.flatnonzero(np.abs(told - plain)[0] > 1e-7) // HOP
        assert moved.size
        assert moved.min() >= 10 - context
        assert moved.max() <= 10 + context


def test_the_seed_decides(speak, params, mel):
    np.testing.assert_array_equal(speak(mel), speak(mel))
    other = DiffWave(dataclasses.replace(CONFIG, seed=1)).apply(params, mel)
    assert np.abs(np.asarray(other) - speak(mel)).max() > 0.1


def test_the_noise_is_white(params):
    # A network that tells no noise: what comes out is the noise that went in.
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
        (lambda: DiffWaveConfig(dilation_cycle=30), "dilations double over at most 21 blocks"),
        (lambda: NoiseSchedule(10, 0.5, 0.1), "rises to below 1"),
        (lambda: NoiseSchedule(0), "steps must be above 0"),
    ],
)
def test_sizes_that_make_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()
