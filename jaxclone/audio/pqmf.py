"""Pseudo-QMF bank: a waveform as a few bands at a fraction of its rate, and back.

Cosine-modulated filters of one prototype, as multi-band MelGAN uses them (Yang et al. 2020 §3.3).
A windowed-sinc prototype reconstructs to about -55 dB; here it is moved to where reconstruction is
perfect (the conditions of Koilpillai and Vaidyanathan 1992) and the stopband as low as it can be.
Cutting and joining are then each other's transpose and inverse, in either order: what a generator
says in bands can be had back from the waveform that it made.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.audio.spectral import overlap_add, overlapping
from jaxclone.types import Array, UserError

# Taps a band: a filter of 4 bands has 64, of order 63 as published.
_TAPS = 16
# The stopband begins here, over the width of a band: at the far edge of the next band. With 4 bands
# it then lies below -60 dB, and below -74 dB from half a band on.
_EDGE = 1.0
# Of the prototype that the search starts from: the Kaiser window's shape, and the cutoff over half
# the width of a band.
_BETA, _CUTOFF = 9.0, 1.135
_STEPS = 30


def split_bands(waveform: Float[Array, "*b t"], bands: int) -> Float[Array, "*b s {bands}"]:
    """Cuts waveforms into bands of equal width, the lowest first.

    Args:
        waveform: samples; beyond them it is taken as zero.
        bands: their number, even, a divisor of the number of samples.

    Returns:
        t / bands samples of each band.

    Raises:
        UserError: `bands` is odd or no divisor.
    """
    samples = waveform.shape[-1]
    if samples % bands:
        raise UserError(f"{samples} samples do not divide into {bands} bands")
    filters = _filters(bands)
    side = (len(filters) - bands) // 2
    padded = jnp.pad(waveform, [(0, 0)] * (waveform.ndim - 1) + [(side, side)])
    frames = overlapping(padded, len(filters), bands, samples // bands)
    return jnp.matmul(frames, filters, precision="highest")


def join_bands(signals: Float[Array, "*b s bands"]) -> Float[Array, "*b t"]:
    """The waveforms of these bands: the inverse of `split_bands`, `reach` samples off the ends.

    Args:
        signals: samples of each band; beyond them they are taken as zero.

    Raises:
        UserError: the number of bands is odd.
    """
    samples, bands = signals.shape[-2:]
    filters = _filters(bands)
    side = (len(filters) - bands) // 2
    spread = jnp.matmul(signals, filters.T, precision="highest")
    return overlap_add(spread, bands)[..., side : side + samples * bands]


def reach(bands: int) -> int:
    """Samples on either side that a sample of a joined waveform depends on, at most."""
    return _TAPS * bands // 2


@functools.cache
def _filters(bands: int) -> np.ndarray:
    """The impulse responses as columns, f32[taps, bands], read-only."""
    if bands < 2 or bands % 2:
        raise UserError(f"a filter bank has an even number of bands, not {bands}")
    prototype = _prototype(bands)
    time = np.arange(len(prototype))[:, None] - (len(prototype) - 1) / 2
    band = np.arange(bands)
    phase = (2 * band + 1) * np.pi / (2 * bands) * time + (-1.0) ** band * np.pi / 4
    filters = (2 * prototype[:, None] * np.cos(phase)).astype(np.float32)
    filters.flags.writeable = False
    return filters


def _prototype(bands: int) -> np.ndarray:
    """The symmetric low-pass f64[taps] that all filters are made of.

    Of those that reconstruct perfectly, near a windowed sinc, it has the least energy in its
    stopband.
    """
    taps = _TAPS * bands
    time = np.arange(taps) - (taps - 1) / 2
    unfold = np.vstack([np.eye(taps // 2), np.eye(taps // 2)[::-1]])
    edge = _EDGE / bands
    stopband = unfold.T @ (np.eye(taps) - edge * np.sinc(edge * (time[:, None] - time))) @ unfold

    def conditions(half: np.ndarray) -> np.ndarray:
        """Zero where the bank reconstructs perfectly; quadratic in the prototype."""
        phases = (unfold @ half).reshape(_TAPS, bands)[:, : bands // 2]
        products = [(phases[: _TAPS - i] * phases[i:]).sum(0) for i in range(0, _TAPS, 2)]
        products[0] = products[0] - 1 / (2 * bands)
        return np.concatenate(products)

    sinc = np.sinc(_CUTOFF * time / (2 * bands)) * np.kaiser(taps, _BETA)
    half = sinc[: taps // 2] / np.sqrt(4 * np.sum(sinc[: taps // 2] ** 2))
    unit = np.eye(taps // 2)
    # Newton's method for the least energy under these conditions. Their slopes, being linear, are
    # exact as differences.
    for _ in range(_STEPS):
        slopes = np.array([(conditions(half + e) - conditions(half - e)) / 2 for e in unit]).T
        system = np.block([[stopband, slopes.T], [slopes, np.zeros((len(slopes),) * 2)]])
        target = np.concatenate([np.zeros(taps // 2), slopes @ half - conditions(half)])
        half = np.linalg.lstsq(system, target, rcond=1e-12)[0][: taps // 2]
    return unfold @ half
