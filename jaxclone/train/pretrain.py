"""Self-supervised pretraining of the encoder: wav2vec 2.0."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxclone import rng
from jaxclone.losses.contrastive import ContrastiveConfig, pretraining_loss
from jaxclone.models.wav2vec2 import Wav2Vec2Pretraining, Wav2Vec2PretrainingConfig
from jaxclone.nn.masking import MaskedFrames, MaskingConfig, mask_spans, sample_negatives
from jaxclone.train import optim
from jaxclone.train.health import Watch
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree


@dataclasses.dataclass(frozen=True)
class TemperatureConfig:
    """Temperature of the Gumbel softmax: `start` times `decay` for each update, not below `end`."""

    start: float = 2.0
    end: float = 0.5
    decay: float = 0.999995

    def __call__(self, step: int | Array) -> jax.Array:
        """At a step.

        >>> [round(float(TemperatureConfig(2.0, 0.5, 0.5)(step)), 3) for step in (0, 1, 9)]
        [2.0, 1.0, 0.5]
        """
        step = jnp.asarray(step, jnp.float32)
        return jnp.maximum(self.start * jnp.exp(step * math.log(self.decay)), self.end)


@dataclasses.dataclass(frozen=True)
class CollapseConfig:
    """When pretraining counts as collapsed, which is reported once.

    Attributes:
        perplexity: codes in use for each codebook, of which there must not be fewer; 1 is one code
            for everything.
        variance: of the predictions as unit vectors, which must not be less; 0 is one vector for
            everything.
        steps: for so long either may be lower.
    """

    perplexity: float = 2.0
    variance: float = 0.01
    steps: int = 1000

    def watches(self, codebooks: int) -> tuple[Watch, ...]:
        """What to watch."""
        return (
            Watch(
                "code_perplexity",
                self.perplexity * codebooks,
                self.steps,
                "the quantiser has collapsed onto few codes",
                "a larger loss.diversity, a slower temperature.decay, a lower optim.learning_rate "
                "with more optim.warmup_steps, or more audio a batch",
            ),
            Watch(
                "prediction_variance",
                self.variance,
                self.steps,
                "the predictions are the same for all frames",
                "a lower optim.learning_rate with more optim.warmup_steps, optim.clip_norm 1, and "
                "precision f32 to rule that out",
            ),
        )


@dataclasses.dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """Pretraining of a wav2vec 2.0 encoder.

    Attributes:
        model: sizes of the encoder and its quantiser.
        masking: spans of frames to mask.
        negatives: distractors a masked frame.
        loss: weights of the loss.
        temperature: of the quantiser.
        optim: optimiser.
        collapse: when to warn of it.
    """

    model: Wav2Vec2PretrainingConfig = Wav2Vec2PretrainingConfig()
    masking: MaskingConfig = MaskingConfig()
    negatives: int = 100
    loss: ContrastiveConfig = ContrastiveConfig()
    temperature: TemperatureConfig = TemperatureConfig()
    optim: OptimConfig = OptimConfig()
    collapse: CollapseConfig = CollapseConfig()

    def task(self) -> Task:
        """The functions of this run."""
        encoder = self.model.encoder
        encoder.require(self.audio)
        network = Wav2Vec2Pretraining(
            self.model, jnp.bfloat16 if self.precision == "bf16" else jnp.float32
        )
        tx, schedule = optim.make_optimizer(self.optim, self.steps)

        def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
            waveform = jnp.zeros((1, self.audio.sample_rate))
            length = jnp.array([waveform.shape[1]])
            masked = self.mask(rng.per_example(key, length), length, waveform.shape[1])
            params = network.init(rng.stream(key, "init"), waveform, length, masked)["params"]
            params |= pretrained
            return TrainState(jnp.int32(0), key, ModelState(params, tx.init(params)), {})

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            temperature = self.temperature(state.step)

            def loss_fn(params: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
                def keys(name: str) -> jax.Array:
                    return rng.per_example(rng.stream(state.key, name, state.step), batch.example)

                masked = self.mask(keys("mask"), batch.length, batch.waveform.shape[1])
                output = network.apply(
                    {"params": params},
                    batch.waveform,
                    batch.length,
                    masked,
                    temperature=temperature,
                    noise_keys=keys("gumbel"),
                    dropout_keys=keys("dropout"),
                )
                negatives = sample_negatives(keys("negatives"), masked.valid, self.negatives)
                return pretraining_loss(output, negatives, masked.valid, self.loss)

            grads, metrics = optim.accumulate(loss_fn, state.model.params, batch, self.microbatches)
            model, more = optim.apply(tx, state.model, grads)
            metrics |= more | {"learning_rate": schedule(state.step), "temperature": temperature}
            return state.replace(step=state.step + 1, model=model), metrics

        def evaluate(state: TrainState, batch: Batch) -> Metrics:
            def keys(name: str) -> jax.Array:  # without the step: always the same masks
                return rng.per_example(rng.stream(state.key, name), batch.example)

            masked = self.mask(keys("evaluate-mask"), batch.length, batch.waveform.shape[1])
            output = network.apply(
                {"params": state.model.params}, batch.waveform, batch.length, masked
            )
            negatives = sample_negatives(keys("evaluate-negatives"), masked.valid, self.negatives)
            loss, metrics = pretraining_loss(output, negatives, masked.valid, self.loss)
            return {**metrics, "loss": loss}

        return Task(
            init=init,
            step=step,
            evaluate=evaluate,
            models=lambda state: {"encoder": state.model.params["encoder"]},
            model_configs={"encoder": encoder},
            watches=self.collapse.watches(self.model.quantizer.groups),
        )

    def mask(self, keys: jax.Array, length: jax.Array, samples: int) -> MaskedFrames:
        """Masks the frames of waveforms of so many samples."""
        encoder = self.model.encoder
        return mask_spans(
            keys, encoder.frame_length(length), encoder.frame_length(samples), self.masking
        )
