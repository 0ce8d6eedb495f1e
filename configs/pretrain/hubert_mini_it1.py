"""HuBERT in miniature, iteration 1: what two CPU cores learn within half an hour.

The recipe of HuBERT BASE with three differences, each of which a small model with little speech
needs: its stem is two convolutions over log-mel frames; the MFCC lose their mean over each
recording before they are clustered, so that units say less of the voice; frames that are not
masked count half.

Command: jaxclone train pretrain/hubert_mini_it1 --data.corpus CORPUS --valid.corpus CORPUS
Hardware: 2 CPU cores, 3 GB.
Time: 20 minutes, of which 1 for the units.
Score: probes tell 46 % of the phones of unheard voices (MFCC 36 %, untrained 37 %; BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone import config as configs
from jaxclone.losses.masked_units import MaskedUnitsConfig
from jaxclone.models.hubert import HubertConfig
from jaxclone.models.kmeans import KMeansConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train.hubert import HubertPretrainConfig
from jaxclone.train.targets import TargetsConfig


def get_config(size: Literal["full", "smoke"] = "full") -> HubertPretrainConfig:
    """A small encoder; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    published = configs.load(f"pretrain/hubert_base_it1:{size}")
    units = "hubert-mini-it1-smoke" if smoke else "hubert-mini-it1"
    data = CropConfig(batch_size=4 if smoke else 8, crop_seconds=1.0 if smoke else 3.0, units=units)
    encoder = Wav2Vec2Config.mini() if smoke else Wav2Vec2Config.small()
    return dataclasses.replace(
        published,
        name="hubert-mini-it1",
        model=HubertConfig(encoder, 8 if smoke else 100, 128),
        data=data,
        valid=dataclasses.replace(data, split="valid"),
        loss=MaskedUnitsConfig(masked=1.0, unmasked=0.5, feature_penalty=10.0),
        targets=TargetsConfig(
            subtract_mean=True,
            fraction=0.5,
            kmeans=published.targets.kmeans if smoke else KMeansConfig(inits=5, epochs=20),
        ),
        optim=dataclasses.replace(
            published.optim, learning_rate=1.5e-3, warmup_steps=2 if smoke else 250
        ),
        steps=4 if smoke else 3000,
        precision="f32",
        log_every=1 if smoke else 50,
        eval_every=0 if smoke else 500,
        checkpoint_every=2 if smoke else 500,
    )
