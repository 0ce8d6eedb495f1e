"""The loss of wav2vec 2.0 (Baevski et al. 2020 §3.2; fairseq `criterions/wav2vec_criterion.py`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxclone.models.wav2vec2 import PretrainingOutput
from jaxclone.nn.norm import unit_norm
from jaxclone.nn.quantize import perplexity
from jaxclone.types import Array, Metrics


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Weights of the loss.

    Attributes:
        temperature: of the cosine similarities.
        diversity: weight of the share of codes that are not in use.
        feature_penalty: weight of the mean square of the stem's features; LARGE has none.
    """

    temperature: float = 0.1
    diversity: float = 0.1
    feature_penalty: float = 10.0


def contrastive_loss(
    predicted: Float[Array, "b m d"],
    target: Float[Array, "b m d"],
    codes: Int[Array, "b m g"],
    negatives: Int[Array, "b m k"],
    valid: Bool[Array, "b m"],
    temperature: float = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of telling a masked frame's target from those of other frames.

    All pairs of masked frames are compared at once and a pair counts as often as it was drawn: one
    matrix product in place of a gather of k vectors a frame.

    Args:
        predicted: from the transformer.
        target: quantised.
        codes: entries the targets are made of: a negative with the codes of the positive is left
            out.
        negatives: places in the list of masked frames.
        valid: which places of the list hold a masked frame.
        temperature: the cosines are divided by it.

    Returns:
        the mean over valid places, in nats; metrics "weight" (their number), "bits", and "accuracy"
        (how often the positive is the most similar; never where no negative is left).
    """
    similarity = jnp.einsum("bid,bjd->bij", unit_norm(predicted), unit_norm(target)) / temperature
    places = jnp.arange(valid.shape[1])
    drawn = (negatives[..., None] == places).sum(2)
    same = (codes[:, :, None] == codes[:, None]).all(-1)
    drawn = jnp.where(same, 0, drawn)

    positive = jnp.diagonal(similarity, axis1=1, axis2=2)
    # A large negative number and not -inf, whose gradient would be NaN.
    negative = jnp.where(drawn > 0, similarity + jnp.log(jnp.maximum(drawn, 1)), -1e30)
    total = jax.nn.logsumexp(jnp.concatenate([positive[..., None], negative], -1), axis=-1)
    hardest = jnp.where(drawn > 0, similarity, -jnp.inf).max(-1)
    correct = (positive > hardest) & (hardest > -jnp.inf)

    weight = valid.sum().astype(jnp.float32)

    def mean(x: Array) -> Array:
        return jnp.where(valid, x, 0).sum() / jnp.maximum(weight, 1)

    loss = mean(total - positive)
    return loss, {"weight": weight, "bits": loss / jnp.log(2.0), "accuracy": mean(correct)}


def pretraining_loss(
    output: PretrainingOutput,
    negatives: Int[Array, "b m k"],
    valid: Bool[Array, "b m"],
    config: ContrastiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """Contrast, diversity of the codes, and the size of the features, a masked frame.

    The published sums over masked frames, divided by their number. The feature penalty weighs each
    utterance by its masked frames: where all are of one length that is the published mean over
    everything, and otherwise it keeps micro-batches exact and padding out. The diversity is not
    linear in the batch, so that with micro-batches it is the mean of theirs.

    Returns:
        the loss; the metrics of `contrastive_loss` and "prob_perplexity" (of the probabilities:
        what diversity raises), "code_perplexity" (of the codes chosen), both summed over codebooks,
        "feature_penalty", and "prediction_variance": of the predictions as unit vectors, over the
        masked frames; 0 where all are the same, 1 at the most.
    """
    loss, metrics = contrastive_loss(
        output.predicted, output.target, output.codes, negatives, valid, config.temperature
    )
    *_, groups, n_codes = output.probabilities.shape
    in_use = perplexity(output.probabilities, valid)
    diversity = 1 - in_use / (groups * n_codes)
    unit = jnp.where(valid[..., None], unit_norm(output.predicted), 0)
    mean = unit.sum((0, 1)) / jnp.maximum(metrics["weight"], 1)
    penalty = (output.energy * valid.sum(1)).sum() / jnp.maximum(metrics["weight"], 1)
    return loss + config.diversity * diversity + config.feature_penalty * penalty, {
        **metrics,
        "prob_perplexity": in_use,
        "code_perplexity": perplexity(jax.nn.one_hot(output.codes, n_codes), valid),
        "feature_penalty": penalty,
        "prediction_variance": 1 - jnp.square(mean).sum(),
    }
