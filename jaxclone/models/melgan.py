"""MelGAN and multi-band MelGAN: log-mel spectrogram to waveform.

Kumar et al. 2019 (descriptinc/melgan-neurips `modules.py`); Yang et al. 2020, whose generator says
a few bands at a fraction of the rate, which a filter bank joins.
"""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio import pqmf
from jaxclone.audio.spec import AudioSpec
from jaxclone.nn.weight_norm import WeightNormConv, WeightNormConvTranspose
from jaxclone.types import Array, UserError, length_mask

# Taps of the first and the last convolution, and of those within a residual block.
_EDGE_KERNEL, _KERNEL = 7, 3
# Slope of the leaky ReLUs.
_SLOPE = 0.2


@dataclasses.dataclass(frozen=True)
class MelGANConfig:
    """Sizes of the generator.

    Attributes:
        n_mels: mel bands of the input.
        rates: factors by which the time axis grows; times `bands`, their product is the hop length.
        channels: after the first convolution; halved by each upsampling.
        layers: residual blocks after each upsampling, of dilation 1, 3, 9, ...
        bands: of the filter bank that makes the waveform; 1 for none.
    """

    n_mels: int = 80
    rates: tuple[int, ...] = (8, 8, 2, 2)
    channels: int = 512
    layers: int = 3
    bands: int = 1

    def __post_init__(self) -> None:
        if self.channels % 2 ** len(self.rates):
            raise UserError(
                f"MelGANConfig needs channels divisible by {2 ** len(self.rates)} "
                f"({len(self.rates)} upsamplings), got {self.channels}"
            )
        if self.bands != 1 and self.bands % 2:
            raise UserError(f"MelGANConfig needs 1 or an even number of bands, got {self.bands}")

    @classmethod
    def published(cls) -> MelGANConfig:
        """4.26 M parameters: 32 channels at the last, four upsamplings (`ngf` 32)."""
        return cls()

    @classmethod
    def multiband(cls) -> MelGANConfig:
        """2.53 M parameters: the paper's widths and four bands, for a hop of 256.

        Yang et al. 2020 §3.1 with the upsamplings of ParallelWaveGAN `multi_band_melgan.v2.yaml`;
        the paper's own hop is 200.
        """
        return cls(rates=(8, 4, 2), channels=384, layers=4, bands=4)

    @classmethod
    def mini(cls) -> MelGANConfig:
        """For a hop of 320; trains in minutes on a CPU."""
        return cls(rates=(8, 5, 4, 2), channels=128, layers=2)

    @classmethod
    def mini_multiband(cls) -> MelGANConfig:
        """For a hop of 320, in four bands; trains in minutes on a CPU."""
        return cls(rates=(8, 5, 2), channels=128, layers=2, bands=4)

    @classmethod
    def tiny(cls, bands: int = 1) -> MelGANConfig:
        """For tests, with a hop of 20 (24 in bands) and 8 mel bands."""
        rates = (5, 4) if bands == 1 else (3, 2)
        return cls(n_mels=8, rates=rates, channels=16, layers=2, bands=bands)

    @property
    def hop_length(self) -> int:
        """Samples a frame.

        >>> MelGANConfig.published().hop_length, MelGANConfig.mini_multiband().hop_length
        (256, 320)
        """
        return math.prod(self.rates) * self.bands

    def require(self, spec: AudioSpec) -> None:
        """Raises a UserError unless this generator can speak the mels of `spec`."""
        if self.hop_length != spec.hop_length:
            factors = " x ".join(map(str, (*self.rates, self.bands)))
            raise UserError(
                f"the vocoder's rates and bands give {factors} = {self.hop_length} samples a "
                f"frame, the AudioSpec has hop_length {spec.hop_length}"
            )
        if self.n_mels != spec.n_mels:
            raise UserError(
                f"the vocoder takes n_mels {self.n_mels}, the AudioSpec has {spec.n_mels}"
            )


