"""Which axis of the mesh each named axis of a parameter or activation is laid along.

Parameters are boxed with the names of their axes (`nn.with_logical_partitioning`), activations are
constrained by name (`nn.with_logical_constraint`); this is the only place where names meet devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.core import meta
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxclone.tree import path_name
from jaxclone.types import Tree

# The axes of the mesh that a batch is divided over.
BATCH_AXES = ("data", "fsdp")

# In order of precedence: an axis of the mesh that an earlier rule took for an array is not given
# again. So activations follow the batch, and only parameters are split along their width.
RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", BATCH_AXES),
    ("task", BATCH_AXES),
    ("time", None),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("channels_out", "tensor"),
    ("embed", "fsdp"),
    ("channels_in", "fsdp"),
    ("kernel", None),
    ("group", None),
    ("code", None),
    ("code_dim", None),
    ("mel", None),
    ("speaker", None),
    ("bottleneck", None),
    ("rank", None),
    ("layers", None),
    ("norm", None),
)


def shardings(abstract: Tree, mesh: Mesh | AbstractMesh) -> Tree:
    """Where each array of a state lives.

    A dimension that its axis of the mesh does not divide is left whole; an array without names
    (a counter, a key) is held whole by every device.

    Args:
        abstract: the state as shapes, parameters boxed with the names of their axes, as
            `jax.eval_shape` of its initialisation gives it.
        mesh: the devices.

    Returns:
        `NamedSharding`s in the structure of the unboxed state.

    Raises:
        ValueError: a parameter has an axis that no rule names, or not a name for each axis.
    """

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        if not isinstance(leaf, nn.Partitioned):
            return NamedSharding(mesh, PartitionSpec())
        try:
            return NamedSharding(mesh, spec(leaf.names, leaf.value.shape, mesh))
        except ValueError as error:
            raise ValueError(f"{path_name(path)}: {error}") from error

    return jax.tree_util.tree_map_with_path(place, abstract, is_leaf=_is_boxed)


def unbox(tree: Tree) -> Tree:
    """A tree of arrays or shapes without the names of its axes.

    Unlike `flax.linen.unbox`, it lays no constraint on them.
    """
    return jax.tree.map(lambda x: x.value if _is_boxed(x) else x, tree, is_leaf=_is_boxed)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, meta.AxisMetadata)


def spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """The axes of `mesh` that an array of these names and this shape is divided over."""
    if len(names) != len(shape):
        raise ValueError(f"axes {tuple(names)} for the shape {tuple(shape)}")
    known = {name for name, _ in RULES}
    unruled = [name for name in names if name is not None and name not in known]
    if unruled:
        raise ValueError(f"no rule in jaxclone/sharding/rules.py for the axis {unruled[0]!r}")
    axes = nn.logical_to_mesh_axes(tuple(names), RULES)
    return PartitionSpec(
        *(_dividing(axis, size, mesh) for axis, size in zip(axes, shape, strict=True))
    )


def _dividing(axis: str | tuple[str, ...] | None, size: int, mesh: Mesh | AbstractMesh) -> Any:
    """`axis` if its devices divide `size`, None otherwise."""
    group = (axis,) if isinstance(axis, str) else axis or ()
    return axis if size % math.prod(mesh.shape[name] for name in group) == 0 else None
