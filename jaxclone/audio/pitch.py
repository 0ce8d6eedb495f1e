"""Fundamental frequency, frame by frame of an AudioSpec.

The method is Boersma's (1993, "Accurate short-term analysis of the fundamental frequency and the
harmonics-to-noise ratio of a sampled sound"): peaks of the autocorrelation of each frame, divided
by that of its window, joined to the cheapest path by dynamic programming. It is as robust to noise
as pYIN at hundreds of times real time. WORLD's DIO, no faster at a finer hop, loses most of the
voicing at the hop of our frames, because it asks for continuity from one frame to the next.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jaxclone.audio.spec import AudioSpec

# A melody is stretched to another person's liveliness by this factor at most.
_STRETCH = 2.0


@dataclasses.dataclass(frozen=True)
class PitchConfig:
    """What counts as voice. The costs are those of Boersma 1993 (§ 4.3), for steps of 10 ms.

    Attributes:
        lowest: Hz; three of its periods are the window of a frame.
        highest: Hz.
        silence: frames whose peak is below this part of the loudest one's tend to unvoiced.
        voicing: strength of a peak, 0 to 1, from which a frame is voiced.
        octave: preference of higher frequencies, an octave, against halving.
        octave_jump: cost of a jump between frames, an octave.
        switch: cost of going from voiced to unvoiced or back.
        candidates: peaks considered in each frame.
    """

    lowest: float = 60.0
    highest: float = 600.0
    silence: float = 0.03
    voicing: float = 0.45
    octave: float = 0.01
    octave_jump: float = 0.35
    switch: float = 0.14
    candidates: int = 12


def f0(
    waveform: Float[np.ndarray, " t"], spec: AudioSpec, config: PitchConfig | None = None
) -> Float[np.ndarray, " frames"]:
    """F0 of each frame of the spec.

    Args:
        waveform: samples at the spec's rate.
        spec: its frame i is centred on sample (i + 1/2) * hop_length, and so is f0[i].
        config: range and costs.

    Returns:
        f32[t // hop_length] in Hz, 0 where unvoiced.
    """
    config = config or PitchConfig()
    n_frames = spec.n_frames(len(waveform))
    loudest = float(np.abs(waveform).max(initial=0.0))
    if n_frames == 0 or loudest == 0.0:
        return np.zeros(n_frames, np.float32)

    size = int(3 * spec.sample_rate / config.lowest)
    first = spec.hop_length // 2 - size // 2
    last = (n_frames - 1) * spec.hop_length + first + size
    padded = np.pad(waveform, (max(0, -first), max(0, last - len(waveform))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    windows = windows[max(0, first) :: spec.hop_length][:n_frames]

    # A few hundred frames at a time keep the memory small for recordings of any length.
    parts = [
        _candidates(windows[i : i + 256], loudest, spec.sample_rate, config)
        for i in range(0, n_frames, 256)
    ]
    frequency, strength = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _best_path(frequency, strength, spec.frame_rate, config).astype(np.float32)


def log_f0_stats(f0: Float[np.ndarray, " frames"]) -> tuple[float, float]:
    """Mean and standard deviation of ln(F0 in Hz) over the voiced frames.

    A recording without voiced frames has (0.0, 1.0), and the standard deviation is at least 1e-3:
    a shift and scale by these numbers is always defined.

    >>> mean, std = log_f0_stats(np.array([0, 100, 200, 0], np.float32))
    >>> round(float(np.exp(mean)), 1), round(std, 3)
    (141.4, 0.347)
    """
    voiced = f0[f0 > 0]
    if voiced.size == 0:
        return 0.0, 1.0
    log = np.log(voiced.astype(np.float64))
    return float(log.mean()), max(float(log.std()), 1e-3)


def move(
    f0: Float[np.ndarray, " frames"], log_mean: float, log_std: float
) -> Float[np.ndarray, " frames"]:
    """Moves and stretches ln F0 to a mean and deviation; unvoiced frames stay 0.

    The deviation changes within `_STRETCH`: the statistics of a few seconds are rough.

    >>> move(np.array([0, 100, 200], np.float32), np.log(282.8), 0.3466).round().tolist()
    [0.0, 200.0, 400.0]
    """
    mean, std = log_f0_stats(f0)
    stretch = np.clip(log_std / std, 1 / _STRETCH, _STRETCH)
    log_f0 = (np.log(np.maximum(f0, 1.0)) - mean) * stretch + log_mean
    return np.where(f0 > 0, np.exp(log_f0), 0.0).astype(np.float32)


def _candidates(
    windows: np.ndarray, loudest: float, rate: int, config: PitchConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies and strengths [frames, 1 + candidates]; the first is unvoiced, 0 Hz."""
    size = windows.shape[1]
    windows = windows - windows.mean(axis=1, keepdims=True)
    hann = np.hanning(size + 2)[1:-1].astype(np.float32)
    peak = np.abs(windows).max(axis=1) / loudest

    # Twice the sampling of the signal: a parabola through three points then finds a peak exactly.
    fine = 2 * rate
    shortest, longest = int(fine / config.highest), int(np.ceil(fine / config.lowest))
    n_fft = 1 << int(np.ceil(np.log2(size + longest / 2 + 1)))
    correlation = _autocorrelation(windows * hann, n_fft)[:, : longest + 2]
    of_window = _autocorrelation(hann, n_fft)[: longest + 2]
    correlation = correlation / (np.maximum(correlation[:, :1], 1e-20) * of_window / of_window[0])

    lag = np.arange(shortest, longest + 1)
    before, here, after = (correlation[:, lag + shift] for shift in (-1, 0, 1))
    is_peak = (here > before) & (here >= after) & (here > 0)
    score = np.where(is_peak, here - config.octave * np.log2(config.lowest * lag / fine), -np.inf)
    best = np.argpartition(-score, config.candidates, axis=1)[:, : config.candidates]
    before, here, after = (np.take_along_axis(x, best, 1) for x in (before, here, after))
    found = np.take_along_axis(is_peak, best, 1)

    curvature = np.where(found, before - 2 * here + after, -1.0)
    offset = np.where(found, 0.5 * (before - after) / curvature, 0.0)
    frequency = fine / (lag[best] + offset)
    height = here - 0.25 * (before - after) * offset
    # Above 1 only where dividing by the window's tail exaggerates: reflected, as Boersma does.
    height = np.where(height > 1, 1 / np.maximum(height, 1), height)
    strength = height + config.octave * np.log2(frequency / config.lowest)
    strength = np.where(found, strength, -np.inf)

    silence = np.maximum(0.0, 2 - peak / (config.silence / (1 + config.voicing)))
    unvoiced = (config.voicing + silence)[:, None]
    return (
        np.concatenate([np.zeros_like(unvoiced), frequency], axis=1),
        np.concatenate([unvoiced, strength], axis=1),
    )


def _autocorrelation(signal: np.ndarray, n_fft: int) -> np.ndarray:
    """Autocorrelation at every half sample."""
    return np.fft.irfft(np.abs(np.fft.rfft(signal, n_fft)) ** 2, 2 * n_fft)


def _best_path(
    frequency: np.ndarray, strength: np.ndarray, frame_rate: float, config: PitchConfig
) -> np.ndarray:
    """The candidate of each frame on the path of greatest strength less costs (Viterbi)."""
    scale = frame_rate / 100.0  # longer steps make jumps less surprising
    voiced = frequency > 0
    log = np.log2(np.where(voiced, frequency, 1.0))
    total = strength[0]
    came_from = np.zeros(frequency.shape, np.int64)
    for i in range(1, len(frequency)):
        jump = config.octave_jump * np.abs(log[i - 1][:, None] - log[i][None, :])
        both = voiced[i - 1][:, None] & voiced[i][None, :]
        either = voiced[i - 1][:, None] | voiced[i][None, :]
        cost = scale * np.where(both, jump, np.where(either, config.switch, 0.0))
        score = total[:, None] - cost
        came_from[i] = score.argmax(axis=0)
        total = score.max(axis=0) + strength[i]
    path = np.empty(len(frequency), np.int64)
    path[-1] = total.argmax()
    for i in range(len(path) - 1, 0, -1):
        path[i - 1] = came_from[i][path[i]]
    return frequency[np.arange(len(path)), path]
