"""What makes the waveform is f32 in a network of bf16."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.models.vocos import VocosConfig

LAST = ("last", "magnitude", "phase")


def rounded(call, args, kwargs, context):
    """The last layers as they would be in bf16."""
    made = call(*args, **kwargs)
    if context.module.name in LAST:
        assert made.dtype == jnp.float32
        return made.astype(jnp.bfloat16).astype(jnp.float32)
    return made


@pytest.mark.parametrize("kind", [HiFiGANConfig, MelGANConfig, VocosConfig])
def test_the_last_layers_are_f32(kind):
    config = kind.tiny()
    bands = config.audio.n_mels if kind is VocosConfig else config.n_mels
    networks = [make_generator(config, dtype) for dtype in (jnp.float32, jnp.bfloat16)]

    @jax.jit
    def speak(key):
        mel = jax.random.normal(key, (1, 40, bands)) - 2
        params = nn.unbox(networks[0].init(key, mel))
        params = jax.tree.map(lambda x: 2 * x, params)
        truth, spoken = (network.apply(params, mel) for network in networks)
        with nn.intercept_methods(rounded):
            return truth, spoken, networks[1].apply(params, mel)

    truth, spoken, before = map(np.asarray, speak(jax.random.key(0)))
    assert spoken.dtype == np.float32
    error, error_before = (np.square(x - truth).mean() for x in (spoken, before))
    # What the layers before round is no less than what the last one did, and chance decides.
    assert 0 < error < 1.01 * error_before
    assert np.abs(spoken - before).max() > 0
