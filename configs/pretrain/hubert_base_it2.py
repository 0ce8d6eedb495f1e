"""HuBERT BASE, iteration 2: units of layer 6 of iteration 1, from whose run folder they are made.

Command: jaxclone train pretrain/hubert_base_it2 --data.corpus CORPUS --valid.corpus CORPUS
    (after pretrain/hubert_base_it1; a bundle that is not in runs/hubert-base-it1 is named with
    --targets.bundle)
    by seconds of audio, which pads less: --data.batch_seconds 2820 --data.batch_size 32
    --data.buckets 4 8 12 15.62 (batch_size is what devices x micro-batches must divide)
Hardware: 32 accelerators of 32 GB, the paper's; with fewer, raise --microbatches.
Time: days; before the first step, the units of the corpus are made once.
Score: not run by us. The paper judges the encoder by its word error rate after fine-tuning.
"""

import dataclasses
from typing import Literal

from jaxclone import config as configs
from jaxclone.train.hubert import HubertPretrainConfig


def get_config(size: Literal["full", "smoke"] = "full") -> HubertPretrainConfig:
    """As iteration 1, but for these (Hsu et al. 2021 §IV)."""
    smoke = size == "smoke"
    first = configs.load(f"pretrain/hubert_base_it1:{size}")
    units = "hubert-base-it2-smoke" if smoke else "hubert-base-it2"
    return dataclasses.replace(
        first,
        name="hubert-base-it2",
        model=dataclasses.replace(first.model, units=12 if smoke else 500),
        data=dataclasses.replace(first.data, units=units),
        valid=dataclasses.replace(first.valid, units=units),
        targets=dataclasses.replace(
            first.targets, bundle="runs/hubert-base-it1/bundle", layer=1 if smoke else 6
        ),
        optim=dataclasses.replace(first.optim, warmup_steps=2 if smoke else 32_000),
        steps=4 if smoke else 400_000,
    )
