"""Cloning: recordings of a person to a Voice, a recording and a Voice to speech in that voice."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.adapt.enroll import AdaptConfig, enroll
from jaxclone.audio import pitch
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle, fingerprint, load_bundle, require_shapes
from jaxclone.models.vocoder import AnyGeneratorConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.synthesis.chunks import overlap_add, windows
from jaxclone.synthesis.vocoder import Vocoder
from jaxclone.types import Array, Tree, UserError, Voice, length_mask

# Frames of one piece of a long recording: 8 s at 50 frames a second, and 1 s shared with the next.
_PIECE, _OVERLAP = 400, 50


@dataclasses.dataclass(frozen=True)
class Cloner:
    """A converter and a vocoder, ready to speak.

    Work is done in pieces of one size, so that memory does not grow with the recording and each
    network compiles once.

    Attributes:
        networks: encoder, speaker encoder and converter.
        params: their parameters.
        vocoder_config: sizes of the vocoder.
        vocoder: its parameters.
        adapt: how `enroll` adapts.
        fingerprint: identifies the weights that a Voice belongs to.
    """

    networks: VoiceConversion
    params: Tree
    vocoder_config: AnyGeneratorConfig
    vocoder: Tree
    adapt: AdaptConfig = AdaptConfig()
    fingerprint: str = ""

    @classmethod
    def load(cls, *folders: Any) -> Cloner:
        """Reads one bundle, or several that together hold all models.

        Raises:
            UserError: a bundle cannot be read, a model is missing, or their AudioSpecs differ.
        """
        return cls.of(load_bundle(*folders))

    @classmethod
    def of(cls, bundle: Bundle) -> Cloner:
        """A Cloner of a bundle in memory."""
        needed = ("encoder", "speaker", "converter", "vocoder")
        missing = [name for name in needed if name not in bundle.models]
        if missing:
            raise UserError(f"cloning needs the models {', '.join(missing)}: add their bundle")
        configs = bundle.configs
        networks = VoiceConversion(
            bundle.audio, configs["encoder"], configs["speaker"], configs["converter"]
        )
        params = {
            name: model
            for name, model in bundle.models.items()
            if name not in ("vocoder", "discriminators")
        }
        return cls(
            networks,
            params,
            configs["vocoder"],
            bundle.models["vocoder"],
            configs.get("adapter", AdaptConfig()),
            fingerprint(params),
        )

    @property
    def audio(self) -> AudioSpec:
        """What waveforms and mels are."""
        return self.networks.audio

    def enroll(
        self, waveforms: Sequence[Float[np.ndarray, " _"]], steps: int = 0, seed: int = 0
    ) -> Voice:
        """Makes a Voice of recordings at `audio.sample_rate`; 3 to 5 s in all are enough."""
        return enroll(self.networks, self.params, waveforms, self.adapt, steps, seed)

    def convert(self, waveform: Float[np.ndarray, " t"], voice: Voice) -> Float[np.ndarray, " t"]:
        """Says what the recording says in another voice.

        Args:
            waveform: f32 samples at `audio.sample_rate`, any length of at least one frame.
            voice: of `enroll`, with the same model.

        Returns:
            f32 samples, as many as came in.
        """
        mel = self.convert_mel(waveform, voice)
        spoken = self.vocode(mel)
        return np.pad(spoken, (0, max(0, len(waveform) - len(spoken))))[: len(waveform)]

    def require(self, voice: Voice) -> None:
        """Raises a UserError unless the voice has the shapes that these networks take."""
        size = self.networks.speaker.embedding
        if np.shape(voice.embedding) != (size,):
            raise UserError(
                f"the voice is of {np.size(voice.embedding)} numbers, the model takes {size}"
            )
        if voice.adapter:
            require_shapes(voice.adapter, self.params.get("adapter", {}), "the voice's adapter")

    def convert_mel(
        self, waveform: Float[np.ndarray, " t"], voice: Voice
    ) -> Float[np.ndarray, "f m"]:
        """The log-mel of `convert`, before the vocoder.

        Raises:
            UserError: the voice is not of a model like this.
        """
        self.require(voice)
        hop = self.audio.hop_length
        n_frames = -(-len(waveform) // hop)
        waveform = np.pad(waveform, (0, n_frames * hop - len(waveform))).astype(np.float32)
        f0 = pitch.f0(waveform, self.audio)
        f0 = pitch.move(f0, float(voice.log_f0_mean), float(voice.log_f0_std))
        params = {**self.params, **({"adapter": voice.adapter} if voice.adapter else {})}
        piece, overlap = min(_PIECE, _rounded(n_frames)), _OVERLAP
        pieces = []
        for start, stop in windows(n_frames, piece, overlap):
            frames = stop - start
            part = np.zeros((1, piece * hop), np.float32)
            part[0, : frames * hop] = waveform[start * hop : stop * hop]
            pitch_part = np.zeros((1, piece), np.float32)
            pitch_part[0, :frames] = f0[start:stop]
            mel = _speak(
                self.networks,
                params,
                part,
                pitch_part,
                np.array([frames], np.int32),
                jnp.asarray(voice.embedding),
            )
            pieces.append(np.asarray(mel[0, :frames]))
        return overlap_add(pieces, n_frames, piece, overlap)

    def vocode(self, mel: Float[np.ndarray, "f m"]) -> Float[np.ndarray, " t"]:
        """Waveform of a log-mel spectrogram."""
        return self._speaker(mel)

    @functools.cached_property
    def _speaker(self) -> Vocoder:
        return Vocoder(self.vocoder_config, self.vocoder, self.audio)


def _rounded(n_frames: int) -> int:
    """The next of few sizes, so that recordings of many lengths compile few programs."""
    return max(50, 50 * 2 ** int(np.ceil(np.log2(max(n_frames, 1) / 50))))


@functools.partial(jax.jit, static_argnums=0)
def _speak(
    networks: VoiceConversion, params: Tree, waveform: Array, f0: Array, frames: Array, voice: Array
) -> Array:
    content = networks.content(params, waveform, frames * networks.audio.hop_length)
    mel = networks.decode(params, content, voice[None], f0, frames)
    mask = length_mask(frames, mel.shape[1])[..., None]
    return jnp.where(mask, mel, networks.audio.silence)
