from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax.core import meta

from jaxclone import rng
from jaxclone.adapt.enroll import AdaptConfig
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.main import main
from jaxclone.export.bundle import load_bundle, save_bundle
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.hifigan import Generator, HiFiGANConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.synthesis.cloner import Cloner

RATE = 16_000
AUDIO = AudioSpec(n_mels=8)
NETWORKS = VoiceConversion(
    AUDIO, Wav2Vec2Config.tiny(), SpeakerEncoderConfig.tiny(), ConverterConfig.tiny()
)
VOCODER = dataclasses.replace(
    HiFiGANConfig.mini(), n_mels=8, channels=16, resblock_kernels=(3,), resblock_dilations=((1,),)
)
CONFIGS = {
    "encoder": NETWORKS.encoder,
    "speaker": NETWORKS.speaker,
    "converter": NETWORKS.converter,
    "adapter": AdaptConfig(crop_seconds=0.5),
    "vocoder": VOCODER,
}


def make_models(seed):
    """Untrained parameters of every model that cloning needs."""
    key, draw = rng.root(0), np.random.default_rng(seed)
    shapes = jax.eval_shape(NETWORKS.init, key)
    shapes["vocoder"] = jax.eval_shape(Generator(VOCODER).init, key, jnp.zeros((1, 1, 8)))["params"]
    models = jax.tree.map(
        lambda x: draw.normal(0, 0.3, x.shape).astype(x.dtype), meta.unbox(dict(shapes))
    )
    # Loud, so that no change of the mel is lost in 16 bits.
    return {**models, "vocoder": jax.tree.map(lambda x: 4 * x, models["vocoder"])}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles: `all` models, the `vocoder` alone, the `rest`, and `other` weights."""
    folder, models = tmp_path_factory.mktemp("bundles"), make_models(0)

    def save(name, models, *kept):
        kept = kept or tuple(CONFIGS)
        configs = {model: CONFIGS[model] for model in kept}
        save_bundle(folder / name, {m: models[m] for m in kept}, configs, AUDIO, card="")

    save("all", models)
    save("vocoder", models, "vocoder")
    save("rest", models, "encoder", "speaker", "converter", "adapter")
    save("bare", models, "encoder", "speaker", "converter", "vocoder")
    save("other", make_models(1))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _load_once():
    """Each set of bundles is read once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cloner, "load", functools.cache(Cloner.load))
        yield


