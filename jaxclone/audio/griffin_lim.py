"""A waveform whose spectrogram is a given one, without a model."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, Key

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
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch t"]:
    """Waveform of a log-mel spectrogram.

    Args:
        log_mel: of `log_mel(waveform, spec)`.
        spec: its AudioSpec.
        key: of the first phases, which are random.
        iterations: projections.
        momentum: see `griffin_lim_of`.
        length: true frames of each, see `griffin_lim_of`.

    Returns:
        f32, frames * hop_length samples.
    """
    magnitude = mel_to_magnitude(log_mel, spec)
    return griffin_lim_of(magnitude, spec, key, iterations, momentum, length)


def griffin_lim_of(
    magnitude: Float[Array, "*batch frames bins"],
    spec: AudioSpec,
    key: Key[Array, ""],
    iterations: int = 32,
    momentum: float = 0.99,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch t"]:
    """Waveform of a magnitude spectrogram, by fast Griffin-Lim (Perraudin et al. 2013, §3).

    Args:
        magnitude: of `stft(waveform, spec)`.
        spec: its AudioSpec.
        key: of the first phases, which are random; every example begins with the same ones.
        iterations: projections onto the spectrograms of waveforms.
        momentum: how far a step goes on in the direction of the last; 0 is Griffin & Lim 1984.
        length: true frames of each. When given, each waveform is that of its spectrogram alone,
            and 0 after its end.
    """
    samples = None if length is None else length * spec.hop_length
    angles = jnp.exp(1j * _first_phases(key, *magnitude.shape[-2:]))
    mix = momentum / (1 + momentum)

    def project(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        angles, previous = carry
        rebuilt = stft(istft(magnitude * angles, spec, length), spec, samples)
        angles = rebuilt - mix * previous
        return angles / jnp.maximum(jnp.abs(angles), 1e-16), rebuilt

    angles = jnp.broadcast_to(angles, magnitude.shape)
    start = (angles, jnp.zeros_like(angles))
    angles, _ = jax.lax.fori_loop(0, iterations, project, start)
    return istft(magnitude * angles, spec, length)


def _first_phases(key: Key[Array, ""], frames: int, bins: int) -> Float[Array, "{frames} {bins}"]:
    """Angles in [0, 2 pi), those of a frame a function of the key and of its number alone."""
    keys = jax.vmap(lambda frame: jax.random.fold_in(key, frame))(jnp.arange(frames))
    return jax.vmap(lambda key: jax.random.uniform(key, (bins,), maxval=2 * jnp.pi))(keys)
