"""What self-supervised tasks share: an encoder that predicts frames which it does not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from data_pipelines.loader import CropConfig
from jaxclone import rng
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.nn.masking import FEWEST_FRAMES, MaskedFrames, MaskingConfig, mask_spans
from jaxclone.train import optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, UserError

# (name of a stream) -> a key an example.
NamedKeys = Callable[[str], jax.Array]
# (parameters, batch, keys, step) -> (scalar, metrics); the step is None in evaluation.
MaskedLoss = Callable[[Tree, Batch, NamedKeys, Array | None], tuple[Array, Metrics]]


def masked_task(
    run: RunConfig,
    encoder: Wav2Vec2Config,
    optim_config: OptimConfig,
    init_params: Callable[[jax.Array], dict[str, Any]],
    loss: MaskedLoss,
    reported: Callable[[Array], Metrics] = lambda step: {},
    head: Mapping[str, Any] = MappingProxyType({}),
) -> Task:
    """The functions of a run that trains an encoder, its parameter `encoder`, and what it needs.

    Args:
        run: settings that every run has.
        encoder: of the model.
        optim_config: optimiser.
        init_params: key -> boxed parameters.
        loss: what is minimised. Its keys are another's at each step, the same at each evaluation.
        reported: step -> metrics that are known without a batch.
        head: a name and a config: all parameters but the encoder's make a model of this name, which
            is kept too.

    Raises:
        UserError: the encoder's frames are not those of the AudioSpec, or crops have too few.
    """
    encoder.require(run.audio)
    for data in (run.data, run.valid):
        if isinstance(data, CropConfig):
            seconds = min(data.buckets or (data.crop_seconds,))
            frames = encoder.frame_length(run.audio.n_samples(seconds))
            if frames < FEWEST_FRAMES:
                raise UserError(
                    f"{seconds:g} s make {frames} frames; masking takes {FEWEST_FRAMES} or more"
                )
    tx, schedule = optim.make_optimizer(optim_config, run.steps)

    def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
        params = init_params(key)
        for name, start in pretrained.items():
            params |= start if name in head else {name: start}
        return TrainState(jnp.int32(0), key, ModelState(params, tx.init(params)), {})

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def loss_fn(params: Tree, batch: Batch) -> tuple[jax.Array, Metrics]:
            def keys(name: str) -> jax.Array:
                return rng.per_example(rng.stream(state.key, name, state.step), batch.example)

            return loss(params, batch, keys, state.step)

        grads, metrics = optim.accumulate(loss_fn, state.model.params, batch, run.microbatches)
        model, more = optim.apply(tx, state.model, grads)
        metrics |= more | {"learning_rate": schedule(state.step)} | reported(state.step)
        return state.replace(step=state.step + 1, model=model), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        def keys(name: str) -> jax.Array:  # without the step: always the same masks
            return rng.per_example(rng.stream(state.key, f"evaluate-{name}"), batch.example)

        value, metrics = loss(state.model.params, batch, keys, None)
        return {**metrics, "loss": value}

    def models(state: TrainState) -> dict[str, Tree]:
        rest = {name: part for name, part in state.model.params.items() if name != "encoder"}
        return {"encoder": state.model.params["encoder"], **dict.fromkeys(head, rest)}

    return Task(
        init=init,
        step=step,
        evaluate=evaluate,
        models=models,
        model_configs={"encoder": encoder, **head},
    )


def mask_batch(
    keys: jax.Array, batch: Batch, encoder: Wav2Vec2Config, masking: MaskingConfig
) -> MaskedFrames:
    """Masks frames of the waveforms of a batch."""
    samples = batch.waveform.shape[1]
    return mask_spans(
        keys, encoder.frame_length(batch.length), encoder.frame_length(samples), masking
    )
