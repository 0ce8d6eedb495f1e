"""Normalisation: over channels, over time, and of waveforms."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.types import Array, length_mask


def layer_norm(axis: str, dtype: DTypeLike, name: str | None = None) -> nn.LayerNorm:
    """Layer normalisation over the last axis, whose logical name is `axis`; statistics in f32."""
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=dtype,
        use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits where the mean is large
        scale_init=nn.with_logical_partitioning(nn.initializers.ones, (axis,)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, (axis,)),
        name=name,
    )


class TimeNorm(nn.Module):
    """Group normalisation with one channel a group: each channel over time.

    Attributes:
        masked: take the statistics over the true positions only, so that padding changes nothing.
            The published wav2vec 2.0 takes them over everything, padding included.
        dtype: of the result; statistics are f32.
    """

    masked: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"], length: Int[Array, " b"]) -> Float[Array, "b t c"]:
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("channels_out",)),
            (x.shape[-1],),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
            (x.shape[-1],),
        )
        x = x.astype(jnp.float32)
        where = length_mask(length, x.shape[1])[..., None] if self.masked else None
        mean, variance = _moments(x, where)
        return ((x - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale) + bias).astype(self.dtype)


def scale_log_mel(log_mel: Float[Array, "*b m"]) -> Float[Array, "*b m"]:
    """Natural-log mels, which lie in about [-11.5, 2], brought to the order of one."""
    return (log_mel + 5.0) / 4.0


def normalize_waveform(
    waveform: Float[Array, "b t"], length: Int[Array, " b"]
) -> Float[Array, "b t"]:
    """Zero mean and unit variance over each example's true samples, zero after them.

    As the data of the LARGE models is prepared (fairseq `data/audio/raw_audio_dataset.py`).
    """
    where = length_mask(length, waveform.shape[1])
    mean, variance = _moments(waveform, where)
    return jnp.where(where, (waveform - mean) * jax.lax.rsqrt(variance + 1e-5), 0)


def mean_square(x: Float[Array, "b f d"], length: Int[Array, " b"]) -> Float[Array, " b"]:
    """Of each example's true frames, in f32; 0 for an example without any."""
    where = length_mask(length, x.shape[1])[..., None]
    square = jnp.where(where, jnp.square(x.astype(jnp.float32)), 0)
    return square.sum((1, 2)) / jnp.maximum(length * x.shape[-1], 1)


def unit_norm(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors scaled to length 1, in f32; one of length 0 stays."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def _moments(x: Array, where: Array | None) -> tuple[Array, Array]:
    """Mean and variance over axis 1, of the entries where `where`; 0 where there are none."""
    if where is None:
        return x.mean(1, keepdims=True), x.var(1, keepdims=True)
    count = jnp.maximum(where.sum(1, keepdims=True), 1)
    mean = jnp.where(where, x, 0).sum(1, keepdims=True) / count
    square = jnp.where(where, jnp.square(x - mean), 0)
    return mean, square.sum(1, keepdims=True) / count
