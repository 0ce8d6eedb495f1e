"""A batch in parts gives the gradients and metrics of the whole."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from jaxclone.sharding.rules import unbox
from jaxclone.train import optim
from jaxclone.types import Batch

ROWS = 8


@pytest.fixture(scope="module")
def batch() -> Batch:
    random = np.random.default_rng(0)
    # Very different lengths, one of them nothing: the parts weigh differently.
    length = np.array([3200, 320, 0, 1600, 3200, 640, 960, 2240], np.int32)
    waveform = random.standard_normal((ROWS, 3200)).astype(np.float32)
    waveform *= np.arange(3200) < length[:, None]
    return Batch(waveform, length, np.zeros(ROWS, np.int32), np.arange(ROWS, dtype=np.int32))


def trained(batch: Batch, parts: int) -> tuple[dict, dict]:
    """Parameters and metrics after a step."""
    run = toy.config(Path(), Path(), microbatches=parts)
    task = toy.task(run)
    init = jax.jit(lambda: unbox(task.init(jax.random.key(0), {})))
    state, metrics = jax.jit(task.step)(init(), batch)
    return toy.parameters(state), metrics


@pytest.fixture(scope="module")
def whole(batch: Batch) -> tuple[dict, dict]:
    return trained(batch, 1)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_a_step_in_parts_is_the_step(batch: Batch, whole: tuple[dict, dict], parts: int) -> None:
    whole_params, whole_metrics = whole
    params, metrics = trained(batch, parts)
    assert params.keys() == whole_params.keys()
    for name in params:
        np.testing.assert_allclose(params[name], whole_params[name], rtol=1e-5, atol=1e-5)
    for name in whole_metrics:
        np.testing.assert_allclose(metrics[name], whole_metrics[name], rtol=1e-5)


def test_gradients_in_parts_are_the_gradients(batch: Batch) -> None:
    def loss(scale, part):
        mask = jnp.arange(3200) < part.length[:, None]
        weight = mask.sum().astype(jnp.float32)
        error = jnp.where(mask, jnp.abs(scale * part.waveform - 0.1), 0).sum()
        return error / jnp.maximum(weight, 1), {"weight": weight}

    accumulate = jax.jit(functools.partial(optim.accumulate, loss), static_argnames="microbatches")
    expected, metrics = accumulate(jnp.float32(0.3), batch, microbatches=1)
    for parts in (2, 4, 8):
        found, others = accumulate(jnp.float32(0.3), batch, microbatches=parts)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)
        assert others["weight"] == metrics["weight"] == batch.length.sum()


def test_a_batch_without_items_has_no_gradient(batch: Batch) -> None:
    def loss(scale, part):
        return scale * part.waveform.sum(), {"weight": jnp.float32(0)}

    grads, metrics = optim.accumulate(loss, jnp.float32(1), batch, 4)
    assert grads == metrics["loss"] == 0
