"""What a bundle knows by name must be what its configuration says."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.export.bundle import fingerprint, load_bundle, require_shapes, save_bundle
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.types import UserError

TINY = AudioSpec(n_mels=8)
NETWORKS = VoiceConversion(
    TINY, Wav2Vec2Config.tiny(), SpeakerEncoderConfig.tiny(), ConverterConfig.tiny()
)
VOCODER = dataclasses.replace(
    HiFiGANConfig.mini(), n_mels=8, channels=16, resblock_kernels=(3,), resblock_dilations=((1,),)
)
SPEAKING = {
    "encoder": NETWORKS.encoder,
    "speaker": NETWORKS.speaker,
    "converter": NETWORKS.converter,
    "vocoder": VOCODER,
}


@pytest.fixture(scope="module")
def speaking():
    """Parameters of all models that cloning needs; their values do not matter here."""
    key, mel = rng.root(0), jnp.zeros((1, 1, 8))
    shapes = jax.eval_shape(NETWORKS.init, key)
    shapes["vocoder"] = jax.eval_shape(Generator(VOCODER).init, key, mel)["params"]
    shapes = meta.unbox({name: shapes[name] for name in SPEAKING})
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("names", [tuple(SPEAKING), ("encoder",), ("vocoder",)])
def test_models_known_by_name_are_checked_and_pass(tmp_path, speaking, names):
    models = {name: speaking[name] for name in names}
    configs = {name: SPEAKING[name] for name in names}
    save_bundle(tmp_path / "b", models, configs, TINY, card="")
    loaded = load_bundle(tmp_path / "b").models
    jax.tree.map(np.testing.assert_array_equal, loaded, models)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vocoder", {"channels": 32}, "model vocoder: "),
        ("vocoder", {"n_mels": 9}, "the vocoder takes n_mels 9, the AudioSpec has 8"),
        ("vocoder", {"channels": -16}, "fit no model"),
        ("encoder", {"mlp_width": 64}, "model encoder: "),
        ("encoder", {"layers": 1}, "model encoder: layers/"),
        ("speaker", {"channels": 9}, "model speaker: "),
        ("converter", {"layers": 3}, "model converter lacks the parameter"),
    ],
)
def test_another_configuration_than_the_weights(tmp_path, speaking, name, change, message):
    configs = SPEAKING | {name: dataclasses.replace(SPEAKING[name], **change)}
    save_bundle(tmp_path / "b", speaking, configs, TINY, card="")
    with pytest.raises(UserError, match=re.escape(message)) as failure:
        load_bundle(tmp_path / "b")
    assert "\n" not in str(failure.value)


def test_a_configuration_of_another_kind(tmp_path):
    save_bundle(tmp_path / "b", {"vocoder": {}}, {"vocoder": MeshConfig()}, TINY, card="")
    with pytest.raises(UserError, match="model vocoder is a MeshConfig, not a HiFiGANConfig"):
        load_bundle(tmp_path / "b")


def test_a_model_without_its_parameters(tmp_path, speaking):
    configs = {"vocoder": VOCODER}
    save_bundle(tmp_path / "b", {"vocoder": {}}, configs, TINY, card="")
    with pytest.raises(UserError, match="model vocoder lacks the parameter"):
        load_bundle(tmp_path / "b")


# Shapes and fingerprints.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.zeros(2, np.float32)}, "the m: a is float32[3], its configuration asks for"),
        ({"a": np.zeros(2, np.float16)}, "the m: a is float16[2], its configuration asks for"),
    ],
)
def test_require_shapes_names_the_parameter(change, message):
    expected = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jnp.zeros(2)}
    found = {"a": np.zeros(3, np.float32), "b": np.zeros(2, np.float32)} | change
    require_shapes({"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}, expected, "the m")
    with pytest.raises(UserError, match=re.escape(message)):
        require_shapes(found, expected, "the m")


def test_require_shapes_names_what_is_too_few_or_too_many():
    one, two = {"a": jnp.zeros(1)}, {"a": jnp.zeros(1), "b": {"c": jnp.zeros(1)}}
    with pytest.raises(UserError, match="the m lacks the parameter b/c"):
        require_shapes(one, two, "the m")
    with pytest.raises(UserError, match="the m has the parameter b/c, which"):
        require_shapes(two, one, "the m")


def test_a_fingerprint_is_of_names_shapes_types_and_values():
    weights = {"a": np.ones((2, 3), np.float32), "b": {"c": np.zeros(1, np.float32)}}
    others = [
        {**weights, "a": np.ones((3, 2), np.float32)},
        {**weights, "a": np.ones((2, 3), np.int32)},
        {**weights, "b": {"d": np.zeros(1, np.float32)}},
        {**weights, "b": {"c": np.full(1, 1e-30, np.float32)}},
    ]
    prints = [fingerprint(tree) for tree in (weights, *others)]
    assert len(set(prints)) == 5
    in_another_order = {"b": weights["b"], "a": jnp.asarray(weights["a"])}
    assert fingerprint(in_another_order) == prints[0]
