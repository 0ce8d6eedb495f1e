"""Self-attention over a padded sequence."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from jaxclone.nn.fused_attention import AttentionImpl, choose, fused_attention
from jaxclone.nn.layers import Keys, dense, dropout, split_keys
from jaxclone.nn.relative import PositionGate
from jaxclone.types import Array


class SelfAttention(nn.Module):
    """Multi-head attention of every frame to the true frames (Vaswani et al. 2017 §3.2).

    Given `positions`, it adds them to the logits, weighed by a gate.

    Attributes:
        heads: divides the width.
        attention_dropout: of the attention weights.
        dropout: of the result.
        dtype: of the computation; the softmax is f32.
        impl: how it is computed, see `jaxclone.nn.fused_attention.choose`.
    """

    heads: int
    attention_dropout: float = 0.0
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    impl: AttentionImpl = "auto"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f d"],
        mask: Bool[Array, "b f"],
        keys: Keys | None = None,
        positions: Float[Array, "h f f"] | None = None,
    ) -> Float[Array, "b f d"]:
        inner, outer = split_keys(keys, 2)
        width = x.shape[-1]

        def project(name: str) -> Array:
            y = dense(width, ("embed", "heads"), self.dtype, name)(x)
            return y.reshape(*x.shape[:2], self.heads, width // self.heads)

        query, key, value = project("query"), project("key"), project("value")
        dropping = inner is not None and self.attention_dropout > 0
        needs_weights = dropping or positions is not None
        impl = choose(self.impl, len(x), self.heads, query.shape[-1], self.dtype, needs_weights)
        if impl == "flash" or impl == "cudnn":
            y = fused_attention(query, key, value, mask, impl).reshape(x.shape)
            y = dense(width, ("heads", "embed"), self.dtype, "out")(y)
            return dropout(y, self.dropout, outer)
        logits = jnp.einsum(
            "bqhd,bkhd->bhqk",
            query * (width // self.heads) ** -0.5,
            key,
            preferred_element_type=jnp.float32,
        )
        if positions is not None:
            logits += PositionGate(self.heads, self.dtype, name="gate")(x) * positions
        # Finite, so that an example without a single true frame gives no NaN.
        logits = jnp.where(mask[:, None, None, :], logits, -1e30)
        weights = dropout(jax.nn.softmax(logits).astype(self.dtype), self.attention_dropout, inner)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return dropout(dense(width, ("heads", "embed"), self.dtype, "out")(y), self.dropout, outer)
