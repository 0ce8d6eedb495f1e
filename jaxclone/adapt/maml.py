"""Model-agnostic meta-learning: parameters from which a few gradient steps suffice.

Finn et al. 2017, Algorithm 1. The inner loop is plain gradient descent, so the adapted parameters
are a differentiable function of the initial ones, and `enroll` runs the very loop that training
differentiated through.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Float

from jaxclone.types import Array, Tree


def adapt(
    loss_fn: Callable[[Tree], Float[Array, ""]],
    params: Tree,
    *,
    steps: int,
    learning_rate: float,
    first_order: bool = False,
) -> Tree:
    """Takes `steps` steps of gradient descent on a loss.

    The steps are written out one after the other, not looped over by the compiler: on CPU, XLA
    runs the convolutions in a loop several times slower than elsewhere. They are few.

    Args:
        loss_fn: params -> scalar.
        params: where to start.
        steps: 0 returns `params`.
        learning_rate: inner rate α.
        first_order: treat the gradients as constants when differentiating through the result
            (FOMAML, §5.2): cheaper, no second derivatives.

    >>> adapt(lambda x: (x - 1.0) ** 2, jax.numpy.array(0.0), steps=2, learning_rate=0.25).tolist()
    0.75
    """
    for _ in range(steps):
        grads = jax.grad(loss_fn)(params)
        if first_order:
            grads = jax.lax.stop_gradient(grads)
        params = jax.tree.map(lambda p, g: p - learning_rate * g, params, grads)
    return params


def meta_loss(
    loss_fn: Callable[[Tree, Tree], Float[Array, ""]],
    params: Tree,
    support: Tree,
    query: Tree,
    *,
    steps: int,
    learning_rate: float,
    first_order: bool = False,
    query_loss_fn: Callable[[Tree, Tree], Tree] | None = None,
) -> tuple[Tree, Tree]:
    """Query loss of each task before and after adaptation on its support set.

    Args:
        loss_fn: (params, data) -> scalar.
        params: the initial parameters, shared by all tasks.
        support: data with a leading axis of tasks.
        query: data with a leading axis of tasks.
        steps: inner steps.
        learning_rate: inner rate.
        first_order: see `adapt`.
        query_loss_fn: what is taken of the query set, a scalar or a tree of them; None for
            `loss_fn`.

    Returns:
        (before, after), both f32[tasks] or trees of such.
    """
    judge = query_loss_fn or loss_fn

    def one(task_support: Tree, task_query: Tree) -> tuple[Tree, Tree]:
        adapted = adapt(
            lambda p: loss_fn(p, task_support),
            params,
            steps=steps,
            learning_rate=learning_rate,
            first_order=first_order,
        )
        return judge(params, task_query), judge(adapted, task_query)

    return jax.vmap(one)(support, query)
