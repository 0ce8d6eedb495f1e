"""Training the converter: speak a recording again from its content and another one's voice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclone import rng
from jaxclone.audio import pitch
from jaxclone.audio.griffin_lim import griffin_lim
from jaxclone.audio.perturb import PerturbConfig, perturb
from jaxclone.losses.mels import MelLoss, MelLossConfig
from jaxclone.losses.reconstruction import masked_l1
from jaxclone.losses.speaker import speaker_contrastive
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train import helpers, optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import Media, RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree


@dataclasses.dataclass(frozen=True)
class ConversionConfig(RunConfig):
    """A converter on top of a pretrained encoder.

    The encoder hears a perturbed copy of the recording (formants, pitch and timbre moved at
    random; Choi et al. 2021 §3.1) and the speaker encoder hears another recording of the speaker,
    so that the original can only be rebuilt with the content of the one and the voice of the other.
    Speakers are told apart within a micro-batch: with `microbatches` above 1 the contrast has fewer
    negatives, and is another loss than that of the whole batch.

    Attributes:
        encoder: sizes of the content encoder.
        speaker: sizes of the speaker encoder.
        converter: sizes of the converter.
        perturb: how the recording is disguised.
        speaker_weight: of the contrastive loss that tells speakers apart.
        mel_loss: what else the mels are compared by; the encoder of its perceptual loss is the one
            that the run starts from, as it was.
        encoder_rate: learning rate of the encoder over that of the rest; 0 freezes it.
        optim: of everything trained.
    """

    encoder: Wav2Vec2Config = Wav2Vec2Config()
    speaker: SpeakerEncoderConfig = SpeakerEncoderConfig()
    converter: ConverterConfig = ConverterConfig()
    perturb: PerturbConfig = PerturbConfig()
    speaker_weight: float = 0.1
    mel_loss: MelLossConfig = MelLossConfig()
    encoder_rate: float = 1.0
    optim: OptimConfig = OptimConfig()

    def networks(self) -> VoiceConversion:
        """The networks of this run."""
        return VoiceConversion(
            self.audio,
            self.encoder,
            self.speaker,
            self.converter,
            jnp.bfloat16 if self.precision == "bf16" else jnp.float32,
        )

    def task(self) -> Task:
        """The functions of this run."""
        networks = self.networks()
        mel_loss = MelLoss(self.mel_loss, self.audio, self.encoder, networks.dtype)
        helping = self.mel_loss.helpers(self.encoder)
        # An encoder that is trained is held a second time, as it was.
        held = {name: c for name, c in helping.items() if name != "encoder" or self.encoder_rate}
        rates = {"encoder": self.encoder_rate}
        tx, schedule = optim.make_optimizer(self.optim, self.steps, rates)
        trained = ("encoder", "speaker", "converter") if self.encoder_rate else SPEAKING

        def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
            fresh = networks.init(rng.stream(key, "init"))
            params = {name: pretrained.get(name, part) for name, part in fresh.items()}
            given = {**params, **pretrained}
            listeners = helpers.init_helpers(held, None, self.audio, key, given)
            model = {name: params.pop(name) for name in trained}
            frozen = {**params, **({helpers.HELPERS: listeners} if listeners else {})}
            return TrainState(jnp.int32(0), key, ModelState(model, tx.init(model)), frozen)

        def loss_fn(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            heard = perturb(
                rng.per_example(key, batch.example), batch.waveform, self.audio, self.perturb
            )
            return self.loss(networks, mel_loss, params, batch, heard)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            key = rng.stream(state.key, "perturb", state.step)
            grads, metrics = optim.accumulate(
                lambda p, b: loss_fn({**state.frozen, **p}, b, key),
                state.model.params,
                batch,
                self.microbatches,
            )
            model, more = optim.apply(tx, state.model, grads)
            metrics |= more | {"learning_rate": schedule(state.step)}
            return state.replace(step=state.step + 1, model=model), metrics

        def evaluate(state: TrainState, batch: Batch) -> Metrics:
            params = {**state.frozen, **state.model.params}
            loss, metrics = self.loss(networks, mel_loss, params, batch, batch.waveform)
            return {**metrics, "loss": loss}

        def showcase(state: TrainState, batch: Batch) -> dict[str, Media]:
            params = {**state.frozen, **state.model.params}
            return showcase_conversion(networks, params, batch)

        return Task(
            init=init,
            step=step,
            evaluate=evaluate,
            models=lambda state: helpers.without_helpers({**state.frozen, **state.model.params}),
            model_configs=self.model_configs(),
            helpers=helping,
            showcase=showcase,
        )

    def model_configs(self) -> dict[str, Any]:
        """Configs by model name."""
        return {"encoder": self.encoder, "speaker": self.speaker, "converter": self.converter}

    def loss(
        self,
        networks: VoiceConversion,
        mel_loss: MelLoss,
        params: Tree,
        batch: Batch,
        heard: Array,
    ) -> tuple[jax.Array, Metrics]:
        """Reconstruction plus the contrast between speakers; `heard` is what the encoder gets."""
        truth, frames = networks.mel(batch.waveform, batch.length)
        voice = networks.embed(params, batch.reference, batch.reference_length)
        content = networks.content(params, heard, batch.length)
        predicted = networks.decode(params, content, voice, batch.f0, frames)
        loss, metrics = masked_l1(predicted, truth, frames)
        beside, more = mel_loss(helpers.helper_params(params), predicted, truth, frames)
        metrics |= more
        own = networks.embed(params, batch.waveform, batch.length)
        contrast, more = speaker_contrastive(voice, own, batch.speaker)
        return loss + beside + self.speaker_weight * contrast, metrics | more


SPEAKING = ("speaker", "converter")


def showcase_conversion(networks: VoiceConversion, params: Tree, batch: Batch) -> dict[str, Media]:
    """The first recording of a batch in the voice of another speaker of it, by Griffin-Lim."""
    others = np.flatnonzero(np.asarray(batch.speaker) != np.asarray(batch.speaker[0]))
    source = jax.tree.map(lambda x: np.asarray(x[:1]), batch)
    target = jax.tree.map(lambda x: np.asarray(x[others[:1] if len(others) else [0]]), batch)
    mel, frames = networks.mel(source.waveform, source.length)
    voice = networks.embed(params, target.reference, target.reference_length)
    content = networks.content(params, source.waveform, source.length)
    f0 = pitch.move(source.f0[0], *pitch.log_f0_stats(target.f0[0]))[None]
    converted = networks.decode(params, content, voice, f0, frames)
    key = rng.stream(rng.root(0), "showcase")
    spoken = griffin_lim(converted, networks.audio, key, length=frames)
    return {
        "source": Media("audio", source.waveform[0]),
        "target": Media("audio", target.reference[0]),
        "converted": Media("audio", np.asarray(spoken[0])),
        "source_mel": Media("image", np.asarray(mel[0]).T),
        "converted_mel": Media("image", np.asarray(converted[0]).T),
    }
