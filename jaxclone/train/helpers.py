"""Frozen models that a run uses: a converter that gives the mels, an encoder that listens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from jaxclone import rng
from jaxclone.audio.spec import AudioSpec
from jaxclone.models.vocoder import GeneratorConfig, make_generator
from jaxclone.models.voice_conversion import VoiceConversion
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2Encoder
from jaxclone.types import Array, Batch, Tree, length_mask

# Where a state holds helpers beside frozen models of its own.
HELPERS = "helpers"


def helper_params(params: Tree) -> Tree:
    """The models of a state by name, its helpers before its own."""
    return {**params, **params.get(HELPERS, {})}


def without_helpers(params: Tree) -> Tree:
    """The models of a state that are its own."""
    return {name: part for name, part in params.items() if name != HELPERS}


def init_helpers(
    helpers: Mapping[str, Any],
    networks: VoiceConversion | None,
    audio: AudioSpec,
    key: Key[Array, ""],
    pretrained: Mapping[str, Tree],
) -> dict[str, Tree]:
    """The parameters of frozen models, boxed with their logical axes where they are not given.

    Args:
        helpers: the config of each of them, by model name.
        networks: where several of them are those of a conversion.
        audio: what they hear.
        key: of what is not given.
        pretrained: parameters by model name.
    """
    params: dict[str, Tree] = {}
    if networks is not None:
        params |= networks.init(key)
    elif "encoder" in helpers:
        params["encoder"] = init_encoder(helpers["encoder"], audio, key)
    if "vocoder" in helpers:
        params["vocoder"] = init_vocoder(helpers["vocoder"], audio, key)
    return {name: pretrained.get(name, params[name]) for name in helpers}


def init_encoder(config: Wav2Vec2Config, audio: AudioSpec, key: Key[Array, ""]) -> Tree:
    """Parameters of an encoder, boxed with their logical axes."""
    waveform, length = jnp.zeros((1, audio.sample_rate)), jnp.array([audio.sample_rate])
    key = rng.stream(key, "encoder")
    return Wav2Vec2Encoder(config).init(key, waveform, length)["params"]


def init_vocoder(config: GeneratorConfig, audio: AudioSpec, key: Key[Array, ""]) -> Tree:
    """Parameters of a vocoder, boxed with their logical axes."""
    mel = jnp.zeros((1, 4, audio.n_mels))
    return make_generator(config).init(rng.stream(key, "vocoder"), mel)["params"]


def converted_mel(networks: VoiceConversion, params: Tree, batch: Batch) -> Float[Array, "b f m"]:
    """What the converter makes of recordings in their own voice: log-mels, silent after their ends.

    Content and pitch are those of each recording, frame by frame, so that the mel is aligned with
    it; the voice is that of its reference, where the batch has one, as in conversion, or its own.
    """
    frames = batch.length // networks.audio.hop_length
    heard = (batch.waveform, batch.length)
    if batch.reference is not None:
        heard = (batch.reference, batch.reference_length)
    mel = networks.decode(
        params,
        networks.content(params, batch.waveform, batch.length),
        networks.embed(params, *heard),
        batch.f0,
        frames,
    )
    mask = length_mask(frames, mel.shape[1])[..., None]
    return jax.lax.stop_gradient(jnp.where(mask, mel, networks.audio.silence))


def windows(
    keys: Key[Array, " b"],
    mel: Float[Array, "b f m"],
    batch: Batch,
    size: int,
    hop_length: int,
) -> tuple[Float[Array, "b {size} m"], Batch]:
    """A window of each mel, at a random place, and the samples that belong to it.

    Args:
        keys: one an example.
        mel: of the batch.
        batch: its recordings.
        size: frames of a window; those of a shorter recording are padded.
        hop_length: samples a frame.
    """
    frames = jnp.asarray(batch.length) // hop_length

    def one(key: Array, mel: Array, waveform: Array, frames: Array) -> tuple[Array, Array, Array]:
        start = jax.random.randint(key, (), 0, jnp.maximum(frames - size, 0) + 1)
        return (
            jax.lax.dynamic_slice_in_dim(mel, start, size),
            jax.lax.dynamic_slice_in_dim(waveform, start * hop_length, size * hop_length),
            start * hop_length,
        )

    mel, waveform, start = jax.vmap(one)(keys, mel, jnp.asarray(batch.waveform), frames)
    length = jnp.minimum(batch.length - start, size * hop_length)
    return mel, Batch(waveform, length, batch.speaker, batch.example)
