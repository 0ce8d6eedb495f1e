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

from data_pipelines.loader import CropConfig
from jaxclone.losses.contrastive import ContrastiveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2PretrainingConfig
from jaxclone.nn.masking import MaskingConfig
from jaxclone.nn.quantize import QuantizerConfig
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig


def get_config(size: Literal["full", "smoke"] = "full") -> PretrainConfig:
    """Sizes of the published `wav2vec2-xls-r-1b`; the schedule is LARGE's at a lower rate.

    Those sizes are 48 layers of width 1280 (Babu et al. 2021, table 1), 16 heads, and codes and
    projections of width 1024 (its `config.json`).
    """
    smoke = size == "smoke"
    if smoke:
        model = Wav2Vec2PretrainingConfig.tiny()
    else:
        encoder = dataclasses.replace(
            Wav2Vec2Config.large(), width=1280, layers=48, heads=16, mlp_width=5120
        )
        model = Wav2Vec2PretrainingConfig(encoder, QuantizerConfig(width=1024), 1024, 0.0)
    encoder = dataclasses.replace(
        model.encoder, conv_norm="layer", conv_bias=True, pad_input=True, remat="full"
    )
    crops = CropConfig(
        batch_size=4 if smoke else 512,  # 2.8 h of audio
        crop_seconds=1.0 if smoke else 20.0,
        workers=0 if smoke else 8,
    )
    return PretrainConfig(
        name="wav2vec2-1b",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 256),
        masking=MaskingConfig(start_probability=0.065, span=10, min_spans=2),
        negatives=100,
        loss=ContrastiveConfig(temperature=0.1, diversity=0.1, feature_penalty=0.0),
        temperature=TemperatureConfig(2.0, 0.1, 0.999995),
        optim=OptimConfig(
            learning_rate=1e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay=(("", True),),
            warmup_steps=2 if smoke else 32_000,
            schedule="linear",
        ),
        steps=4 if smoke else 400_000,
        precision="f32" if smoke else "bf16",
        mesh=MeshConfig() if smoke else MeshConfig(fsdp=8),
        log_every=1 if smoke else 200,
        eval_every=0 if smoke else 5_000,
        checkpoint_every=2 if smoke else 5_000,
    )
