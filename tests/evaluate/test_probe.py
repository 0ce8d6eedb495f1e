from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.cli import main as command
from jaxclone.evaluate.probe import (
    Frames,
    ProbeConfig,
    accuracies,
    collect,
    evaluate_probe,
    fit_probe,
    frame_phones,
    mfcc_features,
    untrained,
)
from jaxclone.export.bundle import Bundle, save_bundle
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.types import UserError

SPEC = AudioSpec()
# Phones that anything tells apart: tones, each as long as several frames.
TONES = {"a": 300.0, "i": 1200.0, "u": 2500.0, "s": 5000.0}


def build_corpus(folder: Path, phones: bool = True) -> Corpus:
    """Two voices to train on and another to test, each saying the phones in an order of its own."""
    rows = []
    rate = SPEC.sample_rate
    for voice, split in (("one", "train"), ("two", "train"), ("three", "test")):
        for take in range(2):
            draw = np.random.default_rng([*voice.encode(), take])
            said = draw.permutation([*TONES] * 3)
            ends = np.cumsum(draw.integers(900, 2500, len(said)))
            spans = list(zip(said, [0, *ends[:-1].tolist()], ends.tolist()))
            waveform = np.concatenate(
                [
                    0.3 * np.sin(2 * np.pi * TONES[symbol] / rate * np.arange(end - start))
                    for symbol, start, end in spans
                ]
            )
            waveform += 0.01 * draw.standard_normal(len(waveform))
            path = folder / f"{voice}-{take}.wav"
            io.write(path, waveform.astype(np.float32), rate)
            if phones:
                timed = [(symbol, start / rate, end / rate) for symbol, start, end in spans]
                path.with_suffix(".phones.json").write_text(json.dumps(timed))
            rows.append(Row(str(path), voice, language="en", split=split))
    build(rows, folder / "corpus", SPEC, shards=1, f0=False, workers=1)
    return Corpus.open(folder / "corpus")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    config = dataclasses.replace(Wav2Vec2Config.mini(), conv_width=16, width=32, layers=2)
    return Bundle({"encoder": untrained(config, 1)}, {"encoder": config}, SPEC)


def test_a_frame_has_the_phone_in_its_middle() -> None:
    phones = [("a", 0, 481), ("b", 481, 800), ("c", 960, 1121)]
    # The middles are 160, 480, 800, 1120 and 1440: one sample decides each.
    assert frame_phones(phones, 5, 320, 160.0) == ["a", "a", None, "c", None]
    assert frame_phones(phones, 4, 320, 161.0) == ["a", "b", None, None]
    assert frame_phones([("a", 400, 500)], 1, 320, 160.0) == [None]


def test_labels_lie_where_the_sound_is(corpus: Corpus) -> None:
    """A shift by a single frame is seen: these features are the phones themselves."""

    def loudest(waveform: np.ndarray, length: np.ndarray) -> np.ndarray:
        hop = SPEC.hop_length
        frames = waveform[:, : waveform.shape[1] // hop * hop].reshape(len(waveform), -1, hop)
        pitch = np.abs(np.fft.rfft(frames)).argmax(-1) * SPEC.sample_rate / hop
        return np.stack([np.abs(pitch - tone) for tone in TONES.values()], -1)[None]

    records = corpus.indices("train").tolist()
    found = collect(corpus, records, loudest, SPEC.hop_length, SPEC.hop_length / 2, ProbeConfig())
    nearest = np.array([*TONES])[found.features[0].argmin(-1)]
    assert np.mean(nearest == np.array(found.phones)) > 0.98
    late = collect(corpus, records, loudest, SPEC.hop_length, 1.5 * SPEC.hop_length, ProbeConfig())
    nearest = np.array([*TONES])[late.features[0].argmin(-1)]
    assert np.mean(nearest == np.array(late.phones)) < 0.9


def test_the_probe_is_a_logistic_regression() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 3000)
    centres = draw.normal(0, 1.2, (4, 6))
    x = (centres[labels] + draw.normal(0, 1, (3000, 6))).astype(np.float32) * [1, 10, 0.1, 1, 1, 1]
    x = x.astype(np.float32) + 5
    ours = fit_probe(x[:2000], labels[:2000], 4, ProbeConfig())(x[2000:])
    # Ours standardises by itself, whatever the scale of a feature.
    standard = (x - x[:2000].mean(0)) / x[:2000].std(0)
    theirs = LogisticRegression(C=100, max_iter=1000).fit(standard[:2000], labels[:2000])
    assert np.mean(ours == theirs.predict(standard[2000:])) > 0.99


def test_a_phone_that_was_not_trained_on_is_wrong() -> None:
    x = np.repeat(np.eye(2, dtype=np.float32), 50, 0)[None]
    train = Frames(x, ["a"] * 50 + ["b"] * 50)
    test = Frames(x, ["a"] * 50 + ["c"] * 50)
    assert accuracies(train, test, ProbeConfig(updates=100)) == [0.5]


def test_mfcc_frames_are_those_of_the_encoder() -> None:
    waveform = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)
    found = mfcc_features(SPEC)(waveform, np.array([16_000, 16_000], np.int32))
    assert found.shape == (1, 2, 50, 39)


def test_mfcc_tell_the_tones_of_another_voice(corpus: Corpus, bundle: Bundle) -> None:
    scores = evaluate_probe(bundle, corpus, ("train", "test"), ProbeConfig(frames=600, updates=300))
    assert scores["best"]["mfcc"] > 0.9
    assert len(scores["model"]) == len(scores["untrained"]) == 3
    assert scores["chance"] < 0.5
    assert scores["phones"] == 4
    assert scores["voices"] == {"train": 2, "test": 1}
    assert scores["frames"]["train"] <= 700
    assert 0 < scores["best"]["model"] <= 1


def test_the_command(corpus: Corpus, bundle: Bundle, tmp_path: Path, capsys) -> None:
    save_bundle(tmp_path / "bundle", bundle.models, bundle.configs, SPEC, card="")
    args = ["--model", str(tmp_path / "bundle"), "--corpus", str(corpus.folder)]
    assert command.main(["evaluate", "probe", *args, "--probe.updates", "1", "--json"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["best"]) == {"model", "untrained", "mfcc"}
    assert "phones told on unheard voices" in err


def test_what_cannot_be_probed_is_one_line(corpus: Corpus, bundle: Bundle, tmp_path: Path) -> None:
    config = ProbeConfig(updates=1)
    with pytest.raises(UserError, match=r"^one speaks in train and in train: "):
        evaluate_probe(bundle, corpus, ("train", "train"), config)
    with pytest.raises(UserError, match=r"^the bundle holds vocoder, and no encoder to probe$"):
        evaluate_probe(Bundle({"vocoder": {}}, {}, SPEC), corpus, ("train", "test"), config)
    silent = build_corpus(tmp_path, phones=False)
    with pytest.raises(UserError, match=r"has no phones to probe for: build it of recordings with"):
        evaluate_probe(bundle, silent, ("train", "test"), config)


@pytest.mark.parametrize("name", ["recordings", "frames", "updates"])
def test_none_of_something_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be above 0"):
        ProbeConfig(**{name: 0})


def test_untrained_parameters_follow_from_the_seed(bundle: Bundle) -> None:
    config = bundle.configs["encoder"]
    one, same, other = (jax.tree.leaves(untrained(config, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, same))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other))
