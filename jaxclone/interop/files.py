"""Foreign files: safetensors, JSON, PyTorch's `.pt`; of what is read, nothing but data is."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxclone.files import whole_folder
from jaxclone.tensors import load_tensors
from jaxclone.types import UserError

# The files of a folder that transformers saved.
CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"

# What checkpoints keep beside their tensors: settings and dictionaries. An object of these is read
# as the plain values that it holds; the code of its class is never looked for, let alone run.
_INERT_MODULES = ("argparse", "fairseq", "hydra", "omegaconf", "typing")
_INERT = (
    "argparse.Namespace",
    "collections.defaultdict",
    "fairseq.data.dictionary.Dictionary",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    *(f"builtins.{name}" for name in ("bool", "dict", "float", "int", "list", "str")),
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or holds something else.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object")
    return data


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which takes its name at the end.

    Raises:
        UserError: there is something of that name already, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists: choose another folder")
    with whole_folder(folder) as new:
        yield new


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", "utf-8")


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a folder by name, from safetensors, whole or in parts, or a PyTorch file.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    for name, read in ((WEIGHTS, _read_safetensors), ("pytorch_model.bin", _read_bin)):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict):
                raise UserError(f"{index} has no weight_map")
            parts = sorted({Path(str(part)).name for part in places.values()})
            return {k: v for part in parts for k, v in read(folder / part).items()}
    raise UserError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return load_tensors(path)[0]


def _read_bin(path: Path) -> dict[str, np.ndarray]:
    return as_arrays(read_torch(path), path)


def as_arrays(tensors: Any, path: Path) -> dict[str, np.ndarray]:
    """A PyTorch state dict as numpy arrays, with floating-point numbers of any kind as f32.

    Raises:
        UserError: it is none, or holds numbers that numpy has not, or that are not finite.
    """
    if not isinstance(tensors, dict) or not all(hasattr(x, "numpy") for x in tensors.values()):
        raise UserError(f"{path} holds no table of tensors")
    arrays = {}
    for name, tensor in tensors.items():
        try:
            tensor = tensor.detach()
            array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
            arrays[str(name)] = array
        except (TypeError, RuntimeError) as error:  # sparse
            raise UserError(f"{path}: {name} cannot be read: {error}") from None
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} holds values that are not finite")
    return arrays


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, read with `weights_only=True`: plain values and tensors on the CPU.

    Raises:
        UserError: PyTorch is not installed, the file is damaged, or it holds objects that are
            neither tensors nor settings.
    """
    torch = _torch(f"reading {path}")
    if not path.is_file():
        raise UserError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with (
            torch.serialization.safe_globals(_stand_ins([*_INERT, *_unsafe(path)])),
            warnings.catch_warnings(action="ignore"),  # of files that are refused, or old
        ):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds a {refused[1]}, which only its own program can read; save the "
                "tensors alone"
            ) from None
        raise UserError(f"{path} is not a PyTorch file of weights, or is damaged") from None
    except (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        raise UserError(f"{path} is not a PyTorch file of weights, or is damaged") from None
    return _plain(found)


def write_torch(path: Path, parts: Mapping[str, Any]) -> None:
    """Writes with `torch.save`: numpy arrays as tensors, in dicts to any depth.

    Raises:
        UserError: PyTorch is not installed.
    """
    torch = _torch(f"writing {path.name}")

    def convert(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: convert(item) for name, item in value.items()}
        # Of its own memory, in order: PyTorch can share neither a read-only nor a reversed array.
        return torch.tensor(value.copy()) if isinstance(value, np.ndarray) else value

    torch.save(convert(parts), path)


def _torch(what: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{what} needs PyTorch: pip install 'jaxclone[interop]'") from None
    return torch


class _Inert:
    """Stands in for an object of another program: keeps what it was made of, does nothing."""

    def __new__(cls, *args: Any) -> Any:
        if cls.__qualname__ == "defaultdict":
            return {}
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    args: tuple[Any, ...]
    state: Any


def _stand_ins(names: Iterable[str]) -> list[Any]:
    found: list[Any] = []
    for name in dict.fromkeys(names):
        module, _, kind = name.rpartition(".")
        found.append(type(kind, (_Inert,), {"__module__": module, "__qualname__": kind}))
    return found


def _unsafe(path: Path) -> list[str]:
    """Names of classes in a file that `weights_only` refuses and that are known to be settings."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = get_unsafe_globals_in_checkpoint(path)
    except (EOFError, OSError, RuntimeError, ValueError, pickle.UnpicklingError):
        return []  # not written by torch.save since 1.6; loading it will tell
    return [name for name in names if name.partition(".")[0] in _INERT_MODULES]


def _plain(value: Any) -> Any:
    """Values without their stand-ins: a namespace as a dict, an enumeration as its value."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if not isinstance(value, _Inert):
        return value
    if not isinstance(value.state, dict):
        return _plain(value.args[0]) if value.args else None
    for key in ("_content", "_val"):  # of OmegaConf's containers and leaves
        if key in value.state:
            return _plain(value.state[key])
    return _plain(value.state)
