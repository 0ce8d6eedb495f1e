from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import random_model, waveforms
from safetensors.numpy import load_file, save_file

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import Bundle, load_bundle, save_bundle
from jaxclone.interop import huggingface
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FAMILIES = ["wav2vec2", "pretraining", "hubert", "wavlm"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of saved models, made once."""
    folders = {}

    def get(family, size="base", **changes):
        key = family, size, *changes.items()
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp(family)
            random_model(family, size, **changes).save_pretrained(folders[key])
        return folders[key]

    return get


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of a saved model with its quantiser, to spoil."""
    shutil.copytree(saved("pretraining"), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def through_a_bundle(path, tmp_path):
    bundle = huggingface.read(path).bundle
    save_bundle(
        tmp_path / "b", bundle.models, bundle.configs, bundle.audio, card="", origins=bundle.origins
    )
    return load_bundle(tmp_path / "b")


def assert_same_tensors(here, there):
    a, b = (load_file(path / "model.safetensors") for path in (here, there))
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype
        assert array.shape == b[name].shape
        assert array.tobytes() == b[name].tobytes(), name


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(saved, tmp_path, family, size):
    # What ours does not know of comes back too.
    published = saved(family, size, ctc_loss_reduction="mean", vocab_size=77)
    huggingface.write(through_a_bundle(published, tmp_path), tmp_path / "back")
    assert_same_tensors(tmp_path / "back", published)
    before, after = (
        transformers.AutoConfig.from_pretrained(path) for path in (published, tmp_path / "back")
    )
    assert type(before) is type(after)
    assert before.to_dict() | {"_name_or_path": ""} == after.to_dict() | {"_name_or_path": ""}
    model_class = getattr(transformers, before.architectures[0])
    _, report = model_class.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report.values()), report


def test_without_a_mask_embedding(saved, tmp_path):
    """Transformers leaves it out of models that are never to be masked."""
    published = saved("hubert", mask_time_prob=0.0)
    assert "masked_spec_embed" not in load_file(published / "model.safetensors")
    bundle = through_a_bundle(published, tmp_path)
    assert not bundle.models["encoder"]["mask_embedding"].any()
    huggingface.write(bundle, tmp_path / "back")
    assert_same_tensors(tmp_path / "back", published)


@pytest.mark.parametrize("form", ["weight_g", "bin", "parts", "prefixed"])
def test_other_forms_of_a_file(saved, tmp_path, form):
    tensors = load_file(saved("hubert") / "model.safetensors")
    want = huggingface.read(saved("hubert")).bundle.models
    shutil.copy(saved("hubert") / "config.json", tmp_path)
    if form == "weight_g":
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            name = f"encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
            tensors[f"encoder.pos_conv_embed.conv.{old}"] = tensors.pop(name)
    if form == "prefixed":
        tensors = {f"hubert.{name}": array for name, array in tensors.items()}
    if form == "bin":
        arrays = {name: torch.tensor(array) for name, array in tensors.items()}
        torch.save(arrays, tmp_path / "pytorch_model.bin")
    elif form == "parts":
        places = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(tensors)}
        for part in set(places.values()):
            of_part = {name: x for name, x in tensors.items() if places[name] == part}
            save_file(of_part, tmp_path / part)
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    found = huggingface.read(tmp_path).bundle.models
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_heads_of_other_tasks_are_left_out_and_named(folder):
    path = folder / "model.safetensors"
    head = {"lm_head.weight": np.zeros((3, 16), np.float32), "lm_head.bias": np.zeros(3)}
    save_file(load_file(path) | head, path)
    found = huggingface.read(folder)
    assert found.left_out == ("lm_head.bias", "lm_head.weight")
    assert set(found.bundle.models) == {"encoder", "pretraining"}


def test_the_waveform_is_normalised_where_the_folder_says_so(folder):
    assert not huggingface.read(folder).bundle.configs["encoder"].normalize_input
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    assert huggingface.read(folder).bundle.configs["encoder"].normalize_input


def drop(name):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return spoil


def twice(folder):
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer_norm.bias"
    save_file(tensors | {name: tensors[f"wav2vec2.{name}"]}, folder / "model.safetensors")


