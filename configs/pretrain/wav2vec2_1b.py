"""wav2vec 2.0 with a billion parameters, as XLS-R, on hundreds of thousands of hours.

Command: jaxclone train pretrain/wav2vec2_1b --data.corpus CORPUS --valid.corpus CORPUS
Hardware: 64 accelerators of 95 GB or more; jaxclone plan tells of others. The parameters and their
optimiser are divided over eight devices; with fewer, set --mesh.fsdp.
Time: weeks.
Score: not run by us. The paper's 1 B encoder, pretrained on 436 k hours of 128 languages, is judged
by word error rates after fine-tuning (Babu et al. 2021 §4).
"""

import dataclasses
from typing import Literal

from jaxclone import config as configs
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.nn.quantize import QuantizerConfig
from jaxclone.train.pretrain import PretrainConfig


def get_config(size: Literal["full", "smoke"] = "full") -> PretrainConfig:
    """As LARGE, but for the sizes of the published `wav2vec2-xls-r-1b` and a lower learning rate.

    Those sizes are 48 layers of width 1280 (Babu et al. 2021, table 1), 16 heads, and codes and
    projections of width 1024 (its `config.json`).
    """
    smoke = size == "smoke"
    large = configs.load(f"pretrain/wav2vec2_large:{size}")
    model = large.model
    if not smoke:
        encoder = dataclasses.replace(
            model.encoder, width=1280, layers=48, heads=16, mlp_width=5120
        )
        model = Wav2Vec2PretrainingConfig(encoder, QuantizerConfig(width=1024), 1024, 0.0)
    return dataclasses.replace(
        large,
        name="wav2vec2-1b",
        model=model,
        valid=dataclasses.replace(large.valid, batch_size=4 if smoke else 256),
        optim=dataclasses.replace(
            large.optim, learning_rate=1e-4, warmup_steps=2 if smoke else 32_000
        ),
        steps=4 if smoke else 400_000,
    )
