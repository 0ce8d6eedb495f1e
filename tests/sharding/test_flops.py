"""Operations are counted against what a hand would count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxclone.nn.attention import SelfAttention
from jaxclone.sharding.flops import count


def operations(function, *shapes: tuple[int, ...], platform: str = "cpu") -> float:
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return count(jax.jit(function).trace(*arrays).jaxpr, platform)


def test_a_dense_layer():
    assert operations(lambda x, w: x @ w, (4, 7, 8), (8, 16)) == 2 * 4 * 7 * 8 * 16


def test_the_gradient_of_a_dense_layer_is_two_more_products():
    def loss(x, w):
        return jnp.square(x @ w).sum()

    forward = 2 * 4 * 8 * 16
    assert operations(jax.grad(loss, (0, 1)), (4, 8), (8, 16)) == 3 * forward


def convolve(x, kernel, stride: int = 1, groups: int = 1):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        "VALID",
        feature_group_count=groups,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_a_convolution(stride: int, groups: int):
    batch, time, taps, inputs, outputs = 2, 50, 5, 8, 12
    frames = (time - taps) // stride + 1
    expected = 2 * batch * frames * taps * (inputs // groups) * outputs
    shapes = (batch, time, inputs), (taps, inputs // groups, outputs)
    assert operations(lambda x, k: convolve(x, k, stride, groups), *shapes) == expected

    def loss(x, kernel):
        return jnp.square(convolve(x, kernel, stride, groups)).sum()

    # To the kernel the gradient costs what the convolution does. To the input it does too; it is
    # counted for every input, some of which no output saw.
    gradients = operations(jax.grad(loss, (0, 1)), *shapes)
    assert 3 * expected <= gradients <= 3 * expected * 1.15


def test_attention():
    batch, frames, width, heads = 2, 10, 16, 4
    layer = SelfAttention(heads, impl="xla")
    mask = jnp.ones((batch, frames), bool)
    x = jnp.zeros((batch, frames, width))
    params = layer.init(jax.random.key(0), x, mask)
    found = operations(lambda x: layer.apply(params, x, mask), x.shape)
    projections = 4 * 2 * batch * frames * width * width
    products = 2 * 2 * batch * frames * frames * width
    assert found == projections + products


def test_a_loop_counts_in_full():
    def layers(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    one = 2 * 4 * 8 * 8
    assert operations(layers, (4, 8), (6, 8, 8)) == 6 * one
    again = jax.checkpoint(lambda x, w: jnp.tanh(x @ w))

    def loss(x, ws):
        return jax.lax.scan(lambda x, w: (again(x, w), None), x, ws)[0].sum()

    # Forward, forward again, and a product each for the gradients of input and weights.
    assert operations(jax.grad(loss, (0, 1)), (4, 8), (6, 8, 8)) == 4 * 6 * one


def test_the_branch_of_the_platform_counts():
    def product(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x)

    assert operations(product, (8, 8)) == 2 * 8**3
    assert operations(product, (8, 8), platform="tpu") == 0


def test_the_dearest_branch_counts():
    def product(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x @ x @ x, x)

    assert operations(product, (8, 8)) == 4 * 8**3


def test_what_is_written_for_one_device_counts_for_all():
    mesh = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    split = PartitionSpec("data")
    product = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split
    )
    jaxpr = jax.make_jaxpr(product)(jnp.zeros((8, 16)), jnp.zeros((16, 32)))
    assert count(jaxpr) == 2 * 8 * 16 * 32
