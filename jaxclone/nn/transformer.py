"""A layer of a transformer over time, and what of it the backward pass computes again."""

from __future__ import annotations

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxclone.nn.attention import SelfAttention
from jaxclone.nn.fused_attention import AttentionImpl
from jaxclone.nn.layers import FeedForward, Keys, split_keys
from jaxclone.nn.norm import layer_norm
from jaxclone.types import Array

Remat = Literal["none", "dots", "full"]


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with its residual; the shape that `nn.scan` wants.

    Attributes:
        heads: of the attention.
        mlp_width: of the feed-forward layers.
        norm_first: layer normalisation before attention and feed-forward, not after.
        dropout: of the results of attention and feed-forward.
        attention_dropout: of attention weights.
        activation_dropout: inside the feed-forward layers.
        layer_drop: probability that an example skips the layer.
        attention_impl: how attention is computed, see `jaxclone.nn.fused_attention.choose`.
        dtype: of the computation.
    """

    heads: int
    mlp_width: int
    norm_first: bool
    dropout: float
    attention_dropout: float
    activation_dropout: float
    layer_drop: float
    attention_impl: AttentionImpl
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, positions: Array | None, keys: Keys | None
    ) -> tuple[Array, Array]:
        """One layer.

        Args:
            x: [b, f, d].
            mask: bool [b, f], True for true frames.
            positions: [heads, f, f] bias of the attention by relative position; None for none.
            keys: one an example, for dropout; None for none.

        Returns:
            the result twice: what is carried on and what is kept.
        """
        attention_keys, mlp_keys, drop_keys = split_keys(keys, 3)
        attention = SelfAttention(
            self.heads,
            self.attention_dropout,
            self.dropout,
            self.dtype,
            self.attention_impl,
            name="attention",
        )
        mlp = FeedForward(
            self.mlp_width, self.activation_dropout, self.dropout, self.dtype, name="mlp"
        )
        norm_attention = layer_norm("embed", self.dtype, "norm_attention")
        norm_mlp = layer_norm("embed", self.dtype, "norm_mlp")
        if self.norm_first:
            y = x + attention(norm_attention(x), mask, attention_keys, positions)
            y = y + mlp(norm_mlp(y), mlp_keys)
        else:
            y = norm_attention(x + attention(x, mask, attention_keys, positions))
            y = norm_mlp(y + mlp(y, mlp_keys))
        if drop_keys is not None and self.layer_drop:
            skip = jax.vmap(lambda key: jax.random.bernoulli(key, self.layer_drop))(drop_keys)
            y = jnp.where(skip[:, None, None], x, y)
        y = nn.with_logical_constraint(y, ("batch", "time", "embed"))
        return y, y


def rematerialized(
    module: type[nn.Module], remat: bool | Remat, *, in_scan: bool
) -> type[nn.Module]:
    """A module that computes in the backward pass what it does not keep.

    Args:
        module: any.
        remat: "none" keeps everything; "dots" keeps convolutions and products with weights; "full"
            keeps nothing. True and False are "full" and "none".
        in_scan: whether a scan runs it.
    """
    if remat in (False, "none"):
        return module
    # Within a scan nothing could be merged with what was computed before; outside of one, the
    # compiler would do just that.
    return nn.remat(
        module, prevent_cse=not in_scan, policy=_keep_products if remat == "dots" else None
    )


def _keep_products(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Keeps what is dear to compute: convolutions, and products without a batch dimension."""
    if primitive.name == "conv_general_dilated":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *avals, **params)
