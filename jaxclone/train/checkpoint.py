"""Checkpoints: the whole state of a run, written in the background and whole or not at all.

One checkpoint holds the state, the place in the data, the configuration and the AudioSpec, and a
digest of the state by which damage is told when it is read back. It can be read onto any mesh and
any number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import Bool

from jaxclone import config as configs
from jaxclone.audio.spec import AudioSpec
from jaxclone.train.errors import RunError
from jaxclone.train.task import RunConfig
from jaxclone.tree import flatten
from jaxclone.types import Array, Tree, UserError

logger = logging.getLogger(__name__)

# What is looked at before the state itself is read.
_ABOUT = ("audio", "config", "digest")


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held.

    Attributes:
        step: updates done.
        state: the train state, on the devices that were asked for.
        data: the place in the data, as the loader gave it.
    """

    step: int
    state: Tree
    data: Any


class Checkpoints:
    """The checkpoints of one run folder; every process of the run makes one."""

    def __init__(self, folder: Path, keep: int):
        """Opens the folder and clears away what an interrupted save left.

        Args:
            folder: where they are; made when missing.
            keep: how many are kept.

        Raises:
            RunError: the folder cannot be written.
        """
        self.folder = Path(folder).absolute()
        self._keep = keep
        try:
            self._manager = self._open()
        except OSError as error:
            raise RunError(f"{self.folder} cannot be written: {error.strerror}") from error

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, cleanup_tmp_directories=True
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                **{name: ocp.JsonCheckpointHandler() for name in ("data", *_ABOUT)},
            },
        )

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, state: Tree, data: Any, config: RunConfig) -> None:
        """Saves a state in the background; the arrays may be donated once this returns.

        Args:
            step: updates done.
            state: the train state.
            data: the place in the data, of lists, dicts, numbers and strings.
            config: of the run.

        Raises:
            RunError: the state holds a number that is not finite, in which case nothing is
                written; or this or the previous save could not be written.
        """
        digest, finite = examine(state)
        if not finite.all():
            name = list(flatten(state))[int(np.argmin(finite))]
            raise RunError(f"step {step}: {name} is not finite; {self.last()}")
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave({"place": data}),
            config=ocp.args.JsonSave(configs.to_data(config)),
            audio=ocp.args.JsonSave(dataclasses.asdict(config.audio)),
            digest=ocp.args.JsonSave({"state": digest}),
        )
        try:
            self._manager.save(step, args=items, force=True)
        except Exception as error:
            raise self._unwritten(error) from error

    def wait(self) -> None:
        """Returns when all is written.

        Raises:
            RunError: it could not be.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is being written and lets go of the folder.

        After a failure it causes no other; and with several processes it does not wait for those
        that may be waiting for this one.
        """
        if kind is None or jax.process_count() == 1:
            with contextlib.suppress(*([] if kind is None else [RunError])):
                self.wait()
            self._manager.close()

    def restore(
        self, abstract: Tree, config: RunConfig, may_change: Collection[str]
    ) -> Restored | None:
        """The newest checkpoint that is whole; None when there is none at all.

        A damaged one is moved out of the way, with a warning, and the one before it is taken.

        Args:
            abstract: the state as shapes with shardings.
            config: of the run that continues.
            may_change: the fields of the configuration that need not be as they were, by dotted
                name; a name also stands for the fields under it, and one that begins with a dot
                for fields of that name anywhere.

        Raises:
            UserError: the checkpoint is of another AudioSpec, another configuration or another
                model, or every one is damaged.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, problem = self._read(step, abstract, config, may_change)
            if restored is not None:
                self._set_aside(damaged)
                return restored
            damaged[step] = problem
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} can be read; the newest, of step {max(damaged)}: "
                f"{damaged[max(damaged)]}"
            )
        return None

    def _read(
        self, step: int, abstract: Tree, config: RunConfig, may_change: Collection[str]
    ) -> tuple[Restored | None, str]:
        """A checkpoint, or what is wrong with it; the processes agree."""
        found, problem = None, ""
        try:
            about = self._manager.restore(
                step,
                args=ocp.args.Composite(**{name: ocp.args.JsonRestore() for name in _ABOUT}),
            )
            shapes = self._manager.item_metadata(step).state.tree
            self._check(step, about, shapes, abstract, config, may_change)
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
            digest, _ = examine(items.state)
            if digest != about.digest["state"]:
                problem = "its arrays are not those that were saved"
            found = Restored(step, items.state, items.data["place"])
        except (UserError, MemoryError, PermissionError):
            raise  # nothing that says it is damaged
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            problem = _first_line(error)
        if jax.process_count() > 1:
            whole = multihost_utils.process_allgather(np.array(not problem)).all()
            problem = problem or ("" if whole else "another process could not read it")
        return (None, problem) if problem else (found, "")

    def _check(
        self,
        step: int,
        about: ocp.args.Composite,
        shapes: Tree,
        abstract: Tree,
        config: RunConfig,
        may_change: Collection[str],
    ) -> None:
        name = f"checkpoint {self.folder / str(step)}"
        config.audio.require(AudioSpec(**about.audio), name)
        if not isinstance(about.config, dict) or "_type" not in about.config:
            raise ValueError("its configuration is none")
        before = configs.from_data(about.config)
        changed = [
            field
            for field in configs.difference(before, config)
            if not any(_stands_for(free, field) for free in may_change)
        ]
        if changed:
            raise UserError(
                f"{changed[0]} is not what the run in {self.folder.parent} was started with; "
                "give it back its value, or start a new run folder with --out"
            )
        wanted = {path: tuple(_data(leaf).shape) for path, leaf in flatten(abstract).items()}
        held = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
        for path in sorted({*wanted, *held}):
            if wanted.get(path) != held.get(path):
                raise UserError(
                    f"{name} is of another model: {path} is {held.get(path, 'absent')} there, "
                    f"{wanted.get(path, 'absent')} here"
                )

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints out of the folder, where they would block a save."""
        if not damaged:
            return
        for step, problem in damaged.items():
            aside = _free(self.folder.parent / f"damaged_checkpoint_{step}")
            if jax.process_index() == 0:
                (self.folder / str(step)).rename(aside)
                logger.warning(
                    "the checkpoint of step %d is damaged (%s); it was moved to %s, and the one "
                    "before it is used",
                    step,
                    problem,
                    aside,
                )
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints set aside")
        self._manager.close()
        self._manager = self._open()

    def last(self) -> str:
        """What there is to go back to, in words."""
        if self.latest is None:
            return "nothing had been saved"
        return f"the last checkpoint is of step {self.latest}, in {self.folder}"

    def _unwritten(self, error: Exception) -> RunError:
        return RunError(
            f"a checkpoint could not be written to {self.folder}: {_first_line(error)}; "
            f"{self.last()}"
        )


