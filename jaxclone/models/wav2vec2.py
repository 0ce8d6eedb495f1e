"""wav2vec 2.0: convolutions over the waveform, then a transformer (Baevski et al. 2020)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from jaxclone.audio.spec import AudioSpec
from jaxclone.nn.fused_attention import AttentionImpl
from jaxclone.nn.layers import Keys, dense, dropout, scale_gradient, split_keys, uniform_fan_in
from jaxclone.nn.masking import MaskedFrames
from jaxclone.nn.norm import layer_norm, mean_square
from jaxclone.nn.positional import Impl, PositionalConv
from jaxclone.nn.quantize import GumbelQuantizer, QuantizerConfig
from jaxclone.nn.relative import RelativePositions, RelativePositionsConfig
from jaxclone.nn.stem import ConvStem, MelStem, StemNorm
from jaxclone.nn.transformer import Remat, TransformerLayer, rematerialized
from jaxclone.types import (
    Array,
    Tree,
    UserError,
    length_mask,
    require_positive,
    require_rates,
)


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """Sizes of the encoder; the defaults are those of the published BASE.

    Attributes:
        mel: None for the published stem of convolutions over samples. An AudioSpec makes the stem
            two convolutions over log-mel frames instead, as w2v-BERT does (Chung et al. 2021 §3.1):
            spectra need not be learnt first, so that a small model is of use within minutes.
        conv_width: channels of the convolutional stem.
        conv_kernels: taps of each convolution of the stem.
        conv_strides: stride of each.
        conv_bias: whether they have a bias.
        conv_norm: "group" normalises the first convolution over time, padding included, as
            published (BASE); "masked_group" leaves the padding out, so that it changes nothing;
            "layer" normalises each over channels (LARGE).
        pad_input: add half of what the stem's receptive field exceeds its hop by (40 zeros) on each
            side, so that n samples give n // hop_length frames; the published models do not.
        normalize_input: bring each waveform to zero mean and unit variance.
        feature_grad_scale: of the gradient that reaches the stem.
        width: of the transformer.
        layers: of the transformer.
        heads: of its attention.
        mlp_width: of its feed-forward layers.
        norm_first: layer normalisation before attention and feed-forward (LARGE), not after (BASE).
        positional_kernel: taps of the positional convolution.
        positional_groups: its groups.
        positional_impl: how it is computed, see `jaxclone.nn.positional.grouped_conv`.
        relative_positions: None for the published wav2vec 2.0 and HuBERT. WavLM adds a gated bias
            by relative position to the attention of every layer.
        input_dropout: of the transformer's projected input.
        dropout: of embeddings, attention results and feed-forward results.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward layers.
        layer_drop: probability that an example skips a layer.
        attention_impl: how attention is computed, see `jaxclone.nn.fused_attention.choose`.
        remat: what the backward pass computes again instead of keeping it, in the stem and in each
            layer: "none"; "dots", all but convolutions and products with weights; "full", all.
            True and False are "full" and "none".
        scan_unroll: layers that one turn of the loop over layers holds; more compile longer.
    """

    mel: AudioSpec | None = None
    conv_width: int = 512
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    conv_norm: StemNorm = "group"
    pad_input: bool = False
    normalize_input: bool = False
    feature_grad_scale: float = 0.1
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    norm_first: bool = False
    positional_kernel: int = 128
    positional_groups: int = 16
    positional_impl: Impl = "auto"
    relative_positions: RelativePositionsConfig | None = None
    input_dropout: float = 0.1
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layer_drop: float = 0.05
    attention_impl: AttentionImpl = "auto"
    remat: bool | Remat = "none"
    scan_unroll: int = 1

    HOW: ClassVar = frozenset(
        {"feature_grad_scale", "input_dropout", "dropout", "attention_dropout"}
        | {"activation_dropout", "layer_drop", "attention_impl", "positional_impl"}
        | {"remat", "scan_unroll"}
    )

    def __post_init__(self) -> None:
        require_positive(self, "conv_width", "conv_kernels", "conv_strides", "width", "layers")
        require_positive(self, "heads", "mlp_width", "positional_kernel", "positional_groups")
        require_positive(self, "scan_unroll")
        require_positive(self, "feature_grad_scale", or_zero=True)
        require_rates(self, "input_dropout", "dropout", "attention_dropout", "activation_dropout")
        require_positive(self, "layer_drop", or_zero=True, most=1)
        if len(self.conv_kernels) != len(self.conv_strides):
            raise UserError("wav2vec 2.0: conv_kernels and conv_strides differ in number")
        if self.width % self.heads or self.width % self.positional_groups:
            raise UserError(
                f"wav2vec 2.0: width {self.width} must be a multiple of heads {self.heads} and "
                f"positional_groups {self.positional_groups}"
            )
        if self.pad_input and (self.receptive_field - self.hop_length) % 2:
            raise UserError("wav2vec 2.0: pad_input needs an even receptive field minus hop")

    def require(self, spec: AudioSpec) -> None:
        """Raises a UserError unless this encoder makes a frame for each mel frame of `spec`."""
        if self.mel is not None:
            self.mel.require(spec, "the encoder's run")
        if self.hop_length != spec.hop_length:
            raise UserError(
                f"the encoder makes a frame every {self.hop_length} samples, "
                f"AudioSpec every {spec.hop_length}"
            )

    @classmethod
    def base(cls) -> Wav2Vec2Config:
        """The published BASE (fairseq `wav2vec2_base_librispeech.yaml`): 94 M parameters."""
        return cls()

    @classmethod
    def large(cls) -> Wav2Vec2Config:
        """The published LARGE (fairseq `wav2vec2_large_librivox.yaml`): 315 M parameters."""
        return cls(
            conv_bias=True,
            conv_norm="layer",
            normalize_input=True,
            feature_grad_scale=1.0,
            width=1024,
            layers=24,
            heads=16,
            mlp_width=4096,
            norm_first=True,
            input_dropout=0.0,
            dropout=0.0,
            attention_dropout=0.0,
            layer_drop=0.0,
        )

    @classmethod
    def mini(cls) -> Wav2Vec2Config:
        """Trains in minutes on a CPU; one frame for each hop of 320 samples."""
        return cls(
            mel=AudioSpec(),
            conv_width=96,
            feature_grad_scale=1.0,
            width=128,
            layers=3,
            heads=4,
            mlp_width=384,
            norm_first=True,
            positional_kernel=64,
            positional_groups=16,
            input_dropout=0.0,
            dropout=0.0,
            attention_dropout=0.0,
            layer_drop=0.0,
        )

    @classmethod
    def small(cls) -> Wav2Vec2Config:
        """Learns to tell phones within half an hour on a CPU."""
        return dataclasses.replace(
            cls.mini(), conv_width=128, width=192, layers=4, heads=4, mlp_width=768
        )

    @classmethod
    def tiny(cls) -> Wav2Vec2Config:
        """For tests."""
        return dataclasses.replace(
            cls.mini(),
            mel=None,
            conv_norm="masked_group",
            pad_input=True,
            normalize_input=True,
            conv_width=8,
            width=16,
            layers=2,
            heads=2,
            mlp_width=32,
            positional_kernel=8,
            positional_groups=4,
        )

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        if self.mel is not None:
            return self.mel.hop_length
        hop = 1
        for stride in self.conv_strides:
            hop *= stride
        return hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame of the stem sees."""
        field, hop = 1, 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides):
            field += (kernel - 1) * hop
            hop *= stride
        return field

    @property
    def padding(self) -> int:
        """Zeros added on each side of the waveform."""
        return (self.receptive_field - self.hop_length) // 2 if self.pad_input else 0

    def frame_length(self, samples: Any) -> Any:
        """Frames of so many samples; an int or an integer array.

        >>> Wav2Vec2Config.base().frame_length(16_000), Wav2Vec2Config.mini().frame_length(16_000)
        (49, 50)
        """
        if self.mel is not None:
            return samples // self.hop_length
        frames = samples + 2 * self.padding
        for kernel, stride in zip(self.conv_kernels, self.conv_strides):
            frames = (frames - kernel) // stride + 1
        return max(frames, 0) if isinstance(frames, int) else jnp.maximum(frames, 0)


