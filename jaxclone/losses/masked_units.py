"""The loss of HuBERT (Hsu et al. 2021 §III-B; fairseq `criterions/hubert_criterion.py`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from jaxclone.models.hubert import HubertOutput
from jaxclone.nn.quantize import perplexity
from jaxclone.types import Array, Metrics, UserError, length_mask, require_positive


@dataclasses.dataclass(frozen=True)
class MaskedUnitsConfig:
    """Weights of the loss.

    Attributes:
        masked: of the masked frames.
        unmasked: of the other frames; the published models have 0.
        feature_penalty: of the mean square of the stem's features.
    """

    masked: float = 1.0
    unmasked: float = 0.0
    feature_penalty: float = 10.0

    def __post_init__(self) -> None:
        require_positive(self, "masked", "unmasked", "feature_penalty", or_zero=True)
        if not self.masked + self.unmasked:
            raise UserError("neither masked nor unmasked frames have a weight")


def masked_unit_loss(
    output: HubertOutput,
    units: Int[Array, "b f"],
    masked: Bool[Array, "b f"],
    config: MaskedUnitsConfig,
) -> tuple[Float[Array, ""], Metrics]:
    """Cross entropy of naming the units of frames, and the size of the features.

    The published sums, divided by the frames whose cross entropy has a weight. The feature penalty
    weighs each utterance by its frames among them: where all are of one length that is the
    published mean over everything, and otherwise it keeps micro-batches exact and padding out.

    Args:
        output: of the model.
        units: of each frame; one that is negative does not count.
        masked: frames that the encoder did not see.
        config: weights.

    Returns:
        the loss; metrics "weight" (frames that it is a mean over), "bits" and "accuracy" over the
        masked frames, "accuracy_unmasked" over the others, "feature_penalty", and over the masked
        frames "unit_perplexity" (units that there are) and "prob_perplexity" (that the model
        names, on average: 1 is collapse). With micro-batches, the perplexities are the mean of
        theirs, and so is what is over the unmasked frames, by the weight.
    """
    known = length_mask(output.frame_length, units.shape[1]) & (units >= 0)
    hidden, seen = known & masked, known & ~masked
    log_p = jax.nn.log_softmax(output.logits)
    target = jax.nn.one_hot(units, log_p.shape[-1])  # all zero for a negative unit
    surprise = -(log_p * target).sum(-1)
    correct = output.logits.argmax(-1) == units

    def total(x: Array, where: Array) -> Array:
        return jnp.where(where, x, 0).sum()

    def mean(x: Array, where: Array) -> Array:
        return total(x, where) / jnp.maximum(where.sum(), 1)

    counted = hidden & (config.masked > 0) | seen & (config.unmasked > 0)
    weight = counted.sum().astype(jnp.float32)
    loss = config.masked * total(surprise, hidden) + config.unmasked * total(surprise, seen)
    penalty = (output.energy * counted.sum(1)).sum()
    n = jnp.maximum(weight, 1)
    return (loss + config.feature_penalty * penalty) / n, {
        "weight": weight,
        "bits": mean(surprise, hidden) / jnp.log(2.0),
        "accuracy": mean(correct, hidden),
        "accuracy_unmasked": mean(correct, seen),
        "feature_penalty": penalty / n,
        "unit_perplexity": perplexity(target[:, :, None], hidden),
        "prob_perplexity": perplexity(jnp.exp(log_p)[:, :, None], hidden),
    }
