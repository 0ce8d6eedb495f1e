"""The vocoders by their configs."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxclone.models import hifigan
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.vocos import Vocos, VocosConfig

GeneratorConfig = HiFiGANConfig | VocosConfig | DiffWaveConfig


def make_generator(config: GeneratorConfig, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The network that a config describes: (log_mel [b, f, m], frames or None) -> f32[b, t]."""
    match config:
        case VocosConfig():
            return Vocos(config, dtype)
        case DiffWaveConfig():
            return DiffWave(config, dtype)
    return hifigan.Generator(config, dtype)


def context_frames(config: GeneratorConfig) -> int:
    """Frames on either side that a frame of the waveform depends on."""
    if isinstance(config, HiFiGANConfig):
        return hifigan.context_frames(config)
    return config.context_frames
