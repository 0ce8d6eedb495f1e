"""Distances between waveforms that are taken between their spectrograms."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel, magnitude, window
from jaxclone.types import Array, Metrics, length_mask

# (n_fft, hop_length, win_length) of Parallel WaveGAN (Yamamoto et al. 2020, table 1).
Resolution = tuple[int, int, int]
RESOLUTIONS: tuple[Resolution, ...] = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
# RMS of what the spectral convergence takes for silence: 60 dB below full scale.
_QUIETEST = 1e-3


def mel_l1(
    predicted: Float[Array, "b t"],
    truth: Float[Array, "b t"],
    spec: AudioSpec,
    length: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean absolute difference of log-mels over the whole band (HiFi-GAN eq. 3; fmax is ignored).

    Args:
        predicted: waveforms.
        truth: waveforms.
        spec: of the mel.
        length: true samples of each; what lies after them has no part in the mean. Without it
            every frame counts.

    Returns:
        the mean over examples of their means, and metrics with the number of examples as `weight`.
    """
    spec = dataclasses.replace(spec, fmax=None)
    frames = None if length is None else jnp.asarray(length) // spec.hop_length
    difference = jnp.abs(log_mel(predicted, spec, length) - log_mel(truth, spec, length))
    loss = jnp.mean(_frame_mean(jnp.mean(difference, axis=-1), frames))
    return loss, {"mel_l1": loss, "weight": jnp.float32(truth.shape[0])}


def multi_resolution_stft(
    predicted: Float[Array, "b t"],
    truth: Float[Array, "b t"],
    spec: AudioSpec,
    resolutions: Sequence[Resolution] = RESOLUTIONS,
    length: Int[Array, " b"] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Spectral convergence plus L1 of log magnitudes, averaged over several resolutions.

    Yamamoto et al. 2020 (Parallel WaveGAN) eq. 3 to 6.

    Args:
        predicted: waveforms.
        truth: waveforms.
        spec: gives the sample rate.
        resolutions: (n_fft, hop_length, win_length) of each.
        length: true samples of each; what lies after them has no part in the result.

    Returns:
        the mean over examples, and metrics with the number of examples as `weight`.
    """
    loss = jnp.mean(stft_distance(predicted, truth, spec, resolutions, length))
    return loss, {"stft_loss": loss, "weight": jnp.float32(truth.shape[0])}


def stft_distance(
    predicted: Float[Array, "b t"],
    truth: Float[Array, "b t"],
    spec: AudioSpec,
    resolutions: Sequence[Resolution] = RESOLUTIONS,
    length: Int[Array, " b"] | None = None,
) -> Float[Array, " b"]:
    """What `multi_resolution_stft` is the mean of, example by example."""
    total = jnp.zeros(truth.shape[0])
    for n_fft, hop_length, win_length in resolutions:
        # The log magnitudes need a floor, also where the log-mels have one of their own.
        spec = dataclasses.replace(
            spec,
            n_fft=n_fft,
            hop_length=hop_length,
            win_length=win_length,
            fmax=None,
            power_floor=AudioSpec.power_floor,
        )
        frames = None if length is None else jnp.asarray(length) // hop_length
        p, t = magnitude(predicted, spec, length), magnitude(truth, spec, length)
        difference, power = jnp.sum((t - p) ** 2, axis=-1), jnp.sum(t**2, axis=-1)
        # A ratio to silence would outweigh the whole batch: less than noise of this level counts as
        # that, whose power is spread over all bins.
        least = _QUIETEST**2 * float(np.sum(window(spec) ** 2)) * t.shape[-1]
        convergence = jnp.sqrt(
            (_frame_mean(difference, frames) + 1e-12)
            / jnp.maximum(_frame_mean(power, frames), least)
        )
        logarithm = _frame_mean(jnp.mean(jnp.abs(jnp.log(t) - jnp.log(p)), axis=-1), frames)
        total += convergence + logarithm
    return total / len(resolutions)


def _frame_mean(value: Float[Array, "b f"], frames: Int[Array, " b"] | None) -> Float[Array, " b"]:
    """The mean of each example over its true frames."""
    if frames is None:
        return jnp.mean(value, axis=-1)
    mask = length_mask(frames, value.shape[1])
    return jnp.sum(jnp.where(mask, value, 0.0), axis=-1) / jnp.maximum(frames, 1)
