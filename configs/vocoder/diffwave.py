"""DiffWave as published (Kong et al. 2020; lmnt-com/diffwave; SpeechBrain's LJSpeech recipe).

`base` has 64 channels and 50 steps of noise, `large` 128 and 200. Learnt with the L1 distance, as
the public recipes do; `--loss l2` is the paper's. The corpus must be built with the AudioSpec of
`jaxclone.audio.spec.hifigan_22k`.

Command: jaxclone train vocoder/diffwave --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 1 M steps; not run here.
Score: not measured here; `mini`, 20 minutes on a core: PESQ 1.0, MCD 12.3 dB (BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.models.diffwave import DiffWaveConfig
from jaxclone.train.diffusion import DiffusionConfig
from jaxclone.train.optim import OptimConfig


def get_config(size: Literal["base", "large", "mini", "smoke"] = "base") -> DiffusionConfig:
    """The published systems; `mini` is for a CPU, and `smoke` only proves that it runs.

    Both of these are for a corpus of 16 kHz.
    """
    if size in ("mini", "smoke"):
        smoke, mini = size == "smoke", DiffWaveConfig.mini()
        data = CropConfig(batch_size=2 if smoke else 4, crop_seconds=0.2 if smoke else 0.26)
        return DiffusionConfig(
            name=f"diffwave-{size}",
            audio=AudioSpec(),
            generator=dataclasses.replace(mini, channels=8, layers=4) if smoke else mini,
            data=data,
            valid=dataclasses.replace(data, split="valid"),
            optim=OptimConfig(kind="adam", learning_rate=1e-3, schedule="cosine"),
            steps=4 if smoke else 1500,
            log_every=1 if smoke else 100,
            eval_every=0 if smoke else 2000,
            eval_batches=1 if smoke else 4,
        )
    # 15,872 samples: 62 frames.
    return DiffusionConfig(
        name=f"diffwave-{size}",
        audio=hifigan_22k(),
        generator=DiffWaveConfig.large() if size == "large" else DiffWaveConfig.base(),
        data=CropConfig(batch_size=16, crop_seconds=15_872 / 22_050, workers=4),
        valid=CropConfig(split="valid", batch_size=16, crop_seconds=2.0),
        steps=1_000_000,
        log_every=100,
        eval_every=5000,
        checkpoint_every=5000,
    )
