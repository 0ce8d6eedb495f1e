"""Mels of any length to waveforms."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.audio.spec import AudioSpec
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.vocoder import GeneratorConfig, context_frames, make_generator
from jaxclone.types import Array, Tree

# Frames of one piece: 8 s at 50 frames a second.
PIECE = 400


def vocode(
    config: GeneratorConfig, params: Tree, audio: AudioSpec, log_mel: Float[np.ndarray, "f m"]
) -> Float[np.ndarray, " t"]:
    """Waveform of a log-mel spectrogram, in pieces with as much context as the vocoder sees.

    Memory does not grow with the length, and two lengths seldom need two programs.

    Args:
        config: sizes of the vocoder.
        params: its parameters.
        audio: what the mel is of.
        log_mel: at least one frame.

    Returns:
        f32[f * hop_length].
    """
    context = context_frames(config)
    n_frames, hop = len(log_mel), audio.hop_length
    piece = min(PIECE, rounded(n_frames))
    # Beyond its ends a recording is silent, which a mel of zeros is not.
    floor = np.log(audio.floor) if audio.log == "ln" else np.log10(audio.floor)
    ends = ((context, context + piece), (0, 0))
    padded = np.pad(log_mel.astype(np.float32), ends, constant_values=floor)
    spoken = []
    for start in range(0, n_frames, piece):
        part = padded[None, start : start + piece + 2 * context]
        waveform = _speak(config, params, part, jnp.array([start - context]))
        spoken.append(np.asarray(waveform[0, context * hop : (context + piece) * hop]))
    return np.concatenate(spoken)[: n_frames * hop]


def rounded(n_frames: int) -> int:
    """The next of few sizes, so that recordings of many lengths compile few programs."""
    return max(50, 50 * 2 ** int(np.ceil(np.log2(max(n_frames, 1) / 50))))


@functools.partial(jax.jit, static_argnums=0)
def _speak(config: GeneratorConfig, params: Tree, mel: Array, first_frame: Array) -> Array:
    # Noise belongs to a frame of the whole, so that pieces fit together.
    place = (None, first_frame) if isinstance(config, DiffWaveConfig) else ()
    return make_generator(config).apply({"params": params}, mel, *place)
