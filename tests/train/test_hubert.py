"""HuBERT's task: what a step reports, what it depends on, and that it learns."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import CropConfig, EpisodeConfig
from jaxclone import config as configs
from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.hubert import HubertConfig
from jaxclone.train.features import mfcc_features
from jaxclone.train.hubert import HubertPretrainConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.tree import flatten
from jaxclone.types import Batch, UserError

TINY = HubertConfig.tiny(units=6)
CONFIG = HubertPretrainConfig(
    model=dataclasses.replace(TINY, encoder=dataclasses.replace(TINY.encoder, dropout=0.1)),
    data=CropConfig(units="any"),
    steps=60,
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, clip_norm=10.0),
)


@pytest.fixture(scope="module")
def batch(speech):
    """Crops, and as units how loud their frames are."""
    length = np.array([16_000, 16_000, 9_000, 12_345])
    waveform = np.stack([speech[i * 4000 : i * 4000 + 16_000] for i in range(4)])
    waveform = waveform * (np.arange(16_000) < length[:, None])
    loudness = np.log(np.square(waveform).reshape(4, 50, 320).mean(-1) + 1e-6)
    units = np.digitize(loudness, np.quantile(loudness, [0.2, 0.4, 0.6, 0.8]))
    return Batch(
        jnp.asarray(waveform),
        jnp.asarray(length),
        -jnp.ones(4, jnp.int32),
        jnp.arange(4) + 17,
        units=jnp.asarray(units, jnp.int32),
    )


@pytest.fixture(scope="module")
def start():
    return nn.unbox(jax.jit(CONFIG.task().init)(rng.root(CONFIG.seed), {}))


@functools.cache
def compiled(config):
    return jax.jit(config.task().step)


def test_step_reports_and_moves(start, batch):
    state, metrics = compiled(CONFIG)(start, batch)
    assert metrics.keys() == {
        "accuracy",
        "accuracy_unmasked",
        "bits",
        "feature_penalty",
        "grad_norm",
        "learning_rate",
        "loss",
        "prob_perplexity",
        "unit_perplexity",
        "weight",
    }
    assert all(jnp.isfinite(value) for value in metrics.values())
    for (name, before), after in zip(
        flatten(start.model.params).items(), jax.tree.leaves(state.model.params)
    ):
        moved = abs(after - before).max() > 0
        assert moved, f"{name} is not trained"


def test_it_is_watched():
    """What it watches is what it reports, and the published sizes skip a bad gradient or two."""
    watched = {watch.metric: watch.below for watch in CONFIG.task().watches}
    assert watched == {"unit_perplexity": 2.0, "prob_perplexity": 2.0}
    for name in ("base_it1", "base_it2", "large", "mini_it1", "mini_it2"):
        assert configs.load(f"pretrain/hubert_{name}").optim.max_skips == 10


def test_micro_batches_are_the_batch(start, batch):
    whole, metrics = compiled(CONFIG)(start, batch)
    parts, more = compiled(dataclasses.replace(CONFIG, microbatches=2))(start, batch)
    for name in ("loss", "weight", "accuracy", "bits", "feature_penalty", "grad_norm"):
        np.testing.assert_allclose(more[name], metrics[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(whole.model.opt_state), jax.tree.leaves(parts.model.opt_state)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_it_learns_to_name_what_it_cannot_see(start, batch):
    step, state, history = compiled(CONFIG), start, []
    for index in range(CONFIG.steps):
        state, metrics = step(state, batch.replace(example=batch.example + 4 * index))
        history.append(jax.tree.map(float, metrics))
    assert step._cache_size() == 1
    assert np.mean([m["accuracy"] for m in history[-10:]]) > 0.3  # chance: 0.2
    assert np.mean([m["bits"] for m in history[-10:]]) < 0.7 * history[0]["bits"]
    scores = [jax.jit(CONFIG.task().evaluate)(state, batch) for _ in range(2)]
    assert scores[0]["loss"] == scores[1]["loss"]


@pytest.mark.parametrize("data", [CropConfig(), EpisodeConfig()], ids=["no units", "no crops"])
def test_data_must_have_units(data):
    with pytest.raises(UserError, match="name them in data"):
        dataclasses.replace(CONFIG, data=data).task()


@pytest.mark.parametrize("padded", [True, False])
def test_a_frame_of_mfcc_is_of_the_samples_of_the_encoders_frame(padded):
    """Noise in one frame of the encoder, and nowhere else, is in that frame of the MFCC."""
    encoder = dataclasses.replace(TINY.encoder, pad_input=padded)
    features = mfcc_features(encoder, AudioSpec())
    length = np.array([6400])
    for frame in (0, 7, int(encoder.frame_length(6400)) - 1):
        first = max(0, 320 * frame - encoder.padding)
        waveform = np.zeros((1, 6400), np.float32)
        middle = slice(first + 180, first + 200)
        waveform[0, middle] = np.random.default_rng(0).standard_normal(20)
        values, frames = features.apply({}, waveform, length)
        assert int(frames[0]) == encoder.frame_length(6400) == (20 if padded else 19)
        energy = np.asarray(values)[0, :20, 0]
        assert int(energy.argmax()) == frame
