"""wav2vec 2.0 LARGE, pre-norm, on tens of thousands of hours such as Libri-Light.

Command: jaxclone train pretrain/wav2vec2_large --data.corpus CORPUS --valid.corpus CORPUS
    by seconds of audio, which pads less: --data.batch_seconds 9720 --data.batch_size 128
    --data.buckets 4 8 12 16 20 (batch_size is what devices x micro-batches must divide)
Hardware: 128 accelerators of 32 GB, the paper's; with fewer, raise --microbatches. The parameters
and their optimiser are divided over eight devices; with fewer, set --mesh.fsdp.
Time: days.
Score: not run by us. The paper's encoder, pretrained on 53 k hours and fine-tuned on all of
LibriSpeech, has a word error rate of 1.8 / 3.3 on test-clean / test-other (abstract).
"""

import dataclasses
from typing import Literal

from jaxclone import config as configs
from jaxclone.losses.contrastive import ContrastiveConfig
from jaxclone.models.wav2vec2 import Wav2Vec2PretrainingConfig
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.pretrain import PretrainConfig, TemperatureConfig


def get_config(size: Literal["full", "smoke"] = "full") -> PretrainConfig:
    """As BASE, but for these (Baevski et al. 2020 §4.2, fairseq's `wav2vec2_large_librivox.yaml`).

    That file prints a peak learning rate of 0.005; the paper's is 0.0003, and with the other
    training collapses.
    """
    smoke = size == "smoke"
    base = configs.load(f"pretrain/wav2vec2_base:{size}")
    model = Wav2Vec2PretrainingConfig.tiny() if smoke else Wav2Vec2PretrainingConfig.large()
    encoder = dataclasses.replace(
        model.encoder, conv_norm="layer", conv_bias=True, pad_input=True, remat="full"
    )
    crops = dataclasses.replace(
        base.data,
        batch_size=4 if smoke else 512,  # 2.8 h of audio at most; published: 2.7 h
        crop_seconds=1.0 if smoke else 20.0,
    )
    return dataclasses.replace(
        base,
        name="wav2vec2-large",
        model=dataclasses.replace(model, encoder=encoder),
        data=crops,
        valid=dataclasses.replace(crops, split="valid", batch_size=4 if smoke else 128),
        loss=ContrastiveConfig(temperature=0.1, diversity=0.1, feature_penalty=0.0),
        temperature=TemperatureConfig(2.0, 0.1, 0.999995),
        optim=dataclasses.replace(
            base.optim, learning_rate=3e-4, warmup_steps=2 if smoke else 20_000
        ),
        steps=4 if smoke else 250_000,
        mesh=MeshConfig() if smoke else MeshConfig(fsdp=8),
    )
