"""The converter: what is said (content, F0) and who says it (speaker) to a log-mel spectrogram."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
import librosa
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.nn.adapter import Adapter
from jaxclone.nn.layers import dense, same_conv
from jaxclone.nn.norm import layer_norm
from jaxclone.types import Array, length_mask

_dense = functools.partial(dense, kernel_init=nn.initializers.lecun_normal())


@dataclasses.dataclass(frozen=True)
class ConverterConfig:
    """Sizes of the converter.

    Attributes:
        bottleneck: width of the content after the bottleneck: wide enough for the phones, too
            narrow for the timbre of the source.
        width: of the decoder.
        layers: residual blocks of the decoder; dilations cycle through 1, 2, 4.
        kernel: taps of a convolution.
        adapter_rank: bottleneck of the adapter in each block; 0 for none.
        content_layer: hidden state of the encoder that is the content: 0 is the input of the first
            transformer layer, -1 the output of the last.
    """

    bottleneck: int = 64
    width: int = 512
    layers: int = 9
    kernel: int = 5
    adapter_rank: int = 4
    content_layer: int = -1

    @classmethod
    def mini(cls) -> ConverterConfig:
        """Trains in minutes on a CPU."""
        return cls(bottleneck=32, width=160, layers=6, kernel=3)

    @classmethod
    def tiny(cls) -> ConverterConfig:
        """For tests."""
        return cls(bottleneck=4, width=8, layers=2, kernel=3, adapter_rank=2)


class Converter(nn.Module):
    """Bottleneck, then a decoder of dilated convolutions modulated by the speaker.

    The content loses its mean and variance over time (instance normalisation, Chou & Lee 2019
    §3.2) and most of its width (Qian et al. 2019 §3), both of which carry the source's timbre; the
    speaker embedding scales and shifts every block's normalised input, and F0 enters as it is.
    What it writes is a smooth spectrum and the depth of the ripple that the harmonics of F0 make on
    it (`harmonic_ripple`): with F0 as a number alone, a decoder of this size draws no harmonics,
    and whispers.

    Attributes:
        config: sizes.
        audio: what the mel is.
        dtype: of the computation.
    """

    config: ConverterConfig
    audio: AudioSpec
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        content: Float[Array, "b f c"],
        speaker: Float[Array, "b d"],
        f0: Float[Array, "b f"],
        length: Int[Array, " b"],
    ) -> Float[Array, "b f m"]:
        """Speaks the content in the speaker's voice.

        Args:
            content: features of the encoder.
            speaker: unit vectors.
            f0: Hz, 0 where unvoiced, in the speaker's range.
            length: true frames of each example.

        Returns:
            f32 natural-log mel magnitudes, 0 after each length.
        """
        config = self.config
        mask = length_mask(length, content.shape[1])[..., None]
        if self.is_initializing() or self.has_variable("adapter", "speaker_shift"):
            # Part of the adapted set: a person's embedding moves with the layers that read it.
            speaker = (
                speaker
                + self.variable(
                    "adapter",
                    "speaker_shift",
                    lambda: nn.with_logical_partitioning(nn.initializers.zeros, ("speaker",))(
                        self.make_rng("adapter"), (speaker.shape[-1],), jnp.float32
                    ),
                ).value
            )
        speaker = speaker.astype(self.dtype)

        content = instance_norm(content, mask).astype(self.dtype)
        content = _dense(config.bottleneck, ("embed", "bottleneck"), self.dtype, "bottleneck")(
            content
        )
        voiced = (f0 > 0).astype(self.dtype)
        # log2 of F0 over 150 Hz: speech lies within about two octaves of it.
        octaves = jnp.log2(jnp.maximum(f0, 1.0) / 150.0).astype(self.dtype) * voiced
        pitch = jnp.stack([octaves, voiced], axis=-1)
        x = _dense(config.width, ("bottleneck", "embed"), self.dtype, "inlet")(
            jnp.concatenate([content, pitch], axis=-1) * mask
        )
        for index in range(config.layers):
            x = x + _Block(config, 2 ** (index % 3), self.dtype, name=f"block_{index}")(
                x, speaker, mask
            )
            x = nn.with_logical_constraint(x, ("batch", "time", "embed"))
        x = layer_norm("embed", self.dtype, "norm")(x)
        # The bias starts at the level of quiet speech, so that training starts near the data.
        x = x.astype(jnp.float32)
        bands, axes = self.audio.n_mels, ("embed", "mel")
        smooth = _dense(bands, axes, jnp.float32, "outlet", bias=-6.0)(x)
        depth = _dense(bands, axes, jnp.float32, "ripple", bias=0.5)(x)
        return (smooth + depth * harmonic_ripple(f0, self.audio)) * mask


class _Block(nn.Module):
    """Normalise, modulate by the speaker, convolve over time, mix channels, adapt."""

    config: ConverterConfig
    dilation: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, speaker: Array, mask: Array) -> Array:
        width = self.config.width
        modulation = _dense(2 * width, ("speaker", "mlp"), self.dtype, "modulation")(speaker)
        scale, shift = jnp.split(modulation[:, None, :], 2, axis=-1)
        x = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(x)
        x = (x * (1 + scale) + shift) * mask
        x = same_conv(width, self.config.kernel, self.dtype, "conv", self.dilation)(x)
        x = _dense(width, ("channels_in", "embed"), self.dtype, "mix")(nn.gelu(x))
        if self.config.adapter_rank:
            x = Adapter(self.config.adapter_rank, self.dtype, name="adapter")(x)
        return x


def instance_norm(x: Float[Array, "b f c"], mask: Array) -> Float[Array, "b f c"]:
    """Zero mean and unit variance over the true frames of each channel (f32).

    Args:
        x: features.
        mask: bool [b, f, 1], True for true frames.
    """
    x = x.astype(jnp.float32)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    mean = jnp.sum(x * mask, axis=1, keepdims=True) / count
    variance = jnp.sum(((x - mean) * mask) ** 2, axis=1, keepdims=True) / count
    return (x - mean) / jnp.sqrt(variance + 1e-5) * mask


def harmonic_ripple(f0: Float[Array, "b f"], audio: AudioSpec) -> Float[Array, "b f m"]:
    """What the bands of a mel filterbank see of the harmonics of F0.

    A cosine over frequency with its crests at the multiples of F0, averaged over each triangular
    band: near 1 on a harmonic and -1 between two of them where bands are narrower than F0, fading
    to 0 where they are wider; 0 throughout where unvoiced.

    Args:
        f0: Hz, 0 where unvoiced.
        audio: the mel.
    """
    edges = librosa.mel_frequencies(
        audio.n_mels + 2, fmin=audio.fmin, fmax=audio.fmax or audio.sample_rate / 2
    )
    centre, half_width = edges[1:-1], (edges[2:] - edges[:-2]) / 2
    per_hertz = 1 / jnp.maximum(f0.astype(jnp.float32), 1.0)[..., None]
    # The Fourier transform of a triangle is a squared sinc.
    seen = jnp.cos(2 * np.pi * centre * per_hertz) * jnp.sinc(half_width * per_hertz) ** 2
    return jnp.where(f0[..., None] > 0, seen, 0.0)
