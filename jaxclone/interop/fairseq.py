"""wav2vec 2.0 and HuBERT as fairseq saves them: a `.pt` with the model and its settings.

The names are those of fairseq `models/wav2vec/wav2vec2.py` and `models/hubert/hubert.py`. A HuBERT
is imported without its predictions of k-means labels, which the encoder does not need.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxclone.audio.spec import AudioSpec
from jaxclone.interop import names
from jaxclone.interop.files import as_arrays, read_torch
from jaxclone.interop.names import CODEBOOKS, Name, norm, weight_norm, weights
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
from jaxclone.types import UserError

TABLE: names.Table = (
    *weights("encoder/stem/conv_#", "feature_extractor.conv_layers.#.0"),
    *norm(
        "encoder/stem/norm_#",
        # A layer norm lies between two transpositions, a group norm does not.
        ("feature_extractor.conv_layers.#.2.1", "feature_extractor.conv_layers.#.2"),
    ),
    *norm("encoder/stem_norm", "layer_norm"),
    *weights("encoder/project", "post_extract_proj"),
    Name("encoder/mask_embedding", ("mask_emb",)),
    *weight_norm("encoder/positional", "encoder.pos_conv.0"),
    *norm("encoder/norm", "encoder.layer_norm"),
    *weights("encoder/layers/attention/query", "encoder.layers.*.self_attn.q_proj"),
    *weights("encoder/layers/attention/key", "encoder.layers.*.self_attn.k_proj"),
    *weights("encoder/layers/attention/value", "encoder.layers.*.self_attn.v_proj"),
    *weights("encoder/layers/attention/out", "encoder.layers.*.self_attn.out_proj"),
    *norm("encoder/layers/norm_attention", "encoder.layers.*.self_attn_layer_norm"),
    *weights("encoder/layers/mlp/up", "encoder.layers.*.fc1"),
    *weights("encoder/layers/mlp/down", "encoder.layers.*.fc2"),
    *norm("encoder/layers/norm_mlp", "encoder.layers.*.final_layer_norm"),
    *weights("pretraining/quantizer/logits", "quantizer.weight_proj"),
    Name("pretraining/quantizer/codebook", ("quantizer.vars",), CODEBOOKS),
    *weights("pretraining/project_predicted", "final_proj"),
    *weights("pretraining/project_target", "project_q"),
)
_HUBERT_HEADS = ("final_proj.", "label_embs_concat")

_ENCODER_FIELDS: tuple[Field, ...] = (
    ("conv_bias", "conv_bias", False),
    ("feature_grad_mult", "feature_grad_scale", 1.0),
    ("encoder_embed_dim", "width", 768),
    ("encoder_layers", "layers", 12),
    ("encoder_attention_heads", "heads", 12),
    ("encoder_ffn_embed_dim", "mlp_width", 3072),
    ("layer_norm_first", "norm_first", False),
    ("conv_pos", "positional_kernel", 128),
    ("conv_pos_groups", "positional_groups", 16),
    ("dropout_input", "input_dropout", 0.0),
    ("dropout", "dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.0),
    ("encoder_layerdrop", "layer_drop", 0.0),
)
_FIXED = {
    "activation_fn": "gelu",
    "layer_type": "transformer",
    "pos_conv_depth": 1,
    "conv_pos_batch_norm": False,
    "quantize_input": False,
    "quantizer_depth": 1,
    "target_glu": False,
}
_NORMS = {"default": "group", "layer_norm": "layer"}
# The stem of every published model; what a checkpoint has stands in its settings.
_STEM = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"


def read(path: Path) -> Imported:
    """The models of a checkpoint of fairseq.

    Raises:
        UserError: PyTorch is missing, the file holds something else, or a tensor is missing,
            unknown or misshapen.
    """
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, dict) or "model" not in checkpoint:
        raise UserError(f"{path} is no checkpoint of fairseq: it has no 'model'")
    kind, model, normalize = _settings(checkpoint, path)
    tensors, left_out = split_heads(
        as_arrays(checkpoint["model"], path), _HUBERT_HEADS if kind == "hubert" else ()
    )
    encoder = _encoder_config(model, normalize, f"the settings in {path}")
    configs: dict[str, Any] = {"encoder": encoder}
    if kind == "wav2vec2":
        configs["pretraining"] = _pretraining_config(model, encoder, f"the settings in {path}")
    # HuBERT and wav2vec 2.0 differ for Hugging Face by name alone.
    origins = {"encoder": {"format": "fairseq", "model_type": kind}}
    audio = AudioSpec(hop_length=encoder.hop_length)
    return Imported(assemble(tensors, configs, audio, TABLE, str(path), origins), left_out)


def _settings(checkpoint: Mapping[str, Any], path: Path) -> tuple[str, Mapping[str, Any], bool]:
    """The kind of model, its settings, and whether recordings are to be normalised."""
    if checkpoint.get("cfg"):
        model, task = (checkpoint["cfg"].get(part) for part in ("model", "task"))
    else:  # before fairseq had configurations, all was one namespace
        model = task = checkpoint.get("args")
    if not isinstance(model, dict) or not isinstance(task, dict):
        raise UserError(f"{path} says nothing of its model: neither 'cfg' nor 'args' can be read")
    kind = model.get("_name") or model.get("arch")
    if kind not in ("wav2vec2", "hubert"):
        raise UserError(
            f"{path} holds a {kind}; pretrained wav2vec2 and hubert can be imported, fine-tuned "
            "models not"
        )
    return kind, model, bool(task.get("normalize", False))


def _encoder_config(model: Mapping[str, Any], normalize: bool, what: str) -> Wav2Vec2Config:
    require_fixed(model, _FIXED, what)
    mode = model.get("extractor_mode", "default")
    if mode not in _NORMS:
        raise UserError(f"{what}: extractor_mode is {mode!r}; {', '.join(_NORMS)} can be imported")
    stem = parse_stem(str(model.get("conv_feature_layers", _STEM)), what)
    widths, kernels, strides = zip(*stem)
    if len(set(widths)) != 1:
        raise UserError(f"{what}: the stem has the widths {widths}; one width can be imported")
    return build(
        Wav2Vec2Config,
        model,
        _ENCODER_FIELDS,
        what,
        conv_width=widths[0],
        conv_kernels=list(kernels),
        conv_strides=list(strides),
        conv_norm=_NORMS[mode],
        normalize_input=normalize,
    )


def _pretraining_config(
    model: Mapping[str, Any], encoder: Wav2Vec2Config, what: str
) -> Wav2Vec2PretrainingConfig:
    require_fixed(model, {"quantize_targets": True}, what)
    width = model.get("final_dim") or encoder.width
    fields: tuple[Field, ...] = (("latent_groups", "groups", 2), ("latent_vars", "codes", 320))
    quantizer = build(QuantizerConfig, model, fields, what, width=model.get("latent_dim") or width)
    found = build(
        Wav2Vec2PretrainingConfig,
        model,
        (("dropout_features", "target_dropout", 0.0),),
        what,
        projection_width=width,
    )
    return dataclasses.replace(found, encoder=encoder, quantizer=quantizer)


def parse_stem(text: str, what: str = "the stem") -> list[tuple[int, int, int]]:
    """The convolutions that fairseq describes by a Python expression, which is not evaluated.

    Args:
        text: lists of (width, kernel, stride), added and multiplied.
        what: names the settings in messages.

    Raises:
        UserError: it is something else.

    >>> parse_stem("[(8, 10, 5)] + [(8, 3, 2)] * 2")
    [(8, 10, 5), (8, 3, 2), (8, 3, 2)]
    """
    try:
        layers = _layers(ast.parse(text, mode="eval").body)
    except (RecursionError, SyntaxError, TypeError, ValueError):
        layers = []
    if not layers:
        raise UserError(f"{what}: {text!r} describes no convolutions")
    return layers


def _layers(node: ast.AST) -> list[tuple[int, int, int]]:
    match node:
        case ast.BinOp(left=first, op=ast.Add(), right=second):
            return _layers(first) + _layers(second)
        case ast.BinOp(left=layers, op=ast.Mult(), right=ast.Constant(value=int(times))):
            return _layers(layers) * min(times, 100)
        case ast.List():
            return [
                (int(width), int(kernel), int(stride))
                for width, kernel, stride in ast.literal_eval(node)
            ]
    raise ValueError
