"""Mels in pieces: each vocoder says what it would have said of the whole."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.synthesis import vocode as module
from jaxclone.synthesis.vocode import vocode

CONFIGS = {
    "hifigan": HiFiGANConfig.tiny(),
    "diffwave": dataclasses.replace(DiffWaveConfig.tiny(), fast_schedule=(1e-4, 0.01, 0.5)),
}
SPECS = {
    log: AudioSpec(n_mels=8, n_fft=80, win_length=80, hop_length=20, log=log)
    for log in ("ln", "log10")
}


def parameters(config):
    params = nn.unbox(make_generator(config).init(jax.random.key(0), jnp.zeros((1, 4, 8))))
    key = jax.random.key(1)
    return jax.tree.map(lambda x: x + 0.03 * jax.random.normal(key, x.shape), params["params"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_vocoding_in_pieces_is_vocoding_the_whole(config, monkeypatch):
    params, spec = parameters(config), SPECS["ln"]
    mel = np.random.default_rng(0).normal(-5, 2, (230, 8)).astype(np.float32)
    whole = vocode(config, params, spec, mel)
    assert whole.shape == (230 * 20,)
    monkeypatch.setattr(module, "PIECE", 50)
    np.testing.assert_allclose(vocode(config, params, spec, mel), whole, atol=1e-5)


@pytest.mark.parametrize("log", SPECS)
def test_beyond_the_ends_there_is_silence(log):
    config, spec = CONFIGS["hifigan"], SPECS[log]
    params = parameters(config)
    floor = {"ln": np.log(1e-5), "log10": -5.0}[log]
    mel = np.random.default_rng(0).normal(-3, 1, (30, 8)).astype(np.float32)
    longer = np.pad(mel, ((10, 10), (0, 0)), constant_values=floor)
    within = vocode(config, params, spec, longer)[200:-200]
    np.testing.assert_allclose(vocode(config, params, spec, mel), within, atol=1e-5)


def test_one_frame_is_enough():
    config = CONFIGS["diffwave"]
    spoken = vocode(config, parameters(config), SPECS["ln"], np.zeros((1, 8), np.float32))
    assert spoken.shape == (20,)
    assert np.isfinite(spoken).all()
