"""What the published formats of self-supervised encoders have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from jaxclone.audio.spec import AudioSpec
from jaxclone.config import TYPE, from_data
from jaxclone.export.bundle import Bundle, parameter_shapes
from jaxclone.interop.names import Table, to_ours
from jaxclone.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2PretrainingConfig
from jaxclone.types import UserError

T = TypeVar("T")
# A field of a published configuration, its name in ours, and what theirs takes where it is absent.
Field = tuple[str, str, Any]


@dataclasses.dataclass(frozen=True)
class Imported:
    """A published checkpoint as a bundle.

    Attributes:
        bundle: its models.
        left_out: names of its tensors that are no part of them: the heads of other tasks.
    """

    bundle: Bundle
    left_out: tuple[str, ...] = ()


def build(
    kind: type[T], data: Mapping[str, Any], fields: Sequence[Field], what: str, **more: Any
) -> T:
    """One of our configurations from a published one.

    Args:
        kind: of ours.
        data: theirs.
        fields: which of theirs is which of ours.
        what: names the published configuration in messages.
        **more: fields of ours that are not simply one of theirs.

    Raises:
        UserError: a value is of the wrong type, or the values do not fit together.
    """
    values = {ours: data.get(theirs, default) for theirs, ours, default in fields} | more
    try:
        return from_data({TYPE: f"{kind.__module__}.{kind.__qualname__}", **values})
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def require_fixed(data: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> None:
    """Raises a UserError where a published configuration asks for what the encoder has not."""
    for name, value in fixed.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{what}: {name} is {data[name]!r}; encoders with {value!r} can be imported"
            )


def split_heads(
    tensors: Mapping[str, np.ndarray], prefixes: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors without those whose names begin with one of `prefixes`, and the names of these."""
    left_out = tuple(sorted(name for name in tensors if name.startswith(tuple(prefixes))))
    return {name: x for name, x in tensors.items() if name not in left_out}, left_out


def assemble(
    tensors: Mapping[str, np.ndarray],
    configs: Mapping[str, Wav2Vec2Config | Wav2Vec2PretrainingConfig],
    table: Table,
    what: str,
    origin: Mapping[str, Any],
) -> Bundle:
    """The bundle of published tensors.

    Args:
        tensors: by their names.
        configs: the encoder's, and that of what pretrains it where the tensors have that too.
        table: their names.
        what: names the checkpoint in messages.
        origin: of the encoder, see `Bundle`.

    Raises:
        UserError: a tensor is missing, unknown or misshapen.
    """
    encoder = configs["encoder"]
    assert isinstance(encoder, Wav2Vec2Config)
    audio = AudioSpec(hop_length=encoder.hop_length)
    shapes = parameter_shapes(configs, audio)
    models = to_ours(tensors, shapes, table, what)
    return Bundle(models, dict(configs), audio, {"encoder": dict(origin)})
