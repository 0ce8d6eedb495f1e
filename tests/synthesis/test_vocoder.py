"""A vocoder in pieces speaks what it would at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import jaxclone_16k
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.hifigan import Generator, HiFiGANConfig, context_frames
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.models.vocos import VocosConfig
from jaxclone.synthesis import vocoder
from jaxclone.synthesis.vocoder import Vocoder

TINY = HiFiGANConfig.tiny()
SPEC = dataclasses.replace(jaxclone_16k(), n_fft=80, win_length=80, hop_length=20, n_mels=8)
CONFIGS = {
    "resblock1": TINY,
    "resblock2": dataclasses.replace(TINY, resblock=2, resblock_dilations=((2, 6),)),
    "odd kernels": dataclasses.replace(
        TINY, upsample_kernels=(11, 7), resblock_kernels=(3, 7), resblock_dilations=((1,), (3, 2))
    ),
    "vocos": VocosConfig(SPEC, width=8, mlp_width=16, layers=1, kernel=3),
    "melgan": MelGANConfig.tiny(),
    "diffwave": dataclasses.replace(DiffWaveConfig.tiny(), fast_schedule=(1e-4, 0.01, 0.5)),
}


def parameters(config):
    mel = jnp.zeros((1, 4, 8))
    params = jax.jit(make_generator(config).init)(jax.random.key(0), mel)["params"]
    # So that every path matters, those too that begin at zero.
    noise = jax.random.key(1)
    return jax.tree.map(lambda x: 2 * x + 0.03 * jax.random.normal(noise, x.shape), params)


def mels(frames: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(frames, 8)).astype(np.float32)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("frames", [1, 30, 61])
def test_pieces_join_to_the_whole(config, frames: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocoder, "_PIECE", 12)
    monkeypatch.setattr(vocoder, "_ACTIVATION", 12 * 160)
    params, mel = parameters(config), mels(frames)
    audio = dataclasses.replace(SPEC, floor=float(np.exp(-1.0)))
    got = Vocoder(config, params, audio)(mel)
    # Beyond its ends a recording is silent.
    edge = 20
    padded = np.pad(mel, ((edge, edge), (0, 0)), constant_values=-1.0)
    # Its noise belongs to the frames of the mel.
    place = (None, jnp.array([-edge])) if isinstance(config, DiffWaveConfig) else ()
    whole = jax.jit(make_generator(config).apply)({"params": params}, padded[None], *place)[0]
    assert got.shape == (frames * 20,)
    assert np.abs(got).max() > 1e-3
    np.testing.assert_allclose(got, whole[edge * 20 : -edge * 20], atol=1e-4)


def test_silence_is_the_floor_of_the_log_of_the_mel():
    params, mel = parameters(TINY), mels(30)
    spec = dataclasses.replace(SPEC, log="log10")
    longer = np.pad(mel, ((20, 20), (0, 0)), constant_values=np.log10(spec.floor))
    within = Vocoder(TINY, params, spec)(longer)[400:-400]
    np.testing.assert_allclose(Vocoder(TINY, params, spec)(mel), within, atol=1e-5)


@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if isinstance(c, HiFiGANConfig)])
def test_a_generator_drops_its_context(config):
    context, params, mel = context_frames(config), parameters(config), mels(50)[None]
    whole = jax.jit(Generator(config).apply)({"params": params}, mel)
    inner = jax.jit(Generator(config, context=context).apply)({"params": params}, mel)
    np.testing.assert_allclose(inner, whole[:, context * 20 : -context * 20], atol=1e-6)
    with pytest.raises(ValueError, match="context is"):
        Generator(config, context=context - 1).apply({"params": params}, mel)


def test_long_mels_need_no_more_programs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocoder, "_ACTIVATION", 12 * 160)
    speak = Vocoder(TINY, parameters(TINY), SPEC)
    speak(mels(480))
    programs = vocoder._speak._cache_size()
    for frames in (477, 960, 1437):
        speak(mels(frames))
    assert vocoder._speak._cache_size() == programs


def test_dense_layers_of_a_scan_are_no_convolutions():
    config = dataclasses.replace(CONFIGS["diffwave"], n_mels=16)  # twice the channels, 4 layers
    mel = np.zeros((5, 16), np.float32)
    params = jax.jit(make_generator(config).init)(jax.random.key(0), mel[None])["params"]
    assert Vocoder(config, params, dataclasses.replace(SPEC, n_mels=16))(mel).shape == (100,)
