"""HuBERT LARGE, pre-norm, on tens of thousands of hours such as Libri-Light.

Its units are of layer 9 of iteration 2 of BASE, from whose run folder they are made.

Command: jaxclone train pretrain/hubert_large --data.corpus CORPUS --valid.corpus CORPUS
    (after pretrain/hubert_base_it2; a bundle that is not in runs/hubert-base-it2 is named with
    --targets.bundle)
    by seconds of audio, which pads less: --data.batch_seconds 7200 --data.batch_size 128
    --data.buckets 4 8 12 15.62 (batch_size is what devices x micro-batches must divide)
Hardware: 128 accelerators of 32 GB, the paper's; with fewer, raise --microbatches.
Time: days; before the first step, the units of the corpus are made once: the encoder of BASE runs
    over it, up to layer 9.
Score: not run by us.
"""

import dataclasses
from typing import Literal

from jaxclone import config as configs
from jaxclone.models.hubert import HubertConfig
from jaxclone.train.hubert import HubertPretrainConfig


def get_config(size: Literal["full", "smoke"] = "full") -> HubertPretrainConfig:
    """As iteration 2 of BASE, but for these (fairseq's `hubert_large_librivox.yaml`)."""
    smoke = size == "smoke"
    base = configs.load(f"pretrain/hubert_base_it2:{size}")
    model = HubertConfig.tiny(units=12) if smoke else HubertConfig.large(units=500)
    encoder = dataclasses.replace(
        model.encoder, conv_norm="layer", conv_bias=True, pad_input=True, remat="full"
    )
    crops = dataclasses.replace(
        base.data,
        batch_size=4 if smoke else 512,  # 2.2 h of audio at most; published: 2 h
        units="hubert-large-smoke" if smoke else "hubert-large",
    )
    return dataclasses.replace(
        base,
        name="hubert-large",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 128),
        targets=dataclasses.replace(
            base.targets,
            bundle="runs/hubert-base-it2/bundle",
            layer=1 if smoke else 9,
            fraction=1.0 if smoke else 0.0016,  # of 60 000 hours, as many as 10 % of LibriSpeech
        ),
        optim=dataclasses.replace(base.optim, learning_rate=1.5e-3, clip_norm=1.0),
    )
