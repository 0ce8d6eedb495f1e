"""What mels are compared by beside their L1."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.mels import MelLoss, MelLossConfig
from jaxclone.losses.perceptual import Perceptual, PerceptualConfig
from jaxclone.losses.spectral import stft_distance
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.models.vocos import VocosConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import UserError

SPEC = AudioSpec()
ENCODER = dataclasses.replace(Wav2Vec2Config.tiny(), mel=SPEC)
CONFIG = MelLossConfig(
    perceptual_weight=0.5,
    stft_weight=2.0,
    resolutions=((256, 64, 256), (512, 128, 512)),
    vocoder=VocosConfig.tiny(),
)
FRAMES = np.array([20, 10, 20, 5], np.int32)


@pytest.fixture(scope="module")
def params():
    waveform, length = np.zeros((1, 6400), np.float32), np.array([6400])
    key = jax.random.key(0)
    encoder = jax.jit(Wav2Vec2Encoder(ENCODER).init)(key, waveform, length)["params"]
    mel = np.zeros((1, 20, 80), np.float32)
    vocoder = jax.jit(make_generator(CONFIG.vocoder).init)(key, mel)["params"]
    return nn.unbox({"encoder": encoder, "vocoder": vocoder})


@pytest.fixture(scope="module")
def mels(speech):
    """(predicted, truth), with zeros after `FRAMES`, as the converter and its truth have."""
    waveform = np.stack([speech[i : i + 6400] for i in (2000, 8000, 14_000, 20_000)])
    truth = np.asarray(log_mel(waveform, SPEC, 320 * FRAMES))
    blurred = (truth + np.roll(truth, 1, -1)) / 2
    mask = (np.arange(20) < FRAMES[:, None])[..., None]
    return blurred * mask, truth * mask


@pytest.fixture(scope="module")
def loss():
    return jax.jit(MelLoss(CONFIG, SPEC, ENCODER).__call__)


def test_both_losses_are_means_over_the_frames_of_the_batch(loss, params, mels):
    predicted, truth = mels
    value, metrics = loss(params, predicted, truth, FRAMES)
    heard = Perceptual(PerceptualConfig(), ENCODER)(
        params["encoder"], predicted, truth, 320 * FRAMES
    )
    silence = np.log(np.float32(SPEC.floor))
    mask = np.arange(20) < FRAMES[:, None]
    vocoder = make_generator(CONFIG.vocoder)
    here, there = (
        vocoder.apply({"params": params["vocoder"]}, np.where(mask[..., None], x, silence), FRAMES)
        for x in mels
    )
    apart = stft_distance(here, there, SPEC, CONFIG.resolutions, 320 * FRAMES)
    share = FRAMES / FRAMES.sum()
    np.testing.assert_allclose(metrics["perceptual_loss"], np.sum(share * heard), rtol=1e-4)
    np.testing.assert_allclose(metrics["stft_loss"], np.sum(share * apart), rtol=1e-4)
    np.testing.assert_allclose(
        value, 0.5 * metrics["perceptual_loss"] + 2 * metrics["stft_loss"], rtol=1e-5
    )


def test_parts_weighed_by_their_frames_are_the_whole(loss, params, mels):
    whole, _ = loss(params, *mels, FRAMES)
    parts = [loss(params, *(x[i : i + 2] for x in mels), FRAMES[i : i + 2])[0] for i in (0, 2)]
    weights = [FRAMES[i : i + 2].sum() for i in (0, 2)]
    np.testing.assert_allclose(np.average(parts, weights=weights), whole, rtol=1e-4)


def test_the_gradient_is_that_of_the_prediction(params, mels):
    loss = MelLoss(CONFIG, SPEC, ENCODER)
    here, there = jax.jit(jax.grad(lambda p, t: loss(params, p, t, FRAMES)[0], argnums=(0, 1)))(
        *mels
    )
    assert not np.any(there)
    assert np.isfinite(here).all()
    for i, n in enumerate(FRAMES):
        assert np.any(here[i, :n])
        assert not np.any(here[i, n:])


def test_what_has_no_weight_is_not_computed(mels):
    value, metrics = MelLoss(MelLossConfig(), SPEC, ENCODER)({}, *mels, FRAMES)
    assert float(value) == 0
    assert metrics == {}
    assert MelLossConfig().helpers(ENCODER) == {}
    assert CONFIG.helpers(ENCODER) == {"encoder": ENCODER, "vocoder": CONFIG.vocoder}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"perceptual_weight": 1.0}, "is for an encoder of mels: this one takes waveforms"),
        ({"stft_weight": 1.0, "vocoder": HiFiGANConfig.v1()}, "= 256 samples a frame"),
        ({"stft_weight": -1.0}, "stft_weight must be 0 or more"),
    ],
)
def test_bad_settings(config, message):
    with pytest.raises(UserError, match=message) as error:
        MelLoss(MelLossConfig(**config), SPEC, Wav2Vec2Config.tiny())
    assert "\n" not in str(error.value)
