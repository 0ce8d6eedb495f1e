"""HiFi-GAN V2 as published (Kong et al. 2020; jik876/hifi-gan `config_v2.json`).

A quarter of the channels of V1: 0.92 M parameters.

The corpus must be built with the AudioSpec of `jaxclone.audio.spec.hifigan_22k`.
Its recordings are of equal loudness; the published ones were scaled to a peak of 0.95.

Command: jaxclone train vocoder/hifigan_v2 --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 2.5 M steps; not run here.
Score: not measured here; `mini`, 20 minutes on a core: PESQ 1.1, MCD 7.8 dB (BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import hifigan_22k, jaxclone_16k
from jaxclone.models.discriminators import DiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["published", "mini", "smoke"] = "published") -> VocoderConfig:
    """The published system; `mini` is for a CPU, and `smoke` only proves that it runs.

    Both of these are for a corpus of 16 kHz.
    """
    if size in ("mini", "smoke"):
        smoke = size == "smoke"
        data = CropConfig(batch_size=2 if smoke else 8, crop_seconds=0.2 if smoke else 0.5)
        optim = OptimConfig(learning_rate=1e-3, betas=(0.8, 0.99), schedule="cosine")
        return VocoderConfig(
            name=f"hifigan-v2-{size}",
            audio=jaxclone_16k(),
            generator=HiFiGANConfig.mini(),
            discriminators=DiscriminatorConfig.tiny() if smoke else DiscriminatorConfig.mini(),
            generator_optim=optim,
            discriminator_optim=optim,
            data=data,
            valid=dataclasses.replace(data, split="valid"),
            steps=4 if smoke else 4000,
            log_every=1 if smoke else 50,
            eval_batches=1 if smoke else 4,
        )
    # 8192 samples: 32 frames.
    return VocoderConfig(
        name="hifigan-v2",
        audio=hifigan_22k(),
        generator=HiFiGANConfig.v2(),
        data=CropConfig(batch_size=16, crop_seconds=8192 / 22_050, workers=4),
        valid=CropConfig(split="valid", batch_size=16, crop_seconds=2.0),
        steps=2_500_000,
        log_every=100,
        eval_every=1000,
        checkpoint_every=5000,
    )
