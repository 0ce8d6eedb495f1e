"""MelGAN as published (Kumar et al. 2019; descriptinc/melgan-neurips `scripts/train.py`).

The published training also scales each crop by a random factor of 0.3 to 1. The corpus must be
built with the AudioSpec of `jaxclone.audio.spec.melgan_22k`.

Command: jaxclone train vocoder/melgan --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 3,000 epochs of LJSpeech, 2.4 M steps; not run here.
Score: not measured here; `mini`, 20 minutes on a core: PESQ 1.0, MCD 12.8 dB (BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import jaxclone_16k, melgan_22k
from jaxclone.models.discriminators import MelGANDiscriminatorConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["published", "mini", "smoke"] = "published") -> VocoderConfig:
    """The published system; `mini` is for a CPU, and `smoke` only proves that it runs.

    Both of these are for a corpus of 16 kHz.
    """
    smoke, small = size == "smoke", size != "published"
    published = MelGANDiscriminatorConfig.published()
    optim = OptimConfig(kind="adam", learning_rate=1e-4, betas=(0.5, 0.9))
    if small:
        optim = dataclasses.replace(optim, learning_rate=1e-3, schedule="cosine")
    # 8192 samples: 32 frames.
    crop = {
        "published": CropConfig(batch_size=16, crop_seconds=8192 / 22_050),
        "mini": CropConfig(batch_size=8, crop_seconds=0.5),
        "smoke": CropConfig(batch_size=2, crop_seconds=0.2),
    }[size]
    return VocoderConfig(
        name=f"melgan-{size}" if small else "melgan",
        audio=jaxclone_16k() if small else melgan_22k(),
        generator=MelGANConfig.mini() if small else MelGANConfig.published(),
        discriminators={
            "published": published,
            "mini": MelGANDiscriminatorConfig.mini(),
            "smoke": MelGANDiscriminatorConfig.tiny(),
        }[size],
        gan_loss="hinge",
        # 10, and 4 / (strided layers + 1) / discriminators.
        feature_weight=10 * 4 / (4 + 1) / published.scales,
        mel_weight=0.0,
        generator_optim=optim,
        discriminator_optim=optim,
        data=crop,
        valid=CropConfig(
            split="valid",
            batch_size=crop.batch_size,
            crop_seconds=2.0 if not small else crop.crop_seconds,
        ),
        steps={"published": 2_400_000, "mini": 3100, "smoke": 4}[size],
        log_every=1 if smoke else 100,
        eval_every=0 if small else 1000,
        eval_batches=1 if smoke else 4,
        checkpoint_every=5000,
    )
