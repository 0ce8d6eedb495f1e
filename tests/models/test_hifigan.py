from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.audio.spec import AudioSpec, hifigan_22k, jaxclone_16k
from jaxclone.models.discriminators import DiscriminatorConfig, Discriminators
from jaxclone.models.hifigan import Generator, HiFiGANConfig, context_frames
from jaxclone.nn.weight_norm import fold, power_iteration
from jaxclone.tree import flatten, n_parameters
from jaxclone.types import UserError

TINY = HiFiGANConfig.tiny()


def _params(config: HiFiGANConfig, seed: int = 0, spread: float = 1.0):
    """Parameters large enough that every path through the network matters."""
    mel = jnp.zeros((1, 4, config.n_mels))
    params = nn.unbox(jax.jit(Generator(config).init)(jax.random.key(seed), mel)["params"])
    return jax.tree.map(lambda x: spread * x, params)


def _speak(config: HiFiGANConfig, params, mel, length=None):
    return np.asarray(jax.jit(Generator(config).apply)({"params": params}, mel, length))


def _mel(config: HiFiGANConfig, batch: int, frames: int, seed: int = 1):
    return jax.random.normal(jax.random.key(seed), (batch, frames, config.n_mels))


@pytest.mark.parametrize(
    ("config", "expected"),
    [(HiFiGANConfig.v1(), 13.92e6), (HiFiGANConfig.v2(), 0.92e6), (HiFiGANConfig.v3(), 1.46e6)],
    ids=["v1", "v2", "v3"],
)
def test_published_sizes(config: HiFiGANConfig, expected: float):
    """The paper counts the parameters of the folded generator (table 1)."""
    config.require(hifigan_22k())
    shapes = jax.eval_shape(
        lambda: fold(Generator(config).init(jax.random.key(0), jnp.zeros((1, 8, 80)))["params"])
    )
    assert n_parameters(shapes) == pytest.approx(expected, abs=0.01e6)


def test_published_discriminators_have_the_published_number_of_parameters():
    shapes = jax.eval_shape(
        lambda: fold(
            Discriminators(DiscriminatorConfig.published()).init(
                jax.random.key(0), jnp.zeros((1, 8192))
            )["params"]
        )
    )
    sizes = {
        kind: sum(x.size for path, x in flatten(shapes).items() if path.startswith(kind))
        for kind in ("period", "scale")
    }
    assert sizes["period"] == pytest.approx(41.1e6, abs=0.1e6)
    assert sizes["scale"] == pytest.approx(29.6e6, abs=0.1e6)


def test_mini_speaks_the_project_mel():
    HiFiGANConfig.mini().require(jaxclone_16k())
    config = HiFiGANConfig.mini()
    waveform = _speak(config, _params(config), _mel(config, 2, 5))
    assert waveform.shape == (2, 5 * 320)
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() < 1


def test_a_hop_that_is_not_the_product_of_the_rates_is_refused():
    with pytest.raises(UserError, match=r"8 x 8 x 2 x 2 = 256 .* hop_length 320"):
        HiFiGANConfig.v1().require(jaxclone_16k())
    with pytest.raises(UserError, match="n_mels 80, the AudioSpec has 40"):
        HiFiGANConfig.mini().require(AudioSpec(n_mels=40))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_rates": (5, 4, 2)}, "an upsample kernel for each"),
        ({"upsample_kernels": (4, 8)}, "no shorter than their rates"),
        ({"resblock_kernels": (3, 5)}, "dilations for each"),
        ({"channels": 18}, "divisible by 4"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, message: str):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        dataclasses.replace(TINY, resblock=2),
        dataclasses.replace(TINY, upsample_kernels=(11, 5)),  # the cut is not symmetric
        HiFiGANConfig.v3(),
        HiFiGANConfig.mini(),
    ],
    ids=["resblock1", "resblock2", "asymmetric", "v3", "mini"],
)
def test_context_is_the_reach_of_the_generator(config: HiFiGANConfig):
    """A frame of the waveform depends on mels as far as context_frames says, and no further."""
    config = dataclasses.replace(config, channels=2 ** len(config.upsample_rates), n_mels=2)
    context, hop = context_frames(config), config.hop_length
    frames = 2 * context + 3
    middle = context + 1
    # Of positive weights no influence cancels, and at zero nothing saturates.
    params = jax.tree.map(jnp.abs, _params(config))
    mel = jnp.zeros((1, frames, config.n_mels))

    def frame(mel):
        waveform = Generator(config).apply({"params": params}, mel)
        return waveform[:, middle * hop : (middle + 1) * hop].sum()

    slope = np.asarray(jax.jit(jax.grad(frame))(mel))[0]
    touching = np.flatnonzero(slope.max(-1))
    assert max(middle - touching.min(), touching.max() - middle) == context


