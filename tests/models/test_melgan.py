from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.pqmf import reach
from jaxclone.audio.spec import hifigan_22k, jaxclone_16k, melgan_22k
from jaxclone.models.discriminators import MelGANDiscriminatorConfig, make_discriminators
from jaxclone.models.melgan import MelGANConfig, reflect
from jaxclone.models.vocoder import context_frames, make_generator
from jaxclone.nn.weight_norm import fold
from jaxclone.tree import flatten, n_parameters
from jaxclone.types import UserError

TINY, BANDS = MelGANConfig.tiny(), MelGANConfig.tiny(bands=4)


def _params(config: MelGANConfig, spread: float = 2.0):
    """Parameters large enough that every path through the network matters."""
    mel = jnp.zeros((1, 4, config.n_mels))
    init = jax.jit(make_generator(config).init)
    return jax.tree.map(lambda x: spread * x, nn.unbox(init(jax.random.key(0), mel)["params"]))


def _speak(config: MelGANConfig, params, mel, length=None):
    return np.asarray(jax.jit(make_generator(config).apply)({"params": params}, mel, length))


def _mel(config: MelGANConfig, batch: int, frames: int):
    return np.asarray(jax.random.normal(jax.random.key(1), (batch, frames, config.n_mels)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [(MelGANConfig.published(), 4.26e6), (MelGANConfig.multiband(), 2.53e6)],
    ids=["melgan", "multiband"],
)
def test_published_sizes(config: MelGANConfig, expected: float):
    config.require(melgan_22k())
    mel = jnp.zeros((1, 8, 80))
    shapes = jax.eval_shape(lambda: fold(make_generator(config).init(jax.random.key(0), mel)))
    assert n_parameters(shapes) == pytest.approx(expected, abs=0.01e6)


def test_published_discriminators():
    network = make_discriminators(MelGANDiscriminatorConfig.published())
    shapes = jax.eval_shape(
        lambda: fold(network.init(jax.random.key(0), jnp.zeros((1, 8192)))["params"])
    )
    assert n_parameters(shapes) == pytest.approx(16.9e6, abs=0.05e6)


def test_small_ones_speak_the_project_mel():
    MelGANConfig.mini().require(jaxclone_16k())
    MelGANConfig.mini_multiband().require(jaxclone_16k())


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"8 x 4 x 2 x 4 = 256 .* hop_length 320"):
        MelGANConfig.multiband().require(jaxclone_16k())
    with pytest.raises(UserError, match="n_mels 40, the AudioSpec has 80"):
        MelGANConfig(n_mels=40).require(hifigan_22k())
    with pytest.raises(UserError, match="divisible by 16"):
        MelGANConfig(channels=24)
    with pytest.raises(UserError, match="an even number of bands, got 3"):
        MelGANConfig(bands=3)


def test_reflection_at_the_own_end_is_that_of_the_signal_alone():
    signal = np.random.default_rng(0).normal(size=(4, 12, 2)).astype(np.float32)
    length = np.array([12, 5, 2, 1], np.int32)
    for side in (3, 9):
        together = np.asarray(reflect(signal, side, length))
        for row, n in enumerate(length):
            alone = np.pad(signal[row, :n], ((side, side), (0, 0)), mode="reflect")
            np.testing.assert_array_equal(together[row, : n + 2 * side], alone)


@pytest.mark.parametrize("config", [TINY, BANDS], ids=["full", "bands"])
def test_padding_does_not_change_shorter_examples(config: MelGANConfig):
    params, length = _params(config), np.array([30, 1, 17], np.int32)
    mel = _mel(config, 3, 30)
    together = _speak(config, params, mel, length)
    assert together.shape == (3, 30 * config.hop_length)
    for i, n in enumerate(length):
        alone = _speak(config, params, mel[i : i + 1, :n])
        np.testing.assert_allclose(together[i, : n * config.hop_length], alone[0], atol=1e-5)
        assert np.all(together[i, n * config.hop_length :] == 0)
    assert np.std(together) > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        BANDS,
        dataclasses.replace(MelGANConfig.published(), layers=2),
        MelGANConfig.mini_multiband(),
    ],
    ids=["tiny", "bands", "published", "multiband"],
)
def test_context_is_the_reach_of_the_generator(config: MelGANConfig):
    """A frame of the waveform depends on mels as far as context_frames says, and no further."""
    config = dataclasses.replace(config, channels=2 ** len(config.rates), n_mels=2)
    context, hop = context_frames(config), config.hop_length
    frames, middle = 4 * context + 9, 2 * context + 4  # no end is near
    # Of positive weights no influence cancels, and at zero nothing saturates.
    params = jax.tree.map(jnp.abs, _params(config, 1.0))
    mel = jnp.zeros((1, frames, config.n_mels))

    def frame(mel):
        waveform = make_generator(config).apply({"params": params}, mel)
        return waveform[:, middle * hop : (middle + 1) * hop].sum()

    slope = np.abs(np.asarray(jax.jit(jax.grad(frame))(mel))[0])
    touching = np.flatnonzero(slope.max(-1))
    furthest = max(middle - touching.min(), touching.max() - middle)
    # The ends of a filter bank's filters are small; the taps of the convolutions are not.
    slack = -(-reach(config.bands) // hop) if config.bands > 1 else 0
    assert context - slack <= furthest <= context


def test_folded_parameters_speak_the_same():
    params = jax.tree.map(  # scales that are no longer the norms of their directions
        lambda x: x * (1 + jax.random.uniform(jax.random.key(3), x.shape)), _params(BANDS)
    )
    folded = jax.jit(fold)(params)
    assert not any("direction" in path or "scale" in path for path in flatten(folded))
    mel = _mel(BANDS, 2, 10)
    np.testing.assert_allclose(_speak(BANDS, params, mel), _speak(BANDS, folded, mel), atol=1e-5)
