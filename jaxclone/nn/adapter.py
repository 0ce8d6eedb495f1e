"""A bottleneck adapter: a few parameters beside a layer that make it one person's."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxclone.types import Array


class Adapter(nn.Module):
    """x + up(relu(down(x))), with `up` zero at first so that a new adapter is the identity.

    The weights live in the variable collection `adapter`, apart from `params`, and come from the
    random stream `adapter`: one speaker is one small tree. Without the collection in `apply`, the
    layer is the identity (Houlsby et al. 2019 §2.1).

    Attributes:
        rank: width of the bottleneck.
        dtype: of the computation.
    """

    rank: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Adapts the last axis."""
        if not (self.is_initializing() or self.has_variable("adapter", "down")):
            return x
        width = x.shape[-1]
        down = self.variable(
            "adapter",
            "down",
            lambda: nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("embed", "rank"))(
                self.make_rng("adapter"), (width, self.rank), jnp.float32
            ),
        ).value
        up = self.variable(
            "adapter",
            "up",
            lambda: nn.with_logical_partitioning(nn.initializers.zeros, ("rank", "embed"))(
                self.make_rng("adapter"), (self.rank, width), jnp.float32
            ),
        ).value
        hidden = nn.relu(x @ down.astype(self.dtype))
        return x + hidden @ up.astype(self.dtype)
