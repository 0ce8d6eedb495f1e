"""The two ways to compute the positional convolution."""

from __future__ import annotations

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.nn.positional import PositionalConv, grouped_conv


def arrays(frames, taps, groups=4, width=12):
    x = jax.random.normal(rng.stream(rng.root(0), "x"), (2, frames, width))
    kernel = jax.random.normal(rng.stream(rng.root(0), "kernel"), (taps, width // groups, width))
    return x, kernel / taps


@pytest.mark.parametrize(("frames", "taps"), [(50, 16), (50, 7), (5, 64), (1, 3)])
@pytest.mark.parametrize("impl", ["fft", "auto"])
def test_same_result_and_gradients(frames, taps, impl):
    x, kernel = arrays(frames, taps)

    def value_and_grads(impl):
        def loss(x, kernel):
            y = grouped_conv(x, kernel, impl)
            return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

        grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
        return (y, *grads)

    for got, want in zip(value_and_grads(impl), value_and_grads("lax")):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("impl", ["fft", "lax", "auto"])
def test_half_precision_in_and_out(impl):
    x, kernel = arrays(9, 4)
    half = grouped_conv(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), impl)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), grouped_conv(x, kernel), atol=2e-2)


def test_even_kernel_sees_one_more_frame_of_the_past():
    x = jnp.zeros((1, 9, 1)).at[0, 4].set(1.0)
    y = grouped_conv(x, jnp.ones((4, 1, 1)), "fft")
    np.testing.assert_allclose(y[0, :, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("platform", "has", "lacks"), [("tpu", "conv", "fft"), ("cpu", "fft", "conv")]
)
def test_auto_is_chosen_for_the_machine_it_is_compiled_for(platform, has, lacks):
    def loss(x, kernel):
        return jnp.square(grouped_conv(x, kernel)).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(*arrays(50, 16))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert f"stablehlo.{has}" in text
    assert f"stablehlo.{lacks}olution" not in text
    assert f"stablehlo.{lacks} " not in text


def test_weights_start_with_the_norm_of_their_direction():
    params = PositionalConv(8, 4).init(rng.root(0), jnp.zeros((1, 10, 12)))["params"]
    norm = jnp.linalg.norm(params["direction"].unbox(), axis=(1, 2))
    np.testing.assert_allclose(params["scale"].unbox()[:, 0, 0], norm, rtol=1e-5)


ON_EIGHT_DEVICES = """
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

jax.config.update("jax_num_cpu_devices", 8)
from jaxclone.nn.positional import grouped_conv
from jaxclone.sharding.mesh import MeshConfig, activate, batch_sharding, make_mesh

random = np.random.default_rng(0)
x = random.standard_normal((8, 40, 16)).astype(np.float32)
kernel = random.standard_normal((8, 4, 16)).astype(np.float32)
mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
places = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
for impl in ("lax", "auto"):
    gradients = jax.grad(lambda *args: jnp.square(grouped_conv(*args, impl)).sum(), (0, 1))
    expected = jax.jit(gradients)(x, kernel)
    with activate(mesh):
        divided = jax.jit(gradients, in_shardings=places, out_shardings=places)
        found = divided(x, kernel)
        program = divided.lower(x, kernel).compile().as_text()
    for got, want in zip(found, expected):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)
    assert "f32[2,40,16]" in program
    assert "[8,40,16]" not in program and "[4,40,16]" not in program
"""


def test_a_batch_that_is_divided_stays_divided():
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
