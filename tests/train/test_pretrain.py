"""The pretraining task: what a step reports, what it depends on, and that it learns."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import CropConfig
from jaxclone import rng
from jaxclone.audio.spec import hifigan_22k
from jaxclone.losses.contrastive import ContrastiveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig
from jaxclone.tree import flatten
from jaxclone.types import Batch, UserError

TINY = Wav2Vec2PretrainingConfig.tiny()
ENCODER = dataclasses.replace(TINY.encoder, dropout=0.1, layer_drop=0.1)
CONFIG = PretrainConfig(
    model=dataclasses.replace(TINY, encoder=ENCODER, target_dropout=0.1),
    negatives=10,
    steps=60,
    temperature=TemperatureConfig(2.0, 0.5, 0.99),
    loss=ContrastiveConfig(diversity=0.0),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5),
)


@pytest.fixture(scope="module")
def batch(speech):
    length = jnp.array([16_000, 16_000, 9_000, 12_345])
    waveform = jnp.stack([jnp.asarray(speech[i * 4000 : i * 4000 + 16_000]) for i in range(4)])
    waveform *= jnp.arange(16_000) < length[:, None]
    return Batch(waveform, length, -jnp.ones(4, jnp.int32), jnp.arange(4) + 17)


@pytest.fixture(scope="module")
def start():
    return nn.unbox(jax.jit(CONFIG.task().init)(rng.root(CONFIG.seed), {}))


@functools.cache
def compiled(config):
    return jax.jit(config.task().step)


def run(config, state, batch):
    return compiled(config)(state, batch)


def test_step_reports_and_moves(start, batch):
    state, metrics = run(CONFIG, start, batch)
    assert metrics.keys() == {
        "accuracy",
        "bits",
        "code_perplexity",
        "feature_penalty",
        "grad_norm",
        "learning_rate",
        "loss",
        "prediction_variance",
        "prob_perplexity",
        "temperature",
        "weight",
    }
    assert all(jnp.isfinite(value) for value in metrics.values())
    assert state.step == 1
    for (name, before), after in zip(
        flatten(start.model.params).items(), jax.tree.leaves(state.model.params)
    ):
        moved = abs(after - before).max() > 0
        assert moved, f"{name} is not trained"


@pytest.mark.parametrize("unmasked", [0.0, 0.5])
def test_micro_batches_are_the_batch(start, batch, unmasked):
    """Not with a weight on diversity: the entropy of a mean is no mean of entropies."""
    config = dataclasses.replace(CONFIG, loss=ContrastiveConfig(diversity=0.0, unmasked=unmasked))
    whole, metrics = run(config, start, batch)
    parts, more = run(dataclasses.replace(config, microbatches=2), start, batch)
    means = ("accuracy", "bits") if not unmasked else ()  # over the masked frames alone
    for name in ("loss", "weight", "feature_penalty", "grad_norm", *means):
        np.testing.assert_allclose(more[name], metrics[name], rtol=1e-4, err_msg=name)
    for moment in (0, 1):  # of Adam: the gradient and its square
        a, b = (jax.tree.leaves(state.model.opt_state[0][moment + 1]) for state in (whole, parts))
        for x, y in zip(a, b):
            np.testing.assert_allclose(x, y, atol=1e-5)


def test_order_in_the_batch_does_not_matter(start, batch):
    _, metrics = run(CONFIG, start, batch)
    _, turned = run(CONFIG, start, jax.tree.map(lambda x: x[::-1], batch))
    np.testing.assert_allclose(turned["loss"], metrics["loss"], rtol=1e-5)


def test_every_step_has_its_masks_and_evaluation_always_the_same(start, batch):
    task = CONFIG.task()
    _, first = run(CONFIG, start, batch)
    _, later = run(CONFIG, start.replace(step=start.step + 1), batch)
    assert first["loss"] != later["loss"]
    evaluate = jax.jit(task.evaluate)
    scores = [evaluate(start.replace(step=jnp.int32(step)), batch)["loss"] for step in (0, 9)]
    assert scores[0] == scores[1]


@pytest.mark.slow
def test_it_learns(start, batch):
    config = dataclasses.replace(CONFIG, loss=ContrastiveConfig())
    step = compiled(config)
    state, history = start, []
    for index in range(config.steps):
        state, metrics = step(state, batch.replace(example=batch.example + 4 * index))
        history.append(jax.tree.map(float, metrics))
    assert step._cache_size() == 1
    assert np.mean([m["bits"] for m in history[-10:]]) < 0.8 * history[0]["bits"]
    assert history[-1]["prob_perplexity"] > 4  # 2 is one entry of each codebook
    assert history[-1]["temperature"] == pytest.approx(2 * 0.99 ** (config.steps - 1), rel=1e-4)


def test_starts_from_an_encoder_and_its_heads(start):
    task = CONFIG.task()
    assert task.model_configs == {"encoder": CONFIG.model.encoder, "pretraining": CONFIG.model}
    given = jax.tree.map(lambda x: x + 1, task.models(start))
    for names in (["encoder"], ["pretraining"], ["encoder", "pretraining"]):
        init = jax.jit(task.init)
        models = task.models(nn.unbox(init(rng.root(3), {name: given[name] for name in names})))
        for name in names:
            jax.tree.map(np.testing.assert_array_equal, models[name], given[name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemperatureConfig(decay=0.0), "decay must be above 0"),
        (lambda: TemperatureConfig(decay=1.1), "decay must be at most 1"),
        (lambda: ContrastiveConfig(temperature=0.0), "temperature must be above 0"),
        (lambda: ContrastiveConfig(diversity=float("nan")), "diversity must be finite"),
        (lambda: dataclasses.replace(ENCODER, heads=0), "heads must be above 0"),
        (lambda: dataclasses.replace(ENCODER, layers=-1), "layers must be above 0"),
        (lambda: dataclasses.replace(ENCODER, dropout=1.0), "dropout must be at least 0 and below"),
        (lambda: dataclasses.replace(TINY, projection_width=0), "projection_width must be above"),
        (lambda: dataclasses.replace(CONFIG, negatives=0), "negatives must be above 0"),
        (
            lambda: dataclasses.replace(CONFIG, data=CropConfig(crop_seconds=0.05)).task(),
            "0.05 s make 2 frames; masking takes 3 or more",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_published_temperature():
    schedule = TemperatureConfig()
    np.testing.assert_allclose(
        [schedule(step) for step in (0, 100_000, 400_000)], [2.0, 2 * 0.999995**1e5, 0.5], rtol=1e-5
    )


def test_frames_must_match():
    config = dataclasses.replace(CONFIG, audio=hifigan_22k())
    with pytest.raises(UserError, match="a frame every 320 samples, AudioSpec every 256"):
        config.task()
