from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.train.checkpoint import Checkpoints, examine
from jaxclone.train.errors import RunError
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import RunConfig
from jaxclone.types import UserError

CONFIG = RunConfig(name="saved")


def state_at(step: int, width: int = 4) -> TrainState:
    params = {"kernel": jnp.arange(3.0 * width).reshape(3, width) + step, "bias": jnp.ones(width)}
    moments = (jax.tree.map(lambda x: x / 3, params), jnp.bfloat16(step))
    return TrainState(
        jnp.int32(step), rng.root(7), ModelState(params, moments), {"encoder": jnp.ones(2)}
    )


def abstract(state: TrainState) -> TrainState:
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        jax.eval_shape(lambda: state),
    )


def restore(folder: Path, *, config: RunConfig = CONFIG, width: int = 4, may_change=()):
    with Checkpoints(folder, keep=2) as checkpoints:
        return checkpoints.restore(abstract(state_at(0, width)), config, may_change)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 10 and 20."""
    folder = tmp_path / "run" / "checkpoints"
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (5, 10, 20):
            checkpoints.save(step, state_at(step), {"step": step}, CONFIG)
    return folder


def assert_same(a: TrainState, b: TrainState) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert examine(a)[0] == examine(b)[0]
    for x, y in zip(jax.tree.leaves(a.model), jax.tree.leaves(b.model)):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    assert jax.random.bits(a.key) == jax.random.bits(b.key)


def largest_file(checkpoint: Path) -> Path:
    return max((p for p in checkpoint.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_comes_back_whole(saved: Path) -> None:
    found = restore(saved)
    assert (found.step, found.data) == (20, {"step": 20})
    assert_same(found.state, state_at(20))


def test_only_the_newest_are_kept(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["10", "20"]


def test_there_may_be_none(tmp_path: Path) -> None:
    assert restore(tmp_path / "checkpoints") is None


def test_memory_may_be_reused_at_once(tmp_path: Path) -> None:
    step = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    state = {"x": jnp.arange(1e6)}
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state, {}, CONFIG)
        for _ in range(5):
            state = step(state)
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = {"x": jax.ShapeDtypeStruct((1_000_000,), jnp.float32, sharding=place)}
        checkpoints.wait()
        found = checkpoints.restore(shapes, CONFIG, ())
    np.testing.assert_array_equal(found.state["x"], np.arange(1e6, dtype=np.float32))


def test_a_save_that_was_killed_is_cleared_away(saved: Path) -> None:
    (saved / "30.orbax-checkpoint-tmp").mkdir()
    assert restore(saved).step == 20
    assert not (saved / "30.orbax-checkpoint-tmp").exists()


def test_a_state_that_is_not_finite_is_not_saved(saved: Path) -> None:
    state = state_at(30)
    state.model.params["bias"] = jnp.array([1.0, jnp.nan, 1.0, 1.0])
    message = r"^step 30: model/params/bias is not finite; the last checkpoint is of step 20, in "
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(RunError, match=message):
        checkpoints.save(30, state, {}, CONFIG)
    assert restore(saved).step == 20


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink])
def test_a_damaged_one_gives_way_to_the_one_before(
    saved: Path, damage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(largest_file(saved / "20"))
    with caplog.at_level(logging.WARNING):
        found = restore(saved)
    assert (found.step, found.data) == (10, {"step": 10})
    assert_same(found.state, state_at(10))
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("jaxclone")]
    assert warning.startswith("the checkpoint of step 20 is damaged (")
    assert "\n" not in warning
    assert (saved.parent / "damaged_checkpoint_20").is_dir()
    with Checkpoints(saved, keep=2) as checkpoints:
        checkpoints.save(20, state_at(20), {"step": 20}, CONFIG)
    assert restore(saved).step == 20
    # And once more.
    damage(largest_file(saved / "20"))
    assert restore(saved).step == 10
    assert (saved.parent / "damaged_checkpoint_20-2").is_dir()


@pytest.mark.parametrize("content", ["[1]", "{}"])
def test_a_configuration_that_is_none_is_damage(saved: Path, content: str) -> None:
    (saved / "20" / "config" / "metadata").write_text(content)
    assert restore(saved).step == 10


def test_one_of_another_version_stays_where_it_is(saved: Path) -> None:
    """It may be sound, and going back behind it would lose what it holds."""
    (saved / "20" / "config" / "metadata").write_text('{"_type": "jaxclone.config.Gone"}')
    with pytest.raises(UserError, match="Gone"):
        restore(saved)
    assert (saved / "20").is_dir()


@pytest.mark.parametrize("name", ["config", "audio", "digest", "data"])
def test_what_goes_with_the_state_is_needed_too(saved: Path, name: str) -> None:
    truncate(saved / "20" / name / "metadata")
    assert restore(saved).step == 10


def test_when_all_are_damaged_nothing_starts_anew(saved: Path) -> None:
    for step in (10, 20):
        truncate(largest_file(saved / str(step)))
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read; the newest, of step 20"):
        restore(saved)
    assert (saved / "20").is_dir()


def test_another_model_is_named(saved: Path) -> None:
    message = (
        rf"^checkpoint {saved}/20 is of another model: model/opt_state/0/bias is \(4,\) there, "
        r"\(5,\) here$"
    )
    with pytest.raises(UserError, match=message):
        restore(saved, width=5)


def test_another_structure_is_named(saved: Path) -> None:
    state = state_at(0)
    state.model.params["more"] = jnp.zeros(3)
    message = r"another model: model/params/more is absent there, \(3,\) here$"
    with Checkpoints(saved, keep=2) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(abstract(state), CONFIG, ())


def test_another_audio_spec_is_named(saved: Path) -> None:
    config = dataclasses.replace(CONFIG, audio=AudioSpec(n_mels=40))
    message = rf"^AudioSpec of checkpoint {saved}/20 does not match: n_mels 80 \(expected 40\)$"
    with pytest.raises(UserError, match=message):
        restore(saved, config=config)


def test_another_configuration_is_named(saved: Path) -> None:
    config = dataclasses.replace(CONFIG, seed=1, steps=7)
    message = rf"^seed is not what the run in {saved.parent} was started with"
    with pytest.raises(UserError, match=message):
        restore(saved, config=config, may_change=("steps",))
    assert restore(saved, config=config, may_change=("steps", "seed")).step == 20


def test_a_name_stands_for_the_fields_under_it(saved: Path) -> None:
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, workers=3))
    assert restore(saved, config=config, may_change=("data",)).step == 20
    with pytest.raises(UserError, match=r"^data\.workers is not"):
        restore(saved, config=config, may_change=("dat",))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"^/.*/file/checkpoints cannot be written: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints", keep=1)


def test_the_digest_sees_bits_and_places() -> None:
    state = {"x": jnp.arange(6.0), "key": rng.root(0)}
    digest, finite = examine(state)
    assert finite.all()
    swapped = {**state, "x": jnp.array([0.0, 1.0, 3.0, 2.0, 4.0, 5.0])}
    nudged = {**state, "x": state["x"].at[3].set(np.nextafter(np.float32(3), np.float32(4)))}
    assert len({digest, examine(swapped)[0], examine(nudged)[0]}) == 3
    assert examine({**state, "x": jnp.array([1, jnp.inf])})[1].tolist() == [True, False]
