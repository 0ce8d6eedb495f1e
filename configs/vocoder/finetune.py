"""The demo's vocoder, trained on with what the demo's converter gives it to speak.

A converter's mels are smoother than those of recordings, and a vocoder that has only heard the
latter makes the worse sound of them. So published recipes end with some training on the mels that
the model in front makes of the very recordings ("fine-tuning" in jik876/hifi-gan, Kong et al. 2020
§4.4): here the converter rebuilds each recording from its own content, pitch and voice.

Command: jaxclone train vocoder/finetune --data.corpus CORPUS --valid.corpus CORPUS \
    --init-from runs/demo/bundle
Hardware: 2 CPU cores, 3 GB.
Time: 4 minutes.
Score: mel L1 on held-out voices 0.416 before, 0.398 after (BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from data_pipelines.loader import CropConfig
from jaxclone.config import load
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["demo", "smoke"] = "demo") -> VocoderConfig:
    """A few hundred small steps; `smoke` only proves that it runs."""
    smoke = size == "smoke"
    base, converter = load(f"demo/vocoder:{size}"), load(f"demo/converter:{size}")
    # The converter hears as much as it was trained on, the vocoder learns on a part of it.
    data = CropConfig(batch_size=4 if smoke else 8, crop_seconds=1.0 if smoke else 2.0, f0=True)
    # The discriminators begin anew, so the spectral losses, which they cannot spoil, come first.
    optim = dataclasses.replace(base.generator_optim, learning_rate=5e-4)
    return dataclasses.replace(
        base,
        name=f"vocoder-finetune{'-smoke' if smoke else ''}",
        mels="converter",
        segment_seconds=0.5 if smoke else 1.0,
        encoder=converter.encoder,
        speaker=converter.speaker,
        converter=converter.converter,
        data=data,
        valid=dataclasses.replace(data, split="valid"),
        generator_optim=optim,
        discriminator_optim=optim,
        steps=6 if smoke else 300,
    )
