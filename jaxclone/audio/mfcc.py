"""Mel-frequency cepstra by Kaldi's convention, with their first two derivatives.

They are what iteration 1 of HuBERT clusters (Hsu et al. 2021 §IV-B): 13 cepstra, c0 among them,
and their deltas and delta-deltas, as `torchaudio.compliance.kaldi.mfcc(use_energy=False)` and
`torchaudio.functional.compute_deltas` give them for a waveform in [-1, 1]. Kaldi's convention is
not librosa's: frames are not centred, each loses its mean and is pre-emphasised by itself, the
window is Povey's, the filters are triangles on the mel axis, and the cepstra are liftered.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Float, Int

from jaxclone.audio.spectral import overlapping
from jaxclone.types import Array, UserError

# Energies of the filters are clamped to this before the logarithm: the epsilon of f32.
_FLOOR = float(np.finfo(np.float32).eps)
# A derivative is the slope over this many frames on each side.
_REACH = 2


@dataclasses.dataclass(frozen=True)
class MfccConfig:
    """The defaults are Kaldi's at 16 kHz: frames of 25 ms, 10 ms apart.

    Attributes:
        sample_rate: Hz.
        win_length: samples of a frame.
        hop_length: samples from one frame to the next.
        n_fft: FFT size.
        n_mels: filters, from `fmin` to half the sample rate.
        n_ceps: cepstra kept.
        fmin: Hz.
        preemphasis: share of each sample's predecessor that is taken from it.
        lifter: period of the weights of the cepstra.
    """

    sample_rate: int = 16_000
    win_length: int = 400
    hop_length: int = 160
    n_fft: int = 512
    n_mels: int = 23
    n_ceps: int = 13
    fmin: float = 20.0
    preemphasis: float = 0.97
    lifter: float = 22.0

    @property
    def width(self) -> int:
        """Numbers a frame: cepstra, deltas, delta-deltas."""
        return 3 * self.n_ceps

    def frame_length(self, samples: int | Int[Array, "*b"]) -> int | Int[Array, "*b"]:
        """Whole frames within so many samples.

        >>> MfccConfig().frame_length(16_000)
        98
        """
        frames = (samples - self.win_length) // self.hop_length + 1
        return max(frames, 0) if isinstance(frames, int) else jnp.maximum(frames, 0)


def mfcc(
    waveform: Float[Array, "*batch t"],
    config: MfccConfig,
    length: Int[Array, "*batch"] | None = None,
) -> Float[Array, "*batch frames width"]:
    """Cepstra with deltas and delta-deltas; frame i is of the samples from i * hop_length on.

    Args:
        waveform: samples in [-1, 1].
        config: sizes.
        length: true samples of each waveform. When given, its first `config.frame_length(length)`
            frames are those of the waveform alone; those after them hold nothing of meaning.

    Raises:
        UserError: the waveforms are shorter than one frame.

    >>> mfcc(jnp.zeros(16_000), MfccConfig()).shape
    (98, 39)
    """
    n_frames = config.frame_length(waveform.shape[-1])
    assert isinstance(n_frames, int)
    if not n_frames:
        raise UserError(
            f"{waveform.shape[-1]} samples are too short for MFCC: {config.win_length} are needed"
        )
    frames = overlapping(jnp.asarray(waveform), config.win_length, config.hop_length, n_frames)
    frames = frames - frames.mean(-1, keepdims=True)
    before = jnp.concatenate([frames[..., :1], frames[..., :-1]], -1)
    frames = (frames - config.preemphasis * before) * _povey(config.win_length)
    spectrum = jnp.fft.rfft(frames, config.n_fft)
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    mel = jnp.log(jnp.maximum(jnp.matmul(power, _filters(config), precision="highest"), _FLOOR))
    cepstra = jnp.matmul(mel, _cosines(config), precision="highest")

    last = n_frames - 1 if length is None else config.frame_length(jnp.asarray(length)) - 1
    first = _slope(cepstra, last)
    return jnp.concatenate([cepstra, first, _slope(first, last)], -1)


def _slope(x: jax.Array, last: int | Array) -> jax.Array:
    """Least-squares slope over 2 * _REACH + 1 frames; the edge frames stand for those beyond."""
    last = jnp.broadcast_to(jnp.asarray(last), x.shape[:-2])[..., None]
    time = jnp.arange(x.shape[-2])
    slope = jnp.zeros_like(x)
    for step in range(1, _REACH + 1):
        after, before = (
            jnp.take_along_axis(x, jnp.clip(time + side, 0, jnp.maximum(last, 0))[..., None], -2)
            for side in (step, -step)
        )
        slope += step * (after - before)
    return slope / (2 * sum(step**2 for step in range(1, _REACH + 1)))


@functools.lru_cache
def _povey(size: int) -> np.ndarray:
    """A Hann window to the power of 0.85: f32[size]."""
    return (np.hanning(size) ** 0.85).astype(np.float32)


@functools.lru_cache
def _filters(config: MfccConfig) -> np.ndarray:
    """Triangles of height 1, their corners equally far apart on the mel axis: f32[bins, n_mels]."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return 1127.0 * np.log1p(hertz / 700.0)

    half = config.sample_rate / 2
    lowest, highest = mel(np.array([config.fmin, half]))
    corners = np.linspace(lowest, highest, config.n_mels + 2)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = mel(np.linspace(0.0, half, config.n_fft // 2 + 1))[:, None]
    up, down = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = np.maximum(0.0, np.minimum(up, down))
    filters[-1] = 0.0  # Kaldi leaves out the bin at half the sample rate
    return filters.astype(np.float32)


@functools.lru_cache
def _cosines(config: MfccConfig) -> np.ndarray:
    """The orthonormal DCT-II with the weights of the lifter: f32[n_mels, n_ceps]."""
    cosines = scipy.fft.dct(np.eye(config.n_mels), norm="ortho")[:, : config.n_ceps]
    place = np.arange(config.n_ceps)
    weights = 1 + 0.5 * config.lifter * np.sin(np.pi * place / config.lifter)
    return (cosines * weights).astype(np.float32)
