"""wav2vec 2.0 in miniature: the first stage of the demo.

Command: jaxclone train demo/pretrain --data.corpus CORPUS --valid.corpus CORPUS
Hardware: 2 CPU cores, 2 GB.
Time: 2 minutes.
Score: on the embedded corpus, the masked frame is told from 50 others in about a fifth of cases
(chance is 2 %).
"""

from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig


def get_config(size: Literal["demo", "smoke"] = "demo") -> PretrainConfig:
    """A small encoder; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    sizes = Wav2Vec2PretrainingConfig
    return PretrainConfig(
        name="demo-pretrain",
        model=sizes.tiny() if smoke else sizes.mini(),
        data=CropConfig(batch_size=4 if smoke else 8, crop_seconds=2.0),
        valid=CropConfig(split="valid", batch_size=4 if smoke else 8, crop_seconds=2.0),
        negatives=50,
        # Few updates: the temperature falls as far as it does over the published schedule.
        temperature=TemperatureConfig(2.0, 0.5, 0.995),
        optim=OptimConfig(
            learning_rate=1.5e-3, warmup_steps=4 if smoke else 30, schedule="linear", eps=1e-6
        ),
        steps=6 if smoke else 1000,
        log_every=2 if smoke else 10,
        eval_batches=2,
    )
