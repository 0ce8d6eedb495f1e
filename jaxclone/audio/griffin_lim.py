"""A waveform whose spectrogram is a given one, without a model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import istft, mel_to_magnitude, stft
from jaxclone.types import Array


@functools.partial(jax.jit, static_argnames=("spec", "iterations", "momentum"))
def griffin_lim(
    log_mel: Float[Array, "*batch frames n_mels"],
    spec: AudioSpec,
    key: Key[Array, ""],
    iterations: int = 32,
    momentum: float = 0.99,
) -> Float[Array, "*batch t"]:
    """Waveform of a log-mel spectrogram.

    Args:
        log_mel: of `log_mel(waveform, spec)`.
        spec: its AudioSpec.
        key: of the first phases, which are random.
        iterations: projections.
        momentum: see `griffin_lim_of`.

    Returns:
        f32, frames * hop_length samples.
    """
    return griffin_lim_of(mel_to_magnitude(log_mel, spec), spec, key, iterations, momentum)


def griffin_lim_of(
    magnitude: Float[Array, "*batch frames bins"],
    spec: AudioSpec,
    key: Key[Array, ""],
    iterations: int = 32,
    momentum: float = 0.99,
) -> Float[Array, "*batch t"]:
    """Waveform of a magnitude spectrogram, by fast Griffin-Lim (Perraudin et al. 2013, §3).

    Args:
        magnitude: of `stft(waveform, spec)`.
        spec: its AudioSpec.
        key: of the first phases, which are random.
        iterations: projections onto the spectrograms of waveforms.
        momentum: how far a step goes on in the direction of the last; 0 is Griffin & Lim 1984.
    """
    phase = jax.random.uniform(key, magnitude.shape, maxval=2 * jnp.pi)
    angles = jnp.exp(1j * phase)
    mix = momentum / (1 + momentum)

    def project(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        angles, previous = carry
        rebuilt = stft(istft(magnitude * angles, spec), spec)
        angles = rebuilt - mix * previous
        return angles / jnp.maximum(jnp.abs(angles), 1e-16), rebuilt

    start = (angles, jnp.zeros_like(angles))
    angles, _ = jax.lax.fori_loop(0, iterations, project, start)
    return istft(magnitude * angles, spec)
