"""The converter's and the adapters' steps on made-up speech: they learn, and parts make a whole."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.adapt.enroll import AdaptConfig
from jaxclone.audio import pitch
from jaxclone.audio.perturb import PerturbConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train.conversion import ConversionConfig
from jaxclone.train.meta import MetaConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.types import Batch, Episode

SPEC = AudioSpec(n_mels=16)
SIZES = {
    "audio": SPEC,
    "encoder": Wav2Vec2Config.tiny(),
    "speaker": SpeakerEncoderConfig.tiny(),
    "converter": ConverterConfig(bottleneck=4, width=8, layers=2, kernel=3),
    "optim": OptimConfig(learning_rate=1e-2),
    "steps": 50,
}


@pytest.fixture(scope="module")
def batch(speakers):
    """Two recordings of each of four speakers, cut to 0.8 s, the last two of them padded."""
    size = 40 * SPEC.hop_length
    rows = [takes[i][:size] for takes in speakers.values() for i in (0, 1)]
    length = np.full(len(rows), size, np.int32)
    length[-2:] = size // 2
    waveform = np.stack([np.where(np.arange(size) < n, x, 0) for x, n in zip(rows, length)])
    waveform = waveform.astype(np.float32)
    return Batch(
        waveform=waveform,
        length=length,
        speaker=np.repeat(np.arange(4, dtype=np.int32), 2),
        example=np.arange(8, dtype=np.int32),
        f0=np.stack([pitch.f0(x, SPEC) for x in waveform]),
        reference=np.roll(waveform.reshape(4, 2, -1), 1, axis=1).reshape(8, -1),
        reference_length=np.roll(length.reshape(4, 2), 1, axis=1).reshape(8),
    )


def start(config):
    task = config.task()
    return task, nn.unbox(jax.jit(lambda key: task.init(key, {}))(rng.root(0)))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def test_the_converter_learns_one_batch(batch):
    task, state = start(ConversionConfig(**SIZES))
    first = task.evaluate(state, batch)["mel_l1"]
    step = jax.jit(task.step)
    for _ in range(50):
        state, metrics = step(state, batch)
    last = task.evaluate(state, batch)["mel_l1"]
    assert last < 0.75 * first
    assert int(state.step) == 50
    assert metrics["weight"] == 6 * 40 + 2 * 20


def test_micro_batches_make_the_whole_batch(batch):
    # The contrast between speakers is between the examples of a part, so it is left out here.
    config = ConversionConfig(**SIZES, speaker_weight=0.0)
    task, state = start(config)
    whole, _ = jax.jit(task.step)(state, batch)
    parts_task = dataclasses.replace(config, microbatches=4).task()
    parts, _ = jax.jit(parts_task.step)(state, batch)
    moved = np.abs(flat(whole.model.params) - flat(state.model.params)).max()
    # Adam's first step is the sign of the gradient: compare its moments, which are the gradient.
    np.testing.assert_allclose(
        flat(whole.model.opt_state), flat(parts.model.opt_state), atol=1e-5 * max(moved, 1)
    )


def test_a_frozen_encoder_stays(batch):
    task, state = start(ConversionConfig(**SIZES, encoder_rate=0.0))
    assert "encoder" in state.frozen
    after, _ = jax.jit(task.step)(state, batch)
    np.testing.assert_array_equal(
        flat(task.models(after)["encoder"]), flat(task.models(state)["encoder"])
    )


def test_the_slow_encoder_moves_by_its_rate(batch):
    moves = {}
    for rate in (1.0, 0.1):
        task, state = start(ConversionConfig(**SIZES, encoder_rate=rate))
        after, _ = jax.jit(task.step)(state, batch)
        moves[rate] = np.abs(
            flat(after.model.params["encoder"]) - flat(state.model.params["encoder"])
        ).max()
    np.testing.assert_allclose(moves[0.1], 0.1 * moves[1.0], rtol=1e-2)


def episode_of(batch):
    """Each speaker's first recording as support and the second as query."""
    pairs = jax.tree.map(lambda x: np.asarray(x).reshape(4, 2, *x.shape[1:]), batch)
    return Episode(
        support=jax.tree.map(lambda x: x[:, :1], pairs),
        query=jax.tree.map(lambda x: x[:, 1:], pairs),
    )


@pytest.fixture(scope="module")
def meta_sizes():
    still = PerturbConfig(formants=0.0, pitch=0.0, eq_db=0.0)
    return {**SIZES, "adapt": AdaptConfig(steps=3, learning_rate=0.05, perturb=still)}


def test_meta_training_makes_adaptation_pay(batch, meta_sizes):
    config = MetaConfig(**meta_sizes)
    task, state = start(config)
    episode = episode_of(batch)
    step = jax.jit(task.step)
    _, untrained = step(state, episode)
    for _ in range(40):
        state, metrics = step(state, episode)
    assert metrics["query_l1_after"] < 0.8 * untrained["query_l1_after"]
    assert metrics["query_l1_after"] < metrics["query_l1_before"]


@pytest.mark.slow
def test_with_an_inner_rate_of_zero_adaptation_changes_nothing(batch, meta_sizes):
    still = dataclasses.replace(meta_sizes["adapt"], learning_rate=0.0)
    task, state = start(MetaConfig(**{**meta_sizes, "adapt": still}))
    metrics = task.evaluate(state, episode_of(batch))
    np.testing.assert_allclose(metrics["query_l1_before"], metrics["query_l1_after"], rtol=1e-6)


@pytest.mark.slow
def test_second_order_gradients_are_not_first_order_ones(batch, meta_sizes):
    gradients = []
    for first_order in (False, True):
        adapt = dataclasses.replace(meta_sizes["adapt"], first_order=first_order)
        task, state = start(MetaConfig(**{**meta_sizes, "adapt": adapt}))
        after, _ = jax.jit(task.step)(state, episode_of(batch))
        gradients.append(flat(after.model.opt_state))
        assert np.isfinite(gradients[-1]).all()
    assert np.abs(gradients[0] - gradients[1]).max() > 1e-6
