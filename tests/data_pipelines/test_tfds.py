from __future__ import annotations

import dataclasses
import json
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.corpora.tfds import TfdsSpeech
from data_pipelines.corpus import Corpus
from jaxclone.audio import io, loudness
from jaxclone.cli.main import main
from jaxclone.types import UserError

RATE = 16_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speakers: dict[str, list[np.ndarray]]) -> Path:
    """Data sets in ArrayRecord as TFDS prepares them, of samples and of FLAC files.

    TFDS writes them; only what needs TensorFlow there, the type of the audio, is put in afterwards.
    """
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # it is in no package, whose files TFDS would look for
        lazy = False

        def _info(self) -> tfds.core.DatasetInfo:
            sound = np.object_ if self.lazy else np.int16
            features = {
                "speech": tfds.features.Tensor(shape=() if self.lazy else (None,), dtype=sound),
                "speaker_id": np.int64,
                "text": tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _: object) -> dict:
            return {"train_clean": self._generate_examples(0, 1), "dev": self._generate_examples(2)}

        def _generate_examples(self, *takes: int):
            for number, waveforms in enumerate(speakers.values()):
                for take in takes:
                    waveform = waveforms[take]
                    sound = io.encode_flac(waveform, RATE) if self.lazy else io.to_16_bits(waveform)
                    row = {"speech": sound, "speaker_id": 100 + number, "text": f"Take\n {take}"}
                    yield f"{number}-{take}", row

    class TinyLazy(Tiny):
        lazy = True

    folder = tmp_path_factory.mktemp("tfds")
    for kind in (Tiny, TinyLazy):
        builder = kind(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        path = Path(builder.data_dir) / "features.json"
        features = json.loads(path.read_text())
        features["featuresDict"]["features"]["speech"] = {
            "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
            "audio": {
                "shape": {"dimensions": ["-1"]},
                "dtype": "int16",
                "fileFormat": "flac",
                **({"lazyDecode": True} if kind.lazy else {"sampleRate": "16000"}),
            },
        }
        path.write_text(json.dumps(features))
    return folder


@pytest.fixture(autouse=True)
def _there(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(data))


@pytest.mark.parametrize("name", ["tiny", "tiny_lazy:1.0.0"])
def test_a_data_set_becomes_a_corpus(
    name: str, speakers: dict[str, list[np.ndarray]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(["data", "build", f"tfds:{name}", "--out", str(out), "--workers", "1"]) == 0
    corpus = Corpus.open(out)
    stem = name.partition(":")[0]
    assert corpus.speakers == tuple(f"{stem}/{100 + number}" for number in range(4))
    assert (len(corpus.rows("train")), len(corpus.rows("valid"))) == (8, 4)
    waveforms = list(speakers.values())
    for index, row in enumerate(corpus.table):
        word, take = row.text.split(" ")
        assert word == "Take"
        assert row.extra["subset"] == ("train_clean" if int(take) < 2 else "dev")
        stored = io.to_16_bits(waveforms[int(row.speaker[-1])][int(take)]) / np.float32(32768)
        expected = loudness.normalise(stored)
        np.testing.assert_allclose(corpus[index]["waveform"], expected, atol=2**-16)
    assert not any(str(tmp_path) in row.path or "/work" in row.path for row in corpus.table)


def test_one_split_is_split_here(tmp_path: Path) -> None:
    source, out = "tfds:tiny:train_clean[:75%]", str(tmp_path / "out")
    assert main(["data", "build", source, "--out", out, "--held-out-speakers", "1"]) == 0
    corpus = Corpus.open(out)
    assert len(corpus) == 6
    assert corpus.splits == ("train", "test")
    assert len({row.speaker for row in corpus.rows("test")}) == 1
    where = ["--where", "subset=dev"]
    assert main(["data", "build", "tfds:tiny", "--out", str(tmp_path / "dev"), *where]) == 0
    assert len(Corpus.open(tmp_path / "dev").rows("valid")) == 4


def test_other_rates_and_channels() -> None:
    opened = TfdsSpeech.open("tfds:tiny")
    path = opened.rows()[0].path
    samples = len(opened.read(path, RATE))
    assert len(opened.read(path, 8_000)) == samples / 2
    assert len(dataclasses.replace(opened, channels=2).read(path, RATE)) == samples / 2
    assert ForkingPickler.dumps(opened.read), "the processes of a build can have it"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:", "is not of the form tfds:NAME"),
        ("tfds:nothing", "tfds build nothing --file_format=array_record"),
        ("tfds:tiny:2.0.0", "is not prepared in"),
        ("tfds:tiny:test", "has no split 'test' (it has: train_clean, dev)"),
        ("tfds:tiny:train_clean[:x%]", "has no split 'train_clean[:x%]'"),
    ],
)
def test_what_is_not_there(
    source: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["data", "build", source, "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_read(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(file: str, old: str, new: str) -> None:
        folder = tmp_path / "tiny" / "1.0.0"
        folder.mkdir(parents=True, exist_ok=True)
        for source in (data / "tiny" / "1.0.0").iterdir():
            (folder / source.name).write_bytes(source.read_bytes())
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for file, old, new, message in [
        ("dataset_info.json", "array_record", "tfrecord", "is in the format tfrecord: prepare"),
        ("dataset_info.json", "{", "", "dataset_info.json cannot be read"),
        ("features.json", '"speech"', '"image"', "has no speech, only: "),
        ("features.json", '"sampleRate": "16000"', '"x": 1', "does not say the sample rate"),
    ]:
        change(file, old, new)
        with pytest.raises(UserError, match=message):
            TfdsSpeech.open("tfds:tiny")


def test_it_needs_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core", None)
    with pytest.raises(UserError, match="needs tensorflow-datasets: pip install"):
        TfdsSpeech.open("tfds:tiny_lazy:dev[:1]")
