"""Optimisers, learning-rate schedules and gradients in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from jaxclone.sharding.rules import unbox
from jaxclone.train.state import ModelState
from jaxclone.tree import first_match
from jaxclone.types import Array, Metrics, Tree, UserError, require_positive

Schedule = Callable[[Array | int], Array]
LossFn = Callable[[Tree, Tree], tuple[Float[Array, ""], Metrics]]


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """How one set of parameters is updated.

    Attributes:
        kind: "adam", or "adamw" with decoupled weight decay (arXiv:1711.05101).
        learning_rate: the highest, reached after the warm-up.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: of "adamw", times the learning rate.
        decay: (regular expression searched in a parameter's path, whether it decays); the first
            match holds, and each parameter must match one.
        warmup_steps: the learning rate rises linearly over these.
        schedule: what follows the warm-up: "constant"; "linear" or "cosine" down to
            `final_fraction` at the last step; "exponential", times `decay_rate` every
            `decay_steps`, until it has come down to `final_fraction`.
        final_fraction: of `learning_rate`, below which it does not fall.
        decay_rate: factor of "exponential".
        decay_steps: steps between two decays of "exponential"; 0 for an epoch of the data, in the
            tasks that say so.
        clip_norm: gradients are scaled down to this global norm; 0 for no clipping.
        max_skips: updates in a row that may be left out because a gradient is not finite, which
            leaves parameters and optimiser as they are; one more ends the run. With 0 the first
            does.
    """

    kind: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.01
    decay: tuple[tuple[str, bool], ...] = (
        (r"(^|/|_)(bias|scale|embedding|codebook)$", False),
        (r"", True),
    )
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine", "exponential"] = "constant"
    final_fraction: float = 0.0
    decay_rate: float = 0.999
    decay_steps: int = 1000
    clip_norm: float = 0.0
    max_skips: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "eps", "decay_rate")
        require_positive(
            self,
            *("learning_rate", "weight_decay", "warmup_steps", "final_fraction"),
            *("decay_steps", "clip_norm", "max_skips"),
            or_zero=True,
        )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas must lie in [0, 1), got {self.betas}")


def make_schedule(config: OptimConfig, total_steps: int) -> Schedule:
    """The learning rate of each step, the first step being 0.

    >>> warm = make_schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), 10)
    >>> [float(warm(step)) for step in (0, 1, 3, 9)]
    [0.25, 0.5, 1.0, 1.0]
    """
    if config.schedule == "exponential" and config.decay_steps < 1:
        raise UserError(f"decay_steps must be above 0, got {config.decay_steps}")
    span = max(1, total_steps - config.warmup_steps)
    floor = config.final_fraction

    def schedule(step: Array | int) -> Array:
        step = jnp.asarray(step, jnp.float32)
        warm = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        after = jnp.maximum(0.0, step - config.warmup_steps)
        done = jnp.minimum(1.0, after / span)
        match config.schedule:
            case "constant":
                factor = jnp.ones(())
            case "linear":
                factor = floor + (1 - floor) * (1 - done)
            case "cosine":
                factor = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
            case "exponential":
                factor = config.decay_rate ** jnp.floor(after / config.decay_steps)
                factor = jnp.maximum(factor, floor)
        return config.learning_rate * warm * factor

    return schedule


def make_optimizer(
    config: OptimConfig, total_steps: int, rates: Mapping[str, float] | None = None
) -> tuple[optax.GradientTransformation, Schedule]:
    """An optimiser and its learning rate.

    A step reports `schedule(state.step)` as its metric "learning_rate"; the optimiser itself counts
    the updates that it made, which are fewer where some were skipped.

    Args:
        config: its settings.
        total_steps: updates of the run, where "linear" and "cosine" end.
        rates: the learning rate of some top-level parts of the parameters over that of the rest.
    """
    schedule = make_schedule(config, total_steps)
    b1, b2 = config.betas
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts.append(optax.scale_by_adam(b1, b2, config.eps))
    if config.kind == "adamw" and config.weight_decay:
        parts.append(
            optax.add_decayed_weights(
                config.weight_decay, mask=lambda params: first_match(unbox(params), config.decay)
            )
        )
    parts.append(optax.scale_by_learning_rate(schedule))
    if rates:
        parts.append(scale_parts(rates))
    tx = optax.chain(*parts)
    return skip_nonfinite(tx, config.max_skips) if config.max_skips else tx, schedule


class SkipState(NamedTuple):
    """Of `skip_nonfinite`.

    Attributes:
        excused: bool[] the last update was skipped, and so many were allowed.
        in_a_row: i32[] skipped one after the other, the last among them.
        total: i32[] skipped in all.
        inner: of the optimiser.
    """

    excused: Tree
    in_a_row: Tree
    total: Tree
    inner: Tree


def skip_nonfinite(tx: optax.GradientTransformation, limit: int) -> optax.GradientTransformation:
    """Leaves out updates whose gradient is not finite.

    A selection, and no `lax.cond` as in `optax.apply_if_finite`: nothing waits for the decision,
    and finite updates are those of `tx` to the bit.

    Args:
        tx: the optimiser.
        limit: updates in a row that are excused.
    """

    def init(params: Tree) -> SkipState:
        return SkipState(jnp.bool_(False), jnp.int32(0), jnp.int32(0), tx.init(params))

    def update(grads: Tree, state: SkipState, params: Tree = None) -> tuple[Tree, SkipState]:
        finite = jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]).all()
        updates, inner = tx.update(grads, state.inner, params)

        def keep(new: Tree, old: Tree) -> Tree:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        in_a_row = jnp.where(finite, 0, state.in_a_row + 1)
        return keep(updates, jax.tree.map(jnp.zeros_like, updates)), SkipState(
            ~finite & (in_a_row <= limit), in_a_row, state.total + ~finite, keep(inner, state.inner)
        )

    return optax.GradientTransformation(init, update)


def scale_parts(rates: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates of the named top-level parts of the parameters times a factor, the rest as they are.

    >>> updates, _ = scale_parts({"encoder": 0.5}).update({"encoder": 2.0, "speaker": 2.0}, ())
    >>> updates
    {'encoder': 1.0, 'speaker': 2.0}
    """
    return optax.stateless(
        lambda updates, _: {
            name: optax.tree.scale(rates[name], part) if name in rates else part
            for name, part in updates.items()
        }
    )


