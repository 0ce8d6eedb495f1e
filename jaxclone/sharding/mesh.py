"""Devices by axis."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclone.sharding.rules import BATCH_AXES, RULES
from jaxclone.types import Tree, UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 for one axis takes what is left.

    Attributes:
        data: copies of the model, each with its part of the batch.
        fsdp: parts of the parameters that are gathered when used; also splits the batch.
        tensor: parts of the wide dimensions of a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a run, with the axes "data", "fsdp" and "tensor".

    Args:
        config: devices along each axis.
        devices: all of them; None for those of every process of this run.

    Raises:
        UserError: the devices do not fill the axes, or the tensor axis crosses processes.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(config)
    free = [name for name, size in sizes.items() if size == -1]
    known = 1
    for name, size in sizes.items():
        if size != -1 and size < 1:
            raise UserError(f"mesh.{name} must be a number of devices or -1, got {size}")
        known *= 1 if size == -1 else size
    if len(free) > 1:
        raise UserError(f"only one axis of the mesh can be -1, got {' and '.join(free)}")
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    elif known != len(devices):
        asked = " x ".join(f"{name}={size}" for name, size in sizes.items())
        raise UserError(f"a mesh of {asked} does not fit {len(devices)} devices")
    # Examples are read by process: one that holds only a part of each example has nothing to read.
    if jax.process_count() > 1 and jax.local_device_count() % sizes["tensor"]:
        raise UserError(
            f"mesh.tensor={sizes['tensor']} must divide the {jax.local_device_count()} devices "
            "of a process"
        )
    return Mesh(_arrange(devices, sizes), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def _arrange(devices: Sequence[Any], sizes: dict[str, int]) -> np.ndarray:
    """Devices by axis, so that those of one axis are neighbours where the wiring allows it.

    Slices of a TPU, which only the network joins, lie along the data axis.

    Raises:
        UserError: there are more slices than the data axis can be divided over.
    """
    slices = len({getattr(device, "slice_index", 0) or 0 for device in devices})
    shape = tuple(sizes.values())
    if slices == 1:
        # An axis may take a part of a physical one: eight devices along one of sixteen.
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if sizes["data"] % slices:
        raise UserError(f"mesh.data={sizes['data']} must be a multiple of the {slices} slices")
    over = tuple(slices if name == "data" else 1 for name in sizes)
    within = tuple(size // part for size, part in zip(shape, over))
    return mesh_utils.create_hybrid_device_mesh(
        within, over, devices, allow_split_physical_axes=True
    )


@contextlib.contextmanager
def activate(mesh: Mesh) -> Iterator[Mesh]:
    """Within it, logical constraints and shardings refer to `mesh` under our rules."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        yield mesh


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is the batch."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_parts(mesh: Mesh) -> int:
    """Devices that a batch is divided over."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def platform(mesh: Mesh) -> str:
    """Of its devices: "cpu", "tpu" or "cuda", as `jax.lax.platform_dependent` calls them."""
    name = mesh.devices.flat[0].platform
    return "cuda" if name == "gpu" else name


def to_host(tree: Tree) -> Tree:
    """Whole numpy arrays of arrays on any devices; every process must call it.

    Random keys stay keys, on one device.
    """

    def fetch(x: Any) -> Any:
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(fetch(jax.random.key_data(x)))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)

    return jax.tree.map(fetch, tree)
