"""Losses between a generator and its discriminators.

All are means over the examples, whose number they report as `weight`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from jaxclone.types import Array, Metrics

# What tells real from fake: squares (Mao et al. 2017), or hinges (Lim and Ye 2017), in
# "clamped_hinge" for the generator too.
GanLoss = Literal["least_squares", "hinge", "clamped_hinge"]


def discriminator_loss(
    real: Sequence[Array], fake: Sequence[Array], kind: GanLoss = "least_squares"
) -> tuple[Float[Array, ""], Metrics]:
    """GAN loss of the discriminators (HiFi-GAN eq. 1; MelGAN eq. 1).

    Args:
        real: logits [b, ...] of each discriminator on recordings.
        fake: logits on generated waveforms.
        kind: squares or hinges.

    Returns:
        the sum over discriminators of mean((real - 1)^2) + mean(fake^2), or of
        mean(max(0, 1 - real)) + mean(max(0, 1 + fake)), and metrics: the mean logits of both, which
        meet (at 1/2, or at 0) when they cannot be told apart.

    >>> float(discriminator_loss([jnp.ones((1, 4))], [jnp.zeros((1, 4))])[0])
    0.0
    >>> float(discriminator_loss([jnp.ones((1, 4))], [jnp.zeros((1, 4))], "hinge")[0])
    1.0
    """
    if kind == "least_squares":
        loss = sum(jnp.mean((r - 1) ** 2) + jnp.mean(f**2) for r, f in zip(real, fake))
    else:
        loss = sum(jnp.mean(nn.relu(1 - r)) + jnp.mean(nn.relu(1 + f)) for r, f in zip(real, fake))
    return loss, {
        "discriminator_loss": loss,
        "logit_real": sum(jnp.mean(r) for r in real) / len(real),
        "logit_fake": sum(jnp.mean(f) for f in fake) / len(fake),
        "weight": _examples(real[0]),
    }


def generator_loss(
    fake: Sequence[Array], kind: GanLoss = "least_squares"
) -> tuple[Float[Array, ""], Metrics]:
    """GAN loss of the generator (HiFi-GAN eq. 2; MelGAN eq. 2; SoundStream eq. 2, as in Vocos).

    Args:
        fake: logits [b, ...] of each discriminator on generated waveforms.
        kind: which of the three.

    Returns:
        the sum over discriminators of mean((fake - 1)^2), of mean(-fake), or of
        mean(max(0, 1 - fake)).

    >>> float(generator_loss([jnp.array([[3.0, 0.0]])], "clamped_hinge")[0])
    0.5
    """
    match kind:
        case "least_squares":
            loss = sum(jnp.mean((f - 1) ** 2) for f in fake)
        case "hinge":
            loss = sum(jnp.mean(-f) for f in fake)
        case "clamped_hinge":
            loss = sum(jnp.mean(nn.relu(1 - f)) for f in fake)
    return loss, {"adversarial_loss": loss, "weight": _examples(fake[0])}


def feature_matching_loss(
    real: Sequence[Sequence[Array]], fake: Sequence[Sequence[Array]]
) -> tuple[Float[Array, ""], Metrics]:
    """L1 distance of feature maps: sum over discriminators and layers of means.

    HiFi-GAN eq. 4; MelGAN eq. 3, which weighs the sum by 4 / (layers * discriminators).

    Args:
        real: feature maps [b, ...] of each layer of each discriminator on recordings.
        fake: on generated waveforms.
    """
    loss = sum(jnp.mean(jnp.abs(r - f)) for rs, fs in zip(real, fake) for r, f in zip(rs, fs))
    return loss, {"feature_matching_loss": loss, "weight": _examples(real[0][0])}


def _examples(x: Array) -> Float[Array, ""]:
    return jnp.float32(x.shape[0])
