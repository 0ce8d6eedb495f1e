"""A bias of attention by relative position, weighed by a gate, as WavLM has it."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from jaxclone.nn.layers import dense
from jaxclone.types import Array, UserError


@dataclasses.dataclass(frozen=True)
class RelativePositionsConfig:
    """How distances between frames share entries of a table; the defaults are WavLM's.

    Attributes:
        buckets: entries, half of them for frames before, half for frames after. Half of each half
            are single distances, the rest grow with the logarithm (Raffel et al. 2020 §2.1).
        max_distance: frames from which on all share the last entry.
    """

    buckets: int = 320
    max_distance: int = 800

    def __post_init__(self) -> None:
        if self.buckets % 4 or not 0 < self.buckets // 4 < self.max_distance:
            raise UserError(
                "relative positions need buckets, a multiple of 4, with buckets / 4 < max_distance,"
                f" got {self.buckets} and {self.max_distance}"
            )

    def bucket(self, distance: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
        """The entry of each distance, counted from the query to the key.

        >>> RelativePositionsConfig(8, 16).bucket(np.array([-99, -2, -1, 0, 1, 2, 15, 99])).tolist()
        [3, 2, 1, 0, 5, 6, 7, 7]
        """
        half, exact = self.buckets // 2, self.buckets // 4
        far = np.abs(distance)
        # In f32, as the published models were trained.
        share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
        share = share / np.float32(np.log(self.max_distance / exact))
        coarse = np.minimum(exact + (share * np.float32(half - exact)).astype(int), half - 1)
        return np.where(distance > 0, half, 0) + np.where(far < exact, far, coarse)


class RelativePositions(nn.Module):
    """A number a head for each pair of frames, by their distance.

    The layers of WavLM share it, each weighing it by a gate of its own (Chen et al. 2022).
    """

    config: RelativePositionsConfig
    heads: int

    @nn.compact
    def __call__(self, frames: int) -> Float[Array, "h f f"]:
        table = self.param(
            "table",
            nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, "heads")),
            (self.config.buckets, self.heads),
        )
        by_distance = table[self.config.bucket(np.arange(1 - frames, frames))]
        first = frames - 1 - jnp.arange(frames)  # where each query's row begins
        rows = jax.vmap(lambda at: jax.lax.dynamic_slice_in_dim(by_distance, at, frames))(first)
        return rows.transpose(2, 0, 1)


class PositionGate(nn.Module):
    """What each query makes of the bias by position: a factor for each head.

    The published layer projects to eight numbers and adds them up in fours.
    """

    heads: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b f d"]) -> Float[Array, "b h f 1"]:
        x = x.reshape(*x.shape[:2], self.heads, -1)
        gates = dense(8, (None, None), self.dtype, "gates")(x).astype(jnp.float32)
        gates = jax.nn.sigmoid(gates.reshape(*gates.shape[:3], 2, 4).sum(-1))
        scale = self.param(
            "scale", nn.with_logical_partitioning(nn.initializers.ones, ("heads",)), (self.heads,)
        )
        update, reset = gates[..., 0], gates[..., 1]
        return (update * (reset * scale - 1) + 2).transpose(0, 2, 1)[..., None]
