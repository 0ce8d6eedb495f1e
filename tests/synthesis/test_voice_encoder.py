from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.audio.io import resample
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle, save_bundle
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.nn.relative import RelativePositionsConfig
from jaxclone.synthesis import voice_encoder
from jaxclone.synthesis.voice_encoder import VoiceEncoder
from jaxclone.types import UserError

TINY = Wav2Vec2Config.tiny()
CONFIGS = {
    "ours": TINY,
    # Of these, padding would change the first.
    "base": dataclasses.replace(TINY, conv_norm="group", norm_first=False, pad_input=False),
    "wavlm": dataclasses.replace(
        TINY, conv_norm="layer", relative_positions=RelativePositionsConfig(8, 16)
    ),
}


@functools.cache
def encoder(name="ours"):
    config = CONFIGS[name]
    waveform, length = jnp.zeros((1, 3200)), jnp.array([3200])
    params = jax.jit(Wav2Vec2Encoder(config).init)(rng.root(0), waveform, length)["params"]
    return VoiceEncoder(config, nn.unbox(params), 16_000)


def noise(samples, seed=0):
    return (0.1 * np.random.default_rng(seed).normal(size=samples)).astype(np.float32)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_the_encoder_alone_without_padding(name):
    it = encoder(name)
    waveforms = [noise(n, n) for n in (9_999, 20_011)]
    apply = jax.jit(Wav2Vec2Encoder(it.config).apply)
    for waveform, got in zip(waveforms, it.features_of(waveforms, -1)):
        want = apply({"params": it.params}, waveform[None], jnp.array([len(waveform)])).layers
        assert got.shape == (it.config.frame_length(len(waveform)), 16)
        np.testing.assert_allclose(got, want[2, 0], atol=2e-5)
    for layer in (0, 1):
        got = it.features(waveform, layer)
        np.testing.assert_allclose(got, want[layer, 0], atol=2e-5)
        np.testing.assert_array_equal(got, it.features(waveform, layer - 3))


def test_any_rate():
    it, waveform = encoder(), noise(22_050)
    got = it.features(waveform, 0, sample_rate=22_050)
    np.testing.assert_array_equal(got, it.features(resample(waveform, 22_050, 16_000), 0))
    assert got.shape == (50, 16)


def test_many_lengths_compile_few_programs():
    it = encoder()
    # A configuration that no other test has compiled.
    it = dataclasses.replace(it, config=dataclasses.replace(it.config, dropout=0.5))
    before = voice_encoder._hidden._cache_size()
    for n in (12_000, 14_321, 16_000, 17_000, 22_000):
        it.features(noise(n), 0)
    assert voice_encoder._hidden._cache_size() == before + 2  # 1 s and 1.4 s
    found = it.features_of([noise(n) for n in range(9_000, 9_011)], 0)
    assert [len(x) for x in found] == [it.config.frame_length(n) for n in range(9_000, 9_011)]
    assert voice_encoder._hidden._cache_size() == before + 4  # eight at once, then three


def test_from_a_bundle(tmp_path):
    it = encoder()
    save_bundle(
        tmp_path / "b", {"encoder": it.params}, {"encoder": it.config}, AudioSpec(), card=""
    )
    loaded = VoiceEncoder.load(tmp_path / "b")
    waveform = noise(16_000)
    np.testing.assert_array_equal(loaded.features(waveform, 0), it.features(waveform, 0))
    with pytest.raises(UserError, match="the bundle has no encoder; it holds vocoder"):
        VoiceEncoder.of(Bundle({"vocoder": {}}, {}, AudioSpec()))


@pytest.mark.parametrize("layer", [3, -4])
def test_no_such_layer(layer):
    with pytest.raises(UserError, match=f"has the layers 0 to 2, there is no layer {layer}"):
        encoder().features(noise(16_000), layer)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (noise(100), "waveform 0 is too short for a single frame: 100 samples"),
        (noise(0), "holds no audio"),
        (np.full(16_000, np.nan, np.float32), "not finite"),
        (np.zeros(16_000, np.float32), "silent"),
        (noise(121 * 16_000), "lasts 121 s, more than 120 s; give it in pieces"),
        (np.ones((2, 16_000), np.float32), r"one row of samples .*, got float32 of shape \[2, "),
        (np.ones(16_000, np.int16), r"one row of samples in \[-1, 1\], got int16"),
    ],
)
def test_what_is_no_recording(waveform, message):
    prepare = encoder()._prepare
    with pytest.raises(UserError, match=message):
        prepare(waveform, 0, None)
