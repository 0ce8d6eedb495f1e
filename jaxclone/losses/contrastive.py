"""The loss of wav2vec 2.0 (Baevski et al. 2020 §3.2; fairseq `criterions/wav2vec_criterion.py`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxclone.models.wav2vec2 import PretrainingOutput
from jaxclone.nn.masking import MaskedFrames
from jaxclone.nn.norm import unit_norm
from jaxclone.nn.quantize import perplexity
from jaxclone.types import Array, Metrics, require_positive

# Keeps a mean over nothing at zero.
_TINY = 1e-30


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
    """Weights of the loss.

    Attributes:
        temperature: of the cosine similarities.
        diversity: weight of the share of codes that are not in use.
        feature_penalty: weight of the mean square of the stem's features; LARGE has none.
        unmasked: weight of the contrast at frames that are not masked, beside 1 at those that are.
            The published 0 leaves them out; otherwise negatives are drawn from all frames. It tells
            a small encoder to say something of speech that it hears, too.
    """

    temperature: float = 0.1
    diversity: float = 0.1
    feature_penalty: float = 10.0
    unmasked: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "temperature")
        require_positive(self, "diversity", "feature_penalty", "unmasked", or_zero=True)


def contrastive_loss(
    predicted: Float[Array, "b m d"],
    target: Float[Array, "b m d"],
    codes: Int[Array, "b m g"],
    negatives: Int[Array, "b m k"],
    valid: Bool[Array, "b m"],
    temperature: float = 0.1,
    hidden: Bool[Array, "b m"] | None = None,
    unmasked: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of telling a frame's target from those of other frames of its utterance.

    All pairs of frames are compared at once and a pair counts as often as it was drawn: one matrix
    product in place of a gather of k vectors a frame.

    Args:
        predicted: from the transformer.
        target: quantised.
        codes: entries the targets are made of: a negative with the codes of the positive is left
            out.
        negatives: places in the list of frames.
        valid: which places of the list hold a frame.
        temperature: the cosines are divided by it.
        hidden: which places of the list hold a masked frame; None for all that are valid.
        unmasked: weight of the other frames.

    Returns:
        the weighed mean over valid places, in nats; metrics "weight" (the sum of weights), and over
        the masked frames "bits" and "accuracy" (how often the positive is the most similar; never
        where no negative is left). With a weight of the others, "accuracy_unmasked" over those, and
        with micro-batches these metrics are then the mean of theirs by the weight.
    """
    hidden = valid if hidden is None else hidden
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

    def mean(x: Array, weight: Array) -> Array:
        return jnp.where(weight > 0, x * weight, 0).sum() / jnp.maximum(weight.sum(), _TINY)

    surprise = total - positive
    weight = _weights(valid, hidden, unmasked)
    metrics = {
        "weight": weight.sum(),
        "bits": mean(surprise, hidden) / jnp.log(2.0),
        "accuracy": mean(correct, hidden),
    }
    if unmasked:
        metrics["accuracy_unmasked"] = mean(correct, valid & ~hidden)
    return mean(surprise, weight), metrics


def pretraining_loss(
    output: PretrainingOutput,
    negatives: Int[Array, "b m k"],
    masked: MaskedFrames,
    config: ContrastiveConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """Contrast, diversity of the codes, and the size of the features, a masked frame.

    The published sums over masked frames, divided by their number. The feature penalty weighs each
    utterance by its frames as the contrast does: where all are of one length that is the published
    mean over everything, and otherwise it keeps micro-batches exact and padding out. The diversity
    is not linear in the batch, so that with micro-batches it is the mean of theirs.

    Args:
        output: of the model, at the frames to compare.
        negatives: places in the list of those.
        masked: that list; of the masked frames where others have no weight, else of all.
        config: weights.

    Returns:
        the loss; the metrics of `contrastive_loss` and "prob_perplexity" (of the probabilities:
        what diversity raises), "code_perplexity" (of the most probable codes: the noise, which the
        chosen ones are made of, would hide a collapse), both summed over codebooks,
        "feature_penalty", and "prediction_variance": of the predictions as unit vectors; 0 where
        all are the same, 1 at the most. All are over the frames that are compared.
    """
    valid = masked.valid
    loss, metrics = contrastive_loss(
        output.predicted,
        output.target,
        output.codes,
        negatives,
        valid,
        config.temperature,
        masked.hidden,
        config.unmasked,
    )
    *_, groups, n_codes = output.probabilities.shape
    in_use = perplexity(output.probabilities, valid)
    diversity = 1 - in_use / (groups * n_codes)
    unit = jnp.where(valid[..., None], unit_norm(output.predicted), 0)
    mean = unit.sum((0, 1)) / jnp.maximum(valid.sum(), 1)
    share = _weights(valid, masked.hidden, config.unmasked).sum(1)
    penalty = (output.energy * share).sum() / jnp.maximum(metrics["weight"], _TINY)
    return loss + config.diversity * diversity + config.feature_penalty * penalty, {
        **metrics,
        "prob_perplexity": in_use,
        "code_perplexity": perplexity(
            jax.nn.one_hot(output.probabilities.argmax(-1), n_codes), valid
        ),
        "feature_penalty": penalty,
        "prediction_variance": 1 - jnp.square(mean).sum(),
    }


def _weights(
    valid: Bool[Array, "b m"], hidden: Bool[Array, "b m"], unmasked: float
) -> Float[Array, "b m"]:
    return hidden + unmasked * (valid & ~hidden)
