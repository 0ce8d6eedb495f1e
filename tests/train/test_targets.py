"""The stages before HuBERT's first step: what they make, and that nothing is made twice or half."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crops import SPEC, take

from data_pipelines.build import build
from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig
from data_pipelines.sources import find_recordings
from data_pipelines.units import Units
from jaxclone import rng
from jaxclone.audio import io
from jaxclone.models.hubert import HubertConfig
from jaxclone.models.kmeans import KMeansConfig, nearest
from jaxclone.models.wav2vec2 import Wav2Vec2Encoder
from jaxclone.tensors import load_tensors, save_tensors
from jaxclone.train import targets
from jaxclone.train.errors import Interrupted
from jaxclone.train.features import mfcc_features, without_mean
from jaxclone.train.hubert import HubertPretrainConfig
from jaxclone.train.targets import TargetsConfig
from jaxclone.types import UserError

MODEL = HubertConfig.tiny(units=6)
TARGETS = TargetsConfig(
    fraction=0.7, kmeans=KMeansConfig(batch_size=100, inits=2, epochs=3), batch_size=3
)


@pytest.fixture(scope="module")
def built(tmp_path_factory, speakers) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    for name, takes in speakers.items():
        (folder / "recordings" / name).mkdir(parents=True)
        for number, waveform in enumerate(takes):
            io.write(folder / "recordings" / name / f"{number}.wav", waveform, 16_000)
    build(find_recordings(folder / "recordings"), folder / "corpus", SPEC, shards=3, f0=False)
    return folder / "corpus"


@pytest.fixture
def run(built, tmp_path) -> HubertPretrainConfig:
    shutil.copytree(built, tmp_path / "corpus")
    data = CropConfig(str(tmp_path / "corpus"), batch_size=4, crop_seconds=0.6, units="ours")
    return HubertPretrainConfig(
        out=str(tmp_path / "run"), data=data, valid=data, model=MODEL, targets=TARGETS
    )


def no_bundle(path: str):
    raise UserError(f"{path} is not there")


def prepare(run, load=no_bundle) -> dict[str, float]:
    """Makes the units; the time that each file of theirs was written at."""
    run.prepare(Path(run.out), load)
    folder = Path(run.data.corpus) / "units"
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def all_units(run) -> np.ndarray:
    corpus = Corpus.open(run.data.corpus)
    units = Units(corpus, run.data.units, "train")
    return np.concatenate([units[record] for record in range(len(corpus))])


@pytest.mark.parametrize("padded", [True, False])
def test_units_are_in_step_with_the_samples_of_crops(run, padded):
    """What a crop brings with it is what its own samples would be called."""
    encoder = dataclasses.replace(MODEL.encoder, pad_input=padded)
    run = dataclasses.replace(run, model=dataclasses.replace(MODEL, encoder=encoder))
    prepare(run)
    assert len(np.unique(all_units(run))) == (6 if padded else 7)  # -1 at the end of each
    features = mfcc_features(encoder, SPEC)
    state, _ = load_tensors(Path(run.out) / "targets" / "kmeans.safetensors")
    compared = agreed = 0
    for batch in take(run.data, 5):
        values, _ = features.apply({}, batch.waveform, batch.length)
        values = np.asarray(values)
        own = nearest(values.reshape(-1, 39), state["centres"])[0].reshape(values.shape[:2])
        # Derivatives of the frames at the ends of a crop see what a crop does not have.
        inner = slice(3, values.shape[1] - 3)
        agreed += int((batch.units[:, inner] == own[:, inner]).sum())
        compared += own[:, inner].size
    assert agreed >= 0.99 * compared > 100


def test_what_is_there_is_not_made_again(run, monkeypatch):
    first = prepare(run)
    units = all_units(run)
    assert len(first) == 3
    assert not list((Path(run.out) / "targets").glob("features-*"))
    monkeypatch.setattr(targets, "fit_kmeans", None)
    assert prepare(run) == first

    torn, gone, _ = (Path(run.data.corpus) / "units" / "ours" / name for name in sorted(first))
    torn.write_bytes(torn.read_bytes()[:-1])
    gone.unlink()
    again = prepare(run)
    assert {name for name in first if again[name] == first[name]} == {max(first)}
    np.testing.assert_array_equal(all_units(run), units)


def test_a_stop_while_features_are_made(run, monkeypatch):
    real, calls = targets.over_frames, []

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(targets, "over_frames", failing)
    with pytest.raises(KeyboardInterrupt):
        prepare(run)
    features = list((Path(run.out) / "targets").glob("features-*/*"))
    assert [path.suffix for path in features] == [".npy"]
    calls.clear()
    calls += [None, None]
    prepare(run)
    assert len(calls) - 2 == 2 + 3, "two shards' features, three shards' units"


@pytest.mark.parametrize("stage", ["over_frames", "fit_kmeans", "write_units"])
def test_a_signal_before_the_first_step(run, monkeypatch, stage):
    """One line, the code of a run that is to be started again, and nothing made twice."""
    real = getattr(targets, stage)

    def stopped(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it goes on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(targets, stage, stopped)
    with pytest.raises(Interrupted, match=r"^stopped by a signal while the units ") as stop:
        prepare(run)
    assert stop.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    features = sorted((Path(run.out) / "targets").glob("features-*/*"))
    assert len(features) == {"over_frames": 0, "fit_kmeans": 3, "write_units": 0}[stage]
    assert not any(path.name.startswith(".") for path in features)

    monkeypatch.setattr(targets, stage, real)
    if stage == "write_units":
        monkeypatch.setattr(targets, "fit_kmeans", None)
    assert len(prepare(run)) == 3


def test_of_another_seed_they_are_another_runs(run, tmp_path):
    prepare(run)
    with pytest.raises(UserError, match="begun with other settings"):
        prepare(dataclasses.replace(run, seed=1))
    other = dataclasses.replace(run, seed=1, out=str(tmp_path / "other"))
    with pytest.raises(UserError, match="holds units that another run made: give those of this"):
        prepare(other)
    data = dataclasses.replace(run.data, units="mine")
    prepare(dataclasses.replace(other, data=data, valid=None))


def test_of_another_corpus_they_are_another_runs(run, tmp_path, monkeypatch):
    """Its shards may have the same names, and centres must not pass from one to the other."""
    prepare(run)
    copy = tmp_path / "copy"
    shutil.copytree(run.data.corpus, copy)
    moved = [dataclasses.replace(part, corpus=str(copy)) for part in (run.data, run.valid)]
    prepare(dataclasses.replace(run, data=moved[0], valid=moved[1]))  # the same, elsewhere
    monkeypatch.setattr(Corpus, "digest", "another")
    with pytest.raises(UserError, match="begun with other settings"):
        prepare(dataclasses.replace(run, data=moved[0], valid=moved[1]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "cannot be read .*: remove"),
        ("kmeans.safetensors", "not a whole safetensors file"),
    ],
)
def test_what_is_damaged_is_one_line(run, name, message):
    prepare(run)
    shutil.rmtree(Path(run.data.corpus) / "units")
    (Path(run.out) / "targets" / name).write_bytes(b"{")
    with pytest.raises(UserError, match=message) as error:
        prepare(run)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ((slice(-1), slice(None)), r"centres of shape \(5, 39\), and model.units is 6: remove it"),
        (0, r"centres of shape \(39,\), and model.units is 6: remove it"),
        ((slice(None), slice(-1)), "of 38 numbers each, and the features of 39: remove"),
    ],
)
def test_centres_of_another_shape_are_told(run, cut, message):
    prepare(run)
    shutil.rmtree(Path(run.data.corpus) / "units")
    kept = Path(run.out) / "targets" / "kmeans.safetensors"
    state, header = load_tensors(kept)
    save_tensors(kept, state | {"centres": state["centres"][cut]}, header)
    with pytest.raises(UserError, match=message):
        prepare(run)


def test_a_feature_file_that_was_cut_is_made_again(run, monkeypatch):
    real = targets.fit_kmeans
    monkeypatch.setattr(targets, "fit_kmeans", None)
    with pytest.raises(TypeError):
        prepare(run)
    cut, *_ = sorted((Path(run.out) / "targets").glob("features-*/*"))
    cut.write_bytes(cut.read_bytes()[:-64])
    monkeypatch.setattr(targets, "fit_kmeans", real)
    assert len(prepare(run)) == 3


def test_a_layer_of_an_encoder(run):
    encoder = Wav2Vec2Encoder(MODEL.encoder)
    waveform, length = jnp.zeros((1, 16_000)), jnp.array([16_000])
    params = nn.unbox(jax.jit(encoder.init)(rng.root(1), waveform, length))["params"]
    bundle = SimpleNamespace(
        models={"encoder": params}, configs={"encoder": MODEL.encoder}, audio=run.audio
    )
    run = dataclasses.replace(run, targets=dataclasses.replace(TARGETS, bundle="it1", layer=1))
    assert run.bundles() == ("it1",)
    prepare(run, {"it1": bundle}.__getitem__)
    prepare(run)  # all is there: the bundle is not asked for

    state, _ = load_tensors(Path(run.out) / "targets" / "kmeans.safetensors")
    corpus = Corpus.open(run.data.corpus)
    for record in (0, 7):
        waveform = corpus[record]["waveform"][None]
        output = encoder.apply({"params": params}, waveform, np.array([waveform.shape[1]]))
        want, _ = nearest(output.layers[1, 0], state["centres"])
        got = Units(corpus, "ours", "train")[record]
        assert (np.asarray(want)[: len(got)] == got).mean() > 0.98

    too_deep = dataclasses.replace(
        run, out=f"{run.out}-2", targets=dataclasses.replace(run.targets, layer=3)
    )
    with pytest.raises(UserError, match="layer 3: the encoder has 2 layers"):
        prepare(too_deep, {"it1": bundle}.__getitem__)
    # Nothing was made yet, so that the same folder takes the right one.
    data = dataclasses.replace(run.data, units="again")
    prepare(
        dataclasses.replace(run, out=too_deep.out, data=data, valid=None),
        {"it1": bundle}.__getitem__,
    )


def test_without_their_mean_features_do_not_tell_how_loud_it_is(run, speakers):
    waveform = next(iter(speakers.values()))[0]
    # Noise, so that no band of it is empty.
    waveform = waveform + 0.05 * np.random.default_rng(0).normal(size=waveform.shape)
    quiet = np.stack([waveform, 0.1 * waveform]).astype(np.float32)
    quiet[:, 9600:] = 0
    length = np.array([9600, 9600])
    features = mfcc_features(MODEL.encoder, SPEC)
    plain, frames = features.apply({}, quiet, length)
    n = int(frames[0])
    assert abs(plain[0, :n] - plain[1, :n]).max() > 3
    values, _ = without_mean(features).apply({}, quiet, length)
    np.testing.assert_allclose(values[0, :n], values[1, :n], atol=0.02)
    np.testing.assert_allclose(values[0, :n].mean(0), 0, atol=1e-3)

    made = dataclasses.replace(run, targets=dataclasses.replace(TARGETS, subtract_mean=True))
    prepare(made)
    with pytest.raises(UserError, match="begun with other settings"):
        prepare(run)


def test_long_recordings_are_cut(run):
    """A cut is heard in a frame or two: the derivatives see zeros beyond it."""
    prepare(run)
    whole = all_units(run)
    data = dataclasses.replace(run.data, units="cut")
    kept = Path(run.out) / "targets" / "kmeans.safetensors"
    cut = dataclasses.replace(
        run,
        out=f"{run.out}-2",
        data=data,
        valid=None,
        targets=dataclasses.replace(TARGETS, chunk_seconds=0.5),
    )
    (Path(cut.out) / "targets").mkdir(parents=True)
    shutil.copy(kept, Path(cut.out) / "targets")
    prepare(cut)
    same = all_units(cut) == whole
    # All recordings are of a whole number of pieces of 25 frames.
    inner = (np.arange(len(same)) % 25 >= 3) & (np.arange(len(same)) % 25 < 22)
    assert same[inner].mean() > 0.99
    assert same.mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"layer": 0}, "layer must be above 0"),
        ({"batch_size": 0}, "batch_size must be above 0"),
        ({"chunk_seconds": float("nan")}, "chunk_seconds must be finite"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        TargetsConfig(**change)
