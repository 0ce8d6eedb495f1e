"""Meta-training: adapters from which a few steps on a new voice suffice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from data_pipelines.loader import CropConfig, EpisodeConfig
from jaxclone import rng
from jaxclone.adapt.enroll import (
    AdaptConfig,
    Lesson,
    embed_speaker,
    lesson_loss,
    make_lesson,
    speak_lesson,
)
from jaxclone.adapt.maml import meta_loss
from jaxclone.losses.mels import MelLoss, MelLossConfig
from jaxclone.losses.reconstruction import masked_l1
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train import helpers, optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Batch, Episode, Metrics, Tree


@dataclasses.dataclass(frozen=True)
class MetaConfig(RunConfig):
    """MAML over speakers, starting from a trained converter.

    What an inner step adapts is the converter's adapter collection; what meta-training learns is
    its start and, at `converter_rate`, the converter under it.

    Attributes:
        data: episodes.
        valid: episodes.
        encoder: sizes of the content encoder.
        speaker: sizes of the speaker encoder.
        converter: sizes of the converter.
        adapt: the inner loop.
        unadapted_weight: of the query loss at 0 steps, beside that after adaptation: keeps the
            start itself a good voice.
        mel_loss: what else the query set's mels are compared by; the inner loop, which is that of
            enrolment, is left as it is.
        converter_rate: learning rate of the converter over that of the adapter; 0 freezes it.
        optim: of the outer loop.
    """

    data: CropConfig | EpisodeConfig = EpisodeConfig()
    valid: CropConfig | EpisodeConfig | None = None
    encoder: Wav2Vec2Config = Wav2Vec2Config()
    speaker: SpeakerEncoderConfig = SpeakerEncoderConfig()
    converter: ConverterConfig = ConverterConfig()
    adapt: AdaptConfig = AdaptConfig()
    unadapted_weight: float = 0.5
    mel_loss: MelLossConfig = MelLossConfig()
    converter_rate: float = 0.1
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
        held = {name: config for name, config in helping.items() if name != "encoder"}
        rates = {"converter": self.converter_rate}
        tx, schedule = optim.make_optimizer(self.optim, self.steps, rates)
        trained = ("adapter", "converter") if self.converter_rate else ("adapter",)

        def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
            fresh = networks.init(rng.stream(key, "init"))
            params = {name: pretrained.get(name, part) for name, part in fresh.items()}
            listeners = helpers.init_helpers(held, None, self.audio, key, pretrained)
            model = {name: params.pop(name) for name in trained}
            frozen = {**params, **({helpers.HELPERS: listeners} if listeners else {})}
            return TrainState(jnp.int32(0), key, ModelState(model, tx.init(model)), frozen)

        def loss_fn(
            params: Tree, frozen: Tree, episode: Episode, key: jax.Array
        ) -> tuple[jax.Array, Metrics]:
            everything = {**frozen, **params}

            def judge(adapter: Tree, lesson: Lesson) -> Metrics:
                predicted = speak_lesson(networks, everything, adapter, lesson)
                l1, _ = masked_l1(predicted, lesson.mel, lesson.frames)
                listeners = helpers.helper_params(everything)
                beside, parts = mel_loss(listeners, predicted, lesson.mel, lesson.frames)
                return {"loss": l1 + beside, "l1": l1, **parts}

            # The mesh holds tasks apart. Within one, its batch is not to be spread over the devices
            # that hold the other tasks: the constraints that the networks ask for are off.
            with nn.logical_axis_rules(()):
                support, query = jax.vmap(
                    lambda s, q: self.lessons(networks, everything, s, q, key)
                )(episode.support, episode.query)
                before, after = meta_loss(
                    lambda adapter, lesson: lesson_loss(networks, everything, adapter, lesson),
                    everything["adapter"],
                    support,
                    query,
                    steps=self.adapt.steps,
                    learning_rate=self.adapt.learning_rate,
                    first_order=self.adapt.first_order,
                    query_loss_fn=judge,
                )
            share = self.unadapted_weight / (1.0 + self.unadapted_weight)
            loss = jnp.mean((1 - share) * after.pop("loss") + share * before.pop("loss"))
            return loss, {
                **{f"query_{name}_before": value.mean() for name, value in before.items()},
                **{f"query_{name}_after": value.mean() for name, value in after.items()},
                "weight": jnp.float32(len(after["l1"])),
            }

        def step(state: TrainState, episode: Episode) -> tuple[TrainState, Metrics]:
            key = rng.stream(state.key, "perturb", state.step)
            grads, metrics = optim.accumulate(
                lambda p, e: loss_fn(p, state.frozen, e, key),
                state.model.params,
                episode,
                self.microbatches,
            )
            model, more = optim.apply(tx, state.model, grads)
            metrics |= more | {"learning_rate": schedule(state.step)}
            return state.replace(step=state.step + 1, model=model), metrics

        def evaluate(state: TrainState, episode: Episode) -> Metrics:
            key = rng.stream(state.key, "evaluate")
            loss, metrics = loss_fn(state.model.params, state.frozen, episode, key)
            return {**metrics, "loss": loss}

        return Task(
            init=init,
            step=step,
            evaluate=evaluate,
            models=lambda state: helpers.without_helpers({**state.frozen, **state.model.params}),
            model_configs=self.model_configs(),
            helpers=helping,
        )

    def model_configs(self) -> dict[str, Any]:
        """Configs by model name."""
        return {
            "encoder": self.encoder,
            "speaker": self.speaker,
            "converter": self.converter,
            "adapter": self.adapt,
        }

    def lessons(
        self, networks: VoiceConversion, params: Tree, support: Batch, query: Batch, key: jax.Array
    ) -> tuple[Lesson, Lesson]:
        """Support and query of one speaker, both with the voice that the support tells."""
        speaker = embed_speaker(networks, params, support.waveform, support.length)
        keys = rng.per_example(rng.stream(key, "support"), support.example)
        learn = make_lesson(networks, params, support, keys, self.adapt, speaker)
        keys = rng.per_example(rng.stream(key, "query"), query.example)
        return learn, make_lesson(networks, params, query, keys, self.adapt, speaker)
