"""Devices by axis, and the processes they belong to."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import math
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxclone.sharding.rules import BATCH_AXES, RULES
from jaxclone.types import Tree, UserError

# How long a process that fails waits for the others to fail likewise.
LEAVING_SECONDS = 5.0


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
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices
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


def initialise_distributed() -> None:
    """Joins the processes of a run, as the environment says; nothing when it says nothing.

    Call it before anything else touches a device. Variables:
        JAXCLONE_CPU_DEVICES: CPU devices of this process.
        JAXCLONE_COORDINATOR: `host:port` of process 0; its presence asks for several processes.
        JAXCLONE_PROCESSES: how many.
        JAXCLONE_PROCESS_ID: which of them this is, from 0.
        JAXCLONE_TIMEOUT: seconds that processes wait for one another at the start, and for a sign
            of life later; 100 when unset.

    Raises:
        UserError: a variable is missing or not a number. When the others do not come in time, the
            process ends with one line and the exit code 1.
    """
    if "JAXCLONE_CPU_DEVICES" in os.environ:
        jax.config.update("jax_num_cpu_devices", _number("JAXCLONE_CPU_DEVICES"))
    coordinator = os.environ.get("JAXCLONE_COORDINATOR")
    if not coordinator:
        return
    timeout = _number("JAXCLONE_TIMEOUT", 100)
    processes, process = _number("JAXCLONE_PROCESSES"), _number("JAXCLONE_PROCESS_ID")

    def give_up() -> None:
        missing = "process 0 does not answer" if process else "not all others came"
        sys.stderr.write(
            f"error: process {process} of {processes}: {missing} at {coordinator} within "
            f"{timeout} s (JAXCLONE_TIMEOUT)\n"
        )
        sys.stderr.flush()
        os._exit(1)

    # JAX would abort the process with a stack trace, which cannot be caught: be there before it.
    watch = threading.Timer(timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=timeout + 60,
            heartbeat_timeout_seconds=timeout,
            shutdown_timeout_seconds=timeout,
        )
    finally:
        watch.cancel()


def fail_at_exit() -> None:
    """For a process that fails: at its exit, it does not wait for others that may wait for it.

    Those that fail likewise still take leave of one another; where one does not come within
    seconds, this process ends with 1, upon which the others end too, instead of waiting for a
    time-out. With a single process, nothing is done.
    """
    if jax.process_count() > 1:
        atexit.register(_take_leave)


def _take_leave() -> None:
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVING_SECONDS)
    if leaving.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _number(variable: str, default: int | None = None) -> int:
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UserError(f"{variable} must be a number, got {text!r}")
    return int(text)
