"""The one training loop. What it trains is a `Task`; what it keeps is a run folder."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from data_pipelines.loader import Loader, make_loader
from jaxclone.sharding import hosts
from jaxclone.sharding.mesh import activate, batch_parts, make_mesh
from jaxclone.train.checkpoint import Checkpoints
from jaxclone.train.cost import PLAIN, Cost
from jaxclone.train.errors import Interrupted, RunError
from jaxclone.train.health import Monitor
from jaxclone.train.meter import Meter, samples_of
from jaxclone.train.program import Program
from jaxclone.train.signals import StopSignals
from jaxclone.train.task import Judge, RunConfig, Task
from jaxclone.train.tracking import Tracker, read_metrics
from jaxclone.types import Array, Metrics, Tree, UserError

logger = logging.getLogger(__name__)

# What may change between two starts of the same run: how long it is, what it reports and keeps, the
# hardware it is laid out on, and how that computes a layer. All else would make it another run.
MAY_CHANGE = (
    "name",
    "out",
    "steps",
    "microbatches",
    "log_every",
    "eval_every",
    "eval_batches",
    "valid",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "mesh",
    "hosts",
    "tracking",
    "collapse",
    "data.corpus",
    "data.workers",
    "data.prefetch",
    "targets.bundle",
    "targets.batch_size",
    "targets.chunk_seconds",
    *(f".{name}" for name in PLAIN),
)


class Fit(NamedTuple):
    """What a run ends with.

    Attributes:
        state: the train state, on the devices of the mesh.
        summary: for people and for JSON: "steps", "resumed_from", "seconds" (of all starts),
            "parameters", "compiles" of the step, and "metrics": the last values of each.
    """

    state: Tree
    summary: dict[str, Any]


def run_folder(config: RunConfig) -> Path:
    """Where a run is kept: `config.out`, or else `runs/<name>`."""
    return Path(config.out or f"runs/{config.name}")


def fit(
    config: RunConfig,
    task: Task,
    *,
    pretrained: Mapping[str, Tree] | None = None,
    run_dir: Path | None = None,
    judge: Judge | None = None,
) -> Fit:
    """Trains until `config.steps`, from where the run folder left off.

    The run folder gets `config.json`, `checkpoints/`, `metrics.jsonl`, `media/<step>/` and
    `wandb/`. SIGTERM or SIGINT ends the step, saves, and raises `Interrupted`; a second one ends
    at once. With several processes each calls this, on the same folder.

    Args:
        config: of the run.
        task: what is trained, `config.task()`.
        pretrained: parameters by model name to start from, when the run is new.
        run_dir: the run folder; `run_folder(config)` when None.
        judge: scores what the task says of `copies` at each evaluation, on the first process.

    Raises:
        UserError: a folder that cannot be written or belongs to another run; a mesh, batch or
            data that do not fit; a metric or parameter that is not finite (`RunError`), in which
            case the last good checkpoint stays.
        Interrupted: stopped by a signal; the same call continues.
    """
    folder = Path(run_dir) if run_dir is not None else run_folder(config)
    _make_folder(folder)
    mesh = make_mesh(config.mesh)
    check_batches(config, mesh)
    with (
        _failing_alone(),
        StopSignals() as signals,
        activate(mesh),
        contextlib.ExitStack() as stack,
    ):
        # All that can be wrong with a configuration shows before anything is compiled.
        loaders = [
            stack.enter_context(contextlib.closing(make_loader(data, config.audio, config.seed)))
            for data in (config.data, config.valid)
            if data is not None
        ]
        program = Program(task, mesh, config.seed)
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.keep))
        restored = checkpoints.restore(program.abstract, config, MAY_CHANGE)
        if restored is None:
            state, start = program.init(pretrained or {}), 0
        else:
            state, start = restored.state, restored.step
            loaders[0].set_state(restored.data)
            logger.info("%s continues from step %d", folder, start)
        tracker, monitor = None, Monitor(task.watches)
        if jax.process_index() == 0:  # which alone warns
            tracker = stack.enter_context(Tracker(folder, config, start))
            for line in read_metrics(folder, up_to=start):
                numbers = {name: float(x) for name, x in line.items() if isinstance(x, int | float)}
                monitor.remember(line["step"], numbers)
        run = _Run(config, program, loaders, checkpoints, tracker, monitor, signals, start, judge)
        state = run.train(state)
        return Fit(state, run.summary())


def check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Raises a UserError unless the batches of a run divide over its devices."""
    parts = batch_parts(mesh)
    for name, data in (("data", config.data), ("valid", config.valid)):
        if data is not None and data.batch_size % parts:
            raise UserError(
                f"{name}.batch_size {data.batch_size} does not divide over the {parts} devices of "
                "mesh.data x mesh.fsdp"
            )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(f"the run folder {folder} cannot be written: {error.strerror}") from error


