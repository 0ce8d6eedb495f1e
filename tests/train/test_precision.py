"""What stays in f32 when a run computes in bf16."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxclone import config as configs
from jaxclone import rng
from jaxclone.export.plan import batch_shapes
from jaxclone.tree import flatten

CONFIG = dataclasses.replace(
    configs.load("pretrain/wav2vec2_large:smoke"), precision="bf16", microbatches=2
)
# Of softmax, logarithms of probabilities, and norms.
SENSITIVE = {"exp", "exp2", "log", "log1p", "logistic", "reduce_max", "rsqrt", "sqrt"}


@pytest.fixture(scope="module")
def state():
    return nn.unbox(jax.eval_shape(CONFIG.task().init, rng.root(0), {}))


def equations(jaxpr: ClosedJaxpr | Jaxpr) -> Iterator[JaxprEqn]:
    for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, (ClosedJaxpr, Jaxpr)):
                    yield from equations(item)


def in_half(function, state, names: set[str]) -> set[str]:
    batch = batch_shapes(CONFIG.data, CONFIG.audio)
    found = list(equations(jax.make_jaxpr(function)(state, batch)))
    assert any(x.invars[0].aval.dtype == jnp.bfloat16 for x in found if x.invars)
    assert {x.primitive.name for x in found} & names
    return {
        x.primitive.name
        for x in found
        if x.primitive.name in names and any(var.aval.dtype == jnp.bfloat16 for var in x.invars)
    }


def test_softmax_norms_losses_and_sums_are_f32(state):
    assert in_half(CONFIG.task().evaluate, state, SENSITIVE | {"reduce_sum"}) == set()


def test_so_is_the_backward_pass_but_for_gelu_and_biases(state):
    """GELU's slope is an exponential; the gradients of biases are summed as they come."""
    found = in_half(CONFIG.task().step, state, SENSITIVE | {"reduce_sum"})
    assert found <= {"exp", "reduce_sum"}


def test_state_and_metrics_are_f32(state):
    after, metrics = jax.eval_shape(
        CONFIG.task().step, state, batch_shapes(CONFIG.data, CONFIG.audio)
    )
    kinds = {
        x.dtype
        for x in [*flatten(after).values(), *metrics.values()]
        if jnp.issubdtype(x.dtype, jnp.inexact)
    }
    assert kinds == {jnp.dtype(jnp.float32)}
