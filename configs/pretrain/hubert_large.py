"""HuBERT LARGE, pre-norm, on tens of thousands of hours such as Libri-Light.

Its units are of layer 9 of iteration 2 of BASE, from whose run folder they are made.

Command: jaxclone train pretrain/hubert_large --data.corpus CORPUS --valid.corpus CORPUS
    (after pretrain/hubert_base_it2; a bundle that is not in runs/hubert-base-it2 is named with
    --targets.bundle)
Hardware: 128 accelerators of 32 GB, the paper's; with fewer, raise --microbatches.
Time: days; before the first step, the units of the corpus are made once: the encoder of BASE runs
    over it, up to layer 9.
Score: not run by us.
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
    """Hsu et al. 2021 §IV and fairseq's `hubert_large_librivox.yaml`."""
    smoke = size == "smoke"
    model = HubertConfig.tiny(units=12) if smoke else HubertConfig.large(units=500)
    encoder = dataclasses.replace(
        model.encoder, conv_norm="layer", conv_bias=True, pad_input=True, remat=True
    )
    crops = CropConfig(
        batch_size=4 if smoke else 512,  # 2.2 h of audio at most; published: 2 h
        crop_seconds=1.0 if smoke else 15.62,
        units="hubert-large-smoke" if smoke else "hubert-large",
        workers=0 if smoke else 8,
    )
    return HubertPretrainConfig(
        name="hubert-large",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 128),
        masking=MaskingConfig(start_probability=0.08, span=10, min_spans=2),
        loss=MaskedUnitsConfig(masked=1.0, unmasked=0.0, feature_penalty=10.0),
        targets=TargetsConfig(
            bundle="runs/hubert-base-it2/bundle",
            layer=1 if smoke else 9,
            fraction=1.0 if smoke else 0.0016,  # of 60 000 hours, as many as 10 % of LibriSpeech
            kmeans=KMeansConfig(batch_size=200, inits=2, epochs=5) if smoke else KMeansConfig(),
        ),
        optim=OptimConfig(
            learning_rate=1.5e-3,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.01,
            decay=(("", True),),
            warmup_steps=2 if smoke else 32_000,
            schedule="linear",
            clip_norm=1.0,
        ),
        steps=4 if smoke else 400_000,
        precision="f32" if smoke else "bf16",
        log_every=1 if smoke else 200,
        eval_every=0 if smoke else 5_000,
        checkpoint_every=2 if smoke else 5_000,
    )
