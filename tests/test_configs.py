"""Every config that comes with jaxclone is found, explains itself and makes a state and a step."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from data_pipelines.loader import CropConfig, EpisodeConfig
from jaxclone import config as configs
from jaxclone.audio.spec import AudioSpec
from jaxclone.sharding.rules import unbox
from jaxclone.train.task import RunConfig
from jaxclone.types import Batch, Episode

FOLDER = Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.py"))
BOTH_SIZES = [name + size for name in NAMES for size in ("", ":smoke")]


def batch_of(data: CropConfig | EpisodeConfig, audio: AudioSpec) -> Batch | Episode:
    """The shapes of what a loader of this config gives, its longest bucket if it has buckets."""

    def crops(*lead: int, seconds: float, reference: float, f0: bool, units: str = "") -> Batch:
        def shape(dtype, *rest: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *rest), dtype)

        samples = audio.n_samples(seconds)
        return Batch(
            waveform=shape(jnp.float32, samples),
            length=shape(jnp.int32),
            speaker=shape(jnp.int32),
            example=shape(jnp.int32),
            f0=shape(jnp.float32, audio.n_frames(samples)) if f0 else None,
            units=shape(jnp.int32, audio.n_frames(samples)) if units else None,
            reference=shape(jnp.float32, audio.n_samples(reference)) if reference else None,
            reference_length=shape(jnp.int32) if reference else None,
        )

    size = {"seconds": data.crop_seconds, "f0": data.f0}
    if isinstance(data, EpisodeConfig):
        return Episode(
            support=crops(data.batch_size, data.support, reference=0.0, **size),
            query=crops(data.batch_size, data.query, reference=0.0, **size),
        )
    size |= {"seconds": max(data.buckets, default=data.crop_seconds), "units": data.units}
    return crops(data.batch_size, reference=data.reference_seconds, **size)


def same_shapes(a, b) -> bool:
    return jax.tree.map(lambda x: (x.shape, x.dtype), a) == jax.tree.map(
        lambda x: (x.shape, x.dtype), b
    )


def test_every_config_is_found_by_name():
    assert NAMES
    assert set(NAMES) <= set(configs.names())


@pytest.mark.parametrize("name", NAMES)
def test_docstring_tells_what_to_expect(name):
    """The command that runs it, what it runs on, how long and with what result."""
    summary, *rest = configs.describe(name).splitlines()
    assert summary.endswith(".")
    starts = [line.partition(":")[0] for line in rest if ":" in line]
    assert [word for word in starts if word in ("Command", "Hardware", "Time", "Score")] == [
        "Command",
        "Hardware",
        "Time",
        "Score",
    ]
    assert f"jaxclone train {name}" in configs.describe(name)


@pytest.mark.parametrize("name", BOTH_SIZES)
def test_config_survives_json(name):
    config = configs.load(name)
    assert isinstance(config, RunConfig)
    assert configs.from_json(configs.to_json(config)) == config


def test_runs_have_folders_of_their_own():
    names = [configs.load(name).name for name in NAMES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", BOTH_SIZES)
def test_config_makes_a_state_and_a_step(name):
    """Abstractly: shapes alone, so that the largest model is tried in seconds."""
    config = configs.load(name)
    task = config.task()
    key = jax.eval_shape(lambda: jax.random.key(config.seed))
    state = unbox(jax.eval_shape(lambda k: task.init(k, {}), key))
    assert set(task.models(state)) >= set(task.model_configs)

    batch = batch_of(config.data, config.audio)
    after, metrics = jax.eval_shape(task.step, state, batch)
    assert same_shapes(after, state)
    assert "loss" in metrics
    assert all(value.shape == () for value in metrics.values())

    if config.valid is not None:
        scores = jax.eval_shape(task.evaluate, state, batch_of(config.valid, config.audio))
        assert all(value.shape == () for value in scores.values())
