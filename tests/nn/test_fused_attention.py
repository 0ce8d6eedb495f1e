"""All ways to compute attention give the same, padding included."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from jaxclone.nn.attention import SelfAttention
from jaxclone.nn.fused_attention import choose
from jaxclone.sharding.rules import RULES
from jaxclone.types import UserError, length_mask

WIDTH, HEADS = 32, 2
AXES = ("data", "fsdp", "tensor")


def layers(impl: str, dtype=jnp.float32) -> tuple[SelfAttention, SelfAttention]:
    return SelfAttention(HEADS, dtype=dtype, impl="xla"), SelfAttention(
        HEADS, dtype=dtype, impl=impl
    )


def inputs(frames: int) -> tuple[jax.Array, jax.Array]:
    x = jax.random.normal(jax.random.key(0), (2, frames, WIDTH))
    return x, length_mask(jnp.array([frames, frames // 2]), frames)


def agrees(impl: str, frames: int, dtype, tolerance: float) -> None:
    plain, other = layers(impl, dtype)
    x, mask = inputs(frames)
    params = plain.init(jax.random.key(1), x, mask)
    weigh = jax.random.normal(jax.random.key(2), x.shape) * mask[..., None]

    def loss(layer: SelfAttention, params, x):
        y = layer.apply(params, x.astype(dtype), mask)
        return (y.astype(jnp.float32) * weigh).sum(), y

    grad = jax.value_and_grad(loss, (1, 2), has_aux=True)
    expected, found = (np_tree(grad(layer, params, x)) for layer in (plain, other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), found, expected)


def np_tree(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float32), tree)


def test_the_kernel_for_tpus():
    with pltpu.force_tpu_interpret_mode():
        agrees("flash", 130, jnp.float32, 2e-5)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="there is no GPU")
@pytest.mark.parametrize("frames", [49, 130, 781])
def test_the_kernel_for_gpus(frames: int):
    agrees("cudnn", frames, jnp.bfloat16, 0.1)


def test_padding_changes_nothing():
    plain, layer = layers("flash")
    x, _ = inputs(20)
    everything = jnp.ones((2, 20), bool)
    params = plain.init(jax.random.key(1), x, everything)
    mask = length_mask(jnp.array([12, 12]), 20)
    with pltpu.force_tpu_interpret_mode():
        padded = layer.apply(params, x.at[:, 12:].set(9.0), mask)
        alone = layer.apply(params, x[:, :12], everything[:, :12])
    np.testing.assert_allclose(padded[:, :12], alone, atol=1e-5)


def on(kind: str, sizes: tuple[int, int, int] = (1, 1, 1)) -> AbstractMesh:
    device = AbstractDevice(device_kind="some", num_cores=None, platform=kind)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


@pytest.mark.parametrize(
    ("kind", "dropping", "expected"),
    [("cpu", False, "xla"), ("tpu", False, "flash"), ("tpu", True, "xla"), ("gpu", False, "xla")],
)
def test_the_choice_follows_the_devices_that_it_is_compiled_for(kind, dropping, expected):
    with jax.sharding.use_abstract_mesh(on(kind)):
        assert choose("auto", 4, HEADS, 64, jnp.bfloat16, dropping) == expected


def test_dropout_and_a_kernel_without_it_are_refused():
    with pytest.raises(UserError, match="attention_impl flash knows neither"):
        choose("flash", 4, HEADS, 64, jnp.bfloat16, needs_weights=True)


def test_a_batch_that_the_devices_do_not_share_is_left_to_xla():
    with jax.sharding.use_abstract_mesh(on("tpu", (2, 4, 1))), nn.logical_axis_rules(RULES):
        assert choose("auto", 8, HEADS, 64, jnp.bfloat16, needs_weights=False) == "flash"
        assert choose("auto", 1, HEADS, 64, jnp.bfloat16, needs_weights=False) == "xla"
