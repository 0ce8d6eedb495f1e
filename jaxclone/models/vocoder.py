"""The vocoders by their configs."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxclone.models import hifigan, melgan
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocos import Vocos, VocosConfig

# Those that speak in one pass: a GAN trains them, and losses see through them.
GeneratorConfig = HiFiGANConfig | VocosConfig | MelGANConfig
AnyGeneratorConfig = GeneratorConfig | DiffWaveConfig


def make_generator(config: AnyGeneratorConfig, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The network that a config describes: (log_mel [b, f, m], frames or None) -> f32[b, t]."""
    match config:
        case VocosConfig():
            return Vocos(config, dtype)
        case MelGANConfig():
            return melgan.MelGAN(config, dtype)
        case DiffWaveConfig():
            return DiffWave(config, dtype)
        case _:
            return hifigan.Generator(config, dtype)


def context_frames(config: GeneratorConfig) -> int:
    """Frames on either side that a frame of the waveform depends on."""
    match config:
        case VocosConfig():
            return config.context_frames
        case MelGANConfig():
            return melgan.context_frames(config)
        case _:
            return hifigan.context_frames(config)
