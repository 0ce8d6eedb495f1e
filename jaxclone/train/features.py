"""Vectors for each frame of a corpus, from MFCC or from a layer of an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Shaped

from data_pipelines.corpus import Corpus
from jaxclone import config as configs
from jaxclone.audio.mfcc import MfccConfig, mfcc
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.tree import fingerprint
from jaxclone.types import Array, Tree, UserError, length_mask

# (parameters, waveforms, their lengths) -> (something for each frame, frames of each waveform).
Apply = Callable[[Tree, Array, Array], tuple[Array, Array]]
Compute = Callable[[np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """How waveforms become vectors, one every hop of the AudioSpec.

    Attributes:
        width: of a vector.
        params: of the network; {} for none.
        apply: to be jitted.
        made_by: tells these features from others, in numbers and strings.
    """

    width: int
    params: Tree
    apply: Apply
    made_by: dict[str, Any]


def mfcc_features(encoder: Wav2Vec2Config, audio: AudioSpec) -> Features:
    """Every second frame of the MFCC, each of the very samples that the encoder's frame is of.

    The published stem begins its frame i with sample i * hop_length, like Kaldi. One that pads its
    input, or sees a spectrogram, has the centre of its frame i at (i + 1/2) * hop_length: then the
    waveform is padded likewise.

    Args:
        encoder: that will predict the units.
        audio: gives the frames.

    Raises:
        UserError: the AudioSpec's frames are not every second one of the MFCC.
    """
    config = MfccConfig()
    if (audio.sample_rate, audio.hop_length) != (config.sample_rate, 2 * config.hop_length):
        raise UserError(
            f"units of MFCC need an AudioSpec of {config.sample_rate} Hz and frames every "
            f"{2 * config.hop_length} samples, not {audio.sample_rate} Hz and {audio.hop_length}"
        )
    centred = encoder.pad_input or encoder.mel is not None
    padding = (config.win_length - audio.hop_length) // 2 if centred else 0

    def apply(params: Tree, waveform: Array, length: Array) -> tuple[Array, Array]:
        padded = jnp.pad(waveform, ((0, 0), (padding, padding)))
        length = jnp.asarray(length) + 2 * padding
        frames = mfcc(padded, config, length)[:, ::2]
        return frames, (config.frame_length(length) + 1) // 2

    made_by = {"mfcc": configs.to_data(config), "padding": padding}
    return Features(config.width, {}, apply, made_by)


def layer_features(
    params: Tree,
    config: Wav2Vec2Config,
    layer: int,
    audio: AudioSpec,
    precision: Literal["f32", "bf16"],
) -> Features:
    """The output of one layer of an encoder, after its residual connection.

    Args:
        params: of the encoder.
        config: of the encoder.
        layer: counted from 1; those after it are not computed.
        audio: gives the frames.
        precision: of the computation.

    Raises:
        UserError: the encoder has fewer layers or other frames.
    """
    if layer > config.layers:
        raise UserError(f"targets.layer {layer}: the encoder has {config.layers} layers")
    if config.hop_length != audio.hop_length:
        raise UserError(
            f"the encoder of the targets makes a frame every {config.hop_length} samples, "
            f"AudioSpec every {audio.hop_length}"
        )
    mark = fingerprint(params)
    params = params | {"layers": jax.tree.map(lambda x: x[:layer], params["layers"])}
    encoder = Wav2Vec2Encoder(
        dataclasses.replace(config, layers=layer),
        jnp.bfloat16 if precision == "bf16" else jnp.float32,
    )

    def apply(params: Tree, waveform: Array, length: Array) -> tuple[Array, Array]:
        output = encoder.apply({"params": params}, waveform, length)
        return output.layers[-1].astype(jnp.float32), output.frame_length

    made_by = {"encoder": mark, "layer": layer, "precision": precision}
    return Features(config.width, params, apply, made_by)


def without_mean(features: Features) -> Features:
    """The features less their mean over the recording, or over each part of a longer one.

    A voice and a microphone shift all cepstra of a recording alike; phones do not.
    """

    def apply(params: Tree, waveform: Array, length: Array) -> tuple[Array, Array]:
        values, frames = features.apply(params, waveform, length)
        inside = length_mask(frames, values.shape[1])[..., None]
        total = jnp.sum(jnp.where(inside, values, 0), axis=1, keepdims=True)
        return values - total / jnp.maximum(frames, 1)[:, None, None], frames

    made_by = features.made_by | {"subtract_mean": True}
    return dataclasses.replace(features, apply=apply, made_by=made_by)


class _Piece(NamedTuple):
    """Frames [first, first + frames) of the place-th record."""

    frames: int
    place: int
    first: int


def frames_of(corpus: Corpus, records: Sequence[int] | Int[np.ndarray, " n"]) -> np.ndarray:
    """Frames of each record."""
    return corpus.n_samples[np.asarray(records, np.int64)] // corpus.spec.hop_length


def over_frames(
    corpus: Corpus,
    records: Int[np.ndarray, " n"],
    compute: Compute,
    fill: Shaped[np.ndarray, ...],
    *,
    rows: int,
    chunk: int,
    on_progress: Callable[[int], object] = lambda frames: None,
) -> np.ndarray:
    """Computes something for each frame of some recordings.

    Recordings of similar length go together, padded to one of a few lengths. Those longer than
    `chunk` are cut; a frame near a cut sees zeros instead of what lies beyond.

    Args:
        corpus: the recordings.
        records: which.
        compute: (f32[rows, samples], i32[rows]) -> ([rows, f, ...], i32[rows] frames of each).
        fill: stands for frames that `compute` does not give.
        rows: recordings at once.
        chunk: frames.
        on_progress: called with the number of frames that are done since the last call.

    Returns:
        [frames, ...]: the frames of all records, one after the other.
    """
    hop = corpus.spec.hop_length
    frames = frames_of(corpus, records)
    start = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
    out = np.broadcast_to(fill, (int(start[-1]), *fill.shape)).copy()
    pieces = sorted(
        _Piece(min(chunk, int(n) - first), place, first)
        for place, n in enumerate(frames)
        for first in range(0, int(n), chunk)
    )

    def settle(pieces: Sequence[_Piece], values: jax.Array, lengths: jax.Array) -> None:
        for piece, value, length in zip(pieces, np.asarray(values), np.asarray(lengths)):
            n = min(piece.frames, int(length))
            into = int(start[piece.place]) + piece.first
            out[into : into + n] = value[:n]
        on_progress(sum(piece.frames for piece in pieces))

    pending = None
    for first in range(0, len(pieces), rows):
        group = pieces[first : first + rows]
        # One hop more than the frames: the published stem's last frame reaches beyond its hop.
        waveform = np.zeros((rows, (_rounded(group[-1].frames) + 1) * hop), np.float32)
        length = np.zeros(rows, np.int32)
        for row, piece in enumerate(group):
            samples = corpus[int(records[piece.place])]["waveform"]
            samples = samples[piece.first * hop :][: (piece.frames + 1) * hop]
            waveform[row, : len(samples)] = samples
            length[row] = len(samples)
        running = compute(waveform, length)  # goes on while the one before it is taken back
        if pending is not None:
            settle(*pending)
        pending = group, *running
    if pending is not None:
        settle(*pending)
    return out


def _rounded(frames: int) -> int:
    """The next number of frames that a function is compiled for: two an octave.

    >>> [_rounded(n) for n in (3, 64, 65, 97, 700)]
    [64, 64, 96, 128, 768]
    """
    size = 64
    while size < frames:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size
