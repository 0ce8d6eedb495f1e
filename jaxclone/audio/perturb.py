"""Disguising a voice: what is said stays, who says it does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Key

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import istft, stft
from jaxclone.types import Array

# Quefrency in seconds below which a cepstrum is envelope: the period of a voice of 550 Hz.
_LIFTER = 1 / 550.0


@dataclasses.dataclass(frozen=True)
class PerturbConfig:
    """How strongly a voice is disguised; 0 everywhere leaves it as it is.

    Attributes:
        formants: formants are moved by a factor of up to 1 + this, or its inverse.
        pitch: F0 is moved by a factor of up to 1 + this, or its inverse.
        eq_db: standard deviation, in dB, of each of the cosines that a random equaliser is made of.
        eq_terms: cosines.
    """

    formants: float = 0.3
    pitch: float = 0.4
    eq_db: float = 2.5
    eq_terms: int = 5


def perturb(
    keys: Key[Array, " b"],
    waveform: Float[Array, "b t"],
    spec: AudioSpec,
    config: PerturbConfig,
) -> Float[Array, "b t"]:
    """Moves formants, pitch and timbre at random and leaves the timing alone.

    The perturbations of Choi et al. 2021 (NANSY, §3.1), in the STFT domain: each frame's magnitude
    is a smooth envelope times an excitation; the envelope is stretched along frequency, the
    excitation likewise, its phases advancing as fast as its frequencies have become (a phase
    vocoder), and the result is multiplied by a random smooth gain.

    Args:
        keys: one for each example; the same key disguises the same way.
        waveform: samples, a whole number of frames.
        spec: the frames that the work is done in.
        config: how strongly.

    Returns:
        f32 of the same shape.
    """
    n_bins = spec.n_fft // 2 + 1
    draw = jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=-1.0))(keys)
    strength = np.log1p(np.array([config.formants, config.pitch], np.float32))
    formants, pitch = jnp.exp(draw * strength).T
    weights = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 1), (config.eq_terms,))
    )
    terms = np.cos(np.pi * np.outer(np.arange(1, config.eq_terms + 1), np.linspace(0, 1, n_bins)))
    # dB to natural logarithm of the magnitude.
    gain = weights(keys) @ terms.astype(np.float32) * (config.eq_db * np.log(10) / 20)

    spectrum = stft(waveform, spec)
    log_magnitude = 0.5 * jnp.log(spectrum.real**2 + spectrum.imag**2 + 1e-12)
    envelope = _smooth(log_magnitude, spec)
    moved = _stretch(envelope, formants) + _stretch(log_magnitude - envelope, pitch)
    phase = _stretch_phase(jnp.angle(spectrum), pitch, spec)
    return istft(jnp.exp(moved + gain[:, None]) * jnp.exp(1j * phase), spec)


def _smooth(log_magnitude: Array, spec: AudioSpec) -> Array:
    """The part of a log spectrum that varies slowly with frequency (cepstral liftering)."""
    cepstrum = jnp.fft.irfft(log_magnitude, axis=-1)
    quefrency = np.minimum(np.arange(spec.n_fft), spec.n_fft - np.arange(spec.n_fft))
    return jnp.fft.rfft(
        cepstrum * (quefrency < _LIFTER * spec.sample_rate).astype(np.float32), axis=-1
    ).real


def _stretch(x: Float[Array, "b f k"], factor: Float[Array, " b"]) -> Float[Array, "b f k"]:
    """Moves what is at bin k to bin k * factor, by linear interpolation."""
    last = x.shape[-1] - 1
    place = jnp.minimum(jnp.arange(x.shape[-1]) / factor[:, None], last)
    low = jnp.floor(place).astype(jnp.int32)
    share = (place - low)[:, None]
    below = jnp.take_along_axis(x, low[:, None], axis=-1)
    above = jnp.take_along_axis(x, jnp.minimum(low + 1, last)[:, None], axis=-1)
    return below * (1 - share) + above * share


def _stretch_phase(
    phase: Float[Array, "b f k"], factor: Float[Array, " b"], spec: AudioSpec
) -> Float[Array, "b f k"]:
    """Phases of the stretched spectrum: each bin advances `factor` times as fast as its origin."""
    n_bins = phase.shape[-1]
    origin = jnp.round(jnp.minimum(jnp.arange(n_bins) / factor[:, None], n_bins - 1))
    origin = origin.astype(jnp.int32)[:, None]
    phase = jnp.take_along_axis(phase, origin, axis=-1)
    expected = 2 * np.pi * spec.hop_length / spec.n_fft * origin
    advance = expected + _wrap(jnp.diff(phase, axis=1) - expected)
    # Wrapped before the sum, which in f32 would lose the phases of high frequencies otherwise.
    total = jnp.cumsum(_wrap(advance * factor[:, None, None]), axis=1)
    return phase[:, :1] + jnp.pad(total, ((0, 0), (1, 0), (0, 0)))


def _wrap(phase: Array) -> Array:
    """To [-π, π]."""
    return phase - 2 * np.pi * jnp.round(phase / (2 * np.pi))
