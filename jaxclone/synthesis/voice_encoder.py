"""Features of recordings from a self-supervised encoder."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxclone.audio import io
from jaxclone.export.bundle import Bundle, load_bundle
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import Array, Tree, UserError

# Recordings are padded to the next of 1, 1.4, 2, 2.8 ... seconds, so that few programs compile.
_SHORTEST, _STEP = 1.0, 2**0.5
# Attention takes memory with the square of the length: of 2 minutes, half a gigabyte for 12 heads.
_LONGEST = 120.0
# Recordings of one program at most.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class VoiceEncoder:
    """A pretrained encoder, trained here or imported: wav2vec 2.0, HuBERT, WavLM.

    What it makes of a recording depends on that recording alone: not on the padding, not on its
    neighbours in a batch. For encoders whose published group norm sees padding, this is what they
    give for a recording without any.

        encoder = VoiceEncoder.load("bundles/hubert_base")
        frames = encoder.features(waveform, layer=9, sample_rate=44_100)

    Attributes:
        config: of the encoder.
        params: its parameters.
        sample_rate: what it hears, Hz.
    """

    config: Wav2Vec2Config
    params: Tree
    sample_rate: int

    @classmethod
    def load(cls, *folders: Any) -> VoiceEncoder:
        """Reads the encoder of a bundle.

        Raises:
            UserError: the bundle cannot be read, or has no encoder.
        """
        return cls.of(load_bundle(*folders))

    @classmethod
    def of(cls, bundle: Bundle) -> VoiceEncoder:
        """The encoder of a bundle in memory."""
        if "encoder" not in bundle.models:
            raise UserError(f"the bundle has no encoder; it holds {', '.join(bundle.models)}")
        return cls(bundle.configs["encoder"], bundle.models["encoder"], bundle.audio.sample_rate)

    def features(
        self, waveform: Float[np.ndarray, " t"], layer: int, sample_rate: int | None = None
    ) -> Float[np.ndarray, "f d"]:
        """The hidden states of one layer, a vector every `config.hop_length` samples.

        Args:
            waveform: f32 samples in [-1, 1]; normalised here if the encoder was trained so.
            layer: 0 is the input of the first layer, i the output of the i-th *after* its residual
                connection (and its normalisation, where that comes last, as in BASE), -1 the last.
                This is Hugging Face's `hidden_states[i]`; fairseq's `layer_results` are the results
                of the feed-forward layers *before* the residual. In a model with `norm_first`
                (LARGE), -1 is before the normalisation that follows the last layer.
            sample_rate: of the waveform; None for the encoder's own.

        Raises:
            UserError: no such layer, or a waveform that is too short, too long or no sound.
        """
        return self.features_of([waveform], layer, sample_rate)[0]

    def features_of(
        self,
        waveforms: Sequence[Float[np.ndarray, " _"]],
        layer: int,
        sample_rate: int | None = None,
    ) -> list[Float[np.ndarray, "_ d"]]:
        """`features` of several recordings, those of similar length at once."""
        depth = self.config.layers
        if not -depth - 1 <= layer <= depth:
            raise UserError(f"the encoder has the layers 0 to {depth}, there is no layer {layer}")
        if layer < 0:
            layer += depth + 1
        ready = [self._prepare(x, i, sample_rate) for i, x in enumerate(waveforms)]
        by_size = collections.defaultdict(list)
        for i, waveform in enumerate(ready):
            by_size[self._padded(len(waveform))].append(i)

        found: dict[int, np.ndarray] = {}
        for size, members in by_size.items():
            for start in range(0, len(members), _BATCH):
                part = members[start : start + _BATCH]
                batch = np.zeros((1 << (len(part) - 1).bit_length(), size), np.float32)
                length = np.zeros(len(batch), np.int32)
                for row, i in enumerate(part):
                    length[row] = len(ready[i])
                    batch[row, : length[row]] = ready[i]
                hidden = np.asarray(_hidden(self._unpadded, layer, self.params, batch, length))
                for row, i in enumerate(part):
                    found[i] = hidden[row, : self.config.frame_length(len(ready[i]))]
        return [found[i] for i in range(len(ready))]

    @property
    def _unpadded(self) -> Wav2Vec2Config:
        """The configuration with which padding changes nothing."""
        if self.config.conv_norm == "group":
            return dataclasses.replace(self.config, conv_norm="masked_group")
        return self.config

    def _prepare(self, waveform: np.ndarray, index: int, sample_rate: int | None) -> np.ndarray:
        """A waveform at the encoder's rate."""
        name = f"waveform {index}"
        waveform = np.asarray(waveform)
        if waveform.ndim != 1 or waveform.dtype.kind != "f":
            raise UserError(
                f"{name} must be one row of samples in [-1, 1], got {waveform.dtype} of shape "
                f"{list(waveform.shape)}"
            )
        io.check(waveform, name)
        rate = self.sample_rate
        waveform = io.resample(waveform.astype(np.float32), sample_rate or rate, rate)
        if self.config.frame_length(len(waveform)) < 1:
            raise UserError(f"{name} is too short for a single frame: {len(waveform)} samples")
        if len(waveform) > _LONGEST * rate:
            raise UserError(
                f"{name} lasts {len(waveform) / rate:.0f} s, more than {_LONGEST:.0f} s; "
                "give it in pieces"
            )
        return waveform

    def _padded(self, samples: int) -> int:
        """The next of few sizes."""
        seconds = _SHORTEST
        while (size := round(seconds * self.sample_rate)) < samples:
            seconds *= _STEP
        return size


@functools.partial(jax.jit, static_argnums=(0, 1))
def _hidden(
    config: Wav2Vec2Config, layer: int, params: Tree, waveform: Array, length: Array
) -> Array:
    """The hidden states of a layer; the layers after it are not computed."""
    needed = max(layer, 1)
    params = {**params, "layers": jax.tree.map(lambda x: x[:needed], params["layers"])}
    encoder = Wav2Vec2Encoder(dataclasses.replace(config, layers=needed))
    return encoder.apply({"params": params}, waveform, length).layers[layer]
