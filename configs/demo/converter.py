"""Content of one voice, timbre of another, in miniature: the second stage of the demo.

Command: jaxclone train demo/converter --data.corpus CORPUS --valid.corpus CORPUS \
    --init-from runs/demo/pretrain/bundle
Hardware: 2 CPU cores, 3 GB.
Time: 4 to 6 minutes.
Score: mel L1 of about 0.39 (natural log) on unseen sentences of training voices.
"""

from typing import Any, Literal

from data_pipelines.loader import CropConfig
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train.conversion import ConversionConfig
from jaxclone.train.optim import OptimConfig


def get_config(size: Literal["demo", "smoke"] = "demo") -> ConversionConfig:
    """A small converter; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    batch = 4 if smoke else 16
    reading: dict[str, Any] = {
        "crop_seconds": 2.0,
        "reference_seconds": 3.0,
        "f0": True,
        "labelled": True,
    }
    converter = ConverterConfig(bottleneck=4, width=16, layers=2, adapter_rank=2)
    return ConversionConfig(
        name="demo-converter",
        encoder=Wav2Vec2Config.tiny() if smoke else Wav2Vec2Config.mini(),
        speaker=SpeakerEncoderConfig.tiny() if smoke else SpeakerEncoderConfig.mini(),
        converter=converter if smoke else ConverterConfig.mini(),
        data=CropConfig(batch_size=batch, **reading),
        valid=CropConfig(split="valid", batch_size=batch, **reading),
        optim=OptimConfig(
            learning_rate=3e-3, warmup_steps=4 if smoke else 30, schedule="cosine", clip_norm=1.0
        ),
        steps=6 if smoke else 900,
        log_every=2 if smoke else 10,
        eval_batches=2,
    )
