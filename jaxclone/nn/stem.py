"""What stands before a transformer over speech: from samples to frames."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.nn.layers import conv
from jaxclone.nn.norm import TimeNorm, layer_norm, normalize_waveform, scale_log_mel
from jaxclone.types import Array, length_mask

StemNorm = Literal["group", "masked_group", "layer"]


class ConvStem(nn.Module):
    """Strided convolutions over samples (Baevski et al. 2020 §2).

    Attributes:
        width: channels.
        kernels: taps of each convolution.
        strides: stride of each.
        use_bias: whether they have a bias.
        norm: "group" normalises the first convolution over time, padding included; "masked_group"
            leaves the padding out; "layer" normalises each over channels.
        padding: zeros added on each side of the waveform.
        normalize_input: bring each waveform to zero mean and unit variance.
        dtype: of the computation.
    """

    width: int
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    use_bias: bool
    norm: StemNorm
    padding: int
    normalize_input: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, waveform: Float[Array, "b t"], length: Int[Array, " b"]
    ) -> Float[Array, "b f c"]:
        """Frames of samples; what follows an example's length is ignored."""
        if self.normalize_input:
            waveform = normalize_waveform(waveform, length)
        else:
            waveform = jnp.where(length_mask(length, waveform.shape[1]), waveform, 0)
        waveform = jnp.pad(waveform, ((0, 0), (self.padding, self.padding)))
        length = length + 2 * self.padding
        x = waveform[..., None].astype(self.dtype)
        for index, (kernel, stride) in enumerate(zip(self.kernels, self.strides)):
            x = conv(self.width, kernel, stride, self.dtype, self.use_bias, f"conv_{index}")(x)
            length = jnp.maximum((length - kernel) // stride + 1, 0)
            if self.norm == "layer":
                x = layer_norm("channels_out", self.dtype, f"norm_{index}")(x)
            elif index == 0:
                masked = self.norm == "masked_group"
                x = TimeNorm(masked, self.dtype, name=f"norm_{index}")(x, length)
            x = nn.gelu(x, approximate=False)
        return nn.with_logical_constraint(x, ("batch", "time", "channels_out"))


class MelStem(nn.Module):
    """Two convolutions over log-mel frames (as Chung et al. 2021 §3.1).

    Attributes:
        width: channels.
        mel: how samples become mel frames.
        dtype: of the computation.
    """

    width: int
    mel: AudioSpec
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, waveform: Float[Array, "b t"] | Float[Array, "b f m"], length: Int[Array, " b"]
    ) -> Float[Array, "b f c"]:
        """Frames of samples, or of log-mels; what follows an example's length is ignored."""
        mel = waveform if waveform.ndim == 3 else log_mel(waveform, self.mel, length)
        mask = length_mask(length // self.mel.hop_length, mel.shape[1])[..., None]
        x = scale_log_mel(mel).astype(self.dtype)
        for index in range(2):
            x = jnp.pad(jnp.where(mask, x, 0), ((0, 0), (1, 1), (0, 0)))
            x = conv(self.width, 3, 1, self.dtype, name=f"conv_{index}")(x)
            x = nn.gelu(x, approximate=False)
        return nn.with_logical_constraint(x, ("batch", "time", "channels_out"))
