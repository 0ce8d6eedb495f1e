"""MelGAN as published (Kumar et al. 2019; descriptinc/melgan-neurips `scripts/train.py`).

The published training also scales each crop by a random factor of 0.3 to 1. The corpus must be
built with the AudioSpec of `jaxclone.audio.spec.melgan_22k`.

Command: jaxclone train vocoder/melgan --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 3,000 epochs of LJSpeech, 2.4 M steps; not run here.
Score: not measured here.
"""

from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import jaxclone_16k, melgan_22k
from jaxclone.models.discriminators import MelGANDiscriminatorConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["published", "smoke"] = "published") -> VocoderConfig:
    """The published system; `smoke` only proves that it runs, on a corpus of 16 kHz."""
    smoke = size == "smoke"
    published = MelGANDiscriminatorConfig.published()
    optim = OptimConfig(kind="adam", learning_rate=1e-4, betas=(0.5, 0.9))
    batch_size = 2 if smoke else 16
    # 8192 samples: 32 frames.
    crop = CropConfig(batch_size=batch_size, crop_seconds=0.2 if smoke else 8192 / 22_050)
    return VocoderConfig(
        name="melgan-smoke" if smoke else "melgan",
        audio=jaxclone_16k() if smoke else melgan_22k(),
        generator=MelGANConfig.mini() if smoke else MelGANConfig.published(),
        discriminators=MelGANDiscriminatorConfig.mini() if smoke else published,
        gan_loss="hinge",
        # 10, and 4 / (strided layers + 1) / discriminators.
        feature_weight=10 * 4 / (4 + 1) / published.scales,
        mel_weight=0.0,
        generator_optim=optim,
        discriminator_optim=optim,
        data=crop,
        valid=CropConfig(split="valid", batch_size=batch_size, crop_seconds=0.2 if smoke else 2.0),
        steps=4 if smoke else 2_400_000,
        log_every=1 if smoke else 100,
        eval_every=0 if smoke else 1000,
        eval_batches=1 if smoke else 4,
        checkpoint_every=5000,
    )
