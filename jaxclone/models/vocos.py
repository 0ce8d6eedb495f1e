"""Vocos: log-mel spectrogram to waveform by way of a spectrum (Siuzdak 2023, arXiv:2306.00814).

All layers work at the rate of the frames, and an inverse STFT makes the samples: a fraction of the
work of a generator that upsamples, which is what lets it train in minutes on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import istft, mel_filterbank
from jaxclone.nn.layers import dense
from jaxclone.nn.norm import layer_norm
from jaxclone.types import Array, length_mask

# Magnitudes stay below e to this, whatever an untrained model makes of its input. The spectrum is
# predicted in the natural logarithm, whatever that of the mels is.
_LOUDEST = 6.0


@dataclasses.dataclass(frozen=True)
class VocosConfig:
    """Sizes of the generator; the defaults are those of the paper (§3.1).

    Attributes:
        audio: of the mels and of the inverse STFT.
        width: of the backbone.
        mlp_width: inside a block.
        layers: ConvNeXt blocks.
        kernel: taps of their depthwise convolutions.
    """

    audio: AudioSpec = AudioSpec()
    width: int = 512
    mlp_width: int = 1536
    layers: int = 8
    kernel: int = 7

    @classmethod
    def mini(cls) -> VocosConfig:
        """Trains in minutes on a CPU."""
        return cls(width=256, mlp_width=768, layers=4)

    @classmethod
    def tiny(cls) -> VocosConfig:
        """For tests."""
        return cls(width=8, mlp_width=16, layers=1, kernel=3)

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.audio.hop_length

    def require(self, spec: AudioSpec) -> None:
        """Raises a UserError unless this generator can speak the mels of `spec`."""
        self.audio.require(spec, "the vocoder's run")

    @property
    def context_frames(self) -> int:
        """Frames on either side that a frame of the waveform depends on."""
        convolutions = (self.layers + 1) * (self.kernel // 2)
        return convolutions + -(-self.audio.n_fft // (2 * self.audio.hop_length)) + 1


class Vocos(nn.Module):
    """ConvNeXt blocks over the frames, then magnitude and phase of a spectrum.

    Unlike the published model, which finds the magnitude from nothing, this one corrects what the
    pseudo-inverse of the mel filterbank gives: its first sound has the right envelope already.

    Attributes:
        config: sizes.
        dtype: of the computation; the layers that make the spectrum, and the waveform, are f32.
    """

    config: VocosConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, log_mel: Float[Array, "b f m"], length: Int[Array, " b"] | None = None
    ) -> Float[Array, "b t"]:
        """Speaks mels.

        Args:
            log_mel: spectrograms of the config's AudioSpec.
            length: true frames of each. When given, each waveform is that of its spectrogram
                alone, and 0 after its end.

        Returns:
            f32[b, f * hop_length].
        """
        config, audio = self.config, self.config.audio
        mask = None if length is None else length_mask(length, log_mel.shape[1])[..., None]

        def masked(x: Array) -> Array:
            return x if mask is None else jnp.where(mask, x, 0)

        # Log-mel lies in about [-11.5, 2]; this brings it to the order of one.
        x = masked(((log_mel + 5) / 4).astype(self.dtype))
        x = nn.Conv(
            config.width,
            (config.kernel,),
            dtype=self.dtype,
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.lecun_normal(), ("kernel", "channels_in", "embed")
            ),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("embed",)),
            name="first",
        )(x)
        x = layer_norm("embed", self.dtype, "first_norm")(x)
        for index in range(config.layers):
            x = x + _Block(config, self.dtype, name=f"block_{index}")(masked(x))
            x = nn.with_logical_constraint(x, ("batch", "time", "embed"))
        x = layer_norm("embed", self.dtype, "last_norm")(x)
        n_bins = audio.n_fft // 2 + 1
        # In f32: a spectrum, let alone a phase, of 8 bits is heard as noise.
        correction, phase = (
            dense(n_bins, ("embed", "channels_out"), jnp.float32, name)(x)
            for name in ("magnitude", "phase")
        )
        magnitude = jnp.exp(jnp.minimum(_first_guess(log_mel, audio) + correction, _LOUDEST))
        return istft(magnitude * jnp.exp(1j * phase), audio, length)


class _Block(nn.Module):
    """ConvNeXt (Liu et al. 2022): a depthwise convolution and a feed-forward layer, scaled."""

    config: VocosConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config = self.config
        taps = self.param(
            "taps",
            nn.with_logical_partitioning(
                nn.initializers.normal(config.kernel**-0.5), ("kernel", "embed")
            ),
            (config.kernel, config.width),
        ).astype(self.dtype)
        # One multiplication a tap: XLA has no fast depthwise convolution on a CPU.
        half, size = config.kernel // 2, x.shape[1]
        padded = jnp.pad(x, ((0, 0), (half, config.kernel - 1 - half), (0, 0)))
        x = sum(padded[:, i : i + size] * tap for i, tap in enumerate(taps))
        x = layer_norm("embed", self.dtype, "norm")(x)
        init = nn.initializers.lecun_normal()
        x = dense(config.mlp_width, ("embed", "mlp"), self.dtype, "widen", init)(x)
        x = dense(config.width, ("mlp", "embed"), self.dtype, "narrow", init)(nn.gelu(x))
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(
                nn.initializers.constant(1 / max(config.layers, 3)), ("embed",)
            ),
            (config.width,),
        )
        return x * scale.astype(self.dtype)


def _first_guess(log_mel: Array, audio: AudioSpec) -> Array:
    """Log magnitude of the spectrum, by the pseudo-inverse of the filterbank: [b, f, bins]."""
    mel = jnp.exp(log_mel.astype(jnp.float32) * (1.0 if audio.log == "ln" else np.log(10.0)))
    # The pseudo-inverse takes differences of large numbers, of which fewer bits leave noise.
    guess = jnp.matmul(mel, _inverse_filterbank(audio), precision="highest")
    return jnp.log(jnp.maximum(guess, 10 * audio.floor))


@functools.cache
def _inverse_filterbank(audio: AudioSpec) -> np.ndarray:
    return np.linalg.pinv(mel_filterbank(audio)).T.astype(np.float32)
