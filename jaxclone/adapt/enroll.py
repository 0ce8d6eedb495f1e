"""From seconds of recording to a Voice: an embedding, F0 statistics and, if asked, an adapter."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float, Int, Key

from jaxclone import rng
from jaxclone.adapt.maml import adapt
from jaxclone.audio import pitch
from jaxclone.audio.perturb import PerturbConfig, perturb
from jaxclone.losses.reconstruction import masked_l1
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.types import Array, Batch, Tree, UserError, Voice


@dataclasses.dataclass(frozen=True)
class AdaptConfig:
    """How a model is adapted to a speaker, in meta-training and enrolment alike.

    Attributes:
        steps: inner steps (Meta-TTS: 5 in training; any number at enrolment).
        learning_rate: of the inner gradient descent.
        first_order: leave second derivatives out of meta-training.
        crop_seconds: recordings are cut into pieces of this length.
        perturb: how the recordings are disguised from the encoder, as in the converter's training.
    """

    steps: int = 5
    learning_rate: float = 1e-3
    first_order: bool = False
    crop_seconds: float = 2.0
    perturb: PerturbConfig = PerturbConfig()


@struct.dataclass
class Lesson:
    """What adaptation learns from: everything that does not depend on the adapted parameters.

    Attributes:
        content: f32[b, f, c] features of the encoder.
        f0: f32[b, f] Hz.
        mel: f32[b, f, m] the truth.
        frames: i32[b] true frames.
        speaker: f32[d] the speaker's unit vector.
    """

    content: Tree
    f0: Tree
    mel: Tree
    frames: Tree
    speaker: Tree


def make_lesson(
    networks: VoiceConversion,
    params: Tree,
    batch: Batch,
    keys: Key[Array, " b"],
    config: AdaptConfig,
    speaker: Float[Array, " d"] | None = None,
) -> Lesson:
    """Prepares recordings of one speaker; `speaker` defaults to their own embedding."""
    heard = perturb(keys, batch.waveform, networks.audio, config.perturb)
    mel, frames = networks.mel(batch.waveform, batch.length)
    if speaker is None:
        speaker = embed_speaker(networks, params, batch.waveform, batch.length)
    content = networks.content(params, heard, batch.length)
    return Lesson(content, batch.f0, mel, frames, speaker)


def embed_speaker(
    networks: VoiceConversion,
    params: Tree,
    waveform: Float[Array, "b t"],
    length: Int[Array, " b"],
) -> Float[Array, " d"]:
    """One unit vector for all recordings, each weighing as much as it is long."""
    vectors = networks.embed(params, waveform, length)
    mean = jnp.sum(vectors * jnp.asarray(length)[:, None], axis=0)
    return mean / jnp.sqrt(jnp.sum(mean**2) + 1e-8)


def lesson_loss(
    networks: VoiceConversion, params: Tree, adapter: Tree, lesson: Lesson
) -> Float[Array, ""]:
    """Mean L1 distance between the spoken and the true log-mel."""
    predicted = speak_lesson(networks, params, adapter, lesson)
    return masked_l1(predicted, lesson.mel, lesson.frames)[0]


def speak_lesson(
    networks: VoiceConversion, params: Tree, adapter: Tree, lesson: Lesson
) -> Float[Array, "b f m"]:
    """The lesson's recordings as an adapter speaks them: log-mels."""
    speaker = jnp.broadcast_to(lesson.speaker, (len(lesson.mel), *lesson.speaker.shape))
    return networks.decode(
        {**params, "adapter": adapter}, lesson.content, speaker, lesson.f0, lesson.frames
    )


def cut(
    waveforms: Sequence[Float[np.ndarray, " _"]], audio_frames: int, hop: int
) -> tuple[Float[np.ndarray, "b s"], Int[np.ndarray, " b"]]:
    """Cuts recordings into pieces of `audio_frames` frames, the last of each padded.

    Pieces shorter than a fifth of a full one are dropped unless nothing else is left.
    """
    size = audio_frames * hop
    pieces = [w[i : i + size] for w in waveforms for i in range(0, len(w), size)]
    pieces = [p for p in pieces if len(p) >= size // 5] or [max(pieces, key=len)]
    padded = np.stack([np.pad(p, (0, size - len(p))) for p in pieces]).astype(np.float32)
    return padded, np.array([len(p) for p in pieces], np.int32)


def enroll(
    networks: VoiceConversion,
    params: Tree,
    waveforms: Sequence[Float[np.ndarray, " _"]],
    config: AdaptConfig,
    steps: int = 0,
    seed: int = 0,
) -> Voice:
    """Makes a Voice of a person's recordings.

    Args:
        networks: the networks.
        params: their parameters, with "adapter" as the (meta-learned) start.
        waveforms: recordings at the networks' sample rate.
        config: of the adaptation.
        steps: inner steps; 0 keeps the embedding and F0 statistics alone.
        seed: of how the recordings are disguised for those steps.

    Raises:
        UserError: nothing in the recordings is voiced, or adaptation is asked of a model without
            adapters.
    """
    audio = networks.audio
    f0 = [pitch.f0(w, audio) for w in waveforms]
    if not np.any(np.concatenate(f0)):
        raise UserError("no voiced speech was found in the reference: its pitch cannot be told")
    mean, std = pitch.log_f0_stats(np.concatenate(f0))
    frames = round(config.crop_seconds * audio.frame_rate)
    waveform, length = cut(waveforms, frames, audio.hop_length)
    embedding = _embed(networks, params, waveform, length)
    adapter: Tree = {}
    if steps:
        if not params.get("adapter"):
            raise UserError("this model has no adapters: enroll with 0 steps")
        batch = Batch(
            waveform=waveform,
            length=length,
            speaker=np.zeros(len(length), np.int32),
            example=np.arange(len(length), dtype=np.int32),
            f0=np.stack([pitch.f0(w, audio) for w in waveform]),
        )

        key = rng.stream(rng.root(seed), "enroll")
        lesson = _prepare(networks, config, params, batch, key)
        adapter = params["adapter"]
        for _ in range(steps):
            adapter = _learn(networks, config.learning_rate, params, adapter, lesson)
        adapter = jax.device_get(adapter)
    return Voice(
        embedding=np.asarray(embedding),
        log_f0_mean=np.float32(mean),
        log_f0_std=np.float32(std),
        adapter=adapter,
        steps=steps,
        reference_seconds=sum(map(len, waveforms)) / audio.sample_rate,
    )


@functools.partial(jax.jit, static_argnums=0)
def _embed(networks: VoiceConversion, params: Tree, waveform: Array, length: Array) -> Array:
    return embed_speaker(networks, params, waveform, length)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prepare(
    networks: VoiceConversion, config: AdaptConfig, params: Tree, batch: Batch, key: Key[Array, ""]
) -> Lesson:
    keys = rng.per_example(key, batch.example)
    return make_lesson(networks, params, batch, keys, config)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _learn(
    networks: VoiceConversion, learning_rate: float, params: Tree, adapter: Tree, lesson: Lesson
) -> Tree:
    """One inner step: what any number of them repeat is compiled once."""
    return adapt(
        lambda a: lesson_loss(networks, params, a, lesson),
        adapter,
        steps=1,
        learning_rate=learning_rate,
    )