def context_frames(config: MelGANConfig) -> int:
    """Frames on either side that a frame of the waveform depends on."""
    edge = (_EDGE_KERNEL - 1) // 2
    blocks = sum(3**i * (_KERNEL - 1) // 2 for i in range(config.layers))
    joined = pqmf.reach(config.bands) if config.bands > 1 else 0
    # The samples of frame 0, then layer by layer what they depend on.
    first = -joined // config.bands - edge
    last = (config.hop_length - 1 + joined) // config.bands + edge
    for rate in reversed(config.rates):
        kernel, cut = 2 * rate, rate // 2
        # Sample t of an upsampling depends on the inputs i with 0 <= t + cut - i * rate < kernel.
        first = -((kernel - 1 - cut - first + blocks) // rate)
        last = (last + blocks + cut) // rate
    return max(-first, last) + edge


class MelGAN(nn.Module):
    """Upsampling by transposed convolutions, each followed by residual blocks of growing reach.

    Attributes:
        config: sizes.
        dtype: of the computation; the last layer and the waveform are f32.
    """

    config: MelGANConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, log_mel: Float[Array, "b f m"], length: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t"]:
        """Speaks mels.

        Args:
            log_mel: spectrograms of the AudioSpec that the generator was trained with.
            length: true frames of each. When given, each waveform is that of its spectrogram
                alone, and 0 after its end.

        Returns:
            f32[b, f * hop_length]; in (-1, 1), or near to it where bands are joined.
        """
        config = self.config

        def ends(rate: int) -> Array | None:
            return None if length is None else length * rate

        rate = 1
        x = reflect(log_mel, (_EDGE_KERNEL - 1) // 2, length)
        x = WeightNormConv(
            config.channels, _EDGE_KERNEL, padding=(0, 0), dtype=self.dtype, name="first"
        )(x)
        for i, factor in enumerate(config.rates):
            channels = config.channels // 2 ** (i + 1)
            # Upsampling knows no reflection: beyond its end a signal is zero.
            x = _masked(nn.leaky_relu(x, _SLOPE), ends(rate))
            x = WeightNormConvTranspose(
                channels, 2 * factor, factor, dtype=self.dtype, name=f"upsample_{i}"
            )(x)
            rate *= factor
            for j in range(config.layers):
                x = ResidualBlock(3**j, self.dtype, name=f"block_{i}_{j}")(x, ends(rate))
            x = nn.with_logical_constraint(x, ("batch", "time", "channels_out"))
        x = reflect(nn.leaky_relu(x, _SLOPE), (_EDGE_KERNEL - 1) // 2, ends(rate))
        # In f32: a waveform of 8 bits is heard as noise.
        x = WeightNormConv(config.bands, _EDGE_KERNEL, padding=(0, 0), name="last")(x)
        x = _masked(jnp.tanh(x), ends(rate))
        if config.bands == 1:
            return x[..., 0]
        return _masked(pqmf.join_bands(x)[..., None], ends(rate * config.bands))[..., 0]


class ResidualBlock(nn.Module):
    """A dilated convolution and one of a single tap, beside a shortcut of a single tap.

    Attributes:
        dilation: samples between its taps.
        dtype: of the computation.
    """

    dilation: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], length: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t c"]:
        """Args: x, and the true samples of each signal, at whose end it is reflected."""
        features = x.shape[-1]
        y = reflect(nn.leaky_relu(x, _SLOPE), self.dilation, length)
        y = WeightNormConv(
            features,
            _KERNEL,
            dilation=self.dilation,
            padding=(0, 0),
            dtype=self.dtype,
            name="dilated",
        )(y)
        y = WeightNormConv(features, 1, dtype=self.dtype, name="plain")(nn.leaky_relu(y, _SLOPE))
        return y + WeightNormConv(features, 1, dtype=self.dtype, name="shortcut")(x)


def reflect(
    x: Float[Array, "b t c"], side: int, length: Int[Array, " b"] | None = None
) -> Float[Array, "b s c"]:
    """Pads signals by reflection; a signal shorter than the padding is reflected again and again.

    Args:
        x: signals.
        side: samples before and after each.
        length: true samples of each, at least 1. When given, each is reflected at its own end.

    >>> reflect(jnp.arange(4.0).reshape(1, 4, 1), 2, jnp.array([3]))[0, :, 0].tolist()
    [2.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0]
    """
    if length is None:
        return jnp.pad(x, ((0, 0), (side, side), (0, 0)), mode="reflect")
    last = jnp.maximum(jnp.asarray(length)[:, None] - 1, 0)
    position = jnp.arange(-side, x.shape[1] + side) % jnp.maximum(2 * last, 1)
    source = last - jnp.abs(last - position)
    return jnp.take_along_axis(x, source[..., None], axis=1)


def _masked(x: Float[Array, "b t c"], length: Int[Array, " b"] | None) -> Float[Array, "b t c"]:
    if length is None:
        return x
    return jnp.where(length_mask(length, x.shape[1])[..., None], x, 0)
