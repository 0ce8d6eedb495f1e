"""A speaker encoder: whose voice a log-mel spectrogram is, as one unit vector."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.nn.layers import dense, same_conv
from jaxclone.nn.norm import layer_norm, scale_log_mel
from jaxclone.types import Array, length_mask


@dataclasses.dataclass(frozen=True)
class SpeakerEncoderConfig:
    """Sizes of the speaker encoder.

    Attributes:
        channels: width of the convolutions.
        layers: residual convolution blocks; the dilation doubles with each.
        kernel: taps of a convolution.
        attention: width of the attention that weighs frames.
        embedding: size of the result.
    """

    channels: int = 512
    layers: int = 4
    kernel: int = 5
    attention: int = 128
    embedding: int = 192

    @classmethod
    def mini(cls) -> SpeakerEncoderConfig:
        """Trains in minutes on a CPU."""
        return cls(channels=96, layers=3, attention=32, embedding=64)

    @classmethod
    def tiny(cls) -> SpeakerEncoderConfig:
        """For tests."""
        return cls(channels=8, layers=1, kernel=3, attention=4, embedding=8)


class SpeakerEncoder(nn.Module):
    """Dilated convolutions over mel frames, then attentive statistics pooling.

    Pooling follows Okabe et al. 2018 (§3): softmax weights over the frames, and the weighted mean
    and standard deviation of each channel.
    """

    config: SpeakerEncoderConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, log_mel: Float[Array, "b f m"], length: Int[Array, " b"]
    ) -> Float[Array, "b d"]:
        """Embeds each spectrogram.

        Args:
            log_mel: natural-log mel magnitudes.
            length: true frames of each.

        Returns:
            f32 unit vectors.
        """
        config = self.config
        mask = length_mask(length, log_mel.shape[1])[..., None]
        x = scale_log_mel(log_mel).astype(self.dtype) * mask
        x = same_conv(config.channels, 1, self.dtype, "stem")(x)
        for index in range(config.layers):
            y = layer_norm("channels_out", self.dtype, f"norm_{index}")(x)
            y = same_conv(config.channels, config.kernel, self.dtype, f"conv_{index}", 2**index)(
                y * mask
            )
            x = (x + nn.gelu(y)) * mask
        score = same_conv(config.attention, 1, self.dtype, "attention_in")(x)
        score = same_conv(config.channels, 1, self.dtype, "attention_out")(nn.tanh(score))
        # Statistics in f32 whatever the precision of the layers.
        x = x.astype(jnp.float32)
        weight = jax.nn.softmax(jnp.where(mask, score.astype(jnp.float32), -1e9), axis=1)
        mean = jnp.sum(weight * x, axis=1)
        variance = jnp.sum(weight * (x - mean[:, None]) ** 2, axis=1)
        pooled = jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)
        embedding = dense(
            config.embedding,
            ("channels_in", "speaker"),
            jnp.float32,
            "embedding",
            nn.initializers.lecun_normal(),
        )(pooled)
        return embedding / jnp.sqrt(jnp.sum(embedding**2, axis=-1, keepdims=True) + 1e-8)
