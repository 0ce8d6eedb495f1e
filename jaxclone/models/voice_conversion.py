"""The three networks of cloning as one: encoder, speaker encoder and converter."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Key

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.models.converter import Converter, ConverterConfig
from jaxclone.models.speaker import SpeakerEncoder, SpeakerEncoderConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import Array, Tree, UserError, length_mask


@dataclasses.dataclass(frozen=True)
class VoiceConversion:
    """Pure functions over a tree of parameters {"encoder", "speaker", "converter", "adapter"}.

    `adapter` is the converter's adapter collection as an unadapted speaker has it.

    Attributes:
        audio: what the waveforms and mels are.
        encoder: sizes of the content encoder.
        speaker: sizes of the speaker encoder.
        converter: sizes of the converter.
        dtype: of the computation.
    """

    audio: AudioSpec
    encoder: Wav2Vec2Config
    speaker: SpeakerEncoderConfig
    converter: ConverterConfig
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        if self.audio.log != "ln":
            raise UserError("voice conversion expects natural-log mels (AudioSpec.log = 'ln')")
        self.encoder.require(self.audio)
        layer, layers = self.converter.content_layer, self.encoder.layers
        if not -(layers + 1) <= layer <= layers:
            raise UserError(
                f"converter.content_layer is {layer}; an encoder of {layers} layers has 0 to "
                f"{layers}"
            )

    def init(self, key: Key[Array, ""]) -> Tree:
        """All parameters, boxed with their logical axes."""
        waveform = jnp.zeros((1, self.audio.n_samples(1.0)))
        length = jnp.array([waveform.shape[1]])
        frames = self.audio.n_frames(waveform.shape[1])
        n_frames = jnp.array([frames])
        mel = jnp.zeros((1, frames, self.audio.n_mels))
        encoder = Wav2Vec2Encoder(self.encoder, self.dtype).init(
            rng.stream(key, "encoder"), waveform, length
        )
        content = jax.eval_shape(
            lambda p: self.content({"encoder": p}, waveform, length), encoder["params"]
        )
        speaker, params = SpeakerEncoder(self.speaker, self.dtype).init_with_output(
            rng.stream(key, "speaker"), mel, n_frames
        )
        converter = Converter(self.converter, self.audio, self.dtype).init(
            {"params": rng.stream(key, "converter"), "adapter": rng.stream(key, "adapter")},
            jnp.zeros(content.shape, content.dtype),
            speaker,
            jnp.zeros((1, frames)),
            n_frames,
        )
        return {
            "encoder": encoder["params"],
            "speaker": params["params"],
            "converter": converter["params"],
            "adapter": converter["adapter"],
        }

    def content(
        self, params: Tree, waveform: Float[Array, "b t"], length: Int[Array, " b"]
    ) -> Float[Array, "b f c"]:
        """What is said: the encoder's hidden state, one vector a mel frame."""
        output = Wav2Vec2Encoder(self.encoder, self.dtype).apply(
            {"params": params["encoder"]}, waveform, length
        )
        return output.layers[self.converter.content_layer]

    def mel(
        self, waveform: Float[Array, "b t"], length: Int[Array, " b"]
    ) -> tuple[Float[Array, "b f m"], Int[Array, " b"]]:
        """Log-mel spectrogram and true frames, zero after them."""
        frames = jnp.asarray(length) // self.audio.hop_length
        mel = log_mel(waveform, self.audio, length)
        return mel * length_mask(frames, mel.shape[1])[..., None], frames

    def embed(
        self, params: Tree, waveform: Float[Array, "b t"], length: Int[Array, " b"]
    ) -> Float[Array, "b d"]:
        """Whose voice it is: unit vectors."""
        return SpeakerEncoder(self.speaker, self.dtype).apply(
            {"params": params["speaker"]}, *self.mel(waveform, length)
        )

    def decode(
        self,
        params: Tree,
        content: Float[Array, "b f c"],
        speaker: Float[Array, "b d"],
        f0: Float[Array, "b f"],
        frames: Int[Array, " b"],
    ) -> Float[Array, "b f m"]:
        """The content in the speaker's voice, as log-mel; `params` may lack "adapter"."""
        variables = {"params": params["converter"]}
        if params.get("adapter"):
            variables["adapter"] = params["adapter"]
        return Converter(self.converter, self.audio, self.dtype).apply(
            variables, content, speaker, f0, frames
        )
