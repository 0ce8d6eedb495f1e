"""Discriminators of waveforms.

HiFi-GAN's by period and by scale (Kong et al. 2020 §2.3; jik876/hifi-gan `models.py`), MelGAN's by
scale (Kumar et al. 2019 §2.2; descriptinc/melgan-neurips `modules.py`).
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclone.nn.weight_norm import SpectralNormConv, WeightNormConv
from jaxclone.types import Array

# Slopes of the leaky ReLUs.
_SLOPE, _MELGAN_SLOPE = 0.1, 0.2
# What one discriminator says: logits with the batch first, and the feature maps that are matched.
Judgement = tuple[Array, list[Array]]


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """One convolution: its output channels, taps, stride and groups."""

    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of all discriminators.

    Attributes:
        periods: samples between neighbours, one discriminator each.
        period_channels: output channels of each layer of a period discriminator; all but the last
            stride.
        period_kernel: taps.
        period_stride: stride.
        scales: discriminators of the waveform itself, each at half the rate of the one before. The
            first is spectrally normalised.
        scale_layers: of each of them.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    period_kernel: int = 5
    period_stride: int = 3
    scales: int = 3
    scale_layers: tuple[ConvSpec, ...] = (
        ConvSpec(128, 15),
        ConvSpec(128, 41, 2, 4),
        ConvSpec(256, 41, 2, 16),
        ConvSpec(512, 41, 4, 16),
        ConvSpec(1024, 41, 4, 16),
        ConvSpec(1024, 41, 1, 16),
        ConvSpec(1024, 5),
    )

    @classmethod
    def published(cls) -> DiscriminatorConfig:
        """As in the paper: 70.7 M parameters."""
        return cls()

    @classmethod
    def mini(cls) -> DiscriminatorConfig:
        """For minutes on a CPU; without groups, whose gradient is slow there."""
        return cls(
            period_channels=(8, 16, 32, 64),
            scales=1,
            scale_layers=(
                ConvSpec(16, 15, 4),
                ConvSpec(32, 15, 4),
                ConvSpec(64, 15, 4),
                ConvSpec(64, 5),
            ),
        )

    @classmethod
    def tiny(cls) -> DiscriminatorConfig:
        """For tests."""
        return cls(
            periods=(2, 3),
            period_channels=(4, 8),
            scales=2,
            scale_layers=(ConvSpec(4, 5), ConvSpec(8, 7, 2, 2)),
        )


@dataclasses.dataclass(frozen=True)
class MelGANDiscriminatorConfig:
    """Sizes of MelGAN's discriminators.

    Attributes:
        scales: discriminators, each at half the rate of the one before.
        layers: of each of them; the first pads by reflection.
    """

    scales: int = 3
    layers: tuple[ConvSpec, ...] = (
        ConvSpec(16, 15),
        ConvSpec(64, 41, 4, 4),
        ConvSpec(256, 41, 4, 16),
        ConvSpec(1024, 41, 4, 64),
        ConvSpec(1024, 41, 4, 256),
        ConvSpec(1024, 5),
    )

    @classmethod
    def published(cls) -> MelGANDiscriminatorConfig:
        """As in the paper: 16.9 M parameters."""
        return cls()

    @classmethod
    def multiband(cls) -> MelGANDiscriminatorConfig:
        """For the full band of multi-band MelGAN (ParallelWaveGAN `multi_band_melgan.v2.yaml`)."""
        return cls(
            layers=(
                ConvSpec(16, 15),
                ConvSpec(64, 41, 4, 4),
                ConvSpec(256, 41, 4, 16),
                ConvSpec(512, 41, 4, 64),
                ConvSpec(512, 5),
            )
        )

    @classmethod
    def mini(cls) -> MelGANDiscriminatorConfig:
        """For minutes on a CPU; without groups, whose gradient is slow there."""
        return cls(
            layers=(ConvSpec(16, 15), ConvSpec(32, 15, 4), ConvSpec(64, 15, 4), ConvSpec(64, 5))
        )

    @classmethod
    def tiny(cls) -> MelGANDiscriminatorConfig:
        """For tests."""
        return cls(scales=2, layers=(ConvSpec(4, 5), ConvSpec(8, 7, 2, 2), ConvSpec(8, 5)))


DiscriminatorsConfig = DiscriminatorConfig | MelGANDiscriminatorConfig


def make_discriminators(config: DiscriminatorsConfig, dtype: DTypeLike = jnp.float32) -> nn.Module:
    """The networks that a config describes: f32[b, t] -> list[Judgement]."""
    if isinstance(config, MelGANDiscriminatorConfig):
        return MelGANDiscriminators(config, dtype)
    return Discriminators(config, dtype)


class Discriminators(nn.Module):
    """All discriminators of a waveform: those by period, then those by scale.

    Attributes:
        config: sizes.
        dtype: of the computation.
    """

    config: DiscriminatorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "b t"]) -> list[Judgement]:
        """Judges waveforms.

        Returns:
            for each discriminator its logits [b, ...] and its feature maps [b, ..., c], the logits
            being the last of them.
        """
        config = self.config
        judgements = [
            PeriodDiscriminator(config, period, self.dtype, name=f"period_{period}")(waveform)
            for period in config.periods
        ]
        for i in range(config.scales):
            judgements.append(
                ScaleDiscriminator(
                    config.scale_layers, i == 0, dtype=self.dtype, name=f"scale_{i}"
                )(waveform)
            )
            # Halved; as published, the zeros of the padding are counted in the mean.
            waveform = nn.avg_pool(waveform[..., None], (4,), (2,), [(2, 2)])[..., 0]
        return judgements


class MelGANDiscriminators(nn.Module):
    """MelGAN's discriminators of a waveform at several rates.

    Attributes:
        config: sizes.
        dtype: of the computation.
    """

    config: MelGANDiscriminatorConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "b t"]) -> list[Judgement]:
        """Judges waveforms.

        Returns:
            for each discriminator its logits [b, s] and its feature maps [b, s, c], to which the
            logits do not belong.
        """
        judgements = []
        for i in range(self.config.scales):
            logits, maps = ScaleDiscriminator(
                self.config.layers,
                spectral=False,
                slope=_MELGAN_SLOPE,
                reflect=True,
                dtype=self.dtype,
                name=f"scale_{i}",
            )(waveform)
            judgements.append((logits, maps[:-1]))
            # Halved; as published, the padding has no part in the mean.
            waveform = nn.avg_pool(
                waveform[..., None], (4,), (2,), [(1, 1)], count_include_pad=False
            )[..., 0]
        return judgements


class PeriodDiscriminator(nn.Module):
    """Sees the samples that lie whole periods apart, for each phase of the period separately.

    The published (k, 1) convolutions over [time / period, period] are 1-D convolutions with the
    phases in the batch.
    """

    config: DiscriminatorConfig
    period: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "b t"]) -> Judgement:
        config, period = self.config, self.period
        batch, samples = waveform.shape
        waveform = jnp.pad(waveform, ((0, 0), (0, -samples % period)), mode="reflect")
        x = waveform.reshape(batch, -1, period).swapaxes(1, 2).reshape(batch * period, -1, 1)
        last = len(config.period_channels) - 1
        half = (config.period_kernel - 1) // 2
        layers = [
            WeightNormConv(
                channels,
                config.period_kernel,
                config.period_stride if i < last else 1,
                padding=(half, half),
                dtype=self.dtype,
                name=f"conv_{i}",
            )
            for i, channels in enumerate(config.period_channels)
        ]
        layers.append(WeightNormConv(1, 3, dtype=self.dtype, name="last"))
        maps = [m.reshape(batch, period, *m.shape[1:]) for m in _maps(layers, x)]
        return maps[-1][..., 0], maps


class ScaleDiscriminator(nn.Module):
    """Sees the waveform through strided, grouped convolutions.

    Attributes:
        layers: all but the last, which gives the logits.
        spectral: kernels are normalised by spectrum, not by weight.
        slope: of the leaky ReLUs.
        reflect: the first layer pads the waveform by reflection, not with zeros.
        dtype: of the computation.
    """

    layers: tuple[ConvSpec, ...]
    spectral: bool
    slope: float = _SLOPE
    reflect: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "b t"]) -> Judgement:
        conv = SpectralNormConv if self.spectral else WeightNormConv
        specs = (*self.layers, ConvSpec(1, 3))
        sides = [(spec.kernel - 1) // 2 for spec in specs]
        if self.reflect:
            waveform = jnp.pad(waveform, ((0, 0), (sides[0], sides[0])), mode="reflect")
            sides[0] = 0
        layers = [
            conv(
                spec.channels,
                spec.kernel,
                spec.stride,
                groups=spec.groups,
                padding=(side, side),
                dtype=self.dtype,
                name=f"conv_{i}" if i < len(self.layers) else "last",
            )
            for i, (spec, side) in enumerate(zip(specs, sides))
        ]
        maps = _maps(layers, waveform[..., None], self.slope)
        return maps[-1][..., 0], maps


def _maps(layers: list[nn.Module], x: Array, slope: float = _SLOPE) -> list[Array]:
    """Feature maps of all layers, after their leaky ReLUs but for the last."""
    maps = []
    for layer in layers[:-1]:
        x = nn.leaky_relu(layer(x), slope)
        maps.append(x)
    maps.append(layers[-1](x))
    return [m.astype(jnp.float32) for m in maps]
