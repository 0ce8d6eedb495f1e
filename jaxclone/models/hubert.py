"""HuBERT: the encoder of wav2vec 2.0 with a head that names the unit of each frame.

Hsu et al. 2021 §III; fairseq `models/hubert/hubert.py`.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.nn.layers import Keys, dense, uniform_fan_in
from jaxclone.nn.norm import mean_square, unit_norm
from jaxclone.types import Array, Tree, require_positive


@dataclasses.dataclass(frozen=True)
class HubertConfig:
    """The encoder and the head; the defaults are those of BASE in its first iteration.

    Attributes:
        encoder: its sizes; as in wav2vec 2.0.
        units: different units that a frame may have.
        projection_width: where frames and units are compared.
        temperature: the cosines are divided by it.
    """

    encoder: Wav2Vec2Config = Wav2Vec2Config()
    units: int = 100
    projection_width: int = 256
    temperature: float = 0.1

    def __post_init__(self) -> None:
        require_positive(self, "units", "projection_width", "temperature")

    @classmethod
    def base(cls, units: int = 100) -> HubertConfig:
        """Published BASE: 100 units in iteration 1, 500 in iteration 2."""
        return cls(units=units)

    @classmethod
    def large(cls, units: int = 500) -> HubertConfig:
        """Published LARGE (fairseq `hubert_large_librivox.yaml`)."""
        return cls(Wav2Vec2Config.large(), units, 768)

    @classmethod
    def mini(cls, units: int = 50) -> HubertConfig:
        """Trains in minutes on a CPU."""
        return cls(Wav2Vec2Config.mini(), units, 64)

    @classmethod
    def tiny(cls, units: int = 8) -> HubertConfig:
        """For tests."""
        return cls(Wav2Vec2Config.tiny(), units, 8)


@struct.dataclass
class HubertOutput:
    """What the loss compares.

    Attributes:
        logits: f32[b, f, units] cosines over the temperature.
        frame_length: i32[b] true frames.
        energy: f32[b] mean square of the stem's features over true frames.
    """

    logits: Tree
    frame_length: Tree
    energy: Tree


class Hubert(nn.Module):
    """The encoder under `encoder`, the projection of its output, and an embedding of each unit."""

    config: HubertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        waveform: Float[Array, "b t"],
        length: Int[Array, " b"],
        mask_frames: Bool[Array, "b f"] | None = None,
        *,
        keys: Keys | None = None,
    ) -> HubertOutput:
        """How much each frame looks like each unit.

        Args:
            waveform: samples.
            length: true samples.
            mask_frames: frames to mask.
            keys: one an example, for dropout; None for none.
        """
        config = self.config
        encoded = Wav2Vec2Encoder(config.encoder, self.dtype, name="encoder")(
            waveform, length, mask_frames=mask_frames, keys=keys
        )
        projected = dense(
            config.projection_width, ("embed", "code_dim"), self.dtype, "project", uniform_fan_in
        )(encoded.output)
        embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(nn.initializers.uniform(1.0), ("code", "code_dim")),
            (config.units, config.projection_width),
        )
        cosine = jnp.einsum(
            "bfd,vd->bfv",
            unit_norm(projected),
            unit_norm(embedding),
            precision="highest",  # what rounds off a cosine, the temperature makes ten times more
        )
        return HubertOutput(
            cosine / config.temperature,
            encoded.frame_length,
            mean_square(encoded.stem, encoded.frame_length),
        )
