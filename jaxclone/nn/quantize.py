"""Vector quantisation with a product of codebooks, chosen through the Gumbel softmax."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from jaxclone.nn.layers import Keys, dense
from jaxclone.types import Array, Tree, UserError, require_positive


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """Sizes of the quantiser.

    Attributes:
        groups: codebooks; a vector is one entry of each, side by side.
        codes: entries of each codebook.
        width: of a whole vector.
    """

    groups: int = 2
    codes: int = 320
    width: int = 256

    def __post_init__(self) -> None:
        require_positive(self, "groups", "codes", "width")
        if self.width % self.groups:
            raise UserError(f"quantizer: {self.groups} groups do not divide width {self.width}")


@struct.dataclass
class Quantized:
    """What the quantiser chose.

    Attributes:
        vectors: [b, f, width].
        codes: i32[b, f, groups] entry of each codebook.
        probabilities: f32[b, f, groups, codes] softmax of the logits, without noise or temperature.
    """

    vectors: Tree
    codes: Tree
    probabilities: Tree


class GumbelQuantizer(nn.Module):
    """Product quantiser of wav2vec 2.0 (§2; fairseq `modules/gumbel_vector_quantizer.py`).

    Forward, one entry of each codebook; backward, the gradient of the softmax of
    (logits + Gumbel noise) / temperature.
    """

    config: QuantizerConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f c"],
        temperature: float | Float[Array, ""] = 1.0,
        keys: Keys | None = None,
    ) -> Quantized:
        """Quantises each frame.

        Args:
            x: features.
            temperature: of the softmax that gradients go through.
            keys: one an example, for the noise; None for the most probable code.
        """
        config = self.config
        batch, frames, _ = x.shape
        logits = dense(
            config.groups * config.codes,
            ("channels_in", "code"),
            jnp.float32,
            "logits",
            nn.initializers.normal(1.0),
        )(x).reshape(batch, frames, config.groups, config.codes)
        codebook = self.param(
            "codebook",
            nn.with_logical_partitioning(
                nn.initializers.uniform(1.0), ("group", "code", "code_dim")
            ),
            (config.groups, config.codes, config.width // config.groups),
        )
        noisy = logits
        if keys is not None:
            noisy += jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
        codes = noisy.argmax(-1)
        soft = jax.nn.softmax(noisy / temperature)
        # In this order the sum is the one-hot vector to the bit.
        choice = jax.nn.one_hot(codes, config.codes) + (soft - jax.lax.stop_gradient(soft))
        vectors = jnp.einsum(
            "bfgv,gvd->bfgd", choice.astype(self.dtype), codebook.astype(self.dtype)
        )
        return Quantized(
            vectors.reshape(batch, frames, config.width), codes, jax.nn.softmax(logits)
        )


def perplexity(
    distribution: Float[Array, "b f g v"], valid: Bool[Array, "b f"]
) -> Float[Array, ""]:
    """Codes in use, summed over the codebooks: exp of the entropy of the mean distribution.

    As published, 1e-7 is added within the logarithm: the gradient is finite for a code that no
    frame uses.

    Args:
        distribution: over the entries of each codebook; one-hot for the codes that were chosen.
        valid: frames that count.

    >>> uniform = jnp.full((1, 3, 2, 4), 0.25)
    >>> round(float(perplexity(uniform, jnp.ones((1, 3), bool))), 3)
    8.0
    """
    count = jnp.maximum(valid.sum(), 1)
    mean = jnp.where(valid[..., None, None], distribution, 0).sum((0, 1)) / count
    return jnp.exp(-(mean * jnp.log(mean + 1e-7)).sum(-1)).sum()
