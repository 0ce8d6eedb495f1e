"""HiFi-GAN's discriminators: by period and by scale (Kong et al. 2020 §2.3; `models.py`)."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclone.nn.weight_norm import SpectralNormConv, WeightNormConv
from jaxclone.types import Array

_SLOPE = 0.1
# What one discriminator says: logits with the batch first, and the feature maps of all its layers.
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
                ScaleDiscriminator(config.scale_layers, i == 0, self.dtype, name=f"scale_{i}")(
                    waveform
                )
            )
            # Halved; as published, the zeros of the padding are counted in the mean.
            waveform = nn.avg_pool(waveform[..., None], (4,), (2,), [(2, 2)])[..., 0]
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
    """Sees the waveform through strided, grouped convolutions."""

    layers: tuple[ConvSpec, ...]
    spectral: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, waveform: Float[Array, "b t"]) -> Judgement:
        conv = SpectralNormConv if self.spectral else WeightNormConv
        specs = (*self.layers, ConvSpec(1, 3))
        layers = [
            conv(
                spec.channels,
                spec.kernel,
                spec.stride,
                groups=spec.groups,
                padding=((spec.kernel - 1) // 2,) * 2,
                dtype=self.dtype,
                name=f"conv_{i}" if i < len(self.layers) else "last",
            )
            for i, spec in enumerate(specs)
        ]
        maps = _maps(layers, waveform[..., None])
        return maps[-1][..., 0], maps


def _maps(layers: list[nn.Module], x: Array) -> list[Array]:
    """Feature maps of all layers, after their leaky ReLUs but for the last."""
    maps = []
    for layer in layers[:-1]:
        x = nn.leaky_relu(layer(x), _SLOPE)
        maps.append(x)
    maps.append(layers[-1](x))
    return [m.astype(jnp.float32) for m in maps]
