"""Relative positions from a wide grouped convolution, two ways to compute one thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import scipy.fft
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclone.nn.devices import parts_of
from jaxclone.nn.weight_norm import weight_norm
from jaxclone.types import Array

Impl = Literal["auto", "fft", "lax"]
Conv = Callable[[Array, Array], Array]


def grouped_conv(
    x: Float[Array, "b f d"], kernel: Float[Array, "k i d"], impl: Impl = "auto"
) -> Float[Array, "b f d"]:
    """A grouped convolution over time that keeps the length: k // 2 zeros before, the rest after.

    Args:
        x: d channels in d / i groups.
        kernel: taps, channels a group, channels out.
        impl: "lax" is the convolution of XLA, best on accelerators. "fft" multiplies spectra: on a
            CPU the gradient of the published size (768 channels, 128 taps) takes an eighth of the
            time, where XLA has no fast path for grouped convolutions. "auto" takes "fft" where it
            is compiled for a CPU.
    """
    ways: dict[Impl, Conv] = {"fft": _fft_conv, "lax": _lax_conv, "auto": _auto_conv}
    conv = ways[impl]
    (parts,) = parts_of(("batch",))
    if parts == 1 or len(x) % parts:
        return conv(x, kernel)
    # The compiler does not divide the gradient of a grouped convolution's kernel: it would bring
    # the whole batch to every device. So each is given its part.
    rows = nn.logical_to_mesh_axes(("batch", None, None))
    return jax.shard_map(conv, in_specs=(rows, PartitionSpec()), out_specs=rows)(x, kernel)


# The choice is made when the program is lowered, not when it is traced: the same trace compiles
# for hardware that is not here. The derivative is spelled out because differentiating through the
# choice would keep the residuals of both branches.
@jax.custom_vjp
def _auto_conv(x: Array, kernel: Array) -> Array:
    return jax.lax.platform_dependent(x, kernel, cpu=_fft_conv, default=_lax_conv)


def _auto_conv_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _auto_conv(x, kernel), (x, kernel)


def _auto_conv_bwd(residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    def pull(conv: Conv) -> Callable[..., tuple[Array, Array]]:
        return lambda x, kernel, grad: jax.vjp(conv, x, kernel)[1](grad)

    return jax.lax.platform_dependent(
        *residuals, grad, cpu=pull(_fft_conv), default=pull(_lax_conv)
    )


_auto_conv.defvjp(_auto_conv_fwd, _auto_conv_bwd)


def _lax_conv(x: Array, kernel: Array) -> Array:
    taps, channels, width = kernel.shape
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(taps // 2, (taps - 1) // 2)],
        feature_group_count=width // channels,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


def _fft_conv(x: Array, kernel: Array) -> Array:
    batch, frames, width = x.shape
    taps, channels, _ = kernel.shape
    groups, dtype = width // channels, x.dtype
    # The circular product may wrap around as long as it stays out of the frames that are kept.
    size = scipy.fft.next_fast_len(max(frames + taps // 2, taps), real=True)
    # There is no Fourier transform of bf16.
    spectrum = jnp.fft.rfft(
        x.reshape(batch, frames, groups, channels).transpose(0, 2, 3, 1).astype(jnp.float32), size
    )
    response = jnp.fft.rfft(
        kernel.reshape(taps, channels, groups, -1)[::-1].transpose(2, 1, 3, 0).astype(jnp.float32),
        size,
    )
    product = jnp.einsum("bgiq,gioq->bgoq", spectrum, response)
    start = (taps - 1) // 2
    y = jnp.fft.irfft(product, size)[..., start : start + frames]
    return y.transpose(0, 3, 1, 2).reshape(batch, frames, width).astype(dtype)


class PositionalConv(nn.Module):
    """GELU of a weight-normalised grouped convolution, to be added to the frames.

    The norm of the weights is kept apart for each tap (wav2vec 2.0 §2; fairseq
    `models/wav2vec/wav2vec2.py`).

    Attributes:
        kernel_size: taps.
        groups: divides the width.
        impl: see `grouped_conv`.
        dtype: of the computation.
    """

    kernel_size: int = 128
    groups: int = 16
    impl: Impl = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f d"]) -> Float[Array, "b f d"]:
        width = x.shape[-1]
        direction = self.param(
            "direction",
            nn.with_logical_partitioning(
                nn.initializers.normal(2 * (self.kernel_size * width) ** -0.5),
                ("kernel", "channels_in", "channels_out"),
            ),
            (self.kernel_size, width // self.groups, width),
        )
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(
                lambda _: jnp.sqrt(jnp.square(direction).sum((1, 2), keepdims=True)),
                ("kernel", None, None),
            ),
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("channels_out",)),
            (width,),
        )
        y = grouped_conv(x, weight_norm(direction, scale).astype(self.dtype), self.impl)
        return nn.gelu(y + bias.astype(self.dtype), approximate=False)
