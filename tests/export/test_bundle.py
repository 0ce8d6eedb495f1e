from __future__ import annotations

import json
import os
import re
import struct

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import AudioSpec, hifigan_22k, melgan_22k
from jaxclone.export import bundle as bundles
from jaxclone.export.bundle import ModelCard, load_bundle, save_bundle
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.types import UserError

AUDIO = AudioSpec(n_mels=20)
# Any dataclass of ours can be a model's configuration.
CONFIGS = {"first": MeshConfig(data=3), "second": CropConfig(buckets=(1.0,))}


def make_models(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "first": {
            "layer_0": {"kernel": rng.standard_normal((3, 4)).astype(np.float32).T},
            "scale": np.float32(seed),
        },
        "second": {"bias": np.arange(3, dtype=np.int32)},
    }


@pytest.fixture
def folder(tmp_path):
    """A whole bundle."""
    save_bundle(tmp_path / "b", make_models(), CONFIGS, AUDIO, card=ModelCard("mine"))
    return tmp_path / "b"


def same(a, b):
    return jax.tree.all(
        jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    )


def test_round_trip(folder):
    bundle = load_bundle(folder)
    assert same(bundle.models, make_models())
    assert bundle.configs == CONFIGS
    assert bundle.audio == AUDIO


def test_there_is_no_pickle_and_nothing_else_in_the_folder(folder):
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(os.listdir(folder.parent)) == ["b"]
    assert json.loads((folder / "config.json").read_text())["versions"].keys() >= {"jax", "python"}


def test_boxed_device_arrays_are_saved_as_what_they_hold(tmp_path):
    params = {"kernel": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "mlp"))}
    save_bundle(tmp_path / "b", {"m": params}, {"m": MeshConfig()}, AUDIO, card="")
    assert same(load_bundle(tmp_path / "b").models, {"m": {"kernel": np.ones((2, 2), np.float32)}})


def test_a_model_without_parameters_is_kept(tmp_path):
    save_bundle(tmp_path / "b", {"m": {}}, {"m": MeshConfig()}, AUDIO, card="")
    assert load_bundle(tmp_path / "b").models == {"m": {}}


def test_several_bundles_are_one_and_the_later_wins(folder, tmp_path):
    newer = {"second": {"bias": np.zeros(1, np.float32)}}
    save_bundle(tmp_path / "v", newer, {"second": MeshConfig()}, AUDIO, card="")
    bundle = load_bundle(folder, tmp_path / "v")
    assert same(bundle.models, {"first": make_models()["first"], **newer})
    assert bundle.configs == {"first": CONFIGS["first"], "second": MeshConfig()}


def test_bundles_of_different_audio_do_not_mix(folder, tmp_path):
    other = AudioSpec(n_mels=20, hop_length=256)
    save_bundle(tmp_path / "o", {"m": {}}, {"m": MeshConfig()}, other, card="")
    with pytest.raises(
        UserError, match=r"bundle .*o does not match: hop_length 256 \(expected 320"
    ):
        load_bundle(folder, tmp_path / "o")


def test_a_vocoder_of_another_mel_is_refused_even_if_its_shapes_fit(tmp_path):
    """hifigan_22k and melgan_22k have the same rate, hop and bands: only the bundle tells."""
    for name, audio in (("converter", hifigan_22k()), ("vocoder", melgan_22k())):
        save_bundle(tmp_path / name, {f"my {name}": {}}, {f"my {name}": audio}, audio, card="")
    with pytest.raises(UserError, match=r"vocoder does not match: fmax None .*, log 'log10' "):
        load_bundle(tmp_path / "converter", tmp_path / "vocoder")


def test_no_bundle():
    with pytest.raises(UserError, match="no bundle given"):
        load_bundle()


def test_models_and_configs_must_agree(tmp_path):
    with pytest.raises(ValueError, match="but configurations of"):
        save_bundle(tmp_path / "b", make_models(), {}, AUDIO, card="")


# Writing.


def test_a_bundle_is_replaced_whole(folder):
    save_bundle(folder, make_models(1), CONFIGS, AUDIO, card="new")
    assert same(load_bundle(folder).models, make_models(1))
    assert (folder / "README.md").read_text() == "new"
    assert sorted(os.listdir(folder.parent)) == ["b"]


@pytest.mark.parametrize("broken", ["save_tensors", "to_data"])
def test_a_failed_save_leaves_the_old_bundle(folder, monkeypatch, broken):
    def fail(*_):
        raise RuntimeError("power cut")

    monkeypatch.setattr(bundles, broken, fail)
    with pytest.raises(RuntimeError, match="power cut"):
        save_bundle(folder, make_models(1), CONFIGS, AUDIO, card="new")
    assert same(load_bundle(folder).models, make_models())
    assert sorted(os.listdir(folder.parent)) == ["b"]


