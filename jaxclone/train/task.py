"""What differs between training runs: a few pure functions and one config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from data_pipelines.loader import CropConfig, EpisodeConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.sharding.hosts import HostsConfig
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.health import Watch
from jaxclone.types import Metrics, Tree, UserError, require_positive

# (truth, copy, true samples), see `Task.copies`, and what scores them on the host.
Copies = tuple[np.ndarray, np.ndarray, np.ndarray]
Judge = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Media:
    """Something to look at or to listen to.

    Attributes:
        kind: "audio" (f32[samples]) or "image" (f32[height, width], drawn with a colour map,
            row 0 at the bottom).
    """

    kind: Literal["audio", "image"]
    data: np.ndarray


@dataclasses.dataclass(frozen=True)
class Task:
    """The functions of a run; each is pure and works under `jax.jit`.

    Attributes:
        init: (key, pretrained) -> state. `pretrained` maps a model's name to its parameters, {}
            when the run starts from nothing: then parameters are boxed with their logical axes, by
            which the state is laid out on the mesh whatever it starts from.
        step: (state, batch) -> (state, metrics), metrics being scalars, "loss" the one that the
            progress bar shows.
        evaluate: (state, batch) -> metrics, averaged over batches by "weight" where there is one.
        models: state -> parameters by model name.
        model_configs: the config of each of those models that the bundle of this run holds.
        companions: the config of each of those that only serves to train: it has a bundle of its
            own, from which the next run can start.
        helpers: the config of each model that the run uses and does not train, which `init_from`
            must hold; None for one of any config, that it may lack.
        copies: (state, batch) -> (recordings f32[b, t], what the run makes of them f32[b, t], true
            samples i32[b]), sample by sample comparable, on the host at each evaluation for scores
            that are no function of arrays; None for none. Asked as `showcase` is.
        showcase: (state, batch) -> named media, called on the host at each evaluation; None for
            none. Of several processes, the first is asked alone, with whole arrays.
        watches: metrics of the step by which a run that goes nowhere is told.
    """

    init: Callable[[jax.Array, Mapping[str, Tree]], Any]
    step: Callable[[Any, Any], tuple[Any, Metrics]]
    evaluate: Callable[[Any, Any], Metrics]
    models: Callable[[Any], dict[str, Tree]]
    model_configs: Mapping[str, Any]
    helpers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    copies: Callable[[Any, Any], Copies] | None = None
    showcase: Callable[[Any, Any], dict[str, Media]] | None = None
    watches: tuple[Watch, ...] = ()
    companions: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides `metrics.jsonl`.

    Attributes:
        wandb: "off", or the mode Weights & Biases is started in.
        project: its project.
    """

    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "jaxclone"


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has; a task's config extends it with its models and losses.

    Attributes:
        name: names the run; the default run folder is `runs/<name>`.
        out: the run folder; "" for the default.
        seed: of everything random.
        audio: how sound becomes frames, the same for every model of the run.
        data: what is trained on.
        valid: what `evaluate` is run on; None for no evaluation.
        init_from: bundles whose models the run starts from.
        steps: updates in all; 0 makes a bundle of what training would start from.
        microbatches: each batch is run in this many parts whose gradients are averaged.
        precision: of the computation; parameters and reductions are always f32.
        log_every: steps between two lines of metrics.jsonl.
        eval_every: steps between evaluations (and showcases); 0 for only at the end.
        eval_batches: batches of `valid` an evaluation takes.
        checkpoint_every: steps between checkpoints.
        checkpoint_minutes: also save when this long has passed since the last one.
        keep: checkpoints kept.
        mesh: devices by axis.
        hosts: the processes that the devices belong to.
        tracking: Weights & Biases.
    """

    name: str = "run"
    out: str = ""
    seed: int = 0
    audio: AudioSpec = AudioSpec()
    data: CropConfig | EpisodeConfig = CropConfig()
    valid: CropConfig | EpisodeConfig | None = None
    init_from: tuple[str, ...] = ()
    steps: int = 1000
    microbatches: int = 1
    precision: Literal["f32", "bf16"] = "f32"
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 4
    checkpoint_every: int = 500
    checkpoint_minutes: float = 10.0
    keep: int = 2
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()
    tracking: TrackingConfig = TrackingConfig()

    def __post_init__(self) -> None:
        require_positive(self, "microbatches", "eval_batches", "keep")
        every = ("log_every", "eval_every", "checkpoint_every", "checkpoint_minutes")
        require_positive(self, "steps", *every, or_zero=True)
        if self.data.batch_size % self.microbatches:
            raise UserError(
                f"microbatches {self.microbatches} does not divide data.batch_size "
                f"{self.data.batch_size}"
            )

    def task(self) -> Task:
        """The functions of this run."""
        raise NotImplementedError(f"{type(self).__name__} has no task")

    def prepare(self, folder: Path, load: Callable[[str], Any]) -> None:
        """Makes what must be there before the first step; every process of a run calls it.

        What is there already is not made again.

        Args:
            folder: of the run.
            load: reads a bundle, `export.bundle.load_bundle`.
        """

    def bundles(self) -> tuple[str, ...]:
        """The bundles that this run learns from."""
        return self.init_from
