"""A vocoder that is ready to speak: mels of any length, in pieces, on all cores."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from jaxtyping import Float

from jaxclone.audio.spec import AudioSpec
from jaxclone.models import hifigan
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.vocoder import (
    AnyGeneratorConfig,
    GeneratorConfig,
    context_frames,
    make_generator,
)
from jaxclone.nn.fast_conv import prepare
from jaxclone.nn.weight_norm import fold
from jaxclone.synthesis import diffusion
from jaxclone.types import Array, Tree

# Frames of one piece: 8 s at 50 frames a second.
_PIECE = 400
# Pieces are of a multiple of these frames, so that few programs compile.
_STEP = 4
# Numbers in the widest activation of a piece on a CPU: with about fifteen of these, the working
# memory of a HiFi-GAN stays below the 32 MiB from which on the C library asks the system for new
# pages at every call; without those, V3 in pieces beyond that size took 30 % less time.
_ACTIVATION = 1 << 19


class Vocoder:
    """Speaks mels with a generator.

    Weight norm is folded once. The mel is cut into pieces with as much context as the generator
    sees, so that memory does not grow with the length and two lengths seldom need two programs.

    On a CPU the wide convolutions take `jaxclone.nn.fast_conv`, and every core speaks a piece of
    its own: XLA does not divide most of what a piece consists of.

        vocoder = Vocoder(config, params, audio)
        waveform = vocoder(log_mel)
    """

    def __init__(self, config: AnyGeneratorConfig, params: Tree, audio: AudioSpec) -> None:
        """Prepares the parameters for inference.

        Args:
            config: sizes of the vocoder.
            params: its parameters, as trained or already folded.
            audio: what the mels are of.
        """
        on_cpu = jax.default_backend() == "cpu"
        params = fold(params)
        fast = on_cpu and isinstance(config, HiFiGANConfig | MelGANConfig)
        self._params = prepare(params) if fast else params
        self._config, self._audio = config, audio
        self._piece, self._workers = _PIECE, 1
        if on_cpu and isinstance(config, HiFiGANConfig):
            self._piece = max(_STEP, _ACTIVATION // _widest(config) // _STEP * _STEP)
            self._workers = _cores()

    def __call__(self, log_mel: Float[np.ndarray, "f m"]) -> Float[np.ndarray, " t"]:
        """Speaks one mel.

        Args:
            log_mel: at least one frame.

        Returns:
            f32[f * hop_length].
        """
        config, n_frames = self._config, len(log_mel)
        piece, log_mel = self._piece_frames(n_frames), log_mel.astype(np.float32)
        if isinstance(config, DiffWaveConfig):
            return diffusion.speak(config, self._params, log_mel, piece)
        context = context_frames(config)
        # Beyond its ends a recording is silent, which a mel of zeros is not.
        ends = ((context, context + piece), (0, 0))
        padded = np.pad(log_mel, ends, constant_values=self._audio.silence)

        def speak(start: int) -> np.ndarray:
            part = padded[None, start : start + piece + 2 * context]
            return np.asarray(_speak(config, self._params, part)[0])

        starts = range(0, n_frames, piece)
        if self._workers == 1:
            spoken = [speak(start) for start in starts]
        else:
            with ThreadPoolExecutor(self._workers) as pool:
                spoken = list(pool.map(speak, starts))
        return np.concatenate(spoken)[: n_frames * self._audio.hop_length]

    def _piece_frames(self, n_frames: int) -> int:
        """Frames of a piece: as many pieces as keep all workers busy, none too large."""
        pieces = -(-n_frames // self._piece)
        pieces = -(-pieces // self._workers) * self._workers
        return -(-n_frames // (pieces * _STEP)) * _STEP


def _cores() -> int:
    """Cores that this process may use; not every system tells which these are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _widest(config: HiFiGANConfig) -> int:
    """Numbers a frame in the largest activation."""
    channels, rate, widest = config.channels, 1, 0
    for factor in config.upsample_rates:
        channels, rate = channels // 2, rate * factor
        widest = max(widest, channels * rate)
    return widest


@functools.partial(jax.jit, static_argnums=0)
def _speak(config: GeneratorConfig, params: Tree, mel: Array) -> Array:
    """The waveform of a mel without its context."""
    context = context_frames(config)
    if isinstance(config, HiFiGANConfig):
        return hifigan.Generator(config, context=context).apply({"params": params}, mel)
    waveform = make_generator(config).apply({"params": params}, mel)
    hop = waveform.shape[1] // mel.shape[1]
    return waveform[:, context * hop : waveform.shape[1] - context * hop]
