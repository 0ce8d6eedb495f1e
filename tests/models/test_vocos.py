"""Vocos: its first sound, padding, pieces."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.audio.spectral import log_mel
from jaxclone.models.vocoder import context_frames, make_generator
from jaxclone.models.vocos import Vocos, VocosConfig
from jaxclone.types import UserError

CONFIG = VocosConfig.tiny()


@pytest.fixture(scope="module")
def mel(speech):
    return np.asarray(log_mel(speech, CONFIG.audio))[None]


@pytest.fixture(scope="module")
def params(mel):
    return nn.unbox(jax.jit(Vocos(CONFIG).init)(jax.random.key(0), mel))


def test_its_first_sound_has_the_envelope_of_the_mel(mel, params):
    spoken = Vocos(CONFIG).apply(params, mel)
    assert spoken.shape == (1, mel.shape[1] * CONFIG.hop_length)
    again = np.asarray(log_mel(spoken, CONFIG.audio))
    # Its phases are random, so that neighbouring frames add up to something else here and there.
    assert np.corrcoef(again.ravel(), mel.ravel())[0, 1] > 0.7


def test_padding_changes_nothing(mel, params):
    short = mel[:, :37]
    padded = np.pad(short, ((0, 0), (0, 60), (0, 0)), constant_values=-3.0)
    both = Vocos(CONFIG).apply(params, padded, jnp.array([37]))
    alone = Vocos(CONFIG).apply(params, short, jnp.array([37]))
    np.testing.assert_allclose(both[:, : alone.shape[1]], alone, atol=1e-5)
    assert not np.any(both[:, alone.shape[1] :])


def test_frames_depend_on_no_more_than_the_context(mel, params):
    context, hop = context_frames(CONFIG), CONFIG.hop_length
    changed = mel.copy()
    changed[:, 50] += 1.0
    difference = Vocos(CONFIG).apply(params, changed) - Vocos(CONFIG).apply(params, mel)
    moved = np.flatnonzero(np.abs(difference[0]) > 1e-7) // hop
    assert moved.min() >= 50 - context
    assert moved.max() <= 50 + context
    assert moved.size


def test_a_silent_mel_makes_silence(params):
    silence = np.full((1, 20, 80), np.log(1e-5), np.float32)
    assert np.abs(Vocos(CONFIG).apply(params, silence)).max() < 0.05


def test_another_audio_spec_is_refused():
    with pytest.raises(UserError, match="AudioSpec of the vocoder's run does not match"):
        CONFIG.require(hifigan_22k())
    CONFIG.require(AudioSpec())


def test_sizes():
    published = dataclasses.replace(
        VocosConfig(), audio=AudioSpec(sample_rate=24_000, hop_length=256, n_mels=100)
    )
    shapes = jax.eval_shape(
        make_generator(published).init, jax.random.key(0), jnp.zeros((1, 4, 100))
    )
    count = sum(x.size for x in jax.tree.leaves(shapes))
    # 13.5 M in the paper (table 1).
    assert 13.0e6 < count < 14.0e6
