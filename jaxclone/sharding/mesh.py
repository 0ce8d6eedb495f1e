"""Devices by axis."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 for one axis takes what is left.

    Attributes:
        data: copies of the model, each with its part of the batch.
        fsdp: parts of the parameters that are gathered when used; also splits the batch.
        tensor: parts of the wide dimensions of a layer.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
