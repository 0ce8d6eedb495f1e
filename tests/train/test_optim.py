from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxclone.sharding.rules import unbox
from jaxclone.train import optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState


def rates(config: OptimConfig, steps: list[int], total: int = 100) -> np.ndarray:
    schedule = optim.make_schedule(config, total)
    return np.array([float(schedule(step)) for step in steps])


def test_warm_up_rises_to_the_learning_rate() -> None:
    config = OptimConfig(learning_rate=2.0, warmup_steps=10)
    np.testing.assert_allclose(rates(config, [0, 4, 9, 10, 99]), [0.2, 1.0, 2.0, 2.0, 2.0])


def test_linear_and_cosine_end_at_the_final_fraction() -> None:
    linear = OptimConfig(learning_rate=1.0, schedule="linear", final_fraction=0.1, warmup_steps=20)
    np.testing.assert_allclose(rates(linear, [20, 60, 100, 500]), [1.0, 0.55, 0.1, 0.1], rtol=1e-6)
    cosine = OptimConfig(learning_rate=1.0, schedule="cosine", final_fraction=0.1)
    np.testing.assert_allclose(rates(cosine, [0, 50, 100, 500]), [1.0, 0.55, 0.1, 0.1], rtol=1e-6)


def test_exponential_decays_in_stairs() -> None:
    config = OptimConfig(
        learning_rate=1.0, schedule="exponential", decay_rate=0.5, decay_steps=10, warmup_steps=5
    )
    np.testing.assert_allclose(rates(config, [5, 14, 15, 24, 25]), [1, 1, 0.5, 0.5, 0.25])
    config = dataclasses.replace(config, final_fraction=0.25)
    np.testing.assert_allclose(rates(config, [15, 25, 35, 500]), [0.5, 0.25, 0.25, 0.25])


def model_of(params: dict, config: OptimConfig) -> tuple[optax.GradientTransformation, ModelState]:
    tx, _ = optim.make_optimizer(config, 100)
    return tx, ModelState(params, tx.init(params))


def test_only_what_the_rules_name_decays() -> None:
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "LayerNorm_0": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
        "mask_embedding": jnp.ones(2),
    }
    tx, model = model_of(params, OptimConfig(weight_decay=0.1, learning_rate=1.0))
    model, _ = optim.apply(tx, model, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(model.params["Dense_0"].pop("kernel"), 0.9)
    for leaf in jax.tree.leaves(model.params):
        np.testing.assert_array_equal(leaf, 1.0)


def test_a_parameter_that_no_rule_covers_is_named() -> None:
    with pytest.raises(KeyError, match="odd"):
        model_of({"odd": jnp.ones(2)}, OptimConfig(decay=(("kernel$", True),)))


def test_rules_hold_for_parameters_with_named_axes() -> None:
    params = {"kernel": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "mlp"))}
    _, model = model_of(params, OptimConfig(decay=(("kernel$", True),)))
    assert unbox(model).opt_state[0].mu["kernel"].shape == (2, 2)
    assert model.opt_state[0].mu["kernel"].names == ("embed", "mlp")


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_updates_are_those_of_optax(kind: str) -> None:
    config = OptimConfig(kind=kind, learning_rate=0.1, weight_decay=0.2, eps=1e-6)
    theirs = {
        "adam": optax.adam(0.1, 0.9, 0.98, 1e-6),
        "adamw": optax.adamw(0.1, 0.9, 0.98, 1e-6, weight_decay=0.2),
    }[kind]
    params = {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3)}
    tx, model = model_of(params, config)
    state = theirs.init(params)
    for step in range(4):
        grads = jax.tree.map(lambda x: jnp.sin(step + 3 * x), params)  # noqa: B023
        model, _ = optim.apply(tx, model, grads)
        updates, state = theirs.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(model.params["kernel"], params["kernel"], rtol=1e-6)


def test_clipping_leaves_the_reported_norm_as_it_was() -> None:
    params = {"kernel": jnp.zeros(2)}
    grads = {"kernel": jnp.array([3.0, 4.0])}
    clipped, model = model_of(params, OptimConfig(clip_norm=1.0, eps=1.0, learning_rate=1.0))
    model, metrics = optim.apply(clipped, model, grads)
    assert float(metrics["grad_norm"]) == 5.0
    free, other = model_of(params, OptimConfig(eps=1.0, learning_rate=1.0))
    other, _ = optim.apply(free, other, {"kernel": jnp.array([0.6, 0.8])})
    np.testing.assert_allclose(model.params["kernel"], other.params["kernel"], rtol=1e-6)


def test_other_variables_stay_as_they_are() -> None:
    params = {"kernel": jnp.ones(2)}
    tx, model = model_of(params, OptimConfig())
    model = model.replace(variables={"statistics": jnp.arange(3)})
    model, _ = optim.apply(tx, model, params)
    np.testing.assert_array_equal(model.variables["statistics"], [0, 1, 2])


def test_a_skipped_update_changes_nothing() -> None:
    config = OptimConfig(learning_rate=0.1, weight_decay=0.1, max_skips=1)
    tx, _ = optim.make_optimizer(config, 10)
    params = {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}
    model = ModelState(params, tx.init(params))
    good = {"kernel": jnp.array([0.5, 1.0]), "bias": jnp.array([1.0])}
    bad = good | {"bias": jnp.array([jnp.inf])}
    model, metrics = optim.apply(tx, model, good)
    assert metrics["skipped_steps"] == 0
    for in_a_row, excused in ((1, 1.0), (2, 0.0)):
        before = model
        model, metrics = optim.apply(tx, model, bad)
        assert metrics["skipped"] == excused
        assert metrics["skipped_steps"] == in_a_row
        jax.tree.map(np.testing.assert_array_equal, model.params, before.params)
        jax.tree.map(np.testing.assert_array_equal, model.opt_state.inner, before.opt_state.inner)
    model, metrics = optim.apply(tx, model, good)
    assert (metrics["skipped"], metrics["skipped_steps"]) == (0, 2)
    # As if the bad ones had never been.
    plain, _ = optim.make_optimizer(dataclasses.replace(config, max_skips=0), 10)
    other = ModelState(params, plain.init(params))
    for _ in range(2):
        other, _ = optim.apply(plain, other, good)
    jax.tree.map(np.testing.assert_array_equal, model.params, other.params)
