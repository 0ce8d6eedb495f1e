"""How far a spectrogram is from the truth."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxclone.types import Array, Metrics, length_mask


def masked_l1(
    predicted: Float[Array, "b f m"], truth: Float[Array, "b f m"], length: Int[Array, " b"]
) -> tuple[Float[Array, ""], Metrics]:
    """Mean absolute difference over the true frames.

    Returns:
        The mean, and metrics with the number of frames it is over as `weight`.
    """
    mask = length_mask(length, truth.shape[1])
    per_frame = jnp.mean(jnp.abs(predicted - truth), axis=-1)
    weight = jnp.sum(mask).astype(jnp.float32)
    loss = jnp.sum(per_frame * mask) / jnp.maximum(weight, 1.0)
    return loss, {"mel_l1": loss, "weight": weight}
