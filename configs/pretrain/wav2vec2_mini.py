"""wav2vec 2.0 in miniature: what two CPU cores learn within half an hour.

The recipe of BASE with four differences, each of which a small model with little speech needs: its
stem is two convolutions over log-mel frames; frames that are not masked count half, without which
the probe ends below the untrained network, for what hides in 200 ms is hard to guess for so little
of a transformer and what it hears it was never asked for; the diversity loss weighs ten times as
much and the feature penalty a tenth; the Gumbel temperature falls within the run.

Command: jaxclone train pretrain/wav2vec2_mini --data.corpus CORPUS --valid.corpus CORPUS
Hardware: 2 CPU cores, 3 GB.
Time: 37 minutes on one core, now and then two.
Score: probes tell 44.6 % of the phones of unheard voices (MFCC 36.4 %, untrained 36.7 %;
BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone import config as configs
from jaxclone.losses.contrastive import ContrastiveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2PretrainingConfig
from jaxclone.nn.quantize import QuantizerConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig


def get_config(size: Literal["full", "smoke"] = "full") -> PretrainConfig:
    """A small encoder; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    published = configs.load(f"pretrain/wav2vec2_base:{size}")
    encoder = Wav2Vec2Config.mini() if smoke else Wav2Vec2Config.small()
    # As published, and not all of the gradient as in `small`.
    encoder = dataclasses.replace(encoder, feature_grad_scale=0.1)
    data = CropConfig(batch_size=4 if smoke else 8, crop_seconds=1.0 if smoke else 3.0)
    return dataclasses.replace(
        published,
        name="wav2vec2-mini",
        model=Wav2Vec2PretrainingConfig(encoder, QuantizerConfig(2, 160, 128), 128, 0.0),
        data=data,
        valid=dataclasses.replace(data, split="valid"),
        loss=ContrastiveConfig(temperature=0.1, diversity=1.0, feature_penalty=1.0, unmasked=0.5),
        temperature=TemperatureConfig(2.0, 0.5, 0.9985),
        optim=dataclasses.replace(
            published.optim,
            learning_rate=1e-3,
            warmup_steps=2 if smoke else 200,
            clip_norm=5.0,
        ),
        steps=4 if smoke else 4000,
        precision="f32",
        log_every=1 if smoke else 50,
        eval_every=0 if smoke else 500,
        checkpoint_every=2 if smoke else 500,
    )