@pytest.fixture
def recordings(tmp_path, speakers, monkeypatch):
    """A folder, which becomes the working folder, with recordings of Alice and Bob."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("alice.wav", speakers["pitch240"][1], RATE)
    soundfile.write("more.wav", speakers["pitch240"][2], RATE)
    soundfile.write("bob.wav", speakers["pitch90"][0], RATE)
    return tmp_path


def convert(bundles, *args, model="all"):
    return main(["convert", *args, "--model", str(bundles / model)])


def enroll(bundles, *args, model="all"):
    return main(["enroll", *args, "--model", str(bundles / model)])


@pytest.mark.usefixtures("recordings")
def test_enroll_then_convert(bundles, capsys):
    assert enroll(bundles, "alice.wav", "more.wav", "--out", "new/a.safetensors", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["voice"] == "new/a.safetensors"
    assert (result["reference_seconds"], result["steps"]) == (3.5, 0)
    assert 200 < result["f0"] < 280
    voice = ["--voice", "new/a.safetensors"]
    assert convert(bundles, "bob.wav", *voice, "--out", "new/out.wav", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["out"], result["sample_rate"], result["seconds"]) == ("new/out.wav", RATE, 1.0)
    waveform, rate = soundfile.read("new/out.wav")
    assert (rate, waveform.shape) == (RATE, (16_000,))
    assert waveform.std() > 0


@pytest.mark.usefixtures("recordings")
def test_a_reference_is_as_good_as_its_voice(bundles):
    assert enroll(bundles, "alice.wav", "--out", "a.safetensors") == 0
    assert convert(bundles, "bob.wav", "--voice", "a.safetensors", "--out", "1.wav") == 0
    assert convert(bundles, "bob.wav", "--reference", "alice.wav", "--out", "2.wav") == 0
    np.testing.assert_array_equal(soundfile.read("1.wav")[0], soundfile.read("2.wav")[0])


@pytest.mark.usefixtures("recordings")
def test_models_may_lie_in_several_bundles(bundles):
    model = ["--model", str(bundles / "rest"), str(bundles / "vocoder")]
    reference = ["--reference", "alice.wav"]
    assert main(["convert", "bob.wav", *reference, "--out", "1.wav", *model]) == 0
    assert convert(bundles, "bob.wav", *reference, "--out", "2.wav") == 0
    np.testing.assert_array_equal(soundfile.read("1.wav")[0], soundfile.read("2.wav")[0])


@pytest.mark.usefixtures("recordings")
@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (96_000, 2)])
def test_any_rate_and_stereo(bundles, speakers, rate, channels):
    waveform = np.repeat(speakers["pitch90"][0], rate // 8_000)[:: RATE // 8_000]
    soundfile.write("bob2.wav", np.stack([waveform] * channels, -1), rate)
    assert convert(bundles, "bob2.wav", "--reference", "alice.wav", "--out", "out.flac") == 0
    assert soundfile.info("out.flac").frames == 16_000


@pytest.mark.usefixtures("recordings")
def test_adaptation_is_kept_in_the_voice(bundles, capsys):
    command = ["alice.wav", "--steps", "1", "--out", "a.safetensors"]
    assert enroll(bundles, *command, "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 1
    assert convert(bundles, "bob.wav", "--voice", "a.safetensors", "--out", "1.wav") == 0
    assert convert(bundles, "bob.wav", "--reference", "alice.wav", "--out", "2.wav") == 0
    assert not np.array_equal(soundfile.read("1.wav")[0], soundfile.read("2.wav")[0])


def one_line(capsys):
    """What the command says of its failure."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def spoil(name):
    """Makes a recording that cannot be used, `bad.wav`."""
    good = soundfile.read("bob.wav")[0].astype(np.float32)
    if name == "missing":
        return
    if name in ("truncated", "text"):
        content = Path("bob.wav").read_bytes()[:9000] if name == "truncated" else b"hello"
        Path("bad.wav").write_bytes(content)
        return
    waveform = {
        "empty": good[:0],
        "short": good[:48],
        "silent": 0 * good,
        "nan": np.where(np.arange(len(good)) == 5, np.nan, good),
    }[name]
    soundfile.write("bad.wav", waveform, RATE, subtype="FLOAT")


BAD = {
    "missing": "bad.wav does not exist",
    "truncated": "bad.wav",
    "text": "bad.wav",
    "empty": "bad.wav holds no audio: it has 0 samples",
    "short": "bad.wav lasts 0.003 s, at least",
    "silent": "bad.wav is silent: every sample is zero",
    "nan": "bad.wav holds 1 samples that are not finite",
}


@pytest.mark.usefixtures("recordings")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_recording(bundles, capsys, name):
    spoil(name)
    assert convert(bundles, "bad.wav", "--reference", "alice.wav", "--out", "out.wav") == 1
    assert BAD[name] in one_line(capsys)
    assert convert(bundles, "bob.wav", "--reference", "bad.wav", "--out", "out.wav") == 1
    assert BAD[name] in one_line(capsys)
    assert enroll(bundles, "bad.wav", "--out", "a.safetensors") == 1
    assert BAD[name] in one_line(capsys)
    assert not Path("out.wav").exists()
    assert not Path("a.safetensors").exists()


@pytest.mark.usefixtures("recordings")
def test_a_voice_of_another_model(bundles, capsys):
    assert enroll(bundles, "alice.wav", "--out", "a.safetensors", model="other") == 0
    capsys.readouterr()
    assert convert(bundles, "bob.wav", "--voice", "a.safetensors", "--out", "out.wav") == 1
    assert "a.safetensors was made with another model: enroll again" in one_line(capsys)


