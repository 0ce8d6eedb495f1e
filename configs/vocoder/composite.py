"""The composite loss: reconstruction + 0.1 adversarial + 0.01 perceptual, on the demo's vocoder.

Reconstruction is the L1 of log-mels, adversarial the least-squares loss of HiFi-GAN's two kinds of
discriminators (Kong et al. 2020 eq. 2) without feature matching, and perceptual the distance in the
features of a frozen self-supervised encoder, which is to speech what VGG is to images (Johnson et
al. 2016 §3.2; Germain et al. 2019 for speech).

Command: jaxclone train vocoder/composite --data.corpus CORPUS --valid.corpus CORPUS \
    --init-from runs/demo/pretrain/bundle
Hardware: 2 CPU cores, 3 GB.
Time: 5 minutes.
Score: mel L1 of copies on held-out voices 0.165, PESQ 2.12; the demo's own losses 0.165 and 2.21
(BENCHMARKS.md).
"""

import dataclasses
from typing import Literal

from jaxclone.config import load
from jaxclone.losses.perceptual import PerceptualConfig
from jaxclone.train.vocoder import VocoderConfig


def get_config(size: Literal["demo", "smoke"] = "demo") -> VocoderConfig:
    """The demo's vocoder and encoder; `smoke` only proves that it runs."""
    return dataclasses.replace(
        load(f"demo/vocoder:{size}"),
        name=f"vocoder-composite{'-smoke' if size == 'smoke' else ''}",
        mel_weight=1.0,
        stft_weight=0.0,
        adversarial_weight=0.1,
        feature_weight=0.0,
        perceptual_weight=0.01,
        perceptual=PerceptualConfig(layers=(1, -1)),
        encoder=load(f"demo/pretrain:{size}").model.encoder,
    )
