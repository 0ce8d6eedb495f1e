"""A small but whole training run for the tests of the loop: as a module, and as a command.

The command `python tests/toy.py OPTIONS` trains in `--out` and leaves its parameters in
`<out>/params.npz`; it ends as the `jaxclone` command does. TOY_COUNT is `count` of `task`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import build
from data_pipelines.loader import CropConfig
from data_pipelines.sources import find_recordings
from jaxclone import config as configs
from jaxclone import rng
from jaxclone.audio import io
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.sharding.mesh import MeshConfig, to_host
from jaxclone.train import optim
from jaxclone.train.errors import Interrupted
from jaxclone.train.loop import fit
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import Media, RunConfig, Task
from jaxclone.train.tracking import read_metrics
from jaxclone.tree import flatten
from jaxclone.types import UserError, length_mask

HOP = 320


def named(*axes):
    return nn.with_logical_partitioning(nn.initializers.uniform(0.1), axes)


class Loudness(nn.Module):
    """Guesses the logarithm of each frame's energy from noisy samples."""

    width: int = 16

    @nn.compact
    def __call__(self, waveform, mask):
        x = nn.Conv(
            self.width,
            (HOP,),
            HOP,
            padding="VALID",
            kernel_init=named("kernel", "channels_in", "channels_out"),
        )(waveform[..., None])
        x = nn.with_logical_constraint(nn.gelu(x), ("batch", "time", "embed"))
        x = nn.gelu(nn.Dense(2 * self.width, kernel_init=named("embed", "mlp"))(x))
        x = nn.Dense(1, kernel_init=named("mlp", "norm"))(x)[..., 0]
        return jnp.where(mask, x, 0.0)


def config(corpus: Path, out: Path, **changes) -> RunConfig:
    data = CropConfig(corpus=str(corpus), batch_size=8, crop_seconds=0.2)
    settings = {
        "name": "toy",
        "out": str(out),
        "data": data,
        "steps": 6,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return RunConfig(**{**settings, **changes})


def task(
    run: RunConfig,
    *,
    width: int = 16,
    bad_step: int = -1,
    bad_parameters: int = -1,
    bad_gradients: tuple[int, ...] = (),
    max_skips: int = 0,
    count: int = 0,
) -> Task:
    """The functions of a run.

    A metric, or the parameters, or the gradients, are not finite at some steps. With `count`, the
    metrics "seen_0" and so on say how often each of so many speakers is in the batch.
    """
    model = Loudness(width)
    tx, schedule = optim.make_optimizer(
        optim.OptimConfig(
            learning_rate=3e-3,
            warmup_steps=3,
            clip_norm=1.0,
            schedule="cosine",
            max_skips=max_skips,
        ),
        200,
    )

    def init(key, pretrained):
        waveform = jnp.zeros((1, HOP))
        params = model.init(rng.stream(key, "init"), waveform, jnp.ones((1, 1), bool))["params"]
        params = pretrained.get("loudness", params)
        return TrainState(jnp.int32(0), key, ModelState(params, tx.init(params)), {})

    def loss_fn(params, batch, key):
        keys = rng.per_example(key, batch.example)
        noise = jax.vmap(lambda k: jax.random.uniform(k, batch.waveform.shape[1:]))(keys)
        frames = batch.waveform.shape[1] // HOP
        mask = length_mask(batch.length // HOP, frames)
        energy = jnp.log(jnp.square(batch.waveform).reshape(len(mask), frames, HOP).mean(-1) + 1e-4)
        guess = model.apply({"params": params}, batch.waveform + 0.01 * noise, mask)
        weight = mask.sum().astype(jnp.float32)
        error = jnp.where(mask, jnp.square(guess - energy), 0).sum() / jnp.maximum(weight, 1)
        return error, {"weight": weight, "guess": guess.sum() / jnp.maximum(weight, 1)}

    def step(state, batch):
        key = rng.stream(state.key, "noise", state.step)
        grads, metrics = optim.accumulate(
            lambda params, part: loss_fn(params, part, key),
            state.model.params,
            batch,
            run.microbatches,
        )
        spoilt = jnp.isin(state.step + 1, jnp.array(bad_gradients, jnp.int32))
        grads = jax.tree.map(lambda g: jnp.where(spoilt, jnp.nan, g), grads)
        trained, more = optim.apply(tx, state.model, grads)
        metrics |= more | {"learning_rate": schedule(state.step)}
        metrics |= {f"seen_{i}": (batch.speaker == i).sum() for i in range(count)}
        metrics["guess"] = jnp.where(state.step + 1 == bad_step, jnp.nan, metrics["guess"])
        bad = jnp.where(state.step + 1 == bad_parameters, jnp.nan, 0.0)
        trained = trained.replace(params=jax.tree.map(lambda x: x + bad, trained.params))
        return state.replace(step=state.step + 1, model=trained), metrics

    def evaluate(state, batch):
        loss, metrics = loss_fn(state.model.params, batch, rng.stream(state.key, "valid"))
        return {**metrics, "loss": loss}

    def showcase(state, batch):
        kernel = np.asarray(state.model.params["Dense_0"]["kernel"])
        return {
            "voices/first": Media("audio", np.asarray(batch.waveform[0])),
            "kernel": Media("image", kernel),
        }

    return Task(
        init=init,
        step=step,
        evaluate=evaluate,
        models=lambda state: {"loudness": state.model.params},
        model_configs={"loudness": run.audio},
        showcase=showcase,
    )


@pytest.fixture(scope="session")
def toy_corpus(
    tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]
) -> Path:
    """A corpus of the recordings in `speakers`."""
    folder = tmp_path_factory.mktemp("toy")
    for name, takes in speakers.items():
        (folder / "recordings" / name).mkdir(parents=True)
        for take, waveform in enumerate(takes):
            io.write(folder / "recordings" / name / f"{take}.wav", waveform, 16_000)
    rows = find_recordings(folder / "recordings")
    build(rows, folder / "corpus", RunConfig().audio, shards=1, f0=False, workers=1)
    return folder / "corpus"


def parameters(state) -> dict[str, np.ndarray]:
    """Whole arrays by path."""
    return flatten(to_host(state.model.params))


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what is compiled: most of a test's time is compiling the step that others have."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def environment(**variables: str) -> dict[str, str]:
    """The variables of a process that can import this module and the checkout."""
    tests = Path(__file__).resolve().parent
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])} | variables


def steps_done(folder: Path) -> int:
    """The last step that a run has written down."""
    lines = read_metrics(folder)
    return lines[-1]["step"] if lines else 0


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    """Returns when a run that goes on in a process has done a step."""
    while steps_done(folder) < step:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.01)


def main() -> int:
    try:
        run = configs.override(config(Path(), Path(), mesh=MeshConfig()), sys.argv[1:])
        initialise_distributed(run.hosts)
        state, _ = fit(run, task(run, count=int(os.environ.get("TOY_COUNT", "0"))))
        found = parameters(state)
        if jax.process_index() == 0:
            np.savez(Path(run.out) / "params.npz", **found)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except Interrupted as stop:
        sys.stderr.write(f"{stop}\n")
        return stop.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
