"""Attention that never holds all its weights at once, where the platform has it.

The kernels know nothing of dropout and relative positions: `choose` leaves attention with these to
XLA, which computes the weights as they are written in `jaxclone.nn.attention`.
"""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from jaxclone.nn.devices import parts_of
from jaxclone.types import Array, UserError

AttentionImpl = Literal["auto", "xla", "flash", "cudnn"]

# Frames that the TPU kernel takes at once: tiles of its matrix unit, as many as fit on the chip.
_LANES, _BLOCK = 128, 512


def choose(
    impl: AttentionImpl,
    batch: int,
    heads: int,
    head_dim: int,
    dtype: DTypeLike,
    needs_weights: bool,
) -> AttentionImpl:
    """How an attention of these sizes is computed on the devices that it is traced for.

    Args:
        impl: "xla" holds all weights, and the only one that can work on them; "flash" is the Pallas
            kernel for TPUs (arXiv:2205.14135), "cudnn" the one of NVIDIA's library; "auto" takes
            "flash" on a TPU and, in half precision, "cudnn" on a GPU, where the sizes allow it.
        batch: examples over all devices.
        heads: of the attention.
        head_dim: width of one.
        dtype: of queries, keys and values.
        needs_weights: whether the weights themselves are worked on in this call, as by dropout
            and relative positions.

    Raises:
        UserError: a kernel was asked for that does not show its weights.
    """
    if needs_weights:
        if impl in ("flash", "cudnn"):
            raise UserError(
                f"attention_impl {impl} knows neither attention dropout nor relative positions: "
                "leave them out or take auto"
            )
        return "xla"
    if impl != "auto":
        return impl
    match _platform():
        case "tpu" if _divides(batch, heads):
            return "flash"
        # Without a GPU in this process there is no cuDNN to compile with either.
        case "gpu" if jax.default_backend() == "gpu":
            half = jnp.dtype(dtype).itemsize == 2
            return "cudnn" if half and head_dim % 8 == 0 and head_dim <= 128 else "xla"
    return "xla"


def fused_attention(
    query: Float[Array, "b f h d"],
    key: Float[Array, "b f h d"],
    value: Float[Array, "b f h d"],
    mask: Bool[Array, "b f"],
    impl: Literal["flash", "cudnn"],
) -> Float[Array, "b f h d"]:
    """Attention of every frame to the true frames, softmax in f32.

    Args:
        query: of each frame and head, not scaled.
        key: of each.
        value: of each.
        mask: the true frames; for "cudnn" they come first.
        impl: which kernel.
    """
    if impl == "cudnn":
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            key_value_seq_lengths=mask.sum(1, dtype=jnp.int32),
            implementation="cudnn",
        )
    if parts_of(("batch", None, "heads", None)) == (1, 1, 1, 1):
        return _flash(query, key, value, mask)
    # The compiler does not look into the kernel: each device is given its part.
    whole, rows = (
        nn.logical_to_mesh_axes(axes) for axes in (("batch", None, "heads", None), ("batch", None))
    )
    return jax.shard_map(
        _flash, in_specs=(whole, whole, whole, rows), out_specs=whole, check_vma=False
    )(query, key, value, mask)


def _flash(query: Array, key: Array, value: Array, mask: Array) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    frames, width = query.shape[1], query.shape[-1]
    block = min(_BLOCK, -(-frames // _LANES) * _LANES)
    more = -frames % block
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2) for x in (query, key, value)
    )
    # Frames attend to those of the same segment: all frames to the true ones.
    true = jnp.pad(mask, ((0, 0), (0, more))).astype(jnp.int32)
    y = kernel.flash_attention(
        query,
        key,
        value,
        segment_ids=kernel.SegmentIds(jnp.ones_like(true), true),
        sm_scale=width**-0.5,
        block_sizes=kernel.BlockSizes(
            **dict.fromkeys(
                (
                    "block_q",
                    "block_k_major",
                    "block_k",
                    "block_q_major_dkv",
                    "block_k_major_dkv",
                    "block_k_dkv",
                    "block_q_dkv",
                    "block_k_major_dq",
                    "block_k_dq",
                    "block_q_dq",
                ),
                block,
            ),
            block_b=1,
        ),
    )
    return y.swapaxes(1, 2)[:, :frames]


def _platform() -> str:
    """Of the mesh that is active, which need not be of this machine's devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def _divides(batch: int, heads: int) -> bool:
    parts = parts_of(("batch", "heads"))
    return batch % parts[0] == 0 and heads % parts[1] == 0