def configured(**changes):
    return lambda folder: edit(folder, **changes)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("quantizer.codevectors"), r"lacks the tensor quantizer\.codevectors$"),
        (
            drop("wav2vec2.encoder.layers.1.layer_norm.bias"),
            r"lacks the tensor encoder\.layers\.1\.layer_norm\.bias$",
        ),
        (twice, "both with and without the prefix wav2vec2"),
        (configured(num_hidden_layers=2), r"has the tensor encoder\.layers\.2\."),
        (configured(num_hidden_layers=4), r"lacks the tensor encoder\.layers\.3\."),
        (
            configured(intermediate_size=25),
            r"output_dense\.weight has the shape \[16, 24\].* \[16, 25\]",
        ),
        (configured(codevector_dim=8), r"project_q\.weight has the shape \[10, 6\]"),
        (configured(model_type="bert"), "model_type is 'bert'; wav2vec2, hubert, wavlm, .* can be"),
        (configured(hidden_act="relu"), "hidden_act is 'relu'; models with 'gelu'"),
        (configured(layer_norm_eps=1e-12), "layer_norm_eps is 1e-12; models with 1e-05"),
        (configured(add_adapter=True), "add_adapter is True; models with False"),
        (configured(hidden_size="768"), 'width: "768" is not of type int'),
        (configured(num_attention_heads=5), "width 16 must be a multiple of heads 5"),
        (configured(conv_dim=[8, 9] + [8] * 5), "stems of one width"),
        (configured(conv_dim=None), "stems of one width"),
        (configured(conv_dim=[[8]] * 7), "stems of one width"),
        (configured(model_type=[]), r"model_type is \[\]; wav2vec2"),
        (configured(num_hidden_layers=0), "layers must be above 0"),
        (configured(hidden_dropout=1.0), "dropout must be at least 0 and below 1"),
        (configured(conv_dim=[8] * 6), "conv_dim and conv_kernel differ in number"),
        (configured(conv_kernel=None), "conv_kernels: null is not of type"),
        (configured(conv_stride=[1]), "conv_kernels and conv_strides differ"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json does not exist"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds no JSON object"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights: neither"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "not a whole"),
        (shutil.rmtree, "is no folder; give one that holds config.json"),
    ],
)
def test_what_cannot_be_read(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        huggingface.read(folder)
    assert "\n" not in str(error.value)


# Encoders that were trained here.


def trained(**changes):
    config = dataclasses.replace(Wav2Vec2Config.tiny(), pad_input=False, **changes)
    waveform, length = jnp.zeros((1, 3200)), jnp.array([3200])
    params = jax.jit(Wav2Vec2Encoder(config).init)(rng.root(0), waveform, length)["params"]
    return Bundle({"encoder": nn.unbox(params)}, {"encoder": config}, AudioSpec())


def test_an_encoder_of_ours_in_transformers(tmp_path):
    bundle = trained(normalize_input=False)
    huggingface.write(bundle, tmp_path / "out")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert type(model).__name__ == "Wav2Vec2Model"
    assert model.config.hidden_size == 16
    waveform, length = waveforms(6_000)
    config = bundle.configs["encoder"]
    assert config.conv_norm == "masked_group"
    got = Wav2Vec2Encoder(config).apply({"params": bundle.models["encoder"]}, waveform, length)
    with torch.no_grad():
        want = model(torch.tensor(waveform)).last_hidden_state
    np.testing.assert_allclose(got.output, want, atol=1e-4)
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (extractor.do_normalize, extractor.sampling_rate) == (False, 16_000)


def test_an_encoder_that_pads_is_one_of_padded_recordings(tmp_path, caplog):
    padded = trained(normalize_input=False)
    config = dataclasses.replace(padded.configs["encoder"], pad_input=True)
    bundle = dataclasses.replace(padded, configs={"encoder": config})
    huggingface.write(bundle, tmp_path / "out")
    (warning,) = [record.getMessage() for record in caplog.records if "jaxclone" in record.name]
    assert warning.startswith("this encoder puts 40 zeros on each side")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    waveform, length = waveforms(6_400)
    got = Wav2Vec2Encoder(config).apply({"params": bundle.models["encoder"]}, waveform, length)
    with torch.no_grad():
        want = model(torch.tensor(np.pad(waveform, ((0, 0), (40, 40))))).last_hidden_state
    assert got.output.shape[1] == 20
    np.testing.assert_allclose(got.output, want, atol=1e-4)


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        (
            Bundle({"speaker": {}}, {}, AudioSpec()),
            "neither encoder nor vocoder in the bundle: speaker$",
        ),
        (
            Bundle({"encoder": {}}, {"encoder": Wav2Vec2Config.mini()}, AudioSpec()),
            "no class for this encoder: it has a stem over log-mel frames",
        ),
    ],
)
def test_what_transformers_has_no_class_for(tmp_path, bundle, message):
    with pytest.raises(UserError, match=message):
        huggingface.write(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(UserError, match="exists: choose another folder"):
        huggingface.write(trained(), tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_an_unwritable_place():
    with pytest.raises(UserError, match=r"^/dev/null/out cannot be written: Not a directory$"):
        huggingface.write(trained(), Path("/dev/null/out"))
