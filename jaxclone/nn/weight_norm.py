"""One-dimensional convolutions whose kernels are normalised: by weight, or by spectrum.

Padding is always explicit, so that what an output sees is known (synthesis in pieces relies on it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclone.nn.conv import conv1d
from jaxclone.nn.fast_conv import FACTORS, fast_conv1d
from jaxclone.types import Array, Tree

# The variable collection of the spectral norm's singular vectors.
SPECTRAL = "spectral"

Initializer = Callable[..., jax.Array]


def weight_norm(
    direction: Float[Array, "*shape"], scale: Float[Array, ...]
) -> Float[Array, "*shape"]:
    """The kernel scale * direction / |direction| (Salimans and Kingma 2016, eq. 2).

    Args:
        direction: any kernel.
        scale: of the same rank; the norm is taken over the axes along which it has size 1.

    >>> weight_norm(jnp.array([[3.0, 1.0], [4.0, 0.0]]), jnp.array([[10.0, 1.0]])).tolist()
    [[6.0, 1.0], [8.0, 0.0]]
    """
    return direction * (scale / _norm(direction, scale.shape))


def fold(params: Tree) -> Tree:
    """The same parameters for inference: each `direction` and `scale` becomes one `kernel`.

    The layers of this file take either form. What is not weight-normalised stays as it is.
    """
    if not isinstance(params, Mapping):
        return params
    params = nn.unbox(params)
    if "direction" not in params:
        return {name: fold(value) for name, value in params.items()}
    rest = {name: value for name, value in params.items() if name not in ("direction", "scale")}
    return {**rest, "kernel": weight_norm(params["direction"], params["scale"])}


def unfold(params: Tree, shapes: Tree) -> Tree:
    """The inverse of `fold`: each kernel as its own direction, with the scale that changes nothing.

    Args:
        params: folded.
        shapes: of the parameters before folding.
    """
    if not isinstance(params, Mapping):
        return params
    if "direction" not in shapes:
        return {name: unfold(value, shapes[name]) for name, value in params.items()}
    direction, shape = jnp.asarray(params["kernel"]), shapes["scale"].shape
    scale = _norm(direction, shape)
    # A kernel of zeros has any direction.
    direction = jnp.where(scale == 0, 1.0, direction)
    rest = {name: value for name, value in params.items() if name != "kernel"}
    return {**rest, "direction": direction, "scale": scale}


def power_iteration(params: Tree, variables: Tree) -> Tree:
    """One step of all singular vectors towards those of their kernels (Miyato et al. 2018, alg. 1).

    Training calls it once an update; the layers themselves only read the vectors, so that a
    forward pass has no side effects and micro-batches see the same kernels.

    Args:
        params: of a module that holds `SpectralNormConv`s.
        variables: its collection `SPECTRAL`.

    Returns:
        the collection after the step; nothing is differentiated.
    """
    if "left" not in variables:
        return {name: power_iteration(params[name], value) for name, value in variables.items()}
    kernel = jax.lax.stop_gradient(params["kernel"])
    right = _unit(jnp.einsum("kio,o->ki", kernel, variables["left"]))
    return {"left": _unit(jnp.einsum("kio,ki->o", kernel, right)), "right": right}


class WeightNormConv(nn.Module):
    """A convolution over [b, t, c], weight-normalised for each output channel.

    With the factors of its kernel (`jaxclone.nn.fast_conv.prepare`) it is computed by these.

    Attributes:
        features: output channels.
        kernel_size: taps.
        stride: samples from one output to the next.
        dilation: samples from one tap to the next.
        groups: the channels are convolved in this many separate groups.
        padding: zeros before and after; None for `same` at stride 1 (half the reach of the kernel).
        dtype: of the computation.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: tuple[int, int] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b s d"]:
        shape = (self.kernel_size, x.shape[-1] // self.groups, self.features)
        kernel = _weight_normed(self, shape, _torch_uniform, _names(shape), (1, 1, self.features))
        return _conv(self, x, kernel)


class WeightNormConvTranspose(nn.Module):
    """Upsampling from [b, t, c] to [b, t * stride, d], weight-normalised for each input channel.

    The normalised axis is that of PyTorch's `weight_norm` of a `ConvTranspose1d`, whose first axis
    is the input. kernel_size - stride samples are cut from the ends, half of them at the start, as
    HiFi-GAN's padding does.

    It is computed as one matrix product a frame whose pieces are added where they overlap. XLA on
    a CPU takes ten times as long over the gradient of a convolution with a dilated input.

    Attributes:
        features: output channels.
        kernel_size: taps, at least `stride`.
        stride: output samples an input sample.
        dtype: of the computation.
    """

    features: int
    kernel_size: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b s d"]:
        batch, time, channels = x.shape
        shape = (self.kernel_size, channels, self.features)
        kernel = _weight_normed(
            self, shape, _torch_uniform_transposed, _names(shape), (1, channels, 1)
        )
        bias = _bias(self, self.features)
        pieces = -(-self.kernel_size // self.stride)
        taps = pieces * self.stride
        kernel = jnp.pad(kernel, ((0, taps - self.kernel_size), (0, 0), (0, 0)))
        kernel = kernel.transpose(1, 0, 2).reshape(channels, taps * self.features)
        spread = x.astype(self.dtype) @ kernel.astype(self.dtype)
        spread = spread.reshape(batch, time, pieces, self.stride * self.features)
        total: Array = sum(
            jnp.pad(spread[:, :, i], ((0, 0), (i, pieces - 1 - i), (0, 0))) for i in range(pieces)
        )
        start = (self.kernel_size - self.stride) // 2
        signal = total.reshape(batch, -1, self.features)[:, start : start + time * self.stride]
        return signal + bias.astype(self.dtype)


class SpectralNormConv(nn.Module):
    """A convolution over [b, t, c] whose kernel is divided by its largest singular value.

    The singular vectors are variables of the collection `SPECTRAL`, read here and advanced by
    `power_iteration`. Attributes as those of `WeightNormConv`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: tuple[int, int] | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b s d"]:
        shape = (self.kernel_size, x.shape[-1] // self.groups, self.features)
        names = _names(shape)
        init = nn.with_logical_partitioning(_torch_uniform, names)
        kernel = self.param("kernel", init, shape, jnp.float32)
        left = _singular_vector(self, "left", (self.features,), names[2:])
        right = _singular_vector(self, "right", shape[:2], names[:2])
        sigma = jnp.einsum("kio,ki,o->", kernel, right, left)
        return _conv(self, x, kernel / sigma)


def _conv(
    layer: WeightNormConv | SpectralNormConv, x: Float[Array, "b t c"], kernel: Array
) -> Float[Array, "b s d"]:
    x, dilation = x.astype(layer.dtype), layer.dilation
    reach = dilation * (layer.kernel_size - 1)
    padding = layer.padding or (reach // 2, reach - reach // 2)
    if layer.stride == layer.groups == 1 and layer.has_variable("params", FACTORS):
        factors = layer.get_variable("params", FACTORS).astype(layer.dtype)
        y = fast_conv1d(x, factors, layer.kernel_size, dilation, padding)
    else:
        kernel = kernel.astype(layer.dtype)
        y = conv1d(x, kernel, layer.stride, dilation, layer.groups, padding)
    return y + _bias(layer, layer.features).astype(layer.dtype)


def _weight_normed(
    layer: nn.Module,
    shape: tuple[int, int, int],
    init: Initializer,
    names: tuple[str | None, ...],
    scale_shape: tuple[int, int, int],
) -> Float[Array, "k i o"]:
    """The kernel of a layer, from its two parts or already folded."""
    if layer.has_variable("params", "kernel"):
        return layer.param("kernel", init, shape, jnp.float32)
    boxed = nn.with_logical_partitioning(init, names)
    direction = layer.param("direction", boxed, shape, jnp.float32)
    scale_names = tuple(name if size > 1 else None for name, size in zip(names, scale_shape))
    # At first the kernel is the direction itself.
    norm = nn.with_logical_partitioning(lambda _: _norm(direction, scale_shape), scale_names)
    return weight_norm(direction, layer.param("scale", norm))


def _bias(layer: nn.Module, features: int) -> Float[Array, " d"]:
    name = _names((1, 1, features))[2]
    init = nn.with_logical_partitioning(nn.initializers.zeros, (name,))
    return layer.param("bias", init, (features,), jnp.float32)


def _singular_vector(
    layer: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...]
) -> Float[Array, ...]:
    def random_unit(key: jax.Array) -> jax.Array:
        return _unit(jax.random.normal(key, shape))

    def create() -> Tree:
        return nn.with_logical_partitioning(random_unit, axes)(layer.make_rng("params"))

    return layer.variable(SPECTRAL, name, create).value


def _names(shape: tuple[int, int, int]) -> tuple[str | None, ...]:
    """Logical axes of a kernel; a channel axis of size 1 (a waveform) is never split."""
    _, channels, features = shape
    return (
        "kernel",
        "channels_in" if channels > 1 else None,
        "channels_out" if features > 1 else None,
    )


def _norm(direction: Array, scale_shape: tuple[int, ...]) -> Array:
    axes = tuple(axis for axis, size in enumerate(scale_shape) if size == 1)
    return jnp.sqrt(jnp.sum(direction**2, axis=axes, keepdims=True))


def _unit(vector: Array) -> Array:
    return vector / jnp.maximum(jnp.sqrt(jnp.sum(vector**2)), 1e-12)


# U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default. HiFi-GAN draws from N(0, 0.01) instead, but
# writes it to a weight that `weight_norm` computes anew at every call, so this is where it starts.
_torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_torch_uniform_transposed = nn.initializers.variance_scaling(
    1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2
)
