"""What a layer must know of the devices that it is compiled for."""

from __future__ import annotations

import math

import flax.linen as nn
import jax


def parts_of(axes: tuple[str | None, ...]) -> tuple[int, ...]:
    """Over how many devices of the active mesh each of these logical axes is divided."""
    shape = jax.sharding.get_abstract_mesh().shape
    if not shape:
        return (1,) * len(axes)
    entries = nn.logical_to_mesh_axes(axes)
    return tuple(
        math.prod(shape[name] for name in ((entry,) if isinstance(entry, str) else entry or ()))
        for entry in entries
    )
