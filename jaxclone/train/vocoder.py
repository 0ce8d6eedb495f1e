"""Training the vocoder: a generator against its discriminators."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxclone import rng
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from jaxclone.losses.spectral import RESOLUTIONS, Resolution, mel_l1, multi_resolution_stft
from jaxclone.models.discriminators import DiscriminatorConfig, Discriminators, Judgement
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.vocoder import GeneratorConfig, make_generator
from jaxclone.nn.weight_norm import SPECTRAL, power_iteration
from jaxclone.train import optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import GanState, ModelState
from jaxclone.train.task import Media, RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, length_mask

# As published: every parameter decays, and the rate by 0.999 an epoch (of about 800 steps on
# LJSpeech at batch 16).
_PUBLISHED = OptimConfig(
    learning_rate=2e-4,
    betas=(0.8, 0.99),
    decay=(("^normalize/", False), ("", True)),
    schedule="exponential",
    decay_rate=0.999,
    decay_steps=800,
)


@dataclasses.dataclass(frozen=True)
class VocoderConfig(RunConfig):
    """A vocoder, trained as HiFi-GAN is (Kong et al. 2020 §2.3; jik876/hifi-gan `train.py`).

    Attributes:
        generator: sizes of the vocoder.
        discriminators: sizes of the discriminators.
        mel_weight: of the L1 distance of log-mels.
        feature_weight: of the feature matching loss.
        stft_weight: of the multi-resolution STFT loss; 0 leaves it out.
        resolutions: (n_fft, hop_length, win_length) of that loss and of the evaluation.
        adversarial_start: steps that the generator first takes on the spectral losses alone, which
            cost a fraction of the others.
        generator_optim: how the generator is updated.
        discriminator_optim: how the discriminators are; its steps are counted from
            `adversarial_start` on.
    """

    generator: GeneratorConfig = HiFiGANConfig()
    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    mel_weight: float = 45.0
    feature_weight: float = 2.0
    stft_weight: float = 0.0
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    adversarial_start: int = 0
    generator_optim: OptimConfig = _PUBLISHED
    discriminator_optim: OptimConfig = _PUBLISHED

    def task(self) -> Task:
        """The functions of this run.

        Raises:
            UserError: the generator does not fit the AudioSpec.
        """
        self.generator.require(self.audio)
        networks = _Networks(self)
        return Task(
            init=networks.init,
            step=networks.step,
            evaluate=networks.evaluate,
            models=networks.models,
            model_configs={"vocoder": self.generator},
            showcase=networks.showcase,
            companions={"discriminators": self.discriminators},
        )


class _Networks:
    """The functions of a run, over what its config fixes."""

    def __init__(self, config: VocoderConfig) -> None:
        self.config = config
        dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
        self.generator = make_generator(config.generator, dtype)
        self.discriminators = Discriminators(config.discriminators, dtype)
        self.generator_tx, self.schedule = optim.make_optimizer(
            config.generator_optim, config.steps
        )
        self.discriminator_tx, _ = optim.make_optimizer(
            config.discriminator_optim, max(1, config.steps - config.adversarial_start)
        )

    def init(self, key: jax.Array, pretrained: Mapping[str, Tree]) -> GanState:
        audio = self.config.audio
        params = pretrained.get("vocoder")
        if params is None:
            mel = jnp.zeros((1, 4, audio.n_mels))
            params = self.generator.init(rng.stream(key, "generator"), mel)["params"]
        variables = pretrained.get("discriminators")
        if variables is None:
            variables = self.discriminators.init(
                rng.stream(key, "discriminators"), jnp.zeros((1, audio.sample_rate))
            )
        judges = variables["params"]
        variables = {name: value for name, value in variables.items() if name != "params"}
        return GanState(
            step=jnp.int32(0),
            key=key,
            generator=ModelState(params, self.generator_tx.init(params)),
            discriminator=ModelState(judges, self.discriminator_tx.init(judges), variables),
        )

    def models(self, state: GanState) -> dict[str, Tree]:
        judges = state.discriminator
        return {
            "vocoder": state.generator.params,
            "discriminators": {"params": judges.params, **judges.variables},
        }

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        """Updates the discriminators, then the generator against the updated ones."""
        parts, params = self.config.microbatches, state.generator.params
        adversarial = state.step >= self.config.adversarial_start
        mel = self.mel(batch)
        if parts == 1:
            # Both updates use one forward pass of the generator.
            fake, pull_back = jax.vjp(lambda p: self.generate(p, mel, batch), params)
        else:
            fakes = jax.lax.map(
                lambda part: self.generate(params, *part), optim.split((mel, batch), parts)
            )
            fake = fakes.swapaxes(0, 1).reshape(batch.waveform.shape)  # undoes `split`

        def update(model: ModelState) -> tuple[ModelState, Metrics]:
            return self.update_discriminators(model, batch.waveform, fake)

        discriminator, judge_metrics = self.once(
            adversarial,
            update,
            lambda model: (model, _zeros(update, model)[1]),
            state.discriminator,
        )

        def loss_fn(fake: Array, batch: Batch) -> tuple[Array, Metrics]:
            return self.loss(fake, batch, discriminator, adversarial)

        if parts == 1:
            (loss, metrics), slope = jax.value_and_grad(loss_fn, has_aux=True)(fake, batch)
            (grads,) = pull_back(slope)
            metrics["loss"] = loss
        else:
            grads, metrics = optim.accumulate(
                lambda p, part: loss_fn(self.generate(p, *part), part[1]),
                params,
                (mel, batch),
                parts,
            )
        generator, more = optim.apply(self.generator_tx, state.generator, grads)
        metrics |= judge_metrics | more | {"learning_rate": self.schedule(state.step)}
        state = state.replace(step=state.step + 1, generator=generator, discriminator=discriminator)
        return state, metrics

    def update_discriminators(
        self, model: ModelState, truth: Array, fake: Array
    ) -> tuple[ModelState, Metrics]:
        """One update on recordings and on what the generator made of them."""
        variables = {SPECTRAL: power_iteration(model.params, model.variables[SPECTRAL])}

        def loss_fn(params: Tree, pair: tuple[Array, Array]) -> tuple[Array, Metrics]:
            # Together, so that each kernel is used once.
            judgements = self.judge(params, variables, jnp.concatenate(pair))
            real, fake = zip(*(jnp.split(logits, 2) for logits, _ in judgements))
            return discriminator_loss(real, fake)

        pair = (truth, jax.lax.stop_gradient(fake))
        grads, metrics = optim.accumulate(loss_fn, model.params, pair, self.config.microbatches)
        model, more = optim.apply(self.discriminator_tx, model, grads)
        metrics = {
            name: metrics[name] for name in ("discriminator_loss", "logit_real", "logit_fake")
        }
        return (
            model.replace(variables=variables),
            metrics | {f"discriminator_{name}": value for name, value in more.items()},
        )

    def loss(
        self, fake: Array, batch: Batch, discriminator: ModelState, adversarial: Array
    ) -> tuple[Array, Metrics]:
        """What the generator is to lower.

        Padding is zero in both waveforms and has its part in the means, as it has for the
        published model's short recordings.
        """
        config, truth = self.config, batch.waveform
        mel, metrics = mel_l1(fake, truth, config.audio)
        loss = config.mel_weight * mel
        if config.stft_weight:
            distance, more = multi_resolution_stft(fake, truth, config.audio, config.resolutions)
            loss += config.stft_weight * distance
            metrics |= more

        def convince(fake: Array) -> tuple[Array, Metrics]:
            judge = functools.partial(self.judge, discriminator.params, discriminator.variables)
            logits, maps = zip(*judge(fake))
            real_maps = [judgement[1] for judgement in jax.lax.stop_gradient(judge(truth))]
            convincing, metrics = generator_loss(logits)
            matching, more = feature_matching_loss(real_maps, maps)
            return convincing + config.feature_weight * matching, metrics | more

        judged, more = self.once(adversarial, convince, lambda x: _zeros(convince, x), fake)
        return loss + judged, metrics | more

    def once(
        self, adversarial: Array, then: Callable[[Any], Any], before: Callable[[Any], Any], x: Any
    ) -> Any:
        """`then(x)` from `adversarial_start` on.

        Without a conditional where there is nothing before: on CPU, XLA runs the convolutions in
        one several times slower than elsewhere.
        """
        if not self.config.adversarial_start:
            return then(x)
        return jax.lax.cond(adversarial, then, before, x)

    def mel(self, batch: Batch) -> Array:
        return log_mel(batch.waveform, self.config.audio, batch.length)

    def generate(
        self, params: Tree, mel: Array, batch: Batch, frames: Array | None = None
    ) -> Array:
        """Waveforms of the batch's mels, zero where the recordings are padded."""
        fake = self.generator.apply({"params": params}, mel, frames)
        fake = jnp.pad(fake, ((0, 0), (0, batch.waveform.shape[1] - fake.shape[1])))
        return fake * length_mask(batch.length, fake.shape[1])

    def judge(self, params: Tree, variables: Tree, waveform: Array) -> list[Judgement]:
        return self.discriminators.apply({"params": params, **variables}, waveform)

    def evaluate(self, state: GanState, batch: Batch) -> Metrics:
        """Copy synthesis: distances of recordings and the vocoder's rendering of their mels."""
        audio, truth, length = self.config.audio, batch.waveform, batch.length
        frames = length // audio.hop_length
        fake = self.generate(state.generator.params, self.mel(batch), batch, frames)
        loss, metrics = mel_l1(fake, truth, audio, length)
        _, more = multi_resolution_stft(fake, truth, audio, self.config.resolutions, length)
        return {**metrics, **more, "loss": loss}

    def showcase(self, state: GanState, batch: Batch) -> dict[str, Media]:
        """A recording and its copy."""
        first = jax.tree.map(lambda x: x[:1], batch)
        mel = self.mel(first)
        copy = jax.jit(self.generate)(state.generator.params, mel, first)
        copy_mel = log_mel(copy, self.config.audio, first.length)
        return {
            "truth": Media("audio", np.asarray(first.waveform[0])),
            "copy": Media("audio", np.asarray(copy[0])),
            "truth_mel": Media("image", np.asarray(mel[0]).T),
            "copy_mel": Media("image", np.asarray(copy_mel[0]).T),
        }


def _zeros(fn: Callable[..., Any], *args: Any) -> Any:
    """Zeros in the shapes of fn(*args)."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, *args))
