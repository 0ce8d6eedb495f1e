"""Vocos at its published size, 13.5 M parameters (Siuzdak 2023; gemelo-ai/vocos `vocos.yaml`).

Apart from published: the discriminators are HiFi-GAN's (there by period and by STFT resolution),
together as heavy as those two; the generator starts from the pseudo-inverse of the mel, and the
mel is the project's (HiFi-GAN's definition at 24 kHz). The corpus must be built with
`jaxclone.audio.spec.jaxclone_24k`.

Command: jaxclone train vocoder/vocos --data.corpus CORPUS --valid.corpus CORPUS
Hardware: one GPU or TPU host; the `smoke` size runs on a CPU in a minute.
Time: published as 1 M steps; not run here.
Score: not measured here; `mini`, 20 minutes on a core: PESQ 2.4, MCD 4.5 dB (BENCHMARKS.md).
"""

from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.audio.spec import jaxclone_16k, jaxclone_24k
from jaxclone.models.discriminators import DiscriminatorConfig
from jaxclone.models.vocos import VocosConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["published", "mini", "smoke"] = "published") -> VocoderConfig:
    """The published system; `mini` is for a CPU, and `smoke` only proves that it runs.

    Both of these are for a corpus of 16 kHz.
    """
    smoke, small = size == "smoke", size != "published"
    audio = jaxclone_16k() if small else jaxclone_24k()
    optim = OptimConfig(
        learning_rate=1e-3 if small else 5e-4,
        betas=(0.8, 0.9),
        decay=(("", True),),
        schedule="cosine",
    )
    # 16384 samples: 64 frames.
    crop = {
        "published": CropConfig(batch_size=16, crop_seconds=16_384 / 24_000),
        "mini": CropConfig(batch_size=8, crop_seconds=0.5),
        "smoke": CropConfig(batch_size=2, crop_seconds=0.2),
    }[size]
    judges = {
        "published": DiscriminatorConfig.published(),
        "mini": DiscriminatorConfig.mini(),
        "smoke": DiscriminatorConfig.tiny(),
    }[size]
    # The mean over the discriminators of the first kind, and a tenth of that of the second.
    share = 1.1 / (len(judges.periods) + judges.scales)
    return VocoderConfig(
        name=f"vocos-{size}" if small else "vocos",
        audio=audio,
        generator={
            "published": VocosConfig(audio=audio),
            "mini": VocosConfig.mini(),
            "smoke": VocosConfig.tiny(),
        }[size],
        discriminators=judges,
        gan_loss="clamped_hinge",
        adversarial_weight=share,
        feature_weight=share,
        generator_optim=optim,
        discriminator_optim=optim,
        data=crop,
        valid=CropConfig(
            split="valid",
            batch_size=crop.batch_size,
            crop_seconds=2.0 if not small else crop.crop_seconds,
        ),
        steps={"published": 1_000_000, "mini": 5500, "smoke": 4}[size],
        log_every=1 if smoke else 100,
        eval_every=0 if small else 1000,
        eval_batches=1 if smoke else 4,
        checkpoint_every=5000,
    )
