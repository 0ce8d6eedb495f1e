"""A Voice as a file: what is kept of a person, and what it belongs to."""

from __future__ import annotations

from pathlib import Path

from jaxclone.audio.spec import AudioSpec
from jaxclone.config import from_json, to_json
from jaxclone.tensors import load_tensors, save_tensors
from jaxclone.types import UserError, Voice

# The version of the format; a reader refuses another.
_FORMAT = "jaxclone-voice-1"


def save_voice(path: str | Path, voice: Voice, audio: AudioSpec, model: str) -> None:
    """Writes a Voice as one safetensors file.

    Args:
        path: the file.
        voice: of `enroll`.
        audio: of the model that it was made with.
        model: the fingerprint of that model's weights.
    """
    tensors = {
        "embedding": voice.embedding,
        "log_f0_mean": voice.log_f0_mean,
        "log_f0_std": voice.log_f0_std,
        "adapter": voice.adapter,
    }
    metadata = {
        "format": _FORMAT,
        "audio": to_json(audio),
        "model": model,
        "steps": str(voice.steps),
        "reference_seconds": repr(float(voice.reference_seconds)),
    }
    save_tensors(path, tensors, metadata)


def load_voice(path: str | Path, audio: AudioSpec, model: str) -> Voice:
    """Reads a Voice for use with a model.

    Args:
        path: the file.
        audio: of the model.
        model: the fingerprint of its weights.

    Raises:
        UserError: not a whole voice file, or one that was made with another model.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is not a voice of jaxclone")
    try:
        voice = Voice(
            embedding=tensors["embedding"],
            log_f0_mean=tensors["log_f0_mean"],
            log_f0_std=tensors["log_f0_std"],
            adapter=tensors.get("adapter", {}),
            steps=int(metadata["steps"]),
            reference_seconds=float(metadata["reference_seconds"]),
        )
        made_with = from_json(metadata["audio"])
        fingerprint = metadata["model"]
    except UserError:
        raise
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is not a whole voice ({error})") from error
    vectors = (voice.embedding, voice.log_f0_mean, voice.log_f0_std)
    if [getattr(v, "ndim", None) for v in vectors] != [1, 0, 0]:
        raise UserError(f"{path} is not a whole voice (a value of the wrong shape)")
    if not (isinstance(made_with, AudioSpec) and isinstance(voice.adapter, dict)):
        raise UserError(f"{path} is not a whole voice (a value of the wrong type)")
    audio.require(made_with, f"voice {path}")
    if fingerprint != model:
        raise UserError(f"voice {path} was made with another model: enroll again with this one")
    return voice
