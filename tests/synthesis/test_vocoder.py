"""A vocoder in pieces speaks what it would at once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import jaxclone_16k
from jaxclone.models.diffwave import DiffWaveConfig, NoiseSchedule, sampling_steps
from jaxclone.models.hifigan import Generator, HiFiGANConfig, context_frames
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.models.vocos import VocosConfig
from jaxclone.synthesis import diffusion, vocoder
from jaxclone.synthesis.vocoder import Vocoder

TINY = HiFiGANConfig.tiny()
SPEC = dataclasses.replace(jaxclone_16k(), n_fft=80, win_length=80, hop_length=20, n_mels=8)
ONE_PASS = {
    "resblock1": TINY,
    "resblock2": dataclasses.replace(TINY, resblock=2, resblock_dilations=((2, 6),)),
    "odd kernels": dataclasses.replace(
        TINY, upsample_kernels=(11, 7), resblock_kernels=(3, 7), resblock_dilations=((1,), (3, 2))
    ),
    "vocos": VocosConfig(SPEC, width=8, mlp_width=16, layers=1, kernel=3),
    "melgan": MelGANConfig.tiny(),
}
DIFFWAVE = dataclasses.replace(DiffWaveConfig.tiny(), fast_schedule=(1e-4, 1e-3, 0.01, 0.5))


def parameters(config):
    mel = jnp.zeros((1, 4, 8))
    params = jax.jit(make_generator(config).init)(jax.random.key(0), mel)["params"]
    # So that every path matters, those too that begin at zero.
    noise = jax.random.key(1)
    params = jax.tree.map(lambda x: 2 * x + 0.03 * jax.random.normal(noise, x.shape), params)
    if isinstance(config, DiffWaveConfig):
        params["last"] = jax.tree.map(lambda x: 4 * x, params["last"])
    return params


def mels(frames: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(frames, 8)).astype(np.float32)


@pytest.mark.parametrize("config", ONE_PASS.values(), ids=ONE_PASS)
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
    whole = jax.jit(make_generator(config).apply)({"params": params}, padded[None])[0]
    assert got.shape == (frames * 20,)
    assert np.abs(got).max() > 1e-3
    np.testing.assert_allclose(got, whole[edge * 20 : -edge * 20], atol=1e-4)


@pytest.mark.parametrize("sampling", ["fast", "full"])
def test_every_step_of_a_diffusion_in_pieces_is_that_of_the_whole(
    sampling, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(DIFFWAVE, sampling=sampling, noise=NoiseSchedule(8, 1e-4, 0.6))
    # All steps together reach further than the context of a piece.
    piece, reach = 4, len(sampling_steps(config).index) * sum(config.dilations)
    assert reach > config.context_frames * config.hop_length
    params, mel = parameters(config), mels(61)
    whole = jax.jit(make_generator(config).apply)({"params": params}, mel[None])[0]
    silent = jax.tree.map(np.zeros_like, params)
    noise = jax.jit(make_generator(config).apply)({"params": silent}, mel[None])[0]
    assert np.abs(whole - noise).mean() > 0.2
    assert (np.abs(whole) < 1).mean() > 0.1

    monkeypatch.setattr(vocoder, "_PIECE", piece)
    seen = []
    back = diffusion._back
    monkeypatch.setattr(diffusion, "_back", lambda *args: seen.append(args[3]) or back(*args))
    np.testing.assert_allclose(Vocoder(config, params, SPEC)(mel), whole, atol=1e-4)
    # Whatever the length, what is computed at once is a piece.
    assert {noisy.shape for noisy in seen} == {((piece + 2 * config.context_frames) * 20,)}
    np.testing.assert_allclose(
        Vocoder(config, params, SPEC)(mel[:1]),
        jax.jit(make_generator(config).apply)({"params": params}, mel[None, :1])[0],
        atol=1e-4,
    )


def test_silence_is_the_floor_of_the_log_of_the_mel():
    params, mel = parameters(TINY), mels(30)
    spec = dataclasses.replace(SPEC, log="log10")
    longer = np.pad(mel, ((20, 20), (0, 0)), constant_values=np.log10(spec.floor))
    within = Vocoder(TINY, params, spec)(longer)[400:-400]
    np.testing.assert_allclose(Vocoder(TINY, params, spec)(mel), within, atol=1e-5)


@pytest.mark.parametrize("config", [c for c in ONE_PASS.values() if isinstance(c, HiFiGANConfig)])
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
    config = dataclasses.replace(DIFFWAVE, n_mels=16)  # twice the channels, 4 layers
    mel = np.zeros((5, 16), np.float32)
    params = jax.jit(make_generator(config).init)(jax.random.key(0), mel[None])["params"]
    assert Vocoder(config, params, dataclasses.replace(SPEC, n_mels=16))(mel).shape == (100,)
