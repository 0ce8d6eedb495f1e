"""HiFi-GAN V1 as published (Kong et al. 2020; jik876/hifi-gan `config_v1.json`).

The corpus must be built with the AudioSpec of `jaxclone.audio.spec.hifigan_22k`.
Its recordings are of equal loudness; the published ones were scaled to a peak of 0.95.

Command: jaxclone train vocoder/hifigan_v1 --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 2.5 M steps; not run here.
Score: not measured here.
"""

from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.models.discriminators import DiscriminatorConfig
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["published", "smoke"] = "published") -> VocoderConfig:
    """The published system; `smoke` only proves that it runs, on a corpus of 16 kHz."""
    if size == "smoke":
        return VocoderConfig(
            name="hifigan-smoke",
            audio=AudioSpec(),
            generator=HiFiGANConfig.mini(),
            discriminators=DiscriminatorConfig.tiny(),
            data=CropConfig(batch_size=2, crop_seconds=0.2),
            valid=CropConfig(split="valid", batch_size=2, crop_seconds=0.2),
            steps=4,
            log_every=1,
            eval_batches=1,
        )
    # 8192 samples: 32 frames.
    data = CropConfig(batch_size=16, crop_seconds=8192 / 22_050, workers=4)
    return VocoderConfig(
        name="hifigan-v1",
        audio=hifigan_22k(),
        data=data,
        valid=CropConfig(split="valid", batch_size=16, crop_seconds=2.0),
        steps=2_500_000,
        log_every=100,
        eval_every=1000,
        checkpoint_every=5000,
    )
