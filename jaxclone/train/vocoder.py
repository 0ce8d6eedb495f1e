"""Training the vocoder: a generator against its discriminators."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.corpus import Corpus
from data_pipelines.loader import CropConfig
from jaxclone import rng
from jaxclone.audio.pqmf import split_bands
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.adversarial import (
    GanLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
)
from jaxclone.losses.perceptual import Perceptual, PerceptualConfig
from jaxclone.losses.spectral import RESOLUTIONS, Resolution, mel_l1, multi_resolution_stft
from jaxclone.models.converter import ConverterConfig
from jaxclone.models.discriminators import (
    DiscriminatorConfig,
    DiscriminatorsConfig,
    Judgement,
    make_discriminators,
)
from jaxclone.models.hifigan import HiFiGANConfig
from jaxclone.models.melgan import MelGANConfig
from jaxclone.models.speaker import SpeakerEncoderConfig
from jaxclone.models.vocoder import GeneratorConfig, make_generator
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config
from jaxclone.nn.weight_norm import power_iteration
from jaxclone.train import helpers, optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import GanState, ModelState
from jaxclone.train.task import Copies, Media, RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, UserError, length_mask, require_positive

_Updated = tuple[ModelState, Metrics]
# As published: every parameter decays, and the rate by 0.999 an epoch.
_PUBLISHED = OptimConfig(
    learning_rate=2e-4,
    betas=(0.8, 0.99),
    decay=(("^normalize/", False), ("", True)),
    schedule="exponential",
    decay_rate=0.999,
    decay_steps=0,
)
# Steps of an epoch where no corpus is named: those of LJSpeech in batches of 16.
_EPOCH = 809


@dataclasses.dataclass(frozen=True)
class VocoderConfig(RunConfig):
    """A vocoder, trained against discriminators; the defaults are those of HiFi-GAN.

    Kong et al. 2020 §2.3 (jik876/hifi-gan `train.py`). A `decay_steps` of 0 is an epoch of the
    data.

    Attributes:
        generator: sizes of the vocoder.
        discriminators: sizes of the discriminators.
        gan_loss: what the discriminators' logits are held to.
        adversarial_weight: of the generator's part of that loss.
        feature_weight: of the feature matching loss; 0 leaves it out.
        mel_weight: of the L1 distance of log-mels; 0 leaves it out.
        stft_weight: of the multi-resolution STFT loss; 0 leaves it out.
        resolutions: (n_fft, hop_length, win_length) of that loss and of the evaluation.
        band_resolutions: the same for the bands of a multi-band generator; the loss is then the
            mean of that of the waveforms and that of their bands. () leaves them out.
        perceptual_weight: of the distance in the features of the frozen `encoder`; 0 leaves it out.
        perceptual: which features.
        mels: what is spoken: the mels of recordings, or what a frozen converter makes of the
            recordings in their own voice, which is what a vocoder behind it will hear (needs
            `data.f0`).
        segment_seconds: learn on a window of this length at a random place of each crop, which the
            converter hears whole; 0 for the whole crop.
        encoder: sizes of the frozen encoder, of `perceptual_weight` and of the converter.
        speaker: sizes of the converter's speaker encoder.
        converter: sizes of the converter.
        adversarial_start: steps that the generator first takes on the spectral losses alone, which
            cost a fraction of the others.
        discriminator_every: the discriminators are updated at every so manieth step only.
        generator_every: the generator likewise.
        ema: the decay a step of a running mean of the generator's parameters, which then is what
            is evaluated and kept in the bundle; 0 for none. Early in a run the mean is shorter.
        generator_optim: how the generator is updated; its schedule counts its updates.
        discriminator_optim: how the discriminators are; likewise, from `adversarial_start` on.
    """

    generator: GeneratorConfig = HiFiGANConfig()
    discriminators: DiscriminatorsConfig = DiscriminatorConfig()
    gan_loss: GanLoss = "least_squares"
    adversarial_weight: float = 1.0
    feature_weight: float = 2.0
    mel_weight: float = 45.0
    stft_weight: float = 0.0
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    band_resolutions: tuple[Resolution, ...] = ()
    perceptual_weight: float = 0.0
    perceptual: PerceptualConfig = PerceptualConfig()
    mels: Literal["truth", "converter"] = "truth"
    segment_seconds: float = 0.0
    encoder: Wav2Vec2Config = Wav2Vec2Config()
    speaker: SpeakerEncoderConfig = SpeakerEncoderConfig()
    converter: ConverterConfig = ConverterConfig()
    adversarial_start: int = 0
    discriminator_every: int = 1
    generator_every: int = 1
    ema: float = 0.0
    generator_optim: OptimConfig = _PUBLISHED
    discriminator_optim: OptimConfig = _PUBLISHED

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "discriminator_every", "generator_every")
        weights = [name for name in self.__dataclass_fields__ if name.endswith("_weight")]
        require_positive(self, "adversarial_start", "segment_seconds", *weights, or_zero=True)
        optim.require_decay(self.ema)
        if self.band_resolutions and self.bands == 1:
            raise UserError(
                "band_resolutions are of a generator with bands, which this one has not"
            )
        if self.mels == "converter" and not all(d.f0 for d in (self.data, self.valid) if d):
            raise UserError("mels 'converter' needs the pitch: set data.f0 and valid.f0")
        longest = self.data.crop_seconds
        segment, crop = (self.audio.n_samples(x) for x in (self.segment_seconds, longest))
        if self.segment_seconds and not 0 < segment <= crop:
            raise UserError(
                f"segment_seconds must be between a frame and the {longest:g} s of a crop, got "
                f"{self.segment_seconds:g}"
            )

    def task(self) -> Task:
        """The functions of this run.

        Raises:
            UserError: the generator or a frozen model does not fit the AudioSpec or the losses, or
                there is no corpus to tell the length of an epoch.
        """
        self.generator.require(self.audio)
        networks = _Networks(self)
        return Task(
            init=networks.init,
            step=networks.step,
            evaluate=networks.evaluate,
            models=networks.models,
            model_configs={"vocoder": self.generator},
            helpers=networks.helpers,
            copies=networks.copies,
            showcase=networks.showcase,
            companions={"discriminators": self.discriminators},
        )

    @property
    def bands(self) -> int:
        """Bands that the generator speaks in."""
        return self.generator.bands if isinstance(self.generator, MelGANConfig) else 1

    def optimizer(
        self, config: OptimConfig, steps: int, every: int
    ) -> tuple[optax.GradientTransformation, optim.Schedule]:
        """The optimiser of so many steps, `decay_steps` of 0 being an epoch.

        Its schedule counts updates, of which there is one in `every` steps.
        """
        if config.schedule == "exponential" and config.decay_steps == 0:
            config = dataclasses.replace(config, decay_steps=max(1, self._epoch() // every))
        return optim.make_optimizer(config, max(1, steps // every))

    def _epoch(self) -> int:
        """Steps of an epoch."""
        if not self.data.corpus:
            return _EPOCH
        if isinstance(self.data, CropConfig) and self.data.batch_seconds:
            raise UserError("decay_steps 0 is an epoch; data.batch_seconds does not tell its steps")
        records = Corpus.open(self.data.corpus, self.audio).indices(self.data.split)
        return max(1, len(records) // self.data.batch_size)


class _Networks:
    """The functions of a run, over what its config fixes."""

    def __init__(self, config: VocoderConfig) -> None:
        self.config = config
        dtype = jnp.bfloat16 if config.precision == "bf16" else jnp.float32
        self.generator = make_generator(config.generator, dtype)
        self.discriminators = make_discriminators(config.discriminators, dtype)
        self.helpers: dict[str, Any] = {}
        self.conversion: VoiceConversion | None = None
        if config.perceptual_weight:
            config.encoder.require(config.audio)
            self.helpers["encoder"] = config.encoder
            self.perceptual = Perceptual(config.perceptual, config.encoder, dtype)
        if config.mels == "converter":
            parts = (config.encoder, config.speaker, config.converter)
            self.helpers |= dict(zip(("encoder", "speaker", "converter"), parts), adapter=None)
            self.conversion = VoiceConversion(config.audio, *parts, dtype)
        self.generator_tx, self.schedule = config.optimizer(
            config.generator_optim, config.steps, config.generator_every
        )
        self.discriminator_tx, _ = config.optimizer(
            config.discriminator_optim,
            config.steps - config.adversarial_start,
            config.discriminator_every,
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
            ema=jax.tree.map(jnp.copy, params) if self.config.ema else {},
            frozen=helpers.init_helpers(
                self.helpers, self.conversion, audio, rng.stream(key, "helpers"), pretrained
            ),
        )

    def models(self, state: GanState) -> dict[str, Tree]:
        judges = state.discriminator
        return {
            "vocoder": self.speaking(state),
            "discriminators": {"params": judges.params, **judges.variables},
        }

    def step(self, state: GanState, batch: Batch) -> tuple[GanState, Metrics]:
        """Updates the discriminators, then the generator against the updated ones.

        Both updates use one forward pass of the generator.
        """
        config, params = self.config, state.generator.params
        adversarial = config.adversarial_start == 0 or state.step >= config.adversarial_start
        mel, batch = self.window(state, self.mel(state.frozen, batch), batch)
        if config.microbatches == 1:
            fake, pull_back = jax.vjp(lambda p: self.generate(p, mel, batch), params)
        else:
            fakes = jax.lax.map(
                lambda part: self.generate(params, *part),
                optim.split((mel, batch), config.microbatches),
            )
            fake = fakes.swapaxes(0, 1).reshape(batch.waveform.shape)  # undoes `split`

        # At every step, as in PyTorch: vectors that no iteration touched would divide by next to 0.
        judges = state.discriminator.replace(
            variables={
                name: power_iteration(state.discriminator.params, value)
                for name, value in state.discriminator.variables.items()
            }
        )
        discriminator, judge_metrics = self.update_if(
            adversarial & _due(state.step, config.discriminator_every),
            lambda model: self.update_discriminators(model, batch.waveform, fake),
            judges,
        )

        def loss_fn(fake: Array, batch: Batch) -> tuple[Array, Metrics]:
            return self.loss(fake, batch, discriminator, adversarial, state.frozen)

        def update_generator(model: ModelState) -> tuple[ModelState, Metrics]:
            if config.microbatches == 1:
                (loss, metrics), slope = jax.value_and_grad(loss_fn, has_aux=True)(fake, batch)
                (grads,) = pull_back(slope)
                metrics["loss"] = loss
            else:
                grads, metrics = optim.accumulate(
                    lambda p, part: loss_fn(self.generate(p, *part), part[1]),
                    model.params,
                    (mel, batch),
                    config.microbatches,
                )
            model, more = optim.apply(self.generator_tx, model, grads)
            return model, metrics | more

        generator, metrics = self.update_if(
            _due(state.step, config.generator_every), update_generator, state.generator
        )
        metrics |= judge_metrics
        metrics["learning_rate"] = self.schedule(state.step // config.generator_every)
        state = state.replace(
            step=state.step + 1,
            generator=generator,
            discriminator=discriminator,
            ema=optim.running_mean(state.ema, generator.params, config.ema, state.step),
        )
        return state, metrics

    def speaking(self, state: GanState) -> Tree:
        """The parameters that the generator is used with."""
        return state.ema if self.config.ema else state.generator.params

    def update_discriminators(
        self, model: ModelState, truth: Array, fake: Array
    ) -> tuple[ModelState, Metrics]:
        """One update on recordings and on what the generator made of them."""

        def loss_fn(params: Tree, pair: tuple[Array, Array]) -> tuple[Array, Metrics]:
            # Together, so that each kernel is used once.
            judgements = self.judge(params, model.variables, jnp.concatenate(pair))
            real, fake = zip(*(jnp.split(logits, 2) for logits, _ in judgements))
            return discriminator_loss(real, fake, self.config.gan_loss)

        pair = (truth, jax.lax.stop_gradient(fake))
        grads, metrics = optim.accumulate(loss_fn, model.params, pair, self.config.microbatches)
        model, more = optim.apply(self.discriminator_tx, model, grads)
        metrics = {
            name: metrics[name] for name in ("discriminator_loss", "logit_real", "logit_fake")
        }
        return model, metrics | {f"discriminator_{name}": value for name, value in more.items()}

    def loss(
        self,
        fake: Array,
        batch: Batch,
        discriminator: ModelState,
        adversarial: Array | bool,
        frozen: Tree,
    ) -> tuple[Array, Metrics]:
        """What the generator is to lower.

        Padding is zero in both waveforms and has its part in the means, as it has for the
        published model's short recordings.
        """
        config, truth = self.config, batch.waveform
        loss = jnp.float32(0)
        mel, metrics = mel_l1(fake, truth, config.audio)  # of interest also where it has no weight
        if config.mel_weight:
            loss += config.mel_weight * mel
        if config.stft_weight:
            distance, more = self.stft_distance(fake, truth)
            loss += config.stft_weight * distance
            metrics |= more
        if config.perceptual_weight:
            distance, more = self.listen(frozen, fake, batch)
            loss += config.perceptual_weight * distance
            metrics |= more

        def convince(fake: Array) -> tuple[Array, Metrics]:
            judge = functools.partial(self.judge, discriminator.params, discriminator.variables)
            logits, maps = zip(*judge(fake))
            convincing, metrics = generator_loss(logits, config.gan_loss)
            judged = config.adversarial_weight * convincing
            if config.feature_weight:
                real_maps = [judgement[1] for judgement in jax.lax.stop_gradient(judge(truth))]
                matching, more = feature_matching_loss(real_maps, maps)
                judged += config.feature_weight * matching
                metrics |= more
            return judged, metrics

        judged, more = _when(adversarial, convince, lambda x: _zeros(convince, x), fake)
        return loss + judged, {**more, **metrics}

    def stft_distance(self, fake: Array, truth: Array) -> tuple[Array, Metrics]:
        """The multi-resolution STFT loss, of multi-band generators the mean with their bands'."""
        audio, resolutions = self.config.audio, self.config.band_resolutions
        distance, metrics = multi_resolution_stft(fake, truth, audio, self.config.resolutions)
        if not resolutions:
            return distance, metrics

        def bands(waveform: Array) -> Array:
            signals = split_bands(waveform, self.config.bands).swapaxes(1, 2)
            return signals.reshape(-1, signals.shape[-1])

        in_bands, _ = multi_resolution_stft(bands(fake), bands(truth), audio, resolutions)
        return (distance + in_bands) / 2, metrics | {"band_stft_loss": in_bands}

    @staticmethod
    def update_if(
        condition: Array | bool, update: Callable[[ModelState], _Updated], model: ModelState
    ) -> _Updated:
        """The update where the condition holds; else the model as it is, and metrics of zero."""
        return _when(condition, update, lambda model: (model, _zeros(update, model)[1]), model)

    def listen(self, frozen: Tree, fake: Array, batch: Batch) -> tuple[Array, Metrics]:
        """Perceptual distance of a batch."""
        distance = self.perceptual(frozen["encoder"], fake, batch.waveform, batch.length)
        return distance.mean(), {"perceptual_loss": distance.mean()}

    def mel(self, frozen: Tree, batch: Batch) -> Array:
        """What the generator is to speak."""
        if self.conversion is not None:
            return helpers.converted_mel(self.conversion, frozen, batch)
        return log_mel(batch.waveform, self.config.audio, batch.length)

    def window(self, state: GanState, mel: Array, batch: Batch) -> tuple[Array, Batch]:
        """The part of a batch that a step learns on."""
        audio = self.config.audio
        size = audio.n_frames(audio.n_samples(self.config.segment_seconds))
        if not size:
            return mel, batch
        keys = rng.per_example(rng.stream(state.key, "segment", state.step), batch.example)
        return helpers.windows(keys, mel, batch, size, audio.hop_length)

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
        fake = self.copy(state, batch)
        loss, metrics = mel_l1(fake, truth, audio, length)
        _, more = multi_resolution_stft(fake, truth, audio, self.config.resolutions, length)
        if self.config.perceptual_weight:
            more |= self.listen(state.frozen, fake, batch)[1]
        return {**metrics, **more, "loss": loss}

    def copy(self, state: GanState, batch: Batch) -> Array:
        """Each recording as the vocoder renders it by itself."""
        frames = batch.length // self.config.audio.hop_length
        mel = self.mel(state.frozen, batch)
        return self.generate(self.speaking(state), mel, batch, frames)

    def copies(self, state: GanState, batch: Batch) -> Copies:
        """Recordings, their copies and true samples, on the host."""
        copy = jax.jit(self.copy)(state, batch)
        truth, copy, length = jax.device_get((batch.waveform, copy, batch.length))
        return truth, copy, length

    def showcase(self, state: GanState, batch: Batch) -> dict[str, Media]:
        """A recording and its copy."""
        first = jax.tree.map(lambda x: x[:1], batch)
        copy = jax.jit(self.copy)(state, first)
        mel, copy_mel = (
            log_mel(x, self.config.audio, first.length) for x in (first.waveform, copy)
        )
        return {
            "truth": Media("audio", np.asarray(first.waveform[0])),
            "copy": Media("audio", np.asarray(copy[0])),
            "truth_mel": Media("image", np.asarray(mel[0]).T),
            "copy_mel": Media("image", np.asarray(copy_mel[0]).T),
        }


def _due(step: Array, every: int) -> Array | bool:
    """Whether this is a step of `every`, the last of them."""
    return every == 1 or (step + 1) % every == 0


def _when(
    condition: Array | bool, then: Callable[[Any], Any], otherwise: Callable[[Any], Any], x: Any
) -> Any:
    """`then(x)` where the condition holds.

    Without a conditional where it always does: on CPU, XLA runs the convolutions in one several
    times slower than elsewhere.
    """
    return then(x) if condition is True else jax.lax.cond(condition, then, otherwise, x)


def _zeros(fn: Callable[..., Any], *args: Any) -> Any:
    """Zeros in the shapes of fn(*args)."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(fn, *args))
