"""Operations of a training step, as a utilisation counts them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from jaxclone.sharding import flops
from jaxclone.sharding.chips import device_peak
from jaxclone.sharding.mesh import activate, platform
from jaxclone.train.task import RunConfig
from jaxclone.types import Tree

# Fields of configurations, at any depth, that change how a step is computed and not what; and the
# plain way, which computes nothing twice and hides nothing in kernels.
PLAIN: dict[str, Any] = {
    "remat": "none",
    "attention_impl": "xla",
    "positional_impl": "lax",
    "scan_unroll": 1,
}


def plain(config: Any) -> Any:
    """A configuration with the fields of `PLAIN` set to the plain way."""
    changes = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = plain(value)
        elif field.name in PLAIN:
            changes[field.name] = False if isinstance(value, bool) else PLAIN[field.name]
    return dataclasses.replace(config, **changes)


def model_flops(config: RunConfig, mesh: Mesh, state: Tree, batch: Tree) -> float:
    """Operations of a step over all devices, without what is computed twice to save memory.

    Args:
        config: of the run.
        mesh: the devices.
        state: arrays or shapes.
        batch: arrays or shapes, of all processes.
    """
    step = plain(config).task().step
    with activate(mesh):
        return flops.count(jax.jit(step).trace(state, batch).jaxpr, platform(mesh))


class Cost:
    """What the steps of a run would take of its devices at their best.

    Attributes:
        peak: operations a second of all devices; None where they are not known, and then nothing is
            counted.
    """

    def __init__(self, config: RunConfig, mesh: Mesh, state: Tree):
        """Of a run.

        Args:
            config: of the run.
            mesh: the devices.
            state: as shapes.
        """
        device = device_peak(mesh.devices.flat[0].device_kind, config.precision)
        self.peak = None if device is None else device * mesh.size
        self._config = config
        self._mesh = mesh
        self._state = state
        self._counted: dict[tuple[tuple[int, ...], ...], float] = {}

    def __call__(self, batch: Tree) -> float:
        """Operations of a step on a batch of all processes; 0 where the peak is not known.

        They are counted once for each shape, which takes as long as tracing the step.
        """
        if self.peak is None:
            return 0.0
        shapes = tuple(x.shape for x in jax.tree.leaves(batch))
        if shapes not in self._counted:
            self._counted[shapes] = model_flops(self._config, self._mesh, self._state, batch)
        return self._counted[shapes]
