"""wav2vec 2.0 BASE on LibriSpeech, as published but for the padding.

Command: jaxclone train pretrain/wav2vec2_base --data.corpus CORPUS --valid.corpus CORPUS
    by seconds of audio, which pads less: --data.batch_seconds 5760 --data.batch_size 64
    --data.buckets 4 8 12 15.62 (batch_size is what devices x micro-batches must divide)
Hardware: 64 accelerators of 32 GB, the paper's; with fewer, raise --microbatches.
Time: days; the paper's 400 000 updates see the 960 hours about 670 times.
Score: not run by us. Healthy runs keep prob_perplexity in the hundreds, of at most 640; the paper's
encoder is judged by its word error rate after fine-tuning.
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.losses.contrastive import ContrastiveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.nn.masking import MaskingConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig


def get_config(size: Literal["full", "smoke"] = "full") -> PretrainConfig:
    """Baevski et al. 2020 §4.2 and fairseq's `wav2vec2_base_librispeech.yaml`."""
    smoke = size == "smoke"
    model = Wav2Vec2PretrainingConfig.tiny() if smoke else Wav2Vec2PretrainingConfig.base()
    # Ours: padding changes nothing, and there is a frame for each hop, as the other models want.
    encoder = dataclasses.replace(model.encoder, conv_norm="masked_group", pad_input=True)
    crops = CropConfig(
        batch_size=4 if smoke else 384,  # 1.7 h of audio at most; published: 1.6 h
        crop_seconds=1.0 if smoke else 15.62,
        workers=0 if smoke else 8,
    )
    return PretrainConfig(
        name="wav2vec2-base",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 64),
        masking=MaskingConfig(start_probability=0.065, span=10, min_spans=2),
        negatives=100,
        loss=ContrastiveConfig(temperature=0.1, diversity=0.1, feature_penalty=10.0),
        temperature=TemperatureConfig(2.0, 0.5, 0.999995),
        optim=OptimConfig(
            learning_rate=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay=(("", True),),
            warmup_steps=2 if smoke else 32_000,
            schedule="linear",
            max_skips=10,
        ),
        steps=4 if smoke else 400_000,
        precision="f32" if smoke else "bf16",
        log_every=1 if smoke else 200,
        eval_every=0 if smoke else 5_000,
        checkpoint_every=2 if smoke else 5_000,
    )
