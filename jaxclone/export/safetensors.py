"""A bundle as one safetensors file, for programs that read the parameters alone."""

from __future__ import annotations

import json
from pathlib import Path

from jaxclone.config import to_data
from jaxclone.export.bundle import Bundle
from jaxclone.tensors import save_tensors
from jaxclone.types import UserError


def write(bundle: Bundle, path: Path) -> None:
    """Writes all parameters, named `model/path/of/the/parameter`.

    The header holds, as JSON, the configuration of each model under its name and the AudioSpec
    under `audio`.

    Raises:
        UserError: the file exists or cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists: choose another name")
    configs = {**bundle.configs, "audio": bundle.audio}
    header = {name: json.dumps(to_data(config)) for name, config in configs.items()}
    save_tensors(path, bundle.models, header)
