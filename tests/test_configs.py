"""Every config that comes with jaxclone is found, explains itself and makes a state and a step."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest

from data_pipelines.loader import batch_shapes
from jaxclone import config as configs
from jaxclone.sharding.rules import unbox
from jaxclone.train.task import RunConfig

FOLDER = Path(__file__).resolve().parent.parent / "configs"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.py"))
BOTH_SIZES = [name + size for name in NAMES for size in ("", ":smoke")]


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

    batch = batch_shapes(config.data, config.audio)
    after, metrics = jax.eval_shape(task.step, state, batch)
    assert same_shapes(after, state)
    assert "loss" in metrics
    assert all(value.shape == () for value in metrics.values())

    if config.valid is not None:
        scores = jax.eval_shape(task.evaluate, state, batch_shapes(config.valid, config.audio))
        assert all(value.shape == () for value in scores.values())
