"""Multi-band MelGAN (Yang et al. 2020; ParallelWaveGAN `multi_band_melgan.v2.yaml`).

The generator first learns 200,000 steps from the STFT losses alone, of the waveform and of its four
bands. Apart from published: FFTs of 684 and 172 bins for the bands (683 and 171 there, odd, whose
frames have no middle; the windows are the same), and Adam for AMSGrad. The mel is MelGAN's, and the
corpus must be built with its AudioSpec, `jaxclone.audio.spec.melgan_22k`.

Command: jaxclone train vocoder/multiband_melgan --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 1 M steps; not run here.
Score: not measured here; `mini`, 20 minutes on a core: PESQ 1.1, MCD 7.8 dB (BENCHMARKS.md).
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
    optim = OptimConfig(
        kind="adam",
        learning_rate=1e-3,
        betas=(0.9, 0.999),
        eps=1e-7,
        schedule="exponential",
        decay_rate=0.5,
        decay_steps=100_000,
        final_fraction=0.5**6,
    )
    if small:
        optim = dataclasses.replace(optim, schedule="cosine")
    judges = {
        "published": MelGANDiscriminatorConfig.multiband(),
        "mini": MelGANDiscriminatorConfig.mini(),
        "smoke": MelGANDiscriminatorConfig.tiny(),
    }[size]
    # 16384 samples: 64 frames.
    crop = {
        "published": CropConfig(batch_size=64, crop_seconds=16_384 / 22_050),
        "mini": CropConfig(batch_size=8, crop_seconds=0.5),
        "smoke": CropConfig(batch_size=2, crop_seconds=0.2),
    }[size]
    return VocoderConfig(
        name=f"multiband-melgan-{size}" if small else "multiband-melgan",
        audio=jaxclone_16k() if small else melgan_22k(),
        generator=MelGANConfig.mini_multiband() if small else MelGANConfig.multiband(),
        discriminators=judges,
        adversarial_weight=2.5 / judges.scales,
        feature_weight=0.0,
        mel_weight=0.0,
        stft_weight=1.0,
        band_resolutions=((384, 30, 150), (684, 60, 300), (172, 10, 60)),
        adversarial_start={"published": 200_000, "mini": 3000, "smoke": 2}[size],
        generator_optim=optim,
        discriminator_optim=optim,
        data=crop,
        valid=CropConfig(
            split="valid",
            batch_size=crop.batch_size,
            crop_seconds=2.0 if not small else crop.crop_seconds,
        ),
        steps={"published": 1_000_000, "mini": 5100, "smoke": 4}[size],
        log_every=1 if smoke else 100,
        eval_every=0 if small else 1000,
        eval_batches=1 if smoke else 4,
        checkpoint_every=5000,
    )