def test_pieces_with_context_are_the_whole():
    params = _params(TINY, spread=2.0)
    context, hop, frames, piece = context_frames(TINY), TINY.hop_length, 40, 10
    mel = _mel(TINY, 1, frames)
    whole = _speak(TINY, params, mel)
    start = 15
    part = _speak(TINY, params, mel[:, start - context : start + piece + context])
    np.testing.assert_allclose(
        part[:, context * hop : (context + piece) * hop],
        whole[:, start * hop : (start + piece) * hop],
        atol=1e-6,
    )
    assert np.std(whole) > 1e-3


def test_padding_does_not_change_shorter_examples():
    params = _params(TINY, spread=2.0)
    length = np.array([30, 3, 17], np.int32)
    mel = _mel(TINY, 3, 30)
    together = _speak(TINY, params, mel, length)
    for i, n in enumerate(length):
        alone = _speak(TINY, params, mel[i : i + 1, :n])
        np.testing.assert_allclose(together[i, : n * TINY.hop_length], alone[0], atol=1e-6)
        assert np.all(together[i, n * TINY.hop_length :] == 0)


def test_folded_parameters_speak_the_same():
    params = _params(TINY, spread=2.0)
    params = jax.tree.map(  # scales that are no longer the norms of their directions
        lambda x: x * (1 + jax.random.uniform(jax.random.key(3), x.shape)), params
    )
    folded = jax.jit(fold)(params)
    assert not any("direction" in path or "scale" in path for path in flatten(folded))
    mel = _mel(TINY, 2, 10)
    np.testing.assert_allclose(_speak(TINY, params, mel), _speak(TINY, folded, mel), atol=1e-6)


def test_the_first_spectral_norm_is_the_largest_singular_value():
    config = DiscriminatorConfig.tiny()
    model = Discriminators(config)
    waveform = jax.random.normal(jax.random.key(0), (2, 400))
    variables = nn.unbox(jax.jit(model.init)(jax.random.key(1), waveform))
    params, spectral = variables["params"], variables["spectral"]
    for _ in range(200):
        spectral = jax.jit(power_iteration)(params, spectral)
    kernel = np.asarray(params["scale_0"]["conv_1"]["kernel"])
    vectors = spectral["scale_0"]["conv_1"]
    sigma = np.einsum("kio,ki,o->", kernel, vectors["right"], vectors["left"])
    largest = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0]
    assert sigma == pytest.approx(largest, rel=1e-4)
    assert "scale_1" not in spectral  # only the first scale is spectrally normalised


def test_judgements_have_the_batch_first():
    config = DiscriminatorConfig.tiny()
    waveform = jax.random.normal(jax.random.key(0), (3, 401))
    model = Discriminators(config)
    variables = jax.jit(model.init)(jax.random.key(1), waveform)
    judgements = jax.jit(model.apply)(variables, waveform)
    assert len(judgements) == len(config.periods) + config.scales
    for logits, maps in judgements:
        assert all(m.shape[0] == 3 for m in maps)
        np.testing.assert_array_equal(logits, maps[-1][..., 0])
    # Each example is judged alone.
    alone = jax.jit(model.apply)(variables, waveform[1:2])
    for (together, _), (single, _) in zip(judgements, alone):
        np.testing.assert_allclose(together[1:2], single, atol=1e-6)
