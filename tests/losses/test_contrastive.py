"""The contrastive loss against a loop, and what it makes of duplicates and padding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone import rng
from jaxclone.losses.contrastive import ContrastiveConfig, contrastive_loss, pretraining_loss
from jaxclone.models.wav2vec2 import PretrainingOutput
from jaxclone.nn.masking import MaskedFrames, sample_negatives

B, M, K = 3, 9, 20
VALID = jnp.arange(M) < jnp.array([9, 5, 0])[:, None]
# Of each list, the frames at odd places are masked.
FRAMES = jnp.broadcast_to(jnp.arange(M), (B, M))
ALL = MaskedFrames(VALID & (FRAMES % 2 == 1), FRAMES, VALID)
MASKED = MaskedFrames(VALID, FRAMES, VALID)


def example(seed=0):
    draw = [jax.random.normal(rng.stream(rng.root(seed), name), (B, M, 6)) for name in "pt"]
    codes = jax.random.randint(rng.stream(rng.root(seed), "codes"), (B, M, 2), 0, 3)
    negatives = sample_negatives(rng.per_example(rng.root(seed), jnp.arange(B)), VALID, K)
    return *draw, codes, negatives, VALID


def loop(predicted, target, codes, negatives, valid, temperature):
    def cosine(a, b):
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / temperature

    losses, correct = [], []
    for b, i in zip(*np.nonzero(valid)):
        positive = cosine(predicted[b, i], target[b, i])
        others = [
            cosine(predicted[b, i], target[b, j])
            for j in negatives[b, i]
            if (codes[b, j] != codes[b, i]).any()
        ]
        losses.append(math.log(sum(math.exp(x) for x in [positive, *others])) - positive)
        correct.append(bool(others) and positive > max(others))
    return np.mean(losses), np.mean(correct)


def test_equals_a_loop():
    loss, metrics = jax.jit(contrastive_loss)(*example())
    want, accuracy = loop(*map(np.asarray, example()), 0.1)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits"], want / math.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)
    assert metrics["weight"] == 14


def test_frames_that_are_not_masked_have_a_weight_of_their_own():
    predicted, target, codes, negatives, valid = map(np.asarray, example())
    hidden = np.asarray(ALL.hidden)
    loss, metrics = contrastive_loss(*example(), hidden=ALL.hidden, unmasked=0.3)
    (masked, accuracy), (others, accuracy_unmasked) = (
        loop(predicted, target, codes, negatives, where, 0.1) for where in (hidden, valid & ~hidden)
    )
    # Of 9 and 5 frames, 4 and 2 are masked.
    weight = 6 + 0.3 * 8
    np.testing.assert_allclose(loss, (6 * masked + 0.3 * 8 * others) / weight, rtol=1e-5)
    np.testing.assert_allclose(metrics["weight"], weight, rtol=1e-6)
    np.testing.assert_allclose(metrics["bits"], masked / math.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy_unmasked"], accuracy_unmasked, rtol=1e-5)


def test_collapsed_codes_give_no_loss_and_no_credit():
    predicted, target, codes, negatives, valid = example()
    args = predicted, target, jnp.zeros_like(codes), negatives, valid
    (loss, metrics), grads = jax.value_and_grad(contrastive_loss, has_aux=True)(*args)
    assert (loss, metrics["accuracy"]) == (0, 0)
    assert not grads.any()


def test_gradient_is_finite_at_zero_vectors_and_without_frames():
    predicted, target, codes, negatives, valid = example()
    for args in (
        (jnp.zeros_like(predicted), target, codes, negatives, valid),
        (predicted, target, codes, negatives, jnp.zeros_like(valid)),
    ):
        grad = jax.grad(lambda *a: contrastive_loss(*a)[0])(*args)
        assert jnp.isfinite(grad).all()


def output(seed=0, probability=None):
    predicted, target, codes, _, _ = example(seed)
    logits = jax.random.normal(rng.stream(rng.root(seed), "logits"), (B, M, 2, 3))
    energy = jnp.array([0.5, 2.0, 7.0])
    return PretrainingOutput(predicted, target, codes, jax.nn.softmax(logits), energy)


def test_parts_of_the_whole():
    negatives = example()[3]
    parts = {
        name: pretraining_loss(output(), negatives, MASKED, ContrastiveConfig(0.1, *weights))
        for name, weights in {"contrast": (0.0, 0.0), "all": (0.3, 2.0)}.items()
    }
    contrast, metrics = parts["contrast"]
    penalty = (9 * 0.5 + 5 * 2.0) / 14  # each utterance by its masked frames
    np.testing.assert_allclose(metrics["feature_penalty"], penalty, rtol=1e-6)
    diversity = (6 - metrics["prob_perplexity"]) / 6
    np.testing.assert_allclose(parts["all"][0], contrast + 0.3 * diversity + 2 * penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits"], contrast / math.log(2), rtol=1e-6)


@pytest.mark.parametrize(("frames", "unmasked"), [(MASKED, 0.0), (ALL, 0.3)], ids=["masked", "all"])
def test_parts_of_a_batch_add_up(frames, unmasked):
    config = ContrastiveConfig(diversity=0.0, unmasked=unmasked)
    negatives = example()[3]
    whole, metrics = pretraining_loss(output(), negatives, frames, config)
    total = 0.0
    for i in range(B):
        part = jax.tree.map(lambda x, i=i: x[i : i + 1], (output(), negatives, frames))
        loss, more = pretraining_loss(*part, config)
        total += loss * more["weight"]
    np.testing.assert_allclose(total / metrics["weight"], whole, rtol=1e-5)


def test_perplexities_are_those_of_masked_frames():
    _, metrics = pretraining_loss(output(), example()[3], MASKED, ContrastiveConfig())
    assert 2 <= metrics["code_perplexity"] <= 6
    one = jnp.zeros((B, M, 2, 3)).at[..., 1].set(1.0)
    # The codes of `output` are many, as noise makes them.
    collapsed = output().replace(probabilities=one)
    _, metrics = pretraining_loss(collapsed, example()[3], MASKED, ContrastiveConfig())
    assert metrics["prob_perplexity"] == metrics["code_perplexity"] == pytest.approx(2)


def test_predictions_that_are_all_the_same_have_no_variance():
    negatives, config = example()[3], ContrastiveConfig()
    _, metrics = pretraining_loss(output(), negatives, MASKED, config)
    unit = output().predicted / jnp.linalg.norm(output().predicted, axis=-1, keepdims=True)
    spread = jnp.square(unit[VALID] - unit[VALID].mean(0)).sum(-1).mean()
    np.testing.assert_allclose(metrics["prediction_variance"], spread, rtol=1e-5)
    # Nor does their length make any, or what stands where no frame is.
    same = jnp.full_like(output().predicted, 3.0).at[0].mul(2.0)
    same = jnp.where(VALID[..., None], same, output().predicted)
    _, metrics = pretraining_loss(output().replace(predicted=same), negatives, MASKED, config)
    assert metrics["prediction_variance"] == pytest.approx(0, abs=1e-6)
