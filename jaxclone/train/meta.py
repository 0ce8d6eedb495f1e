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
from jaxclone.adapt.enroll import AdaptConfig, Lesson, embed_speaker, lesson_loss, make_lesson
from jaxclone.adapt.maml import meta_loss
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.train import optim
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
        rates = {"converter": self.converter_rate}
        tx, schedule = optim.make_optimizer(self.optim, self.steps, rates)
        trained = ("adapter", "converter") if self.converter_rate else ("adapter",)

        def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
            params = {**networks.init(rng.stream(key, "init")), **pretrained}
            model = {name: params.pop(name) for name in trained}
            return TrainState(jnp.int32(0), key, ModelState(model, tx.init(model)), params)

        def loss_fn(
            params: Tree, frozen: Tree, episode: Episode, key: jax.Array
        ) -> tuple[jax.Array, Metrics]:
            everything = {**frozen, **params}
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
                )
            share = self.unadapted_weight / (1.0 + self.unadapted_weight)
            loss = jnp.mean((1 - share) * after + share * before)
            return loss, {
                "query_l1_before": before.mean(),
                "query_l1_after": after.mean(),
                "weight": jnp.float32(len(after)),
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
            models=lambda state: {**state.frozen, **state.model.params},
            model_configs=self.model_configs(),
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
