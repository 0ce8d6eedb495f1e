"""Floating-point operations of a program, counted in the program itself.

XLA's own count takes the body of a loop once; here a scan over layers or micro-batches counts in
full. Counted are matrix products and convolutions, as published utilisations do: what is done
element by element is small beside them and bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count(jaxpr: ClosedJaxpr | Jaxpr, platform: str = "cpu") -> float:
    """Operations of matrix products and convolutions, over all devices; a multiply-add is two.

    Args:
        jaxpr: a traced function, `jax.jit(f).trace(...).jaxpr`.
        platform: whose branch of `jax.lax.platform_dependent` counts.

    A branch that depends on data counts as its most expensive one. A loop whose length depends on
    data counts once.

    >>> import jax, jax.numpy as jnp
    >>> dense = jax.make_jaxpr(lambda x, w: x @ w)(jnp.ones((2, 3)), jnp.ones((3, 5)))
    >>> count(dense) == 2 * 2 * 3 * 5
    True
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((_operations(equation, platform) for equation in inner.eqns), 0.0)


def _operations(equation: JaxprEqn, platform: str) -> float:
    params = equation.params
    match equation.primitive.name:
        case "dot_general":
            return _dot(equation)
        case "conv_general_dilated":
            return _convolution(equation)
        case "scan":
            return params["length"] * count(params["jaxpr"], platform)
        case "cond":
            return _branches(params, platform)
        case "shard_map":  # its shapes are those of one device
            split = [params["mesh"].shape[axis] for axis in params["newly_manual_axes"]]
            return math.prod(split) * count(params["jaxpr"], platform)
        case "pallas_call":
            return math.prod(params["grid_mapping"].grid) * count(params["jaxpr"], platform)
    return sum((count(jaxpr, platform) for jaxpr in _inner(params)), 0.0)


def _inner(params: dict[str, Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, (ClosedJaxpr, Jaxpr)):
                yield item


def _shape(value: Any) -> tuple[int, ...]:
    return value.aval.shape


def _dot(equation: JaxprEqn) -> float:
    left = _shape(equation.invars[0])
    (contracted, _), _ = equation.params["dimension_numbers"]
    out = _shape(equation.outvars[0])
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> float:
    """Each output is a sum over the taps and the input channels of its group.

    Zeros between the inputs of a transposed convolution are not counted.
    """
    kernel = _shape(equation.invars[1])
    out = _shape(equation.outvars[0])
    channels_out = equation.params["dimension_numbers"].rhs_spec[0]
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(out) * math.prod(kernel) / kernel[channels_out] / zeros


def _branches(params: dict[str, Any], platform: str) -> float:
    counts = [count(branch, platform) for branch in params["branches"]]
    platforms = params.get("branches_platforms")
    if platforms is None:
        return max(counts)
    default = len(platforms) - 1
    return counts[
        next((i for i, names in enumerate(platforms) if names and platform in names), default)
    ]
