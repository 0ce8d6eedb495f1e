from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from jaxclone import config as configs
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.audio.spectral import log_mel
from jaxclone.cli.main import main
from jaxclone.export.bundle import save_bundle
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.vocoder import make_generator
from jaxclone.synthesis.vocoder import Vocoder

RATE = 16_000
AUDIO = AudioSpec(n_mels=8)
VOCODER = dataclasses.replace(
    DiffWaveConfig.tiny(), upsample_rates=(16, 20), fast_schedule=(1e-4, 0.1)
)


@pytest.fixture(scope="module")
def params():
    params = nn.unbox(make_generator(VOCODER).init(jax.random.key(0), jnp.zeros((1, 4, 8))))
    key = jax.random.key(1)
    return jax.tree.map(lambda x: x + 0.03 * jax.random.normal(key, x.shape), params["params"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory, params):
    """Bundles: a `vocoder`, and one of `another` model."""
    folder = tmp_path_factory.mktemp("bundles")
    save_bundle(folder / "vocoder", {"vocoder": params}, {"vocoder": VOCODER}, AUDIO, card="")
    speaker = {"speaker": SpeakerEncoderConfig.tiny()}
    save_bundle(folder / "another", {"speaker": {}}, speaker, AUDIO, card="")
    return folder


@pytest.fixture(autouse=True)
def recording(tmp_path, speakers, monkeypatch):
    """`bob.wav` in a folder which becomes the working folder."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("bob.wav", speakers["pitch90"][0][:8100], RATE)
    return soundfile.read("bob.wav", dtype="float32")[0]


def result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def one_line(capsys):
    """What the command says of its failure."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_griffin_lim_copies_a_recording(recording, capsys):
    assert main(["vocode", "bob.wav", "--out", "new/out.wav", "--json"]) == 0
    found = result(capsys)
    assert (found["out"], found["vocoder"], found["sample_rate"]) == (
        "new/out.wav",
        "Griffin-Lim",
        RATE,
    )
    assert found["seconds"] == 8100 / RATE
    assert found["real_time_factor"] == pytest.approx(found["seconds_to_vocode"] / 0.5)
    copy, rate = soundfile.read("new/out.wav", dtype="float32")
    assert (rate, copy.shape) == (RATE, (8100,))
    mel, again = (np.asarray(log_mel(x[:8000], AudioSpec())) for x in (recording, copy))
    assert np.abs(mel - again).mean() < 0.5
    # The file has 16 bits, which silence shows.
    assert abs(found["mel_distance"] - np.abs(mel - again).mean()) < 0.1


def test_a_mel_is_spoken_as_its_recording_is(recording):
    np.save("bob.npy", np.asarray(log_mel(recording, AudioSpec())))
    assert main(["vocode", "bob.npy", "--out", "1.wav"]) == 0
    assert main(["vocode", "bob.wav", "--out", "2.wav", "--spec", "jaxclone_16k"]) == 0
    one, two = (soundfile.read(name)[0] for name in ("1.wav", "2.wav"))
    assert (len(one), len(two)) == (8000, 8100)
    np.testing.assert_allclose(one, two[:8000], atol=1e-4)


def test_the_vocoder_of_a_bundle(recording, bundles, params, capsys):
    command = ["vocode", "bob.wav", "--model", str(bundles / "vocoder"), "--json"]
    assert main([*command, "--out", "out.flac"]) == 0
    found = result(capsys)
    assert (found["vocoder"], found["sample_rate"]) == ("DiffWave", RATE)
    assert found["mel_distance"] > 0
    wanted = Vocoder(VOCODER, params, AUDIO)(np.asarray(log_mel(recording, AUDIO)))
    copy = soundfile.read("out.flac", dtype="float32")[0]
    np.testing.assert_allclose(copy[:8000], np.clip(wanted, -1, 1 - 2**-15), atol=2e-5)


def test_a_mel_of_another_kind(bundles, capsys):
    np.save("mel.npy", np.zeros((30, 80), np.float32))
    spec = dataclasses.replace(hifigan_22k(), n_mels=40)
    Path("mine.json").write_text(configs.to_json(spec))
    model = ["--model", str(bundles / "vocoder")]
    for extra, message in (
        (model, "mel.npy has the shape [30, 80], a log-mel is [frames, 8]"),
        (
            [*model, "--spec", "jaxclone_16k"],
            "AudioSpec of --spec jaxclone_16k does not match",
        ),
        (["--spec", "mine.json"], "a log-mel is [frames, 40]"),
        (["--spec", "jaxclone_16"], "no AudioSpec or file 'jaxclone_16'; did you mean 'jaxclone_"),
        (["--spec", "mel.npy"], "mel.npy holds no AudioSpec"),
    ):
        assert main(["vocode", "mel.npy", "--out", "out.wav", *extra]) == 1
        assert message in one_line(capsys)


MEL = np.zeros((30, 80), np.float32)
BAD = {
    "turned": (MEL.T, "shape [80, 30], a log-mel is [frames, 80]: transpose it"),
    "batch": (MEL[None], "shape [1, 30, 80], a log-mel is [frames, 80]"),
    "empty": (MEL[:0], "shape [0, 80]"),
    "short": (MEL[:1], "bad.npy: 320 samples are too short for a spectrogram"),
    "nan": (np.where(np.arange(80) == 3, np.nan, MEL), "holds values that are not finite"),
    "loud": (MEL + 100, "reaches 100, which is no ln of a magnitude"),
    "decibels": (MEL - 80, "goes down to -80, below the -11.51 of silence"),
    "whole": (MEL.astype(int), "holds no array of floating-point numbers"),
    "object": (np.array([None]), "is not a whole .npy file of numbers"),
    "text": (b"hello", "is not a whole .npy file of numbers"),
    "nothing": (b"", "is not a whole .npy file of numbers"),
    "missing": (None, "bad.npy does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_mel(name, capsys):
    content, message = BAD[name]
    if isinstance(content, bytes):
        Path("bad.npy").write_bytes(content)
    elif content is not None:
        np.save("bad.npy", content)
    assert main(["vocode", "bad.npy", "--out", "out.wav"]) == 1
    assert message in one_line(capsys)
    assert not Path("out.wav").exists()


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["bob.wav"], 2, "--out"),
        (["bob.wav", "--out", "o.mp3"], 2, "must end in .wav or .flac"),
        (["nobody.wav", "--out", "o.wav"], 1, "nobody.wav does not exist"),
        (["bob.wav", "--out", "o.wav", "--iterations", "-1"], 2, "--iterations"),
        (["bob.wav", "--out", "o.wav", "--momentum", "1.5"], 2, "--momentum"),
        (["bob.wav", "--out", "o.wav", "--model", "/nowhere"], 1, "/nowhere is not a bundle"),
    ],
)
def test_bad_use(capsys, args, code, message):
    assert main(["vocode", *args]) == code
    assert message in one_line(capsys)


def test_a_bundle_without_a_vocoder(bundles, capsys):
    assert main(["vocode", "bob.wav", "--out", "o.wav", "--model", str(bundles / "another")]) == 1
    assert "holds no vocoder" in one_line(capsys)
