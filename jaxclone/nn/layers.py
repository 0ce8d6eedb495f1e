"""Dense layers and convolutions with logical axes, and what every block needs beside them."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Float, Key

from jaxclone.types import Array

Keys = Key[Array, " b"]

# torch's own default of a linear layer: uniform within 1 / sqrt(fan in).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: DTypeLike,
    name: str | None = None,
    kernel_init: Initializer = nn.initializers.normal(0.02),
    bias: float = 0.0,
) -> nn.Dense:
    """A linear layer over the last axis.

    Args:
        features: width of the result.
        axes: logical axes of the kernel: input, output.
        dtype: of the computation.
        name: of the submodule.
        kernel_init: the default is BERT's, used by the transformer of wav2vec 2.0.
        bias: its initial value.
    """
    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(nn.initializers.constant(bias), axes[1:]),
        name=name,
    )


def conv(
    features: int,
    kernel: int,
    stride: int,
    dtype: DTypeLike,
    use_bias: bool = True,
    name: str | None = None,
    kernel_init: Initializer = nn.initializers.he_normal(),
) -> nn.Conv:
    """A convolution over time without padding; [b, t, c] -> [b, (t - kernel) // stride + 1, c']."""
    return nn.Conv(
        features,
        (kernel,),
        (stride,),
        padding="VALID",
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.with_logical_partitioning(
            kernel_init, ("kernel", "channels_in", "channels_out")
        ),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
        name=name,
    )


def same_conv(
    features: int, kernel: int, dtype: DTypeLike, name: str | None = None, dilation: int = 1
) -> nn.Conv:
    """A convolution over time that keeps the number of positions, from LeCun's initial values.

    Args:
        features: channels of the result.
        kernel: taps.
        dtype: of the computation.
        name: of the submodule.
        dilation: positions from one tap to the next.
    """
    return nn.Conv(
        features,
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


def split_keys(keys: Keys | None, n: int) -> tuple[Keys | None, ...]:
    """Splits each example's key into n; None into n times None."""
    if keys is None:
        return (None,) * n
    return tuple(jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, n))(keys), 1, 0))


def dropout(x: Float[Array, "b ..."], rate: float, keys: Keys | None) -> Float[Array, "b ..."]:
    """Zeroes entries with probability `rate` and scales the rest up.

    Args:
        x: the first axis is the batch.
        rate: between 0 and 1.
        keys: one an example, so that the choice depends on the example alone; None for no dropout.
    """
    if keys is None or rate == 0.0:
        return x
    words = jax.vmap(lambda key: jax.random.bits(key, (2,), jnp.uint32))(keys)
    seeds = jnp.moveaxis(words, 1, 0).reshape(2, -1, *(1,) * (x.ndim - 1))
    keep = _scramble(_count(x.shape[1:]) + seeds[0], seeds[1]) >= np.uint32(rate * 2**32)
    return jnp.where(keep, x / (1 - rate), 0)


def _count(shape: tuple[int, ...]) -> Array:
    """u32[1, *shape]: each entry its own number, the product of the golden ratio and its place."""
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    places = (
        jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1) * np.uint32(step)
        for axis, step in enumerate(steps)
    )
    return sum(places, jnp.uint32(0)) * np.uint32(0x9E3779B9)


def _scramble(x: Array, seed: Array) -> Array:
    """Random bits from a number and a seed: a hash, which a fused loop makes at no cost.

    Dropout needs as many random numbers as there are activations; those of `jax.random` made up a
    seventh of a training step on a CPU. The rounds are lowbias32's (Wellons, hash-prospector), with
    the seed between two of them.
    """
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15) ^ seed) * np.uint32(0x735A2D97)
    x = (x ^ (x >> 15)) * np.uint32(0x21F0AAAD)
    return x ^ (x >> 16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Array, scale: float) -> Array:
    """The identity, whose gradient is multiplied by `scale`."""
    return x


scale_gradient.defvjp(lambda x, scale: (x, None), lambda scale, _, grad: (scale * grad,))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between.

    Attributes:
        hidden: width between the two.
        activation_dropout: after the GELU.
        dropout: of the result.
        dtype: of the computation.
    """

    hidden: int
    activation_dropout: float = 0.0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f d"], keys: Keys | None = None) -> Array:
        inner, outer = split_keys(keys, 2)
        width = x.shape[-1]
        x = nn.gelu(dense(self.hidden, ("embed", "mlp"), self.dtype, "up")(x), approximate=False)
        x = dropout(x, self.activation_dropout, inner)
        x = dense(width, ("mlp", "embed"), self.dtype, "down")(x)
        return dropout(x, self.dropout, outer)
