"""Self-supervised pretraining of the encoder: wav2vec 2.0."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxclone import rng
from jaxclone.losses.contrastive import ContrastiveConfig, pretraining_loss
from jaxclone.models.wav2vec2 import Wav2Vec2Pretraining, Wav2Vec2PretrainingConfig
from jaxclone.nn.masking import MaskingConfig, sample_negatives
from jaxclone.train.health import TAMER, Watch
from jaxclone.train.masked import NamedKeys, mask_batch, masked_task
from jaxclone.train.optim import OptimConfig
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, UserError, require_positive


@dataclasses.dataclass(frozen=True)
class TemperatureConfig:
    """Temperature of the Gumbel softmax: `start` times `decay` for each update, not below `end`."""

    start: float = 2.0
    end: float = 0.5
    decay: float = 0.999995

    def __post_init__(self) -> None:
        require_positive(self, "start", "end", "decay")
        if self.decay > 1:
            raise UserError(f"temperature.decay must be at most 1, got {self.decay}")

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

    def __post_init__(self) -> None:
        require_positive(self, "perplexity", "variance", "steps", or_zero=True)

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
                TAMER,
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

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "negatives")

    def task(self) -> Task:
        """The functions of this run."""
        encoder = self.model.encoder
        network = Wav2Vec2Pretraining(
            self.model, jnp.bfloat16 if self.precision == "bf16" else jnp.float32
        )

        def init_params(key: jax.Array) -> Tree:
            waveform = jnp.zeros((1, self.audio.sample_rate))
            length = jnp.array([waveform.shape[1]])
            nothing = Batch(waveform, length, speaker=None, example=None)
            masked = mask_batch(rng.per_example(key, length), nothing, encoder, self.masking)
            return network.init(rng.stream(key, "init"), waveform, length, masked)["params"]

        def loss(
            params: Tree, batch: Batch, keys: NamedKeys, step: Array | None
        ) -> tuple[jax.Array, Metrics]:
            masked = mask_batch(keys("mask"), batch, encoder, self.masking)
            if self.loss.unmasked:
                masked = masked.all_compared(encoder.frame_length(batch.length))
            in_training = (
                {}
                if step is None
                else {
                    "temperature": self.temperature(step),
                    "noise_keys": keys("gumbel"),
                    "dropout_keys": keys("dropout"),
                }
            )
            output = network.apply(
                {"params": params}, batch.waveform, batch.length, masked, **in_training
            )
            negatives = sample_negatives(keys("negatives"), masked.valid, self.negatives)
            return pretraining_loss(output, negatives, masked, self.loss)

        def reported(step: Array) -> Metrics:
            return {"temperature": self.temperature(step)}

        head = {"pretraining": self.model}
        task = masked_task(self, encoder, self.optim, init_params, loss, reported, head)
        watches = self.collapse.watches(self.model.quantizer.groups)
        return dataclasses.replace(task, watches=watches)
