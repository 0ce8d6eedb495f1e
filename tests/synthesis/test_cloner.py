"""Enrolling and converting with random weights: lengths, pieces, padding, adapters."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.adapt.enroll import cut
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.synthesis import cloner as module
from jaxclone.synthesis.cloner import Cloner
from jaxclone.types import UserError

SPEC = AudioSpec(n_mels=8)
CONFIGS = {
    "encoder": Wav2Vec2Config.tiny(),
    "speaker": SpeakerEncoderConfig.tiny(),
    "converter": ConverterConfig.tiny(),
    "vocoder": dataclasses.replace(
        HiFiGANConfig.tiny(), upsample_rates=(20, 16), upsample_kernels=(40, 32)
    ),
}


@pytest.fixture(scope="module")
def cloner():
    networks = VoiceConversion(SPEC, CONFIGS["encoder"], CONFIGS["speaker"], CONFIGS["converter"])
    models = nn.unbox(jax.jit(networks.init)(rng.root(0)))
    # A new adapter changes nothing; this one does.
    models["adapter"] = jax.tree.map(lambda x: x + 0.05, models["adapter"])
    vocoder = Generator(CONFIGS["vocoder"])
    models["vocoder"] = nn.unbox(vocoder.init(rng.root(1), jnp.zeros((1, 4, 8)))["params"])
    return Cloner.of(Bundle(models, CONFIGS, SPEC))


@pytest.fixture(scope="module")
def voice(cloner, speakers):
    return cloner.enroll(speakers["pitch180"][:2])


def test_a_bundle_without_a_vocoder_is_told(cloner):
    models = dict(cloner.params)
    with pytest.raises(UserError, match="cloning needs the models vocoder"):
        Cloner.of(Bundle(models, CONFIGS, SPEC))


def test_a_voice_is_an_embedding_and_the_pitch(cloner, voice):
    np.testing.assert_allclose(np.linalg.norm(voice.embedding), 1, rtol=1e-4)
    assert 160 < np.exp(voice.log_f0_mean) < 200
    assert voice.reference_seconds == 2.5
    assert voice.adapter == {}


def test_enrolling_with_steps_moves_the_adapter_alone(cloner, speakers):
    start = cloner.params["adapter"]
    adapted = cloner.enroll(speakers["pitch180"][:2], steps=2)
    assert adapted.steps == 2
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), adapted.adapter, start)
    assert max(jax.tree.leaves(moved)) > 0
    again = cloner.enroll(speakers["pitch180"][:2], steps=2)
    jax.tree.map(np.testing.assert_array_equal, adapted.adapter, again.adapter)
    other = cloner.enroll(speakers["pitch180"][:2], steps=2, seed=1)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), adapted.adapter, other.adapter)
    assert max(jax.tree.leaves(moved)) > 0


def test_steps_without_adapters_are_refused(cloner, speakers):
    bare = dataclasses.replace(
        cloner, params={k: v for k, v in cloner.params.items() if k != "adapter"}
    )
    with pytest.raises(UserError, match="no adapters"):
        bare.enroll(speakers["pitch180"][:1], steps=1)


@pytest.mark.parametrize("samples", [320, 8_000, 17_001])
def test_as_many_samples_come_out_as_go_in(cloner, voice, speech, samples):
    spoken = cloner.convert(speech[:samples], voice)
    assert spoken.shape == (samples,)
    assert np.isfinite(spoken).all()


def test_a_long_recording_has_no_seam(cloner, voice, speech, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 100)
    long = np.tile(speech, 3)
    mel = cloner.convert_mel(long, voice)
    assert mel.shape == (300, 8)
    jumps = np.abs(np.diff(mel, axis=0)).max(axis=1)
    # Pieces begin and end at multiples of 50: no worse there than anywhere.
    assert jumps[49::50].max() <= np.quantile(jumps, 0.99)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": np.ones(3, np.float32)}, "the voice is of 3 numbers, the model takes 8"),
        ({"adapter": {"x": np.ones(3, np.float32)}}, "the voice's adapter lacks the parameter"),
    ],
)
def test_a_voice_of_another_shape_is_refused(cloner, voice, speech, change, message):
    with pytest.raises(UserError, match=message):
        cloner.convert(speech, voice.replace(**change))


def test_what_is_not_voiced_tells_no_pitch(cloner):
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    with pytest.raises(UserError, match="no voiced speech"):
        cloner.enroll([noise])


def test_references_are_cut_in_pieces_and_crumbs_are_left_out():
    waveforms = [np.ones(1000, np.float32), np.ones(2100, np.float32)]
    pieces, length = cut(waveforms, 10, 100)
    assert pieces.shape == (3, 1000)
    assert length.tolist() == [1000, 1000, 1000]
    pieces, length = cut([np.ones(50, np.float32)], 10, 100)
    assert length.tolist() == [50]
