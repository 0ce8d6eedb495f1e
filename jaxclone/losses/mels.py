"""What predicted mels are compared with true ones by, beside their L1."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.losses.perceptual import Perceptual, PerceptualConfig
from jaxclone.losses.spectral import RESOLUTIONS, Resolution, stft_distance
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.vocoder import GeneratorConfig, make_generator
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.types import Array, Metrics, Tree, UserError, length_mask, require_positive


@dataclasses.dataclass(frozen=True)
class MelLossConfig:
    """Weights of the losses beside the L1 of mels; at 0 a loss is left out.

    Attributes:
        perceptual_weight: of the distance in the features of the frozen encoder, which has to be
            one of mels.
        perceptual: which features.
        stft_weight: of the multi-resolution STFT distance between what a frozen vocoder makes of
            both mels.
        resolutions: (n_fft, hop_length, win_length) of that distance.
        vocoder: sizes of that vocoder.
    """

    perceptual_weight: float = 0.0
    perceptual: PerceptualConfig = PerceptualConfig()
    stft_weight: float = 0.0
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    vocoder: GeneratorConfig = HiFiGANConfig()

    def __post_init__(self) -> None:
        require_positive(self, "perceptual_weight", "stft_weight", or_zero=True)

    def helpers(self, encoder: Wav2Vec2Config) -> dict[str, Any]:
        """The configs of the frozen models that these losses need, by name."""
        helpers: dict[str, Any] = {"encoder": encoder} if self.perceptual_weight else {}
        return helpers | ({"vocoder": self.vocoder} if self.stft_weight else {})


class MelLoss:
    """The losses, over what their configs fix."""

    def __init__(
        self,
        config: MelLossConfig,
        audio: AudioSpec,
        encoder: Wav2Vec2Config,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Prepares the losses.

        Args:
            config: their weights.
            audio: what the mels are.
            encoder: sizes of the frozen encoder.
            dtype: of the computation of the frozen models.

        Raises:
            UserError: the encoder takes no mels, lacks a layer, or the vocoder takes other mels.
        """
        self.config = config
        self.audio = audio
        if config.perceptual_weight:
            if encoder.mel is None:
                raise UserError(
                    "mel_loss.perceptual_weight is for an encoder of mels: this one takes "
                    "waveforms, and here there are none to compare"
                )
            self.perceptual = Perceptual(config.perceptual, encoder, dtype)
        if config.stft_weight:
            config.vocoder.require(audio)
            self.vocoder = make_generator(config.vocoder, dtype)

    def __call__(
        self,
        params: Tree,
        predicted: Float[Array, "b f m"],
        truth: Float[Array, "b f m"],
        frames: Int[Array, " b"],
    ) -> tuple[Float[Array, ""], Metrics]:
        """The weighted sum, each loss a mean over the true frames of the batch.

        The gradient is that of the predicted mels alone.

        Args:
            params: of the frozen models, those of `MelLossConfig.helpers`.
            predicted: log-mels.
            truth: log-mels.
            frames: true frames of each.
        """
        config, metrics = self.config, {}
        length = frames * self.audio.hop_length
        if config.perceptual_weight:
            metrics["perceptual_loss"] = self.perceptual(
                params["encoder"], predicted, truth, length
            )
        if config.stft_weight:
            here = self.speak(params["vocoder"], predicted, frames)
            there = self.speak(params["vocoder"], jax.lax.stop_gradient(truth), frames)
            metrics["stft_loss"] = stft_distance(
                here, there, self.audio, config.resolutions, length
            )
        share = frames / jnp.maximum(jnp.sum(frames), 1)
        metrics = {name: jnp.sum(share * distance) for name, distance in metrics.items()}
        return (
            config.perceptual_weight * metrics.get("perceptual_loss", jnp.float32(0))
            + config.stft_weight * metrics.get("stft_loss", jnp.float32(0))
        ), metrics

    def speak(self, params: Tree, mel: Array, frames: Array) -> Array:
        """Waveforms of mels, zero after their ends."""
        # What follows an end is silence to a vocoder, which a mel of zeros is not.
        mask = length_mask(frames, mel.shape[1])[..., None]
        mel = jnp.where(mask, mel, self.audio.silence)
        waveform = self.vocoder.apply({"params": params}, mel, frames)
        return waveform * length_mask(frames * self.audio.hop_length, waveform.shape[1])
