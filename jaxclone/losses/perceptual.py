"""How far two sounds are apart as a frozen self-supervised encoder hears them."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import Array, Tree, UserError, length_mask, require_positive


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
    """Which features are compared, and how.

    For speech what the features of VGG are for images (Johnson et al. 2016 §3.2; of speech, Germain
    et al. 2019 §2.1): sounds that the encoder cannot tell apart are taken for equal.

    Attributes:
        layers: hidden states that are compared: 0 is the input of the first transformer layer, i
            the output of the i-th, -1 of the last (`EncoderOutput.layers`).
        weights: of each of them, over their sum; () for equal ones.
        distance: "l1" of the features; "normalized", of the features of each frame with zero mean
            and unit variance over channels, so that no layer outweighs the rest by its scale.
    """

    layers: tuple[int, ...] = (1, -1)
    weights: tuple[float, ...] = ()
    distance: Literal["l1", "normalized"] = "normalized"

    def __post_init__(self) -> None:
        if not self.layers:
            raise UserError("a perceptual loss needs at least one of perceptual.layers")
        if self.weights and len(self.weights) != len(self.layers):
            raise UserError(
                f"perceptual.weights has {len(self.weights)} numbers for {len(self.layers)} layers"
            )
        require_positive(self, "weights")

    def require(self, encoder: Wav2Vec2Config) -> None:
        """Raises a UserError unless the encoder has these layers."""
        wrong = [i for i in self.layers if not -(encoder.layers + 1) <= i <= encoder.layers]
        if wrong:
            raise UserError(
                f"perceptual.layers holds {wrong[0]}; an encoder of {encoder.layers} layers has 0 "
                f"to {encoder.layers}"
            )


@dataclasses.dataclass(frozen=True)
class Perceptual:
    """The distance, over what its configs fix.

    Attributes:
        config: which features, and how they are compared.
        encoder: sizes of the encoder.
        dtype: of its computation; distances are f32.
    """

    config: PerceptualConfig
    encoder: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        self.config.require(self.encoder)

    def __call__(
        self,
        params: Tree,
        predicted: Float[Array, "b t"] | Float[Array, "b f m"],
        truth: Float[Array, "b t"] | Float[Array, "b f m"],
        length: Int[Array, " b"],
    ) -> Float[Array, " b"]:
        """Mean distance over the true frames of each example, 0 for one without frames.

        The gradient is that of the predicted sound alone.

        Args:
            params: of the encoder.
            predicted: waveforms, or log-mels where the encoder takes those.
            truth: likewise.
            length: true samples of each.
        """
        here, frames = self.features(params, predicted, length)
        there, _ = jax.lax.stop_gradient(self.features(params, truth, length))
        weights = jnp.array(self.config.weights or (1.0,) * len(self.config.layers))
        per_frame = jnp.mean(jnp.abs(here - there), axis=-1)
        per_frame = jnp.tensordot(weights / weights.sum(), per_frame, 1)
        mask = length_mask(frames, per_frame.shape[-1])
        return jnp.sum(jnp.where(mask, per_frame, 0.0), axis=-1) / jnp.maximum(frames, 1)

    def features(
        self,
        params: Tree,
        sound: Float[Array, "b t"] | Float[Array, "b f m"],
        length: Int[Array, " b"],
    ) -> tuple[Float[Array, "layers b g c"], Int[Array, " b"]]:
        """What is compared, f32, and true frames of each example."""
        states = [i % (self.encoder.layers + 1) for i in self.config.layers]
        # Layers above the highest that is asked for are not run; and the gradient that pretraining
        # damps on its way into the stem is wanted whole.
        layers = max(1, *states)
        encoder = dataclasses.replace(self.encoder, layers=layers, feature_grad_scale=1.0)
        params = {**params, "layers": jax.tree.map(lambda x: x[:layers], params["layers"])}
        output = Wav2Vec2Encoder(encoder, self.dtype).apply({"params": params}, sound, length)
        features = jnp.stack([output.layers[i] for i in states]).astype(jnp.float32)
        if self.config.distance == "normalized":
            mean = jnp.mean(features, axis=-1, keepdims=True)
            variance = jnp.var(features, axis=-1, keepdims=True)
            features = (features - mean) / jnp.sqrt(variance + 1e-5)
        return features, output.frame_length