def apply(
    tx: optax.GradientTransformation, model: ModelState, grads: Tree
) -> tuple[ModelState, Metrics]:
    """One update.

    Returns:
        the updated model, and metrics: "grad_norm", the global norm of `grads` before any clipping;
        where updates may be skipped, "skipped", whether this one was and is excused, and
        "skipped_steps", how many there were.
    """
    updates, opt_state = tx.update(grads, model.opt_state, model.params)
    params = optax.apply_updates(model.params, updates)
    model = model.replace(params=params, opt_state=opt_state)
    metrics = {"grad_norm": optax.tree.norm(grads)}
    if isinstance(opt_state, SkipState):
        metrics["skipped"] = opt_state.excused.astype(jnp.float32)
        metrics["skipped_steps"] = opt_state.total.astype(jnp.float32)
    return model, metrics


def require_decay(ema: float) -> None:
    """Raises a UserError unless it is a decay of `running_mean`."""
    if not 0 <= ema < 1:
        raise UserError(f"ema must be at least 0 and below 1, got {ema}")


def running_mean(mean: Tree, params: Tree, decay: float, step: Array | int) -> Tree:
    """The mean of a model's parameters over the last steps, with one more in it.

    Args:
        mean: of the steps before; the parameters that the run began with at first.
        params: after the step.
        decay: of the mean a step; 0 where none is kept.
        step: steps before this one; as long as they are few, so are those in the mean.

    >>> running_mean({}, {"kernel": 1.0}, 0.0, 5)
    {}
    >>> [float(running_mean(2.0, 1.0, decay, 8)) for decay in (0.999, 0.25)]
    [1.5, 1.25]
    """
    if not decay:
        return mean
    keep = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda old, new: old + (1 - keep) * (new - old), mean, params)


def accumulate(
    loss_fn: LossFn, params: Tree, batch: Tree, microbatches: int
) -> tuple[Tree, Metrics]:
    """Gradients and metrics of a batch, computed one part of it after the other.

    When the loss is a mean over "weight" items, the gradients are those of the whole batch: the
    parts are averaged by their weights. Metrics are averaged likewise; "weight" is their sum.

    Args:
        loss_fn: (params, batch) -> (scalar, metrics); the metrics hold "weight", f32[], the number
            of items that the scalar is the mean of.
        params: what is differentiated.
        batch: arrays whose first axis is the batch.
        microbatches: parts; divides the batch.

    Returns:
        (gradients, metrics), the metrics with the scalar as "loss".
    """
    value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

    def run(part: Tree) -> tuple[Tree, Metrics]:
        (loss, metrics), grads = value_and_grad(params, part)
        return grads, {**metrics, "loss": loss}

    if microbatches == 1:
        return run(batch)

    def add(total: Tree, part: Tree) -> tuple[Tree, Metrics]:
        grads, metrics = run(part)
        return jax.tree.map(lambda t, g: t + metrics["weight"] * g, total, grads), metrics

    total, metrics = jax.lax.scan(
        add, jax.tree.map(jnp.zeros_like, params), split(batch, microbatches)
    )
    weight = metrics.pop("weight")
    scale = 1 / jnp.maximum(weight.sum(), 1e-30)  # a batch without items has no gradient
    grads = jax.tree.map(lambda t: scale * t, total)
    metrics = {name: scale * (weight * value).sum() for name, value in metrics.items()}
    return grads, {**metrics, "weight": weight.sum()}


def split(batch: Tree, parts: int) -> Tree:
    """[b, ...] -> [parts, b / parts, ...], each part taking every `parts`-th example.

    Strided, not contiguous: a batch split over devices stays where it is.
    """

    def one(x: Array) -> Array:
        x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        return nn.with_logical_constraint(x, (None, "batch", *(None,) * (x.ndim - 2)))

    return jax.tree.map(one, batch)
