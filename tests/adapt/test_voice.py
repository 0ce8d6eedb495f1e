from __future__ import annotations

import dataclasses
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.adapt.voice import load_voice, save_voice
from jaxclone.audio.spec import AudioSpec
from jaxclone.config import to_json
from jaxclone.tensors import load_tensors, save_tensors
from jaxclone.types import UserError, Voice

AUDIO, MODEL = AudioSpec(), "c0ffee"


def make_voice(**changes):
    embedding = np.array([0.6, 0.8], np.float32)
    voice = Voice(
        embedding=embedding,
        log_f0_mean=np.float32(4.8),
        log_f0_std=np.float32(0.2),
        adapter={"block_0": {"up": np.ones((2, 3), np.float32)}},
        steps=5,
        reference_seconds=4.2,
    )
    return voice.replace(**changes)


@pytest.fixture
def path(tmp_path):
    save_voice(tmp_path / "me.safetensors", make_voice(), AUDIO, MODEL)
    return tmp_path / "me.safetensors"


def test_round_trip(path):
    voice, want = load_voice(path, AUDIO, MODEL), make_voice()
    for name in ("embedding", "log_f0_mean", "log_f0_std"):
        assert getattr(voice, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(voice, name), getattr(want, name))
    np.testing.assert_array_equal(voice.adapter["block_0"]["up"], want.adapter["block_0"]["up"])
    assert (voice.steps, voice.reference_seconds) == (5, 4.2)


def test_device_arrays_and_no_adapter(tmp_path):
    voice = make_voice(embedding=jnp.array([1.0, 0.0]), log_f0_mean=jnp.float32(5), adapter={})
    save_voice(tmp_path / "v", voice, AUDIO, MODEL)
    back = load_voice(tmp_path / "v", AUDIO, MODEL)
    assert back.adapter == {}
    assert back.log_f0_mean == 5
    assert back.embedding.tolist() == [1, 0]


def test_it_is_one_small_file_without_the_recording(path):
    assert os.listdir(path.parent) == ["me.safetensors"]
    assert path.stat().st_size < 2000


def test_a_voice_of_another_model(path):
    with pytest.raises(UserError, match="was made with another model: enroll again"):
        load_voice(path, AUDIO, "decaf")


def test_a_voice_of_another_audio_spec(path):
    other = dataclasses.replace(AUDIO, n_mels=40)
    with pytest.raises(UserError, match=r"voice .* does not match: n_mels 80 \(expected 40\)"):
        load_voice(path, other, MODEL)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_voice(tmp_path / "nobody", AUDIO, MODEL)


def test_an_unwritable_place():
    with pytest.raises(UserError, match=r"^/dev/null/x/v cannot be written: Not a directory$"):
        save_voice("/dev/null/x/v", make_voice(), AUDIO, MODEL)


def test_a_failed_save_leaves_the_old_voice(path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_voice(path, make_voice(steps=9), AUDIO, MODEL)
    assert load_voice(path, AUDIO, MODEL).steps == 5
    assert os.listdir(path.parent) == ["me.safetensors"]


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file(path, keep):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_voice(path, AUDIO, MODEL)


def test_a_bundle_is_no_voice(tmp_path):
    save_tensors(tmp_path / "m", {"encoder": {"kernel": np.ones(1)}})
    with pytest.raises(UserError, match="is not a voice of jaxclone"):
        load_voice(tmp_path / "m", AUDIO, MODEL)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"embedding": None}, {}, "'embedding'"),
        ({"embedding": np.float32(1)}, {}, "wrong shape"),
        ({"embedding": {"x": np.ones(1)}}, {}, "wrong shape"),
        ({"log_f0_mean": np.ones(2)}, {}, "wrong shape"),
        ({"log_f0_std": {"x": np.ones(1)}}, {}, "wrong shape"),
        ({"adapter": np.ones(1)}, {}, "wrong type"),
        ({"embedding": np.array([np.nan, 1])}, {}, "embedding holds values that are not finite"),
        ({}, {"steps": "many"}, "invalid literal"),
        ({}, {"steps": None}, "'steps'"),
        ({}, {"model": None}, "'model'"),
        ({}, {"audio": "{}"}, "not the type of a configuration"),
        ({}, {"audio": to_json(AUDIO).replace("80", '"80"')}, "n_mels"),
        ({}, {"format": "jaxclone-voice-99"}, "is not a voice of jaxclone"),
    ],
)
def test_a_file_that_is_no_whole_voice(path, tensors, metadata, message):
    def changed(values, changes):
        return {k: v for k, v in {**values, **changes}.items() if v is not None}

    held, about = load_tensors(path)
    save_tensors(path, changed(held, tensors), changed(about, metadata))
    with pytest.raises(UserError, match=re.escape(message)) as failure:
        load_voice(path, AUDIO, MODEL)
    assert "\n" not in str(failure.value)
