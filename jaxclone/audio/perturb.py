"""Disguising a voice: what is said and when stays, who says it does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float, Key

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import istft, stft
from jaxclone.types import Array, UserError

# Seconds from one grain of the pitch shift to the next; a grain lasts twice as long.
_GRAIN = 0.016
# Seconds that a grain may be taken earlier or later: half a period of a voice of 60 Hz.
_SEARCH = 0.008
# Seconds that are compared when grains are joined.
_MATCH = 0.012
# Every so manieth sample is compared: the periods of voices are long.
_STRIDE = 8
# Quefrency in seconds below which a cepstrum is envelope: the period of a voice of 550 Hz.
_LIFTER = 1 / 550.0
# Bound of the gain that moves formants, dB: bands that were empty stay so.
_MAX_GAIN_DB = 30.0


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

    def __post_init__(self) -> None:
        if not (0 <= self.pitch < 1 and 0 <= self.formants < 1):
            raise UserError(
                "PerturbConfig needs pitch and formants of at least 0 and below 1, got "
                f"{self.pitch} and {self.formants}"
            )


def perturb(
    keys: Key[Array, " b"],
    waveform: Float[Array, "b t"],
    spec: AudioSpec,
    config: PerturbConfig,
) -> Float[Array, "b t"]:
    """Moves formants, pitch and timbre at random and leaves the timing alone.

    The perturbations of Choi et al. 2021 (NANSY, §3.1), in two steps: grains of the waveform are
    read faster or slower, which moves pitch and formants alike, and joined where they fit; then
    each frame's spectrum is multiplied by a smooth gain that moves its envelope to where the
    formants shall be, and by a random equaliser.

    Args:
        keys: one for each example; the same key disguises the same way.
        waveform: samples.
        spec: rate of the samples, and the frames of the second step.
        config: how strongly.

    Returns:
        f32 of the same shape. Mask what follows an example's end in a padded batch: the last grain
        may reach some milliseconds beyond it.
    """
    n_samples = waveform.shape[-1]
    draw = jax.vmap(lambda key: jax.random.uniform(key, (2,), minval=-1.0))(keys)
    strength = np.log1p(np.array([config.formants, config.pitch], np.float32))
    formants, pitch = jnp.exp(draw * strength).T
    weights = jax.vmap(
        lambda key: jax.random.normal(jax.random.fold_in(key, 1), (config.eq_terms,))
    )(keys)

    # Zeros at both ends, so that nothing is reflected and padding a batch changes nothing.
    pad = spec.n_fft
    padded = jnp.pad(waveform, ((0, 0), (pad, pad)))
    shifted = jax.vmap(lambda x, factor: _shift_pitch(x, factor, spec.sample_rate))(padded, pitch)
    spectrum = stft(shifted, spec)
    gain = _move_envelope(spectrum, formants / pitch, spec) + _equaliser(weights, config, spec)
    return istft(spectrum * jnp.exp(gain), spec)[:, pad : pad + n_samples]


def _shift_pitch(x: Float[Array, " t"], factor: Float[Array, ""], rate: int) -> Float[Array, " t"]:
    """Multiplies all frequencies by a factor at the same tempo.

    Waveform-similarity overlap-add (Verhelst and Roelands 1993) of grains that are resampled as
    they are read. Linear interpolation mirrors the spectrum above its old end, faintly, when the
    factor is below 1: the gain on the envelope makes a treble of it.
    """
    hop, search, match = (int(seconds * rate) for seconds in (_GRAIN, _SEARCH, _MATCH))
    n_grains = -(-x.shape[0] // hop) + 1
    # The grain of time i * hop lies around sample margin + i * hop of the padded signal, and reads
    # at most 2 * hop samples to its sides: factors are below 2.
    margin = 2 * hop + search + match
    padded = jnp.pad(x, (margin, margin + 2 * hop))
    lags = np.arange(-search, search + 1)

    def choose(shift: Array, i: Array) -> tuple[Array, Array]:
        # What would follow the last grain if it went on, and what there is to choose from.
        follow = margin + (i - 1) * hop + shift + jnp.round(hop * factor).astype(jnp.int32)
        wanted = jax.lax.dynamic_slice(padded, (follow - match,), (2 * match,))[::_STRIDE]
        around = jax.lax.dynamic_slice(
            padded, (margin + i * hop - search - match,), (2 * (search + match),)
        )
        found = jnp.stack([around[k : k + len(lags)] for k in range(0, 2 * match, _STRIDE)])
        difference = jnp.sum((found - wanted[:, None]) ** 2, axis=0)
        # A little against leaving the true time, which alone decides in silence.
        shift = jnp.asarray(lags)[jnp.argmin(difference + 1e-9 * np.abs(lags))]
        return shift, shift

    _, shifts = jax.lax.scan(choose, jnp.int32(0), jnp.arange(1, n_grains))
    centre = margin + jnp.arange(n_grains) * hop + jnp.pad(shifts, (1, 0))
    place = centre[:, None] + jnp.arange(-hop, hop) * factor
    low = jnp.floor(place).astype(jnp.int32)
    share = place - low
    grains = padded[low] * (1 - share) + padded[low + 1] * share

    # Two neighbouring Hann windows add up to one.
    grains = grains * np.hanning(2 * hop + 1)[:-1].astype(np.float32)
    return (grains[:-1, hop:] + grains[1:, :hop]).reshape(-1)[: x.shape[0]]


def _move_envelope(
    spectrum: Complex[Array, "b frames bins"], factor: Float[Array, " b"], spec: AudioSpec
) -> Float[Array, "b frames bins"]:
    """Log gain that stretches the smooth envelope of each frame along frequency by a factor.

    The envelope is the first cosines of the log magnitude (cepstral liftering); to stretch it is to
    evaluate these elsewhere.
    """
    n_bins = spectrum.shape[-1]
    quefrency = np.arange(int(_LIFTER * spec.sample_rate))
    grid = np.linspace(0, 1, n_bins)
    here = np.cos(np.pi * grid[:, None] * quefrency).astype(np.float32)
    # Trapezoidal weights make the sum over bins the inverse of an even transform.
    weight = np.where((grid == 0) | (grid == 1), 0.5, 1.0)[:, None] / (n_bins - 1)
    analysis = (here * weight * np.where(quefrency == 0, 1, 2)).astype(np.float32)

    log_magnitude = 0.5 * jnp.log(spectrum.real**2 + spectrum.imag**2 + 1e-12)
    place = jnp.minimum(grid.astype(np.float32) / factor[:, None], 1.0)
    there = jnp.cos(np.pi * place[..., None] * quefrency.astype(np.float32))
    gain = jnp.einsum("bfk,kq,bjq->bfj", log_magnitude, analysis, there - here)
    bound = _MAX_GAIN_DB * np.log(10) / 20
    return jnp.clip(gain, -bound, bound)


def _equaliser(
    weights: Float[Array, "b terms"], config: PerturbConfig, spec: AudioSpec
) -> Float[Array, "b 1 bins"]:
    """Log gain of a random, smooth frequency response."""
    grid = np.linspace(0, 1, spec.n_fft // 2 + 1)
    terms = np.cos(np.pi * np.outer(np.arange(1, config.eq_terms + 1), grid)).astype(np.float32)
    return (weights @ terms)[:, None] * (config.eq_db * np.log(10) / 20)
