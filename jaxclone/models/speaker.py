"""A speaker encoder: whose voice a log-mel spectrogram is, as one unit vector."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

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
        # Log-mel lies in about [-11.5, 2]; this brings it to the order of one.
        x = ((log_mel + 5.0) / 4.0).astype(self.dtype) * mask
        x = _conv(config.channels, 1, self.dtype, "stem")(x)
        for index in range(config.layers):
            y = nn.LayerNorm(
                dtype=self.dtype,
                scale_init=nn.with_logical_partitioning(nn.initializers.ones, ("channels_out",)),
                bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
                name=f"norm_{index}",
            )(x)
            y = _conv(config.channels, config.kernel, self.dtype, f"conv_{index}", 2**index)(
                y * mask
            )
            x = (x + nn.gelu(y)) * mask
        score = _conv(config.attention, 1, self.dtype, "attention_in")(x)
        score = _conv(config.channels, 1, self.dtype, "attention_out")(nn.tanh(score))
        # Statistics in f32 whatever the precision of the layers.
        x = x.astype(jnp.float32)
        weight = jax.nn.softmax(jnp.where(mask, score.astype(jnp.float32), -1e9), axis=1)
        mean = jnp.sum(weight * x, axis=1)
        variance = jnp.sum(weight * (x - mean[:, None]) ** 2, axis=1)
        pooled = jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)
        embedding = nn.Dense(
            config.embedding,
            kernel_init=nn.with_logical_partitioning(
                nn.initializers.lecun_normal(), ("channels_in", "speaker")
            ),
            bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("speaker",)),
            name="embedding",
        )(pooled)
        return embedding / jnp.sqrt(jnp.sum(embedding**2, axis=-1, keepdims=True) + 1e-8)


def _conv(width: int, kernel: int, dtype: DTypeLike, name: str, dilation: int = 1) -> nn.Conv:
    return nn.Conv(
        width,
        (kernel,),
        kernel_dilation=(dilation,),
        padding="SAME",
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(
            nn.initializers.lecun_normal(), ("kernel", "channels_in", "channels_out")
        ),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
        name=name,
    )
