"""The compiled functions of a run on its mesh.

`jax.jit` with shardings is what used to be called `pjit`: each function is compiled once for all
devices of the mesh, and the compiler puts in the communication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxclone import rng
from jaxclone.sharding import rules
from jaxclone.sharding.mesh import (
    MeshConfig,
    activate,
    batch_sharding,
    make_mesh,
    replicated,
    to_host,
)
from jaxclone.train.task import Copies, Media, Task
from jaxclone.tree import flatten, n_parameters
from jaxclone.types import Array, Metrics, Tree, UserError

T = TypeVar("T")


class Program:
    """A task's functions, jitted with the shardings of a mesh.

    Call its methods while the mesh is active (`sharding.mesh.activate`).

    Attributes:
        mesh: the devices.
        abstract: the train state as shapes with shardings.
        compiles: times that the step was traced; 1 for batches of one shape.
    """

    def __init__(self, task: Task, mesh: Mesh, seed: int):
        self.mesh = mesh
        self.compiles = 0
        self._task = task
        self._seed = seed
        boxed = jax.eval_shape(self._init, {})
        places = rules.shardings(boxed, mesh)
        self.abstract = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
            rules.unbox(boxed),
            places,
        )
        self._places = places
        self._voting = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        whole, split = replicated(mesh), batch_sharding(mesh)
        self.train_step = jax.jit(
            self._step,
            in_shardings=(places, split, self._voting),
            out_shardings=(places, whole, whole),
            donate_argnums=0,
        )
        self._evaluate = jax.jit(task.evaluate, in_shardings=(places, split), out_shardings=whole)
        self._votes: dict[tuple[bool, ...], Array] = {}

    def init(self, pretrained: Mapping[str, Tree]) -> Tree:
        """The first state, made where it lives: no host holds the whole of it.

        Args:
            pretrained: parameters by model name.

        Raises:
            UserError: they do not fit the models of this run.
        """
        pretrained = to_host(dict(pretrained))
        held = flatten(rules.unbox(jax.eval_shape(self._init, pretrained)))
        wanted = flatten(self.abstract)
        for path in sorted({*wanted, *held}):
            here, there = (
                tree[path].shape if path in tree else "absent" for tree in (wanted, held)
            )
            if here != there:
                raise UserError(
                    f"the pretrained models do not fit this run: {path} is {there}, not {here}"
                )
        init = jax.jit(lambda given: rules.unbox(self._init(given)), out_shardings=self._places)
        return init(pretrained)

    def _init(self, pretrained: Mapping[str, Tree]) -> Tree:
        return self._task.init(rng.root(self._seed), pretrained)

    def parameters(self) -> int:
        """The number of parameters of all models."""
        return n_parameters(jax.eval_shape(self._task.models, self.abstract))

    def put(self, batch: Tree) -> Tree:
        """A batch on the devices, from the examples that this process has read."""
        place = batch_sharding(self.mesh)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, x), batch)

    def step(
        self, state: Tree, batch: Tree, votes: tuple[bool, ...]
    ) -> tuple[Tree, Metrics, Array]:
        """One update.

        Args:
            state: given up: its memory is used for the new one.
            batch: as `put` gives it.
            votes: of this process.

        Returns:
            (state, metrics, report): the report is i32[votes + metrics], whether any process cast
            each vote, then whether each metric, in order of name, is finite, or excused because
            the update was skipped.
        """
        if votes not in self._votes:
            mine = np.tile(np.array(votes, np.int32), (len(self.mesh.local_devices), 1))
            self._votes[votes] = jax.make_array_from_process_local_data(self._voting, mine)
        return self.train_step(state, batch, self._votes[votes])

    def _step(self, state: Tree, batch: Tree, votes: Array) -> tuple[Tree, Metrics, Array]:
        self.compiles += 1  # this line runs when the step is traced, not when it is called
        state, metrics = self._task.step(state, batch)
        excused = jnp.array(
            [value > 0 for name, value in metrics.items() if name.endswith("skipped")], bool
        ).any()
        finite = [jnp.isfinite(metrics[name]).all() | excused for name in sorted(metrics)]
        return state, metrics, jnp.concatenate([votes.max(0), jnp.array(finite, jnp.int32)])

    def evaluate(self, state: Tree, batch: Tree) -> Metrics:
        """The metrics of a batch, still on the devices."""
        return self._evaluate(state, batch)

    def showcase(self, state: Tree, batch: Tree) -> dict[str, Media]:
        """What there is to look at and listen to; {} on other processes than the first.

        Every process must call it: the task is then asked on the first one alone, on one device.
        """
        return self._alone(self._task.showcase, state, batch) or {}

    def copies(self, state: Tree, batch: Tree) -> Copies | None:
        """What a judge compares; None on other processes than the first. Called as `showcase`."""
        return self._alone(self._task.copies, state, batch)

    @staticmethod
    def _alone(ask: Callable[[Tree, Tree], T] | None, state: Tree, batch: Tree) -> T | None:
        """What a function of the task says, asked on the first process alone."""
        if ask is None:
            return None
        if jax.process_count() == 1:
            return ask(state, batch)
        state, batch = to_host((state, batch))
        if jax.process_index() != 0:
            return None
        with activate(make_mesh(MeshConfig(data=1), jax.local_devices()[:1])):
            return ask(state, batch)