def test_a_full_disk_leaves_the_old_bundle(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        save_bundle(folder, make_models(1), CONFIGS, AUDIO, card="new")
    assert same(load_bundle(folder).models, make_models())
    assert sorted(os.listdir(folder.parent)) == ["b"]


def test_a_failed_exchange_leaves_the_old_bundle(folder, monkeypatch):
    rename = type(folder).rename

    def fail(self, target):
        if target == folder and ".new." in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fail)
    with pytest.raises(UserError, match="cannot be written: Input/output error"):
        save_bundle(folder, make_models(1), CONFIGS, AUDIO, card="new")
    assert same(load_bundle(folder).models, make_models())
    assert sorted(os.listdir(folder.parent)) == ["b"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UserError, match="exists and is not a bundle"):
        save_bundle(tmp_path, make_models(), CONFIGS, AUDIO, card="")
    assert (tmp_path / "holiday.jpg").exists()


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match="exists and is not a bundle"):
        save_bundle(tmp_path / "b", make_models(), CONFIGS, AUDIO, card="")


def test_an_unwritable_place():
    with pytest.raises(UserError, match=r"^/dev/null/x/b cannot be written: Not a directory$"):
        save_bundle("/dev/null/x/b", make_models(), CONFIGS, AUDIO, card="")


# The card.


def test_the_card_says_what_was_used(tmp_path):
    card = ModelCard(
        "Tiny",
        command="jaxclone train tiny",
        seed=3,
        data=("corpus: 3 recordings",),
        licences=("corpus: CC BY 4.0",),
        scores={"mcd": 5.25},
    )
    save_bundle(tmp_path / "b", make_models(), CONFIGS, AUDIO, card=card)
    text = (tmp_path / "b" / "README.md").read_text()
    for part in (
        "# Tiny\n",
        "Made by `jaxclone train tiny`, seed 3.",
        "- `first`: MeshConfig",
        "- corpus: 3 recordings",
        "- corpus: CC BY 4.0",
        "- mcd: 5.25",
        "consent",
    ):
        assert part in text


# Reading what is broken or hostile.


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, size, dtype="F32", start=0):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x80\x04K\x01.", "not a whole safetensors file"),
        (struct.pack("<Q", 2**62) + b"{}", "not a whole safetensors file"),
        (header({"first/a": tensor([2**40], 2**42)}), "not a whole safetensors file"),
        (header({"first/a": tensor([2**40, 2**40], 4)}, b"1234"), "not a whole safetensors file"),
        (header({"first/a": tensor([4], 4)}, b"1234"), "not a whole safetensors file"),
        (header({"first/a": tensor([-1], 4)}, b"1234"), "not a whole safetensors file"),
        (header({"first/a": tensor([1], 4, "X9")}, b"1234"), "not a whole safetensors file"),
        (header({"first/a": tensor([4], 4, "F8_E4M3")}, b"1234"), "not a whole safetensors file"),
        (header({"first/a": tensor([1], 4)}, b"12345678"), "not a whole safetensors file"),
        (header({"../a": tensor([1], 4)}, b"1234"), "'../a' is not the name of a parameter"),
        (header({"/etc/a": tensor([1], 4)}, b"1234"), "'/etc/a' is not the name of a parameter"),
        (header({"first//a": tensor([1], 4)}, b"1234"), "is not the name of a parameter"),
        (
            header({"first": tensor([1], 4), "first/a": tensor([1], 4, start=4)}, b"12341234"),
            "first is an array and also holds first/a",
        ),
        (header({"spy/a": tensor([1], 4)}, b"1234"), "does not describe the model 'spy'"),
        (
            header({"first/a": tensor([1], 4)}, struct.pack("<f", float("nan"))),
            "first/a holds values that are not finite",
        ),
        (
            header({"first/a": tensor([1], 2, "BF16")}, b"\x80\x7f"),
            "first/a holds values that are not finite",
        ),
    ],
)
def test_bad_weights(folder, content, message):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as failure:
        load_bundle(folder)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"is not a bundle: it has no {name}"):
        load_bundle(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="is not a bundle"):
        load_bundle(tmp_path / "nowhere")


def edit(**changes):
    return lambda description: {**description, **changes}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit(format=99), "has bundle format 99, this jaxclone reads 1"),
        (edit(models=["first"]), "does not describe a bundle"),
        (edit(models={"first": {"_type": "os.system"}}), "'os.system' is not the type"),
        (edit(models={"first": 3}), "must be a JSON object"),
        (edit(audio={"_type": "jaxclone.sharding.mesh.MeshConfig"}), "'audio' is not an AudioSpec"),
        (edit(audio=None), "must be a JSON object"),
        (lambda d: {k: v for k, v in d.items() if k != "audio"}, "does not describe a bundle"),
        (lambda d: [d], "does not describe a bundle"),
    ],
)
def test_bad_description(folder, change, message):
    path = folder / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=re.escape(message)) as failure:
        load_bundle(folder)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_description_that_is_no_json(folder, text):
    (folder / "config.json").write_bytes(text)
    with pytest.raises(UserError, match="does not describe a bundle"):
        load_bundle(folder)
