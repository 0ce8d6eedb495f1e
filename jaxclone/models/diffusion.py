"""From noise to waveforms: the steps back of a diffusion, whatever network tells the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.types import Array


class Step(NamedTuple):
    """One step back: x becomes scale * (x - share * noise told) + spread * new noise, clamped.

    Attributes:
        index: of the step, from 0.
        time: where in the noise of training it is.
        scale, share, spread: see above.
    """

    index: Array
    time: Array
    scale: Array
    share: Array
    spread: Array


def steps_back(betas: Float[np.ndarray, " n"], times: Float[np.ndarray, " n"]) -> Step:
    """The steps of sampling, the noisiest first, each field an array over them (algorithm 2).

    Args:
        betas: variance of the noise that each step takes off, the first being the last taken.
        times: see `Step.time`.
    """
    kept = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], kept[:-1]])
    fields = (
        times,
        1 / np.sqrt(1 - betas),
        betas / np.sqrt(1 - kept),
        np.sqrt((1 - before) / (1 - kept) * betas),
    )
    index = np.arange(len(betas), dtype=np.int32)[::-1]
    return Step(index, *(field.astype(np.float32)[::-1] for field in fields))


def step_back(
    x: Float[Array, "*s"], told: Float[Array, "*s"], noise: Float[Array, "*s"], step: Step
) -> Float[Array, "*s"]:
    """One step back.

    What is between two steps is clamped too, as in lmnt-com/diffwave `inference.py`: published
    weights are sampled so.

    Args:
        x: waveforms before the step.
        told: the noise in them.
        noise: new noise.
        step: the step, its fields being numbers.

    Returns:
        in [-1, 1].
    """
    x = step.scale * (x - step.share * told) + step.spread * noise
    return jnp.clip(x, -1.0, 1.0)


def reverse(
    predict: Callable[[Array, Array], Array], draw: Callable[[Array], Array], steps: Step
) -> Float[Array, "b t"]:
    """From noise to waveforms.

    Args:
        predict: (noisy f32[b, t], time f32[]) -> the noise in it.
        draw: i32[] -> f32[b, t] noise: of step i the one that is added before it; the one after the
            last step is what all begins with.
        steps: of `steps_back`.
    """

    def back(x: Array, step: Step) -> tuple[Array, None]:
        return step_back(x, predict(x, step.time), draw(step.index), step), None

    return jax.lax.scan(back, draw(jnp.int32(len(steps.index))), steps)[0]