class _Pending(NamedTuple):
    """A step that is under way on the devices."""

    step: int
    metrics: Metrics
    report: Array
    samples: int
    flops: float


class _Run:
    """The loop of `fit`: the one place of a run with side effects.

    The devices are kept busy: a step's results are looked at when the next one is under way. Only
    a save or an evaluation waits for the step before it.
    """

    def __init__(
        self,
        config: RunConfig,
        program: Program,
        loaders: Sequence[Loader],
        checkpoints: Checkpoints,
        tracker: Tracker | None,
        monitor: Monitor,
        signals: StopSignals,
        start: int,
        judge: Judge | None,
    ):
        self.config = config
        self.program = program
        self.loader, *valid = loaders
        self.valid = valid[0] if valid else None
        self.checkpoints = checkpoints
        self.tracker = tracker
        self.monitor = monitor
        self.signals = signals
        self.start = start
        self.judge = judge
        self.cost = Cost(config, program.mesh, program.abstract)
        self.meter = Meter(config.audio.sample_rate, jax.device_count(), self.cost.peak)
        self.last: dict[str, float] = dict(tracker.last) if tracker else {}
        self._began = time.monotonic() - (tracker.seconds if tracker else 0.0)
        self._saved_at = time.monotonic()
        self._valid_start = self.valid.get_state() if self.valid else {}

    def train(self, state: Tree) -> Tree:
        config, due = self.config, self._due
        pending = None
        with tqdm(
            total=config.steps,
            initial=min(self.start, config.steps),
            desc=config.name,
            unit="step",
            file=sys.stderr,
            disable=self.tracker is None,
            dynamic_ncols=True,
        ) as bar:
            for step in range(self.start + 1, config.steps + 1):
                hosts.progress()
                batch = self.meter.next(self.loader)
                late = time.monotonic() - self._saved_at > 60 * config.checkpoint_minutes
                placed = self.program.put(batch)
                votes = self.signals.stop, late
                state, metrics, report = self.program.step(state, placed, votes)
                flops = self.cost(placed)  # the devices are at the step meanwhile
                stop, late = self._settle(pending, bar)
                pending = _Pending(step, metrics, report, samples_of(batch), flops)
                last = step == config.steps
                valid = self.valid if last or due(step, config.eval_every) else None
                save = last or stop or late or due(step, config.checkpoint_every)
                if valid or save:
                    self._settle(pending, bar)
                    pending = None
                # What is written of a step is written before its checkpoint: the run that
                # continues from there does not go through the step again.
                if valid:
                    self._evaluate(step, state, valid)
                if save:
                    self.checkpoints.save(step, state, self.loader.get_state(), config)
                    self._saved_at = time.monotonic()
                if stop and not last:
                    self.checkpoints.wait()
                    raise Interrupted(
                        f"stopped by a signal after step {step} and saved; the same command "
                        "continues"
                    )
            self.checkpoints.wait()
        return state

    def summary(self) -> dict[str, Any]:
        """See `Fit`."""
        return {
            "steps": max(self.start, self.config.steps),
            "resumed_from": self.start,
            "seconds": self._seconds(),
            "parameters": self.program.parameters(),
            "compiles": self.program.compiles,
            "metrics": self.last,
        }

    @staticmethod
    def _due(step: int, every: int) -> bool:
        return every > 0 and step % every == 0

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _settle(self, pending: _Pending | None, bar: tqdm) -> tuple[bool, bool]:
        """Waits for a step and looks at its results.

        Returns:
            whether any process was told to stop, and whether any finds that a save is due.

        Raises:
            RunError: a metric is not finite.
        """
        if pending is None:
            return False, False
        stop, late, *finite = np.asarray(pending.report).tolist()
        names = sorted(pending.metrics)
        if not all(finite):
            name = names[finite.index(0)]
            self._fail(pending.step, name, float(pending.metrics[name]))
        if pending.step == self.start + 1:
            self.meter.reset()  # compiling is not training
        else:
            self.meter.count(pending.samples, pending.flops)
        bar.update()
        if self._due(pending.step, self.config.log_every) or pending.step == self.config.steps:
            values = {name: float(pending.metrics[name]) for name in names}
            if not all(map(np.isfinite, values.values())):  # of an update that was skipped
                values = {name: value for name, value in values.items() if np.isfinite(value)}
            rates = self.meter.read()
            self._warn(pending.step, values)
            self._track(pending.step, values | rates)
            shown = [f"loss {values['loss']:.4g}"] if "loss" in values else []
            if rates:
                shown.append(f"{rates['audio_seconds_per_second']:.3g} s audio/s")
                shown.append(f"{rates['data_wait_fraction']:.0%} waiting for data")
            bar.set_postfix_str(", ".join(shown))
        return bool(stop), bool(late)

    def _evaluate(self, step: int, state: Tree, loader: Loader) -> None:
        """Means over the same batches each time, and what the task shows of the first of them."""
        with self.meter.paused():
            loader.set_state(self._valid_start)
            batches = itertools.islice(loader, self.config.eval_batches)
            first = self.program.put(next(batches))
            rest = map(self.program.put, batches)
            evaluate = self.program.evaluate
            results = jax.device_get(
                [evaluate(state, first), *(evaluate(state, batch) for batch in rest)]
            )
            weights = np.array([float(metrics.pop("weight", 1.0)) for metrics in results])
            if not weights.any():
                self.checkpoints.wait()
                raise RunError(
                    "nothing in the validation split counts, all is too short; "
                    f"{self.checkpoints.last()}"
                )
            values = {
                name: float(np.average([metrics[name] for metrics in results], weights=weights))
                for name in results[0]
            }
            for name, value in values.items():
                if not np.isfinite(value):
                    self._fail(step, f"valid/{name}", value)
            if self.judge and (copies := self.program.copies(state, first)):
                values |= self.judge(*copies)
            self._track(step, {f"valid/{name}": value for name, value in values.items()})
            media = self.program.showcase(state, first)
            if self.tracker and media:
                self.tracker.media(step, media)

    def _warn(self, step: int, values: dict[str, float]) -> None:
        """Says on the first process what is wrong with the run, if something is."""
        if self.tracker is None:
            return
        skipped = "skipped_steps"
        if values.get(skipped, 0.0) > self.last.get(skipped, 0.0):
            logger.warning(
                "step %d: %d updates so far were skipped, since their gradient was not finite",
                step,
                values[skipped],
            )
        for line in self.monitor.see(step, values):
            logger.warning(line)

    def _track(self, step: int, values: dict[str, float]) -> None:
        self.last |= values
        if self.tracker:
            self.tracker.scalars(step, self._seconds(), values)

    def _fail(self, step: int, name: str, value: float) -> None:
        self.checkpoints.wait()
        raise RunError(f"step {step}: {name} is {value}; {self.checkpoints.last()}")


@contextlib.contextmanager
def _failing_alone() -> Iterator[None]:
    """A process that fails is not kept by those that wait for it; a stop is common to all."""
    stopped = None
    with hosts.failing_alone():
        try:
            yield
        except Interrupted as stop:
            stopped = stop
    if stopped is not None:
        raise stopped
