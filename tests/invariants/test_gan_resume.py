"""A GAN run that is stopped and started again is the run that was left alone."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.build import build
from data_pipelines.loader import CropConfig
from data_pipelines.manifest import Row
from jaxclone.audio import io
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.discriminators import MelGANDiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.sharding.mesh import to_host
from jaxclone.train.checkpoint import examine
from jaxclone.train.errors import Interrupted
from jaxclone.train.loop import fit
from jaxclone.train.meter import Meter
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig
from jaxclone.tree import flatten

# Spectral norms advance at every step, the updates of the two do not, the mean is kept.
OPTIM = OptimConfig(learning_rate=1e-3, betas=(0.8, 0.99), schedule="exponential", decay_steps=1)
CONFIG = VocoderConfig(
    audio=AudioSpec(n_fft=64, hop_length=20, win_length=64, n_mels=8),
    generator=HiFiGANConfig.tiny(),
    discriminators=MelGANDiscriminatorConfig.tiny(),
    resolutions=((32, 8, 32),),
    segment_seconds=0.02,
    adversarial_start=1,
    discriminator_every=2,
    ema=0.9,
    generator_optim=OPTIM,
    discriminator_optim=OPTIM,
    steps=5,
    log_every=1,
    checkpoint_every=0,
)


@pytest.fixture
def config(speech: np.ndarray, tmp_path: Path) -> VocoderConfig:
    rows = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        io.write(path, np.roll(speech, 1000 * number)[:8000], 16_000)
        rows.append(Row(str(path), split="train"))
    build(rows, tmp_path / "corpus", CONFIG.audio, shards=1, f0=False, workers=1)
    data = CropConfig(str(tmp_path / "corpus"), batch_size=2, crop_seconds=0.025, workers=0)
    return dataclasses.replace(CONFIG, data=data)


def trace(folder: Path) -> list[dict[str, float]]:
    """What the metrics say of the training itself, line by line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("seconds", "audio_seconds", "data_wait")
    return [{k: v for k, v in line.items() if not k.startswith(timing)} for line in lines]


def test_stopped_once(config: VocoderConfig, tmp_path: Path) -> None:
    whole = fit(config, config.task(), run_dir=tmp_path / "whole")
    batches = []

    def asked(meter, loader, real=Meter.next):
        batches.append(real(meter, loader))
        if len(batches) == 2:  # the step after the next one sees it
            os.kill(os.getpid(), signal.SIGTERM)
        return batches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Meter, "next", asked)
        with pytest.raises(Interrupted):
            fit(config, config.task(), run_dir=tmp_path / "stopped")
    again = fit(config, config.task(), run_dir=tmp_path / "stopped")
    assert 0 < again.summary["resumed_from"] < config.steps
    assert len(trace(tmp_path / "whole")) == config.steps
    assert trace(tmp_path / "stopped") == trace(tmp_path / "whole")
    found, expected = (flatten(to_host(run.state)) for run in (again, whole))
    parts = {path.split("/")[0] for path in expected}
    assert parts >= {"step", "key", "generator", "discriminator", "ema"}
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        if not jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert examine(again.state)[0] == examine(whole.state)[0]  # keys too
