"""DiffWave's step on made-up speech: it learns, parts make a whole, padding has no part."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.losses.diffusion import noise_loss
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.train.diffusion import DiffusionConfig, add_noise, draw
from jaxclone.train.optim import OptimConfig
from jaxclone.types import Batch, UserError

SPEC = AudioSpec(n_fft=256, hop_length=64, win_length=256, n_mels=16)
SIZE = 30 * SPEC.hop_length
CONFIG = DiffusionConfig(
    audio=SPEC,
    generator=DiffWaveConfig(
        n_mels=16, upsample_rates=(8, 8), channels=12, layers=6, dilation_cycle=6
    ),
    resolutions=((256, 64, 256),),
    optim=OptimConfig(kind="adam", learning_rate=5e-3, betas=(0.9, 0.999)),
    steps=100,
)


@pytest.fixture(scope="module")
def batch(speakers):
    """Eight crops, the last two of them padded, one by no whole number of frames."""
    rows = [take[4000 : 4000 + SIZE] for takes in speakers.values() for take in takes[:2]]
    length = np.array([SIZE] * 6 + [SIZE // 2, SIZE // 3 + 5], np.int32)
    waveform = np.stack([np.where(np.arange(SIZE) < n, x, 0) for x, n in zip(rows, length)])
    return Batch(
        waveform=waveform.astype(np.float32),
        length=length,
        speaker=np.zeros(8, np.int32),
        example=np.arange(8, dtype=np.int32),
    )


@pytest.fixture(scope="module")
def start():
    task = CONFIG.task()
    return task, nn.unbox(jax.jit(lambda key: task.init(key, {}))(rng.root(0)))


@pytest.fixture(scope="module")
def moved(start):
    """A state whose network tells something: its last layer is zero at first."""
    model = start[1].model
    key = jax.random.key(2)
    params = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(key, x.shape), model.params)
    return start[1].replace(model=model.replace(params=params))


@pytest.fixture(scope="module")
def step(start):
    return jax.jit(start[0].step)


def part(batch, index):
    return jax.tree.map(lambda x: x[index], batch)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_it_learns_to_tell_noise(start, step, batch):
    state = start[1]
    _, untrained = step(state, batch)
    # The last layer is zero at first: nothing is told, and |N(0, 1)| has the mean 0.798.
    np.testing.assert_allclose(untrained["loss"], np.sqrt(2 / np.pi), atol=0.02)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert metrics["loss"] < 0.5 * untrained["loss"]
    assert int(state.step) == 60


def test_micro_batches_make_the_whole_batch(moved, step, batch):
    whole, metrics = step(moved, batch)
    parts_task = dataclasses.replace(CONFIG, microbatches=4).task()
    parts, more = jax.jit(parts_task.step)(moved, batch)
    np.testing.assert_allclose(more["loss"], metrics["loss"], rtol=1e-5)
    assert metrics["weight"] == more["weight"] == SIZE * 6 + 64 * (15 + 10)
    # Adam's first step is the sign of the gradient: compare its moments, which are the gradient.
    moments = flat(whole.model.opt_state)
    np.testing.assert_allclose(
        moments, flat(parts.model.opt_state), atol=1e-5 * np.abs(moments[1:]).max()
    )


def test_an_example_has_its_noise_wherever_it_stands(moved, step, batch):
    _, once = step(moved, batch)
    _, turned = step(moved, part(batch, np.arange(8)[::-1]))
    np.testing.assert_allclose(turned["loss"], once["loss"], rtol=1e-5)
    _, later = step(moved.replace(step=jnp.int32(1)), batch)
    assert abs(later["loss"] - once["loss"]) > 1e-5


def test_what_is_padded_has_no_part(moved, step, batch):
    loud = np.where(np.arange(SIZE) < batch.length[:, None], batch.waveform, 0.9)
    _, metrics = step(moved, batch.replace(waveform=loud.astype(np.float32)))
    _, wanted = step(moved, batch)
    np.testing.assert_allclose(metrics["loss"], wanted["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], wanted["grad_norm"], rtol=1e-4)


def test_evaluation_speaks(start, batch):
    task, state = start
    scores = jax.jit(task.evaluate)(state, part(batch, slice(6, 8)))
    assert {"loss", "noise_loss", "mel_l1", "stft_loss", "weight"} <= set(scores)
    assert all(np.isfinite(value) for value in scores.values())


def test_the_mean_of_the_parameters_is_what_speaks(moved, batch):
    config = dataclasses.replace(CONFIG, ema=0.9)
    task, few = config.task(), part(batch, slice(6, 8))
    begun = nn.unbox(
        jax.jit(lambda key: task.init(key, {"vocoder": moved.model.params}))(rng.root(0))
    )
    after, _ = jax.jit(task.step)(begun, few)
    # Early on, the mean is of few steps.
    expected = 0.1 * flat(begun.model.params) + 0.9 * flat(after.model.params)
    mean = task.models(after)["vocoder"]
    np.testing.assert_allclose(flat(mean), expected, atol=1e-6)
    assert np.abs(flat(mean) - flat(after.model.params)).max() > 1e-4
    plain = moved.replace(model=moved.model.replace(params=mean))
    assert plain.model.variables == {}  # so are checkpoints of runs without a mean
    ours, wanted = (
        made.copies(state, few) for made, state in ((task, after), (CONFIG.task(), plain))
    )
    truth, copy, length = ours
    assert truth.shape == copy.shape == (2, SIZE)
    np.testing.assert_array_equal(length, few.length // 64 * 64)
    np.testing.assert_array_equal(truth, few.waveform)
    np.testing.assert_array_equal(copy, wanted[1])


@pytest.mark.slow
def test_showcase_speaks(start, batch):
    task, state = start
    shown = task.showcase(state, batch)
    assert shown["copy"].data.shape == shown["truth"].data.shape == (SIZE,)
    assert shown["copy_mel"].data.shape == (16, 30)


def test_noise_is_added_as_the_schedule_says():
    config = DiffWaveConfig.base()
    waveform = np.full((3, 20_000), 0.5, np.float32)
    time = jnp.array([0, 20, 49])
    _, noise = draw(rng.per_example(rng.root(0), jnp.arange(3)), 20_000, 50)
    noisy = np.asarray(add_noise(waveform, noise, time, config))
    kept = np.cumprod(1 - np.linspace(1e-4, 0.05, 50))[[0, 20, 49]]
    np.testing.assert_allclose(noisy.mean(1), 0.5 * np.sqrt(kept), atol=0.02)
    np.testing.assert_allclose(noisy.var(1), 1 - kept, rtol=0.05)


def test_every_step_of_the_diffusion_is_drawn():
    keys = rng.per_example(rng.root(0), jnp.arange(2000))
    times, _ = draw(keys, 1, 50)
    counts = np.bincount(np.asarray(times), minlength=50)
    assert len(counts) == 50
    assert counts.min() > 15
    assert counts.max() < 75


@pytest.mark.parametrize(("kind", "wanted"), [("l1", 1.5), ("l2", 2.5)])
def test_both_distances(kind, wanted):
    told, noise = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    noise[1, :2], noise[1, 2:] = 2.0, 100.0
    # Two true samples of each: 1, 1, 2, 2.
    loss, metrics = noise_loss(told, noise, np.array([2, 2], np.int32), kind)
    assert (float(loss), float(metrics["weight"])) == (wanted, 4.0)


def test_a_mean_of_everything_is_refused():
    with pytest.raises(UserError, match="ema must be at least 0 and below 1, got 1"):
        dataclasses.replace(CONFIG, ema=1.0)


def test_a_generator_of_another_audio_is_refused():
    with pytest.raises(UserError, match="the AudioSpec has hop_length 64"):
        DiffusionConfig(audio=SPEC).task()
    DiffusionConfig(audio=hifigan_22k()).task()
