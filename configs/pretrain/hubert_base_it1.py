"""HuBERT BASE, iteration 1: units of MFCC, on LibriSpeech, as published but for the padding.

Command: jaxclone train pretrain/hubert_base_it1 --data.corpus CORPUS --valid.corpus CORPUS
    by seconds of audio, which pads less: --data.batch_seconds 2820 --data.batch_size 32
    --data.buckets 4 8 12 15.62 (batch_size is what devices x micro-batches must divide)
Hardware: 32 accelerators of 32 GB, the paper's; with fewer, raise --microbatches.
Time: days; before the first step, the units of the corpus are made once: minutes to an hour.
Score: not run by us. The paper judges the encoder by its word error rate after iteration 2.
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.losses.masked_units import MaskedUnitsConfig
from jaxclone.models.hubert import HubertConfig
from jaxclone.models.kmeans import KMeansConfig
from jaxclone.nn.masking import MaskingConfig
from jaxclone.train.hubert import HubertPretrainConfig
from jaxclone.train.optim import OptimConfig
from jaxclone.train.targets import TargetsConfig


def get_config(size: Literal["full", "smoke"] = "full") -> HubertPretrainConfig:
    """Hsu et al. 2021 §IV and fairseq's `hubert_base_librispeech.yaml`."""
    smoke = size == "smoke"
    model = HubertConfig.tiny(units=8) if smoke else HubertConfig.base(units=100)
    # Ours: padding changes nothing, and there is a frame for each hop, as the other models want.
    encoder = dataclasses.replace(model.encoder, conv_norm="masked_group", pad_input=True)
    crops = CropConfig(
        batch_size=4 if smoke else 192,  # 50 min of audio at most; published: 47 min
        crop_seconds=1.0 if smoke else 15.62,
        units="hubert-base-it1-smoke" if smoke else "hubert-base-it1",
        workers=0 if smoke else 8,
    )
    return HubertPretrainConfig(
        name="hubert-base-it1",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 64),
        masking=MaskingConfig(start_probability=0.08, span=10, min_spans=2),
        loss=MaskedUnitsConfig(masked=1.0, unmasked=0.0, feature_penalty=10.0),
        targets=TargetsConfig(
            fraction=1.0 if smoke else 0.1,
            kmeans=KMeansConfig(batch_size=200, inits=2, epochs=5) if smoke else KMeansConfig(),
        ),
        optim=OptimConfig(
            learning_rate=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay=(("", True),),
            warmup_steps=2 if smoke else 20_000,
            schedule="linear",
            clip_norm=10.0,
            max_skips=10,
        ),
        steps=4 if smoke else 250_000,
        precision="f32" if smoke else "bf16",
        log_every=1 if smoke else 200,
        eval_every=0 if smoke else 5_000,
        checkpoint_every=2 if smoke else 5_000,
    )
