"""Mel spectrograms to waveforms, in miniature: the third stage of the demo.

A Vocos against small discriminators of HiFi-GAN's two kinds: at this size and time it beats both a
HiFi-GAN and Griffin-Lim (BENCHMARKS.md).

Command: jaxclone train demo/vocoder --data.corpus CORPUS --valid.corpus CORPUS
Hardware: 2 CPU cores, 3 GB.
Time: 4 minutes.
Score: copy synthesis of unheard voices at an MCD of about 4.2 dB (Griffin-Lim, 32 iterations: 4.6).
"""

from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.models.discriminators import ConvSpec, DiscriminatorConfig
from jaxclone.models.vocos import VocosConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["demo", "smoke"] = "demo") -> VocoderConfig:
    """A small vocoder; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    data = CropConfig(batch_size=4 if smoke else 16, crop_seconds=0.5 if smoke else 1.0)
    optim = OptimConfig(
        learning_rate=2e-3, betas=(0.8, 0.99), warmup_steps=10, schedule="cosine", clip_norm=100.0
    )
    return VocoderConfig(
        name="demo-vocoder",
        generator=VocosConfig.tiny() if smoke else VocosConfig.mini(),
        discriminators=DiscriminatorConfig(
            periods=(3, 7),
            period_channels=(8, 16, 32),
            scales=1,
            scale_layers=(ConvSpec(16, 15, 4), ConvSpec(32, 15, 4), ConvSpec(32, 5)),
        ),
        data=data,
        valid=CropConfig(split="valid", batch_size=data.batch_size, crop_seconds=1.0),
        stft_weight=15.0,
        resolutions=((1024, 256, 1024), (512, 128, 512), (256, 64, 256)),
        generator_optim=optim,
        discriminator_optim=optim,
        steps=6 if smoke else 450,
        log_every=2 if smoke else 10,
        eval_batches=2,
    )
