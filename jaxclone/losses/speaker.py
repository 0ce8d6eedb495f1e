"""How well embeddings tell speakers apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxclone.types import Array, Metrics


def speaker_contrastive(
    anchor: Float[Array, "b d"],
    other: Float[Array, "b d"],
    speaker: Int[Array, " b"],
    temperature: float = 0.1,
) -> tuple[Float[Array, ""], Metrics]:
    """Each embedding must be nearest to another recording of its speaker in the batch (InfoNCE).

    The idea of GE2E's softmax loss (Wan et al. 2018 §2.1) with one recording in place of the
    centroid; further examples of the same speaker are neither positives nor negatives.

    Args:
        anchor: unit vectors.
        other: unit vectors, row i of the speaker of `anchor`'s row i.
        speaker: index of each row's speaker.
        temperature: of the softmax.
    """
    logits = anchor @ other.T / temperature
    rows = jnp.arange(len(anchor))
    same = (speaker[:, None] == speaker[None, :]) & (rows[:, None] != rows[None, :])
    logits = jnp.where(same, -1e9, logits)
    loss = -jnp.mean(jax.nn.log_softmax(logits, axis=-1)[rows, rows])
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == rows)
    return loss, {"speaker_contrastive": loss, "speaker_accuracy": accuracy}
