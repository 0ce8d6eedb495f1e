"""wav2vec 2.0, HuBERT and WavLM as Hugging Face's transformers saves them, in and out.

A folder with `config.json` and `model.safetensors` (or `pytorch_model.bin`). Whether recordings are
to be normalised stands in `preprocessor_config.json`; without that file nothing says so, and they
are not. The vocoder of SpeechT5 has a module of its own, `speecht5.py`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle
from jaxclone.interop import names, speecht5
from jaxclone.interop.files import (
    CONFIG,
    PREPROCESSOR,
    WEIGHTS,
    new_folder,
    read_json,
    read_weights,
    write_json,
)
from jaxclone.interop.names import CODEBOOKS, HEADS, Name, norm, weight_norm, weights
from jaxclone.interop.published import (
    Field,
    Imported,
    assemble,
    build,
    require_fixed,
    split_heads,
)
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2PretrainingConfig
from jaxclone.nn.quantize import QuantizerConfig
from jaxclone.nn.relative import RelativePositionsConfig
from jaxclone.tensors import save_tensors
from jaxclone.types import UserError

logger = logging.getLogger(__name__)

# The class that holds an encoder alone, by model_type. A wav2vec 2.0 with its quantiser is the
# other one, in which the encoder's names begin with the model_type.
_ENCODERS = {"wav2vec2": "Wav2Vec2Model", "hubert": "HubertModel", "wavlm": "WavLMModel"}
_PRETRAINING = "Wav2Vec2ForPreTraining"

_MASK_EMBEDDING = "masked_spec_embed"
TABLE: names.Table = (
    *weights("encoder/stem/conv_#", "feature_extractor.conv_layers.#.conv"),
    *norm("encoder/stem/norm_#", "feature_extractor.conv_layers.#.layer_norm"),
    *norm("encoder/stem_norm", "feature_projection.layer_norm"),
    *weights("encoder/project", "feature_projection.projection"),
    Name("encoder/mask_embedding", (_MASK_EMBEDDING,)),
    *weight_norm("encoder/positional", "encoder.pos_conv_embed.conv"),
    *norm("encoder/norm", "encoder.layer_norm"),
    Name("encoder/relative_positions/table", ("encoder.layers.0.attention.rel_attn_embed.weight",)),
    *weights("encoder/layers/attention/query", "encoder.layers.*.attention.q_proj"),
    *weights("encoder/layers/attention/key", "encoder.layers.*.attention.k_proj"),
    *weights("encoder/layers/attention/value", "encoder.layers.*.attention.v_proj"),
    *weights("encoder/layers/attention/out", "encoder.layers.*.attention.out_proj"),
    *weights(
        "encoder/layers/attention/gate/gates", "encoder.layers.*.attention.gru_rel_pos_linear"
    ),
    Name(
        "encoder/layers/attention/gate/scale",
        ("encoder.layers.*.attention.gru_rel_pos_const",),
        HEADS,
    ),
    *norm("encoder/layers/norm_attention", "encoder.layers.*.layer_norm"),
    *weights("encoder/layers/mlp/up", "encoder.layers.*.feed_forward.intermediate_dense"),
    *weights("encoder/layers/mlp/down", "encoder.layers.*.feed_forward.output_dense"),
    *norm("encoder/layers/norm_mlp", "encoder.layers.*.final_layer_norm"),
    *weights("pretraining/quantizer/logits", "quantizer.weight_proj"),
    Name("pretraining/quantizer/codebook", ("quantizer.codevectors",), CODEBOOKS),
    *weights("pretraining/project_predicted", "project_hid"),
    *weights("pretraining/project_target", "project_q"),
)
_PRETRAINING_PREFIXES = ("quantizer.", "project_hid.", "project_q.")
# Of models that were fine-tuned: for recognition, classification, telling speakers apart.
_HEADS = ("lm_head.", "classifier.", "projector.", "layer_weights", "tdnn.", "objective.")

_ENCODER_FIELDS: tuple[Field, ...] = (
    ("conv_kernel", "conv_kernels", [10, 3, 3, 3, 3, 2, 2]),
    ("conv_stride", "conv_strides", [5, 2, 2, 2, 2, 2, 2]),
    ("conv_bias", "conv_bias", False),
    ("feat_extract_norm", "conv_norm", "group"),
    ("hidden_size", "width", 768),
    ("num_hidden_layers", "layers", 12),
    ("num_attention_heads", "heads", 12),
    ("intermediate_size", "mlp_width", 3072),
    ("do_stable_layer_norm", "norm_first", False),
    ("num_conv_pos_embeddings", "positional_kernel", 128),
    ("num_conv_pos_embedding_groups", "positional_groups", 16),
    ("feat_proj_dropout", "input_dropout", 0.0),
    ("hidden_dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.1),
    ("layerdrop", "layer_drop", 0.1),
)
_POSITION_FIELDS: tuple[Field, ...] = (
    ("num_buckets", "buckets", 320),
    ("max_bucket_distance", "max_distance", 800),
)
_QUANTIZER_FIELDS: tuple[Field, ...] = (
    ("num_codevector_groups", "groups", 2),
    ("num_codevectors_per_group", "codes", 320),
    ("codevector_dim", "width", 256),
)
_PROJECTION_FIELDS: tuple[Field, ...] = (
    ("proj_codevector_dim", "projection_width", 256),
    ("feat_quantizer_dropout", "target_dropout", 0.0),
)
# Of theirs that the encoder has in one form only.
_FIXED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
    "add_adapter": False,
    "adapter_attn_dim": None,
}


def read(path: Path) -> Imported:
    """The models of a folder that transformers saved.

    Raises:
        UserError: the folder is not there or incomplete, holds another kind of model, or a tensor
            is missing, unknown or misshapen.
    """
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give one that holds {CONFIG} and {WEIGHTS}")
    data = read_json(path / CONFIG)
    kind = data.get("model_type")
    if kind == speecht5.MODEL_TYPE:
        return speecht5.read(path, data)
    if not isinstance(kind, str) or kind not in _ENCODERS:
        known = ", ".join((*_ENCODERS, speecht5.MODEL_TYPE))
        raise UserError(f"{path / CONFIG}: model_type is {kind!r}; {known} can be imported")
    preprocessor = path / PREPROCESSOR
    recordings = read_json(preprocessor) if preprocessor.is_file() else {"do_normalize": False}
    normalize = recordings.get("do_normalize", True)
    encoder = read_encoder_config(data, bool(normalize), str(path / CONFIG))
    configs: dict[str, Any] = {"encoder": encoder}

    stored = read_weights(path)
    tensors = {name.removeprefix(f"{kind}."): x for name, x in stored.items()}
    if len(tensors) < len(stored):
        raise UserError(f"{path} has tensors both with and without the prefix {kind}.")
    tensors, left_out = split_heads(tensors, _HEADS)
    if kind == "wav2vec2" and (
        data.get("architectures") == [_PRETRAINING]
        or any(name.startswith(_PRETRAINING_PREFIXES) for name in tensors)
    ):
        configs["pretraining"] = _read_pretraining_config(data, encoder, str(path / CONFIG))
    if not _has_mask_embedding(data):
        tensors.setdefault(_MASK_EMBEDDING, np.zeros(encoder.width, np.float32))
    origins = {"encoder": {"format": "hf", "config": data}}
    rate = recordings.get("sampling_rate") or AudioSpec().sample_rate
    if isinstance(rate, bool) or not isinstance(rate, int | float) or rate != int(rate):
        raise UserError(f"{preprocessor}: sampling_rate is {rate!r}")
    audio = AudioSpec(sample_rate=int(rate), hop_length=encoder.hop_length)
    return Imported(assemble(tensors, configs, audio, TABLE, str(path), origins), left_out)


def write(bundle: Bundle, folder: Path) -> None:
    """Writes an encoder, with what pretrains it, or else a vocoder, as transformers would.

    Args:
        bundle: holds an encoder, or a vocoder and no encoder.
        folder: made; must not hold anything yet.

    Raises:
        UserError: the bundle has neither, or one that transformers has no class for, or the folder
            cannot be written.
    """
    if "encoder" not in bundle.models and "vocoder" in bundle.models:
        speecht5.write(bundle, folder)
        return
    data = write_config(bundle)
    if padding := bundle.configs["encoder"].padding:
        logger.warning(
            "this encoder puts %d zeros on each side of a recording (pad_input), transformers puts "
            "none: put them there to get the same frames",
            padding,
        )
    tensors = names.to_theirs(
        {name: bundle.models[name] for name in ("encoder", "pretraining") if name in bundle.models},
        TABLE,
    )
    if not _has_mask_embedding(data):
        del tensors[_MASK_EMBEDDING]
    if data["architectures"] == [_PRETRAINING]:
        tensors = {
            name if name.startswith(_PRETRAINING_PREFIXES) else f"{data['model_type']}.{name}": x
            for name, x in tensors.items()
        }
    encoder = bundle.configs["encoder"]
    preprocessor = {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": bundle.audio.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": encoder.normalize_input,
        # Where the group norm sees padding, they leave it to the convolutions alone to see it.
        "return_attention_mask": encoder.conv_norm == "layer",
    }
    with new_folder(folder) as new:
        save_tensors(new / WEIGHTS, tensors, {"format": "pt"})
        write_json(new / CONFIG, data)
        write_json(new / PREPROCESSOR, preprocessor)


def read_encoder_config(
    data: Mapping[str, Any], normalize_input: bool, what: str
) -> Wav2Vec2Config:
    """Our configuration of the encoder in a published `config.json`.

    Args:
        data: its content.
        normalize_input: what the preprocessor's configuration says.
        what: names the file in messages.

    Raises:
        UserError: it asks for what our encoder has not.
    """
    require_fixed(data, _FIXED, what)
    widths = data.get("conv_dim", [512] * 7)
    numbers = isinstance(widths, list) and all(isinstance(width, int) for width in widths)
    if not numbers or len(set(widths)) != 1:
        raise UserError(f"{what}: conv_dim is {widths}; stems of one width can be imported")
    encoder = build(
        Wav2Vec2Config,
        data,
        _ENCODER_FIELDS,
        what,
        conv_width=widths[0],
        normalize_input=normalize_input,
        feature_grad_scale=1.0,
    )
    if len(widths) != len(encoder.conv_kernels):
        raise UserError(f"{what}: conv_dim and conv_kernel differ in number")
    if data.get("model_type") != "wavlm":
        return encoder
    positions = build(RelativePositionsConfig, data, _POSITION_FIELDS, what)
    return dataclasses.replace(encoder, relative_positions=positions)


def _read_pretraining_config(
    data: Mapping[str, Any], encoder: Wav2Vec2Config, what: str
) -> Wav2Vec2PretrainingConfig:
    quantizer = build(QuantizerConfig, data, _QUANTIZER_FIELDS, what)
    projection = build(Wav2Vec2PretrainingConfig, data, _PROJECTION_FIELDS, what)
    return dataclasses.replace(projection, encoder=encoder, quantizer=quantizer)


def write_config(bundle: Bundle) -> dict[str, Any]:
    """The content of `config.json`: what the models are, and the rest as it was imported.

    Raises:
        UserError: transformers has no class for the encoder.
    """
    if "encoder" not in bundle.models:
        raise UserError(
            f"there is neither encoder nor vocoder in the bundle: {', '.join(bundle.models)}"
        )
    encoder = bundle.configs["encoder"]
    if encoder.mel is not None:
        raise UserError(
            "Hugging Face has no class for this encoder: it has a stem over log-mel frames"
        )
    origin = bundle.origins.get("encoder", {})
    data = dict(origin["config"]) if origin.get("format") == "hf" else {"dtype": "float32"}
    data |= {theirs: getattr(encoder, ours) for theirs, ours, _ in _ENCODER_FIELDS}
    data |= {
        "conv_dim": [encoder.conv_width] * len(encoder.conv_kernels),
        # They differ by whether padding is seen; alone, a recording gives the same with both.
        "feat_extract_norm": encoder.conv_norm.removeprefix("masked_"),
        "num_feat_extract_layers": len(encoder.conv_kernels),
    }
    kind = origin.get("model_type") or data.get("model_type", "wav2vec2")
    if encoder.relative_positions is not None:
        kind = "wavlm"
        positions = encoder.relative_positions
        data |= {theirs: getattr(positions, ours) for theirs, ours, _ in _POSITION_FIELDS}
    architecture = _ENCODERS[kind]
    if "pretraining" in bundle.models:
        if kind != "wav2vec2":
            raise UserError(f"Hugging Face has no class for a {kind} with a quantiser")
        architecture, pretraining = _PRETRAINING, bundle.configs["pretraining"]
        for part, fields in (
            (pretraining.quantizer, _QUANTIZER_FIELDS),
            (pretraining, _PROJECTION_FIELDS),
        ):
            data |= {theirs: getattr(part, ours) for theirs, ours, _ in fields}
    return data | {"model_type": kind, "architectures": [architecture]}


def _has_mask_embedding(data: Mapping[str, Any]) -> bool:
    """Transformers leaves it out of models that are never to be masked."""
    return bool(data.get("mask_time_prob", 0.05) or data.get("mask_feature_prob", 0.0))
