"""Training a vocoder that works by diffusion: it learns to tell the noise in noisy recordings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxclone import rng
from jaxclone.audio.spectral import log_mel
from jaxclone.losses.diffusion import noise_loss
from jaxclone.losses.spectral import RESOLUTIONS, Resolution, mel_l1, multi_resolution_stft
from jaxclone.models.diffwave import DiffWave, DiffWaveConfig
from jaxclone.train import optim
from jaxclone.train.optim import OptimConfig
from jaxclone.train.state import ModelState, TrainState
from jaxclone.train.task import Copies, Media, RunConfig, Task
from jaxclone.types import Array, Batch, Metrics, Tree, length_mask

_PUBLISHED = OptimConfig(kind="adam", learning_rate=2e-4, betas=(0.9, 0.999))


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(RunConfig):
    """A vocoder, trained as DiffWave is (Kong et al. 2020, algorithm 1).

    Attributes:
        generator: sizes of the network and the noise it is trained with.
        loss: "l1" or "l2", see `losses.diffusion.noise_loss`.
        resolutions: (n_fft, hop_length, win_length) of the STFT distance of the evaluation.
        optim: how the network is updated.
        ema: the decay a step of a running mean of the parameters, which then is what is evaluated
            and kept in the bundle; 0 for none, as published. Early in a run the mean is shorter.
    """

    generator: DiffWaveConfig = DiffWaveConfig()
    loss: Literal["l1", "l2"] = "l1"
    resolutions: tuple[Resolution, ...] = RESOLUTIONS
    optim: OptimConfig = _PUBLISHED
    ema: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        optim.require_decay(self.ema)

    def task(self) -> Task:
        """The functions of this run.

        Raises:
            UserError: the generator does not fit the AudioSpec.
        """
        self.generator.require(self.audio)
        network = DiffWave(
            self.generator, jnp.bfloat16 if self.precision == "bf16" else jnp.float32
        )
        tx, schedule = optim.make_optimizer(self.optim, self.steps)

        def averaged(params: Tree) -> dict[str, Tree]:
            """What a running mean is kept of, by its name in the state."""
            return {"mean": params} if self.ema else {}

        def init(key: jax.Array, pretrained: Mapping[str, Tree]) -> TrainState:
            params = pretrained.get("vocoder")
            if params is None:
                mel = jnp.zeros((1, 4, self.audio.n_mels))
                params = network.init(rng.stream(key, "generator"), mel)["params"]
            mean = jax.tree.map(jnp.copy, averaged(params))
            return TrainState(jnp.int32(0), key, ModelState(params, tx.init(params), mean), {})

        def loss_fn(params: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
            waveform, mel, frames = self.heard(batch)
            keys = rng.per_example(key, batch.example)
            time, noise = draw(keys, waveform.shape[1], self.generator.noise.steps)
            noisy = add_noise(waveform, noise, time, self.generator)
            told = network.apply(
                {"params": params},
                noisy,
                time.astype(jnp.float32),
                mel,
                length_mask(frames, mel.shape[1]),
                method="tell_noise",
            )
            return noise_loss(told, noise, frames * self.audio.hop_length, self.loss)

        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            key = rng.stream(state.key, "diffusion", state.step)
            grads, metrics = optim.accumulate(
                lambda params, part: loss_fn(params, part, key),
                state.model.params,
                batch,
                self.microbatches,
            )
            model, more = optim.apply(tx, state.model, grads)
            metrics |= more | {"learning_rate": schedule(state.step)}
            mean = averaged(model.params)
            mean = optim.running_mean(model.variables, mean, self.ema, state.step)
            return state.replace(step=state.step + 1, model=model.replace(variables=mean)), metrics

        def speaking(state: TrainState) -> Tree:
            """The parameters that the network is used with."""
            return state.model.variables["mean"] if self.ema else state.model.params

        def speak(params: Tree, batch: Batch) -> tuple[Array, Array, Array]:
            """Recordings, their copies by sampling, and their true samples."""
            waveform, mel, frames = self.heard(batch)
            copy = network.apply({"params": params}, mel, frames)
            return waveform, copy, frames * self.audio.hop_length

        def evaluate(state: TrainState, batch: Batch) -> Metrics:
            params = speaking(state)
            loss, metrics = loss_fn(params, batch, rng.stream(state.key, "valid"))
            truth, copy, length = speak(params, batch)
            _, more = mel_l1(copy, truth, self.audio, length)
            _, most = multi_resolution_stft(copy, truth, self.audio, self.resolutions, length)
            # All of them averaged by the number of samples.
            return {**more, **most, **metrics, "loss": loss}

        def copies(state: TrainState, batch: Batch) -> Copies:
            truth, copy, length = jax.device_get(jax.jit(speak)(speaking(state), batch))
            return truth, copy, length

        def showcase(state: TrainState, batch: Batch) -> dict[str, Media]:
            first = jax.tree.map(lambda x: x[:1], batch)
            truth, copy, length = jax.jit(speak)(speaking(state), first)
            return {
                "truth": Media("audio", np.asarray(truth[0])),
                "copy": Media("audio", np.asarray(copy[0])),
                "truth_mel": Media("image", np.asarray(log_mel(truth, self.audio, length)[0]).T),
                "copy_mel": Media("image", np.asarray(log_mel(copy, self.audio, length)[0]).T),
            }

        return Task(
            init=init,
            step=step,
            evaluate=evaluate,
            models=lambda state: {"vocoder": speaking(state)},
            model_configs={"vocoder": self.generator},
            copies=copies,
            showcase=showcase,
        )

    def heard(self, batch: Batch) -> tuple[Array, Array, Array]:
        """Recordings cut to whole frames, their mels, and how many frames are true."""
        mel = log_mel(batch.waveform, self.audio, batch.length)
        waveform = batch.waveform[:, : mel.shape[1] * self.audio.hop_length]
        return waveform, mel, batch.length // self.audio.hop_length


def draw(
    keys: Array, samples: int, steps: int
) -> tuple[Int[Array, " b"], Float[Array, "b {samples}"]]:
    """A step of the diffusion and noise for each example, from its own key."""
    times = jax.vmap(lambda key: jax.random.randint(rng.stream(key, "time"), (), 0, steps))(keys)
    noise = jax.vmap(lambda key: jax.random.normal(rng.stream(key, "noise"), (samples,)))(keys)
    return times, noise


def add_noise(
    waveform: Float[Array, "b t"],
    noise: Float[Array, "b t"],
    time: Int[Array, " b"],
    config: DiffWaveConfig,
) -> Float[Array, "b t"]:
    """Recordings as they are after so many steps of the diffusion, the first being 0 (eq. 4)."""
    kept = jnp.asarray(config.noise.kept, jnp.float32)[time][:, None]
    return jnp.sqrt(kept) * waveform + jnp.sqrt(1 - kept) * noise
