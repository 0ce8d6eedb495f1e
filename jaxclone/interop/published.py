"""What the published formats have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jaxclone.audio.spec import AudioSpec
from jaxclone.config import TYPE, from_data
from jaxclone.export.bundle import Bundle, parameter_shapes
from jaxclone.interop.names import Table, to_ours
from jaxclone.nn.weight_norm import fold, unfold
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
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            # In JSON an edge of 0 Hz and one of 0.0 Hz are the same.
            if "float" in str(field.type) and type(values.get(field.name)) is int:
                values[field.name] = float(values[field.name])
        return from_data({TYPE: f"{kind.__module__}.{kind.__qualname__}", **values})
    except (OverflowError, UserError) as error:
        raise UserError(f"{what}: {error}") from None


def require_fixed(data: Mapping[str, Any], fixed: Mapping[str, Any], what: str) -> None:
    """Raises a UserError where a published configuration asks for what our model has not."""
    for name, value in fixed.items():
        if data.get(name, value) != value:
            raise UserError(
                f"{what}: {name} is {data[name]!r}; models with {value!r} can be imported"
            )


def require_sizes(data: Mapping[str, Any], sizes: Mapping[str, int], what: str) -> None:
    """Raises a UserError where a published configuration has other sizes than its tensors.

    Before a network of such sizes is thought of, which may take for ever.
    """
    for name, size in sizes.items():
        if data.get(name) != size:
            raise UserError(f"{what}: {name} is {data.get(name)!r}, by the tensors it is {size}")


def split_heads(
    tensors: Mapping[str, np.ndarray], prefixes: Sequence[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Tensors without those whose names begin with one of `prefixes`, and the names of these."""
    left_out = tuple(sorted(name for name in tensors if name.startswith(tuple(prefixes))))
    return {name: x for name, x in tensors.items() if name not in left_out}, left_out


def vocoder_of(bundle: Bundle, kind: type[T]) -> T:
    """The configuration of the vocoder in a bundle.

    Raises:
        UserError: it has none, or one of another kind.
    """
    config = bundle.configs.get("vocoder")
    if config is None:
        held = ", ".join(bundle.models)
        raise UserError(f"there is no vocoder in the bundle, which holds {held}")
    if not isinstance(config, kind):
        wanted = kind.__name__.removesuffix("Config")
        raise UserError(f"this format is of {wanted}; the vocoder is a {type(config).__name__}")
    return config


def assemble(
    tensors: Mapping[str, np.ndarray],
    configs: Mapping[str, Any],
    audio: AudioSpec,
    table: Table,
    what: str,
    origins: Mapping[str, Any],
    *,
    weight_norm: bool = True,
) -> Bundle:
    """The bundle of published tensors.

    Args:
        tensors: by their names.
        configs: of the models that they are, by ours.
        audio: how sound becomes frames.
        table: their names.
        what: names the checkpoint in messages.
        origins: see `Bundle`.
        weight_norm: whether the vocoder has it still; where it was removed, kernels are read, and
            become directions of their own length.

    Raises:
        UserError: a tensor is missing, unknown or misshapen.
    """
    shapes = parameter_shapes(configs, audio)
    wanted = dict(shapes)
    if not weight_norm:
        wanted["vocoder"] = jax.eval_shape(fold, shapes["vocoder"])
    models = to_ours(tensors, wanted, table, what)
    if not weight_norm:
        models["vocoder"] = jax.device_get(unfold(models["vocoder"], shapes["vocoder"]))
    return Bundle(models, dict(configs), audio, dict(origins))


def has_weight_norm(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether a convolution has its gain beside its kernel."""
    return any(name.endswith((".weight_g", ".weight.original0")) for name in tensors)
