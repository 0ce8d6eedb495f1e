"""How well the noise in a recording is told."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Float, Int

from jaxclone.types import Array, Metrics, length_mask


def noise_loss(
    told: Float[Array, "b t"],
    noise: Float[Array, "b t"],
    length: Int[Array, " b"],
    kind: Literal["l1", "l2"] = "l1",
) -> tuple[Float[Array, ""], Metrics]:
    """Distance between the noise and what was told of it, a mean over the true samples.

    Args:
        told: what the network tells.
        noise: the truth.
        length: true samples of each.
        kind: "l2" is the paper's (Kong et al. 2020, eq. 7), the bound on the likelihood without
            its weights. "l1" is that of the public code (lmnt-com/diffwave `learner.py`,
            SpeechBrain), found steadier to train (Chen et al. 2020, WaveGrad, §3).

    Returns:
        the loss, and metrics with the number of samples it is over as `weight`.
    """
    mask = length_mask(length, noise.shape[1])
    error = jnp.abs(told - noise)
    error = error if kind == "l1" else error**2
    weight = jnp.sum(mask).astype(jnp.float32)
    loss = jnp.sum(jnp.where(mask, error, 0.0)) / jnp.maximum(weight, 1.0)
    return loss, {"noise_loss": loss, "weight": weight}
