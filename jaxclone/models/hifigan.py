"""HiFi-GAN: log-mel spectrogram to waveform (Kong et al. 2020; jik876/hifi-gan `models.py`)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.nn.weight_norm import WeightNormConv, WeightNormConvTranspose
from jaxclone.types import Array, UserError, length_mask

# Taps of the first and the last convolution.
_EDGE_KERNEL = 7
# Slope of the leaky ReLUs, and of the one before the last convolution, where the published code
# leaves PyTorch's default.
_SLOPE, _LAST_SLOPE = 0.1, 0.01


@dataclasses.dataclass(frozen=True)
class HiFiGANConfig:
    """Sizes of the generator.

    Attributes:
        n_mels: mel bands of the input.
        upsample_rates: factors by which the time axis grows; their product is the hop length.
        upsample_kernels: taps of each transposed convolution.
        channels: after the first convolution; halved by each upsampling.
        resblock: 1 has two convolutions a dilation, 2 has one.
        resblock_kernels: taps of the parallel residual blocks that follow each upsampling.
        resblock_dilations: of each of those blocks, one after the other.
        normalize_input: whether the mels are first normalised, by a mean and a scale of each band
            that are kept with the weights and never trained (`SpeechT5HifiGan`).
    """

    n_mels: int = 80
    upsample_rates: tuple[int, ...] = (8, 8, 2, 2)
    upsample_kernels: tuple[int, ...] = (16, 16, 4, 4)
    channels: int = 512
    resblock: Literal[1, 2] = 1
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    normalize_input: bool = False

    def __post_init__(self) -> None:
        if len(self.upsample_rates) != len(self.upsample_kernels):
            raise UserError("HiFiGANConfig needs an upsample kernel for each upsample rate")
        if any(k < u for k, u in zip(self.upsample_kernels, self.upsample_rates)):
            raise UserError("HiFiGANConfig needs upsample kernels no shorter than their rates")
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise UserError("HiFiGANConfig needs dilations for each resblock kernel")
        if self.channels % 2 ** len(self.upsample_rates):
            raise UserError(
                f"HiFiGANConfig needs channels divisible by {2 ** len(self.upsample_rates)} "
                f"({len(self.upsample_rates)} upsamplings), got {self.channels}"
            )

    @classmethod
    def v1(cls) -> HiFiGANConfig:
        """13.92 M parameters (config_v1.json)."""
        return cls()

    @classmethod
    def v2(cls) -> HiFiGANConfig:
        """0.92 M parameters (config_v2.json)."""
        return cls(channels=128)

    @classmethod
    def v3(cls) -> HiFiGANConfig:
        """1.46 M parameters, three upsamplings and the smaller residual block (config_v3.json)."""
        return cls(
            upsample_rates=(8, 8, 4),
            upsample_kernels=(16, 16, 8),
            channels=256,
            resblock=2,
            resblock_kernels=(3, 5, 7),
            resblock_dilations=((1, 2), (2, 6), (3, 12)),
        )

    @classmethod
    def mini(cls) -> HiFiGANConfig:
        """For a hop of 320; trains in minutes on a CPU."""
        return cls(
            upsample_rates=(8, 5, 4, 2),
            upsample_kernels=(16, 10, 8, 4),
            channels=128,
            resblock=2,
            resblock_kernels=(3, 5),
            resblock_dilations=((1, 3), (2, 6)),
        )

    @classmethod
    def tiny(cls) -> HiFiGANConfig:
        """For tests, with a hop of 20 and 8 mel bands."""
        return cls(
            n_mels=8,
            upsample_rates=(5, 4),
            upsample_kernels=(10, 8),
            channels=16,
            resblock_kernels=(3,),
            resblock_dilations=((1, 2),),
        )

    @property
    def hop_length(self) -> int:
        """Samples a frame.

        >>> HiFiGANConfig.v1().hop_length, HiFiGANConfig.mini().hop_length
        (256, 320)
        """
        return math.prod(self.upsample_rates)

    def require(self, spec: AudioSpec) -> None:
        """Raises a UserError unless this generator can speak the mels of `spec`."""
        if self.hop_length != spec.hop_length:
            rates = " x ".join(map(str, self.upsample_rates))
            raise UserError(
                f"the vocoder's upsample_rates give {rates} = {self.hop_length} samples a frame, "
                f"the AudioSpec has hop_length {spec.hop_length}"
            )
        if self.n_mels != spec.n_mels:
            raise UserError(
                f"the vocoder takes n_mels {self.n_mels}, the AudioSpec has {spec.n_mels}"
            )


def context_frames(config: HiFiGANConfig) -> int:
    """Frames on either side that a frame of the waveform depends on.

    A piece of a spectrogram with this much context at either end is spoken as it would be within
    the whole.
    """
    return _margins(config)[0] + (_EDGE_KERNEL - 1) // 2


def _margins(config: HiFiGANConfig) -> list[int]:
    """Samples beyond either end that the waveform depends on.

    After the first layer, then after each upsampling with its blocks.
    """
    second = 1 if config.resblock == 1 else 0
    blocks = max(
        sum((kernel - 1) // 2 * (dilation + second) for dilation in dilations)
        for kernel, dilations in zip(config.resblock_kernels, config.resblock_dilations)
    )
    margins = [(_EDGE_KERNEL - 1) // 2]
    for rate, kernel in zip(reversed(config.upsample_rates), reversed(config.upsample_kernels)):
        cut = (kernel - rate) // 2
        # Sample t of an upsampling depends on the inputs i with 0 <= t + cut - i * rate < kernel.
        margins.append((margins[-1] + blocks + kernel - 1 - cut) // rate)
    return margins[::-1]


class Generator(nn.Module):
    """Upsampling by transposed convolutions, each followed by residual blocks of several reaches.

    Attributes:
        config: sizes.
        dtype: of the computation; the last layer and the waveform are f32.
        context: frames at either end that are not spoken, but heard by those that are: 0, or
            `context_frames` and more. Each layer drops what nothing after it depends on.
    """

    config: HiFiGANConfig
    dtype: DTypeLike = jnp.float32
    context: int = 0

    @nn.compact
    def __call__(
        self, log_mel: Float[Array, "b f m"], length: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t"]:
        """Speaks mels.

        Args:
            log_mel: spectrograms of the AudioSpec that the generator was trained with.
            length: true frames of each. When given, each waveform is that of its spectrogram
                alone, and 0 after its end. Not together with `context`.

        Returns:
            f32[b, (f - 2 * context) * hop_length] in (-1, 1).
        """
        config, context = self.config, self.context
        margins = _margins(config)
        if context and (length is not None or context < context_frames(config)):
            raise ValueError(
                f"context is {context_frames(config)} frames or more, and without lengths"
            )

        def trimmed(x: Array, margin: int, needed: int) -> Array:
            drop = margin - needed if context else 0
            return x[:, drop : x.shape[1] - drop]

        def masked(x: Array, rate: int) -> Array:
            if length is None:
                return x
            return x * length_mask(length * rate, x.shape[1])[..., None].astype(x.dtype)

        if config.normalize_input:
            log_mel = Normalize(name="normalize")(log_mel)
        rate = 1
        x = WeightNormConv(config.channels, _EDGE_KERNEL, dtype=self.dtype, name="first")(
            masked(log_mel, rate)
        )
        x = trimmed(x, context, margins[0])
        for i, (factor, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels)):
            channels = config.channels // 2 ** (i + 1)
            x = masked(nn.leaky_relu(x, _SLOPE), rate)
            x = WeightNormConvTranspose(
                channels, kernel, factor, dtype=self.dtype, name=f"upsample_{i}"
            )(x)
            rate *= factor
            mask = None if length is None else masked(jnp.ones((*x.shape[:2], 1), x.dtype), rate)
            x = sum(
                ResBlock(config.resblock, *shape, dtype=self.dtype, name=f"block_{i}_{j}")(x, mask)
                for j, shape in enumerate(zip(config.resblock_kernels, config.resblock_dilations))
            ) / len(config.resblock_kernels)
            x = trimmed(x, margins[i] * factor, margins[i + 1])
            x = nn.with_logical_constraint(x, ("batch", "time", "channels_out"))
        x = masked(nn.leaky_relu(x, _LAST_SLOPE), rate)
        x = WeightNormConv(1, _EDGE_KERNEL, name="last")(x)  # f32: 8 bits are heard as noise
        x = trimmed(masked(x, rate), margins[-1], 0)
        return jnp.tanh(x[..., 0])


class Normalize(nn.Module):
    """Every band with a mean and a scale of its own, which are given and not trained."""

    @nn.compact
    def __call__(self, log_mel: Float[Array, "b f m"]) -> Float[Array, "b f m"]:
        def given(name: str, init: Any) -> Array:
            boxed = nn.with_logical_partitioning(init, ("mel",))
            return jax.lax.stop_gradient(self.param(name, boxed, log_mel.shape[-1:]))

        mean = given("mean", nn.initializers.zeros)
        return (log_mel - mean) / given("scale", nn.initializers.ones)


class ResBlock(nn.Module):
    """Residual convolutions of growing dilation.

    Attributes:
        kind: 1 follows each dilated convolution by an undilated one, 2 does not.
        kernel_size: taps.
        dilations: one residual step each.
        dtype: of the computation.
    """

    kind: Literal[1, 2]
    kernel_size: int
    dilations: tuple[int, ...]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], mask: Float[Array, "b t 1"] | None = None
    ) -> Float[Array, "b t c"]:
        def step(x: Array, dilation: int, name: str) -> Array:
            x = nn.leaky_relu(x, _SLOPE)
            x = x if mask is None else x * mask
            return WeightNormConv(
                x.shape[-1], self.kernel_size, dilation=dilation, dtype=self.dtype, name=name
            )(x)

        for i, dilation in enumerate(self.dilations):
            y = step(x, dilation, f"dilated_{i}")
            if self.kind == 1:
                y = step(y, 1, f"plain_{i}")
            x = x + y
        return x
