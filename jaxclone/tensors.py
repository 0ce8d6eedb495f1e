"""Nested dicts of arrays to and from safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jaxclone.files import whole_file
from jaxclone.types import Tree, UserError


def save_tensors(path: str | Path, tree: Tree, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a nested dict of arrays, its keys joined by "/"; the file appears when it is whole.

    Args:
        path: the file; its folder is made when missing.
        tree: dicts of dicts of arrays; empty dicts are not kept.
        metadata: strings to keep in the file's header.

    Raises:
        UserError: the place cannot be written to.
    """
    path = Path(path)
    flat = flatten_dict(jax.device_get(tree), sep="/")
    # Not `ascontiguousarray`, which makes scalars into vectors.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
    with whole_file(path) as file:
        file.write(save(arrays, dict(metadata) if metadata else None))


def load_tensors(path: str | Path) -> tuple[Tree, dict[str, str]]:
    """Reads what `save_tensors` wrote.

    Returns:
        The nested dict of numpy arrays, and the metadata.

    Raises:
        UserError: the file is missing, cut off, not of this format, or holds a name or a number
            that no saved tree has.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, TypeError, ValueError) as error:
        # AttributeError is how safetensors meets a number format that NumPy does not have.
        raise UserError(f"{path} is not a whole safetensors file ({error})") from error
    for name, array in arrays.items():
        if any(part in ("", ".", "..") for part in name.split("/")):
            raise UserError(f"{path}: {name!r} is not the name of a parameter")
        if array.dtype.kind not in "biu" and not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    return _unflatten(arrays, path), metadata


def _unflatten(arrays: dict[str, np.ndarray], path: Path) -> Tree:
    for name in arrays:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            if (parent := "/".join(parts[:depth])) in arrays:
                raise UserError(f"{path}: {parent} is an array and also holds {name}")
    return unflatten_dict(arrays, sep="/")
