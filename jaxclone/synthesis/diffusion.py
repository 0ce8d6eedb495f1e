"""Speaking by diffusion, every step of it piece by piece.

Only the noisy waveform goes from one step to the next, and it stays on the host: memory is that of
a piece, and a piece needs no more context than one look of the network, however many steps follow.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.models.diffusion import Step, step_back
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig, sampling_noise, sampling_steps
from jaxclone.types import Array, Tree


def speak(
    config: DiffWaveConfig, params: Tree, log_mel: Float[np.ndarray, "f m"], piece: int
) -> Float[np.ndarray, " t"]:
    """What the network speaks of a mel, as if it heard the whole of it at once.

    Args:
        config: sizes of the network.
        params: its parameters.
        log_mel: f32, at least one frame.
        piece: frames that are computed at once.

    Returns:
        f32[f * hop_length] in [-1, 1].
    """
    hop, context, n_frames = config.hop_length, config.context_frames, len(log_mel)
    starts = range(0, n_frames, piece)
    mel = np.pad(log_mel, ((context, context + starts[-1] + piece - n_frames), (0, 0)))

    def heard(noisy: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
        end = start + piece + 2 * context
        return mel[start:end], noisy[start * hop : end * hop]

    def joined(pieces: Iterable[Array]) -> np.ndarray:
        # Each goes to the host before the next is asked for: a device holds no more than one.
        return np.pad(np.concatenate([*map(np.asarray, pieces)]), context * hop)

    steps = sampling_steps(config)
    noisy = joined(_draw(config, len(steps.index), start, piece) for start in starts)
    for step in map(Step._make, zip(*steps)):
        noisy = joined(
            _back(config, params, *heard(noisy, start), start, n_frames, step) for start in starts
        )
    return noisy[context * hop :][: n_frames * hop]


@functools.partial(jax.jit, static_argnums=(0, 3))
def _draw(config: DiffWaveConfig, step: Array, start: Array, frames: int) -> Array:
    return sampling_noise(config, step, start, frames)


@functools.partial(jax.jit, static_argnums=0)
def _back(
    config: DiffWaveConfig,
    params: Tree,
    mel: Array,
    noisy: Array,
    start: Array,
    n_frames: Array,
    step: Step,
) -> Array:
    """One step of a piece that begins at frame `start`: [t] with its context -> [t] without."""
    context, hop = config.context_frames, config.hop_length
    number = start - context + jnp.arange(len(mel))
    # Beyond its ends a recording is nothing, as in training.
    true = (number >= 0) & (number < n_frames)
    told = DiffWave(config).apply(
        {"params": params},
        noisy[None],
        step.time[None],
        mel[None],
        true[None],
        method="tell_noise",
    )
    inner = slice(context * hop, len(noisy) - context * hop)
    noise = sampling_noise(config, step.index, start, len(mel) - 2 * context)
    return step_back(noisy[inner], told[0, inner], noise, step)