@pytest.mark.usefixtures("recordings")
def test_a_recording_is_no_voice(bundles, capsys):
    assert convert(bundles, "bob.wav", "--voice", "alice.wav", "--out", "out.wav") == 1
    assert "alice.wav is not a whole safetensors file" in one_line(capsys)


@pytest.mark.usefixtures("recordings")
def test_a_bundle_that_lacks_models(bundles, capsys):
    reference = ["--reference", "alice.wav", "--out", "out.wav"]
    assert convert(bundles, "bob.wav", *reference, model="rest") == 1
    assert "cloning needs the models vocoder" in one_line(capsys)


@pytest.mark.usefixtures("recordings")
def test_adaptation_of_a_model_without_adapters(bundles, capsys):
    command = ["alice.wav", "--steps", "1", "--out", "a.safetensors"]
    assert enroll(bundles, *command, model="bare") == 1
    assert "this model has no adapters: enroll with 0 steps" in one_line(capsys)


@pytest.mark.usefixtures("recordings")
def test_bundles_of_different_audio(bundles, tmp_path, capsys):
    bundle = load_bundle(bundles / "rest")
    audio = dataclasses.replace(AUDIO, fmin=50.0)
    save_bundle(tmp_path / "shifted", bundle.models, bundle.configs, audio, card="")
    model = ["--model", str(bundles / "vocoder"), str(tmp_path / "shifted")]
    assert main(["enroll", "alice.wav", "--out", "a.safetensors", *model]) == 1
    assert "does not match: fmin 50.0 (expected 0.0)" in one_line(capsys)


@pytest.mark.usefixtures("recordings")
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["bob.wav", "--out", "out.wav"], 2, "needs either --voice or --reference"),
        (
            ["bob.wav", "--out", "out.wav", "--voice", "a", "--reference", "alice.wav"],
            2,
            "needs either --voice or --reference",
        ),
        (["bob.wav", "--reference", "alice.wav"], 2, "--out"),
        (["bob.wav", "--refrence", "alice.wav", "--out", "o.wav"], 2, "did you mean '--reference'"),
        (["bob.wav", "--reference", "alice.wav", "--out", "o.mp3"], 2, "must end in .wav or .flac"),
        (
            ["bob.wav", "--reference", "alice.wav", "--out", "/dev/null/x/o.wav"],
            1,
            "/dev/null/x cannot be written: Not a directory",
        ),
        (["bob.wav", "--voice", "nobody", "--out", "out.wav"], 1, "nobody does not exist"),
    ],
)
def test_bad_use_of_convert(bundles, capsys, args, code, message):
    assert convert(bundles, *args) == code
    assert message in one_line(capsys)


@pytest.mark.usefixtures("recordings")
@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--out", "a.safetensors"], 2, "needs at least one recording"),
        (["alice.wav"], 2, "--out"),
        (["alice.wav", "--out", "a.wav"], 2, "must end in .safetensors"),
        (["alice.wav", "--out", "a.safetensors", "--steps", "few"], 2, "--steps: invalid literal"),
        (["alice.wav", "--out", "a.safetensors", "--steps", "-1"], 2, "steps"),
    ],
)
def test_bad_use_of_enroll(bundles, capsys, args, code, message):
    assert enroll(bundles, *args) == code
    assert message in one_line(capsys)


@pytest.mark.usefixtures("recordings")
def test_no_model(capsys):
    assert main(["enroll", "alice.wav", "--out", "a.safetensors"]) == 1
    assert "name a bundle with --model, or run jaxclone demo first" in one_line(capsys)
    assert main(["enroll", "alice.wav", "--out", "a.safetensors", "--model", "/nowhere"]) == 1
    assert "/nowhere is not a bundle" in one_line(capsys)