@struct.dataclass
class EncoderOutput:
    """What the encoder makes of a batch. Frames after `frame_length` hold nothing of meaning.

    Attributes:
        stem: [b, f, conv_width] result of the convolutions.
        stem_normalized: [b, f, conv_width] the same after layer normalisation: what is projected
            into the transformer and what is quantised.
        layers: [layers + 1, b, f, width] hidden states. 0 is the input of the first layer, i is the
            output of the i-th *after* its residual connection (and, where `norm_first` is off, its
            normalisation), as in Hugging Face's `hidden_states`; fairseq counts from the result of
            the feed-forward layer *before* the residual.
        output: [b, f, width] the last layer, normalised where `norm_first` is on.
        frame_length: i32[b] true frames.
    """

    stem: Tree
    stem_normalized: Tree
    layers: Tree
    output: Tree
    frame_length: Tree


class Wav2Vec2Encoder(nn.Module):
    """Waveform at 16 kHz to one vector every 20 ms."""

    config: Wav2Vec2Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        waveform: Float[Array, "b t"] | Float[Array, "b f m"],
        length: Int[Array, " b"],
        *,
        mask_frames: Bool[Array, "b f"] | None = None,
        keys: Keys | None = None,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
            waveform: samples, or to an encoder of mels the log-mels themselves; what follows an
                example's length is ignored.
            length: true samples.
            mask_frames: frames whose features are replaced by the mask embedding.
            keys: one an example, for dropout; None for none.
        """
        config = self.config
        input_keys, embed_keys, layer_keys = split_keys(keys, 3)
        frame_length = config.frame_length(length)

        stem = scale_gradient(self._stem()(waveform, length), config.feature_grad_scale)
        normalized = layer_norm("channels_out", self.dtype, "stem_norm")(stem)

        x = dense(config.width, ("channels_out", "embed"), self.dtype, "project", uniform_fan_in)(
            normalized
        )
        x = dropout(x, config.input_dropout, input_keys)
        embedding = self.param(
            "mask_embedding",
            nn.with_logical_partitioning(nn.initializers.uniform(1.0), ("embed",)),
            (config.width,),
        ).astype(self.dtype)
        if mask_frames is not None:
            x = jnp.where(mask_frames[..., None], embedding, x)
        mask = length_mask(frame_length, x.shape[1])
        x = jnp.where(mask[..., None], x, 0)  # the positional convolution sees zeros past the end
        x += PositionalConv(
            config.positional_kernel,
            config.positional_groups,
            config.positional_impl,
            self.dtype,
            name="positional",
        )(x)
        norm = layer_norm("embed", self.dtype, "norm")
        if not config.norm_first:
            x = norm(x)
        x = dropout(x, config.dropout, embed_keys)
        x = nn.with_logical_constraint(x, ("batch", "time", "embed"))

        if layer_keys is not None:
            layer_keys = jnp.stack(split_keys(layer_keys, config.layers))  # type: ignore[arg-type]
        positions = None
        if config.relative_positions is not None:
            positions = RelativePositions(
                config.relative_positions, config.heads, name="relative_positions"
            )(x.shape[1])
        last, hidden = self._layers()(x, mask, positions, layer_keys)
        return EncoderOutput(
            stem,
            normalized,
            jnp.concatenate([x[None], hidden]),
            norm(last) if config.norm_first else last,
            frame_length,
        )

    def _stem(self) -> nn.Module:
        config = self.config
        if config.mel is not None:
            kind = rematerialized(MelStem, config.remat, in_scan=False)
            return kind(config.conv_width, config.mel, self.dtype, name="stem")
        return rematerialized(ConvStem, config.remat, in_scan=False)(
            width=config.conv_width,
            kernels=config.conv_kernels,
            strides=config.conv_strides,
            use_bias=config.conv_bias,
            norm=config.conv_norm,
            padding=config.padding,
            normalize_input=config.normalize_input,
            dtype=self.dtype,
            name="stem",
        )

    def _layers(self) -> nn.Module:
        config = self.config
        return nn.scan(
            rematerialized(TransformerLayer, config.remat, in_scan=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=config.layers,
            unroll=config.scan_unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(
            heads=config.heads,
            mlp_width=config.mlp_width,
            norm_first=config.norm_first,
            dropout=config.dropout,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            layer_drop=config.layer_drop,
            attention_impl=config.attention_impl,
            dtype=self.dtype,
            name="layers",
        )


@dataclasses.dataclass(frozen=True)
class Wav2Vec2PretrainingConfig:
    """The encoder and what is only needed to pretrain it; the defaults are BASE's.

    Attributes:
        encoder: its sizes.
        quantizer: sizes of the quantiser.
        projection_width: where predictions and targets are compared.
        target_dropout: of the features that are quantised.
    """

    encoder: Wav2Vec2Config = Wav2Vec2Config()
    quantizer: QuantizerConfig = QuantizerConfig()
    projection_width: int = 256
    target_dropout: float = 0.1

    HOW: ClassVar = frozenset({"target_dropout"})

    def __post_init__(self) -> None:
        require_positive(self, "projection_width")
        require_rates(self, "target_dropout")

    @classmethod
    def base(cls) -> Wav2Vec2PretrainingConfig:
        """Published BASE."""
        return cls()

    @classmethod
    def large(cls) -> Wav2Vec2PretrainingConfig:
        """Published LARGE."""
        return cls(Wav2Vec2Config.large(), QuantizerConfig(width=768), 768, 0.0)

    @classmethod
    def mini(cls) -> Wav2Vec2PretrainingConfig:
        """Trains in minutes on a CPU."""
        return cls(Wav2Vec2Config.mini(), QuantizerConfig(2, 64, 64), 64, 0.0)

    @classmethod
    def tiny(cls) -> Wav2Vec2PretrainingConfig:
        """For tests."""
        return cls(Wav2Vec2Config.tiny(), QuantizerConfig(2, 8, 8), 8, 0.0)


@struct.dataclass
class PretrainingOutput:
    """What the loss compares, at the frames of a list: the masked ones.

    Attributes:
        predicted: [b, m, d] from the transformer.
        target: [b, m, d] from the quantised features.
        codes: i32[b, m, groups] entries that the target is made of.
        probabilities: f32[b, m, groups, codes] of the entries, without noise.
        energy: f32[b] mean square of the stem's features over true frames.
    """

    predicted: Tree
    target: Tree
    codes: Tree
    probabilities: Tree
    energy: Tree


class Wav2Vec2Pretraining(nn.Module):
    """The encoder under `encoder`, the quantiser and the projections to where they are compared."""

    config: Wav2Vec2PretrainingConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        waveform: Float[Array, "b t"],
        length: Int[Array, " b"],
        masked: MaskedFrames,
        *,
        temperature: float | Float[Array, ""] = 1.0,
        noise_keys: Keys | None = None,
        dropout_keys: Keys | None = None,
    ) -> PretrainingOutput:
        """Predicts the quantised features of the frames to compare.

        Args:
            waveform: samples.
            length: true samples.
            masked: frames to mask, and those to compare.
            temperature: of the quantiser's Gumbel softmax.
            noise_keys: one an example, for its noise; None for none.
            dropout_keys: one an example; None for no dropout.
        """
        config = self.config
        encoder_keys, target_keys = split_keys(dropout_keys, 2)
        encoded = Wav2Vec2Encoder(config.encoder, self.dtype, name="encoder")(
            waveform, length, mask_frames=masked.mask, keys=encoder_keys
        )

        def at_masked(x: Array) -> Array:
            return jnp.take_along_axis(x, masked.index[..., None], axis=1)

        quantized = GumbelQuantizer(config.quantizer, self.dtype, name="quantizer")(
            dropout(at_masked(encoded.stem_normalized), config.target_dropout, target_keys),
            temperature,
            noise_keys,
        )
        project = [
            dense(config.projection_width, axes, self.dtype, name, uniform_fan_in)
            for axes, name in (
                (("embed", "code_dim"), "project_predicted"),
                (("code_dim", "embed"), "project_target"),
            )
        ]
        return PretrainingOutput(
            project[0](at_masked(encoded.output)),
            project[1](quantized.vectors),
            quantized.codes,
            quantized.probabilities,
            mean_square(encoded.stem, encoded.frame_length),
        )