def _free(path: Path) -> Path:
    """The path, or where there is something already, path-2, path-3 and so on."""
    names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def _stands_for(name: str, field: str) -> bool:
    """Whether a field is among those that a name of `may_change` means."""
    if name.startswith("."):
        return field.endswith(name)
    return field == name or field.startswith(f"{name}.")


def examine(state: Tree) -> tuple[int, Bool[np.ndarray, " leaves"]]:
    """A digest of all bits of a state, the same on any mesh; and which leaves are finite."""
    digest, *finite = np.asarray(_examine(state)).tolist()
    return digest, np.array(finite, bool)


@jax.jit
def _examine(state: Tree) -> Array:
    digest, finite = jnp.uint32(0), []
    for leaf in map(_data, jax.tree.leaves(state)):
        finite.append(jnp.isfinite(leaf).all())
        bits = leaf
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            bits = jax.lax.bitcast_convert_type(leaf, f"uint{8 * leaf.dtype.itemsize}")
        # Odd factors: neither a flipped bit nor two exchanged numbers go unseen. Sums of unsigned
        # integers wrap around: their order, hence the mesh, makes no difference.
        factors = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        terms = bits.reshape(-1).astype(jnp.uint32) * factors
        digest = digest * jnp.uint32(31) + terms.sum(dtype=jnp.uint32)
    return nn.with_logical_constraint(
        jnp.stack([digest, *(ok.astype(jnp.uint32) for ok in finite)]), (None,)
    )


def _data(leaf: Any) -> Any:
    """A leaf as it is stored: a random key by its numbers."""
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
