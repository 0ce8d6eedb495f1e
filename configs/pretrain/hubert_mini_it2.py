"""HuBERT in miniature, iteration 2: units of layer 3 of iteration 1, from which it goes on.

Command: jaxclone train pretrain/hubert_mini_it2 --data.corpus CORPUS --valid.corpus CORPUS
    (after pretrain/hubert_mini_it1; a bundle that is not in runs/hubert-mini-it1 is named with
    --targets.bundle and --init-from)
Hardware: 2 CPU cores, 3 GB.
Time: 20 minutes, of which 1 for the units.
Score: probes tell 47 % of the phones of unheard voices (BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from jaxclone import config as configs
from jaxclone.train.hubert import HubertPretrainConfig


def get_config(size: Literal["full", "smoke"] = "full") -> HubertPretrainConfig:
    """As iteration 1, but for these. Published systems begin anew; half an hour is too short."""
    smoke = size == "smoke"
    first = configs.load(f"pretrain/hubert_mini_it1:{size}")
    units = "hubert-mini-it2-smoke" if smoke else "hubert-mini-it2"
    bundle = "runs/hubert-mini-it1/bundle"
    return dataclasses.replace(
        first,
        name="hubert-mini-it2",
        init_from=(bundle,),
        model=dataclasses.replace(first.model, units=12 if smoke else 200),
        data=dataclasses.replace(first.data, units=units),
        valid=dataclasses.replace(first.valid, units=units),
        targets=dataclasses.replace(first.targets, bundle=bundle, layer=1 if smoke else 3),
        steps=4 if smoke else 2500,
    )
