"""Checkpoints as fairseq writes them, of the same random weights that transformers has."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import dataclasses
import os
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from published import TINY, random_model

from jaxclone.interop import fairseq, huggingface
from jaxclone.interop.fairseq import parse_stem
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What fairseq calls what transformers calls so, part by part.
RENAMED = [
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    (".attention.", ".self_attn."),
    (".final_layer_norm.", ".FINAL."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
        "encoder.pos_conv.0.weight_g",
    ),
    (
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
        "encoder.pos_conv.0.weight_v",
    ),
    ("encoder.pos_conv_embed.conv.", "encoder.pos_conv.0."),
    ("masked_spec_embed", "mask_emb"),
    ("quantizer.codevectors", "quantizer.vars"),
    ("project_hid.", "final_proj."),
]


def fairseq_name(name, size):
    name = name.removeprefix("wav2vec2.")
    for theirs, here in RENAMED:
        name = name.replace(theirs, here)
    if name.startswith("feature_extractor"):
        name = name.replace(".conv.", ".0.")
        return name.replace(".layer_norm.", ".2." if size == "base" else ".2.1.")
    if name.startswith("encoder.layers."):
        name = name.replace(".layer_norm.", ".self_attn_layer_norm.")
    return name.replace(".FINAL.", ".final_layer_norm.")


def settings(kind, size):
    large = size == "large"
    stem = "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8,2,2)] + [(8,2,2)]"
    model = {
        "_name": kind,
        "extractor_mode": "layer_norm" if large else "default",
        "encoder_layers": TINY["num_hidden_layers"],
        "encoder_embed_dim": TINY["hidden_size"],
        "encoder_ffn_embed_dim": TINY["intermediate_size"],
        "encoder_attention_heads": TINY["num_attention_heads"],
        "activation_fn": "gelu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "encoder_layerdrop": 0.0,
        "dropout_input": 0.0,
        "dropout_features": 0.1,
        "final_dim": 10,
        "layer_norm_first": large,
        "conv_feature_layers": stem,
        "conv_bias": large,
        "quantize_targets": True,
        "feature_grad_mult": 0.1,
        "latent_vars": 4,
        "latent_groups": 2,
        "latent_dim": 6,
        "conv_pos": TINY["num_conv_pos_embeddings"],
        "conv_pos_groups": TINY["num_conv_pos_embedding_groups"],
        "latent_temp": (2.0, 0.5, 0.999995),
    }
    return {"model": model, "task": {"_name": "audio_pretraining", "normalize": large}}


def checkpoint(kind="wav2vec2", size="base"):
    model = random_model("pretraining" if kind == "wav2vec2" else kind, size)
    tensors = {fairseq_name(name, size): x.detach() for name, x in model.named_parameters()}
    if kind == "hubert":
        tensors["final_proj.weight"] = torch.zeros(10, 16)
        tensors["final_proj.bias"] = torch.zeros(10)
        tensors["label_embs_concat"] = torch.zeros(104, 10)
    return {
        "args": None,
        "cfg": settings(kind, size),
        "model": tensors,
        "optimizer_history": [{"num_updates": 400_000}],
        "extra_state": {"epoch": 7},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_the_same_as_from_transformers(tmp_path, kind, size):
    torch.save(checkpoint(kind, size), tmp_path / "it.pt")
    found = fairseq.read(tmp_path / "it.pt")
    random_model("pretraining" if kind == "wav2vec2" else kind, size).save_pretrained(tmp_path)
    want = huggingface.read(tmp_path).bundle
    assert found.bundle.models.keys() == want.models.keys()
    jax.tree.map(np.testing.assert_array_equal, found.bundle.models, want.models)

    config, expected = found.bundle.configs["encoder"], want.configs["encoder"]
    assert config.feature_grad_scale == 0.1
    assert config.normalize_input == (size == "large")
    changed = {"feature_grad_scale": 1.0, "normalize_input": False}
    assert dataclasses.replace(config, **changed) == expected
    if kind == "hubert":
        assert found.left_out == ("final_proj.bias", "final_proj.weight", "label_embs_concat")
    else:
        pretraining = found.bundle.configs["pretraining"]
        assert pretraining.quantizer == want.configs["pretraining"].quantizer
        assert pretraining.projection_width == 10
        assert pretraining.target_dropout == 0.1

    huggingface.write(found.bundle, tmp_path / "out")
    again = huggingface.read(tmp_path / "out").bundle
    assert again.origins["encoder"]["config"]["model_type"] == kind
    jax.tree.map(np.testing.assert_array_equal, again.models, want.models)


@contextlib.contextmanager
def other_program(monkeypatch, classes):
    """Classes of modules that exist while a file is written, and not when it is read."""
    with monkeypatch.context() as patch:
        for path, kind in classes.items():
            kind.__module__, _, kind.__qualname__ = path.rpartition(".")
            parts = kind.__module__.split(".")
            for depth in range(1, len(parts) + 1):
                patch.setitem(sys.modules, ".".join(parts[:depth]), types.SimpleNamespace())
        for kind in classes.values():
            setattr(sys.modules[kind.__module__], kind.__qualname__, kind)
        yield


def test_what_lies_beside_the_tensors(tmp_path, monkeypatch):
    """A namespace in place of settings, and the dictionary that HuBERT's authors left inside."""
    parts = settings("hubert", "large")
    old = checkpoint("hubert", "large") | {
        "cfg": None,
        "args": argparse.Namespace(arch="hubert", **parts["model"], normalize=True),
    }
    dictionary = type("Dictionary", (), {})
    with other_program(monkeypatch, {"fairseq.data.dictionary.Dictionary": dictionary}):
        old["task_state"] = {"dictionaries": [dictionary()]}
        old["task_state"]["dictionaries"][0].symbols = ["a"]
        torch.save(old, tmp_path / "old.pt")
        # As PyTorch wrote before 1.6.
        torch.save(old, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    torch.save(checkpoint("hubert", "large"), tmp_path / "new.pt")
    old, older, new = (fairseq.read(tmp_path / f"{name}.pt") for name in ("old", "older", "new"))
    for found in (old, older):
        assert found.bundle.configs == new.bundle.configs
        jax.tree.map(np.testing.assert_array_equal, found.bundle.models, new.bundle.models)


def test_settings_in_containers(tmp_path, monkeypatch):
    """What OmegaConf wraps around settings: a container's `_content`, a leaf's `_val`."""
    container, leaf = type("DictConfig", (), {}), type("AnyNode", (), {})

    def wrap(value):
        made = container() if isinstance(value, dict) else leaf()
        if isinstance(value, dict):
            made._content = {name: wrap(item) for name, item in value.items()}
            made._flags_cache = None
        else:
            made._val = value
        return made

    classes = {"omegaconf.dictconfig.DictConfig": container, "omegaconf.nodes.AnyNode": leaf}
    with other_program(monkeypatch, classes):
        cfg = {name: wrap(part) for name, part in settings("wav2vec2", "base").items()}
        torch.save(checkpoint() | {"cfg": cfg}, tmp_path / "it.pt")
    torch.save(checkpoint(), tmp_path / "plain.pt")
    wrapped, plain = (fairseq.read(tmp_path / f"{name}.pt").bundle for name in ("it", "plain"))
    assert wrapped.configs == plain.configs


class Shell:
    """A pickle that would run a command."""

    def __reduce__(self):
        return os.system, ("touch broken-into",)


def test_no_code_of_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(checkpoint() | {"cfg": Shell()}, "evil.pt")
    with pytest.raises(UserError, match=r"holds a (posix|os)\.system, which only its own") as error:
        fairseq.read(Path("evil.pt"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "broken-into").exists()


def without(name):
    def spoil(found):
        del found["model"][name]

    return spoil


def model_setting(**changes):
    return lambda found: found["cfg"]["model"].update(changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("mask_emb"), "lacks the tensor mask_emb$"),
        (without("encoder.pos_conv.0.weight_g"), r"lacks the tensor encoder\.pos_conv\.0\."),
        (without("encoder.layers.2.fc1.bias"), r"lacks the tensor encoder\.layers\.2\.fc1\.bias$"),
        (lambda found: found["model"].update(more=torch.zeros(1)), "has the tensor more, for"),
        (
            lambda found: found["model"].update(mask_emb=torch.zeros(3)),
            r"mask_emb has the shape \[3\], .* asks for \[16\]",
        ),
        (
            lambda found: found["model"].update(mask_emb=torch.zeros(16).to_sparse()),
            "mask_emb cannot be read",
        ),
        (
            lambda found: found["model"].update(mask_emb=torch.full((16,), torch.nan)),
            "mask_emb holds values that are not finite",
        ),
        (lambda found: found.pop("model"), "no checkpoint of fairseq: it has no 'model'"),
        (lambda found: found.update(model=[1]), "holds no table of tensors"),
        (lambda found: found.pop("cfg"), "says nothing of its model"),
        (model_setting(_name="wav2vec_ctc"), "holds a wav2vec_ctc; pretrained wav2vec2 and"),
        (model_setting(activation_fn="relu"), "activation_fn is 'relu'; models with 'gelu'"),
        (model_setting(target_glu=True), "target_glu is True"),
        (model_setting(quantize_targets=False), "quantize_targets is False"),
        (model_setting(extractor_mode="rms"), "extractor_mode is 'rms'; default, layer_norm"),
        (model_setting(conv_feature_layers="exit()"), "'exit\\(\\)' describes no convolutions"),
        (model_setting(conv_feature_layers="[(8,10,5),(9,3,2)]"), "widths .8, 9.; one width"),
        (model_setting(latent_vars="4"), 'codes: "4" is not of type int'),
        (model_setting(final_dim="10"), 'projection_width: "10" is not of type int'),
    ],
)
def test_what_cannot_be_read(tmp_path, spoil, message):
    found = checkpoint()
    spoil(found)
    torch.save(found, tmp_path / "it.pt")
    with pytest.raises(UserError, match=message) as error:
        fairseq.read(tmp_path / "it.pt")
    assert "\n" not in str(error.value)


def test_other_files(tmp_path):
    path = tmp_path / "it.pt"
    for content in (b"", b"hello", b"PK\3\4 and no more"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"it\.pt is not a PyTorch file of weights, or is dam"):
            fairseq.read(path)
    torch.save(checkpoint(), path)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match="or is damaged"):
        fairseq.read(path)
    with pytest.raises(UserError, match=r"none\.pt does not exist"):
        fairseq.read(tmp_path / "none.pt")
    with pytest.raises(UserError, match="is a folder"):
        fairseq.read(tmp_path)


def test_without_pytorch(tmp_path, monkeypatch):
    found = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "torch":
            raise ImportError
        return found(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"needs PyTorch: pip install 'jaxclone\[interop\]'$"):
        fairseq.read(tmp_path / "it.pt")


@pytest.mark.parametrize(
    "text", ["", "1", "[1]", "[(1, 2)]", "[(1, 2, 3)] * x", "f()", "[(1, 2, '3', 4)]", "[] * 3"]
)
def test_no_stem(text):
    with pytest.raises(UserError, match="describes no convolutions"):
        parse_stem(text)
