"""The utilisation of devices that are given a peak."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import pytest
import toy

from data_pipelines.loader import CropConfig, batch_shapes
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.sharding import flops
from jaxclone.sharding.chips import CHIPS, Chip, device_peak
from jaxclone.sharding.mesh import MeshConfig, activate, make_mesh
from jaxclone.train.cost import Cost
from jaxclone.train.loop import fit
from jaxclone.train.pretrain import PretrainConfig
from jaxclone.train.program import Program
from jaxclone.train.task import RunConfig
from jaxclone.train.tracking import read_metrics

PEAK = 1e6  # slow, so that few digits are lost
CROPS = CropConfig(batch_size=2, crop_seconds=0.5)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The devices of this machine, as a chip with a peak."""
    chip = Chip("cpu", 2 * PEAK, 0.0, 0.0, 0.0, 0.0, "a test", f32_flops=PEAK)
    monkeypatch.setitem(CHIPS, "here", chip)


def cost_of(config) -> Cost:
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Cost(config, mesh, Program(config.task(), mesh, config.seed).abstract)


def pretraining(remat: str) -> PretrainConfig:
    model = Wav2Vec2PretrainingConfig.tiny()
    encoder = dataclasses.replace(model.encoder, remat=remat)
    return PretrainConfig(data=CROPS, model=dataclasses.replace(model, encoder=encoder))


@pytest.mark.parametrize(
    ("kind", "precision", "peak"),
    [
        ("TPU v5 lite", "bf16", 197e12),
        ("TPU v5", "bf16", 459e12),
        ("TPU v4", "f32", 275e12),
        ("TPU7x", "bf16", 2307e12 / 2),
        ("NVIDIA H100 80GB HBM3", "f32", 494.7e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA H100 PCIe", "bf16", None),
        ("cpu", "f32", None),
    ],
)
def test_a_device_is_known_by_its_kind(kind: str, precision: str, peak: float | None) -> None:
    assert device_peak(kind, precision) == peak


@pytest.mark.usefixtures("known")
def test_a_run_logs_its_utilisation(
    toy_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunConfig, "task", toy.task)
    config = toy.config(toy_corpus, tmp_path / "run", steps=3)
    fit(config, toy.task(config))
    first, *lines = read_metrics(tmp_path / "run")
    assert "mfu" not in first  # it compiles
    # Products of a step: one forward and one for the kernel of the convolution, whose input needs
    # no gradient; of each dense layer three.
    frames, hop, width = 8 * 10, toy.HOP, 16
    products = 2 * hop * width + 3 * (width * 2 * width + 2 * width)
    for line in lines:
        seconds = 8 * 0.2 / line["audio_seconds_per_second"]
        assert line["mfu"] == pytest.approx(2 * frames * products / PEAK / seconds, rel=0.01)


def test_nothing_is_counted_where_the_peak_is_unknown() -> None:
    cost = cost_of(pretraining("none"))
    assert cost.peak is None
    assert cost("no batch") == 0.0


@pytest.mark.usefixtures("known")
def test_what_is_computed_twice_counts_once() -> None:
    config = pretraining("full")
    batch = batch_shapes(config.data, config.audio)
    cost = cost_of(config)
    assert cost.peak == PEAK
    once = cost(batch)
    assert once == cost_of(pretraining("none"))(batch)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with activate(mesh):
        task = config.task()
        state = Program(task, mesh, 0).abstract
        twice = flops.count(jax.jit(task.step).trace(state, batch).jaxpr)
    assert once < 0.9 * twice


@pytest.mark.usefixtures("known")
def test_each_length_of_batches_is_counted() -> None:
    config = pretraining("none")
    cost = cost_of(config)
    short, long = (
        cost(batch_shapes(dataclasses.replace(CROPS, crop_seconds=s), config.audio))
        for s in (0.5, 1.0)
    )
    assert 1.9 * short < long < 3 * short
