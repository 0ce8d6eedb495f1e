"""Convolution over time with a third of the multiplications, for inference on a CPU.

A tile of m outputs of a convolution of r taps can be had from m + r - 2 products or little more,
where written out it takes m r (Toom 1963, Cook 1966, Winograd 1980):

    outputs = A ((G kernel) * (B window))        A [m, p], G [p, r], B [p, m + r - 1]

With channels each of the p products is a matrix product. p / (m r) of the multiplications are
left: 0.44 for 3 taps, 0.30 for 7, 0.21 for 11. The matrices come from the values of polynomials at
points. Real points alone lose the digits of f32 beyond about eight; points on the unit circle lose
none, at three products for a pair of conjugates instead of two.

A and B are applied as matrix products too, because XLA on a CPU has a fast kernel for these and
takes minutes to compile sums of hundreds of slices. Accelerators, whose convolutions need no help,
should not take this path.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxclone.types import Array, Tree

# The entry that `prepare` adds to a layer's parameters.
FACTORS = "factors"
# Narrower layers were not measured; the gain falls with the width.
_NARROWEST = 8
# Beyond these taps the accuracy was not measured.
_MOST_TAPS = 16
# Real points whose powers f32 can hold: with these, 0 and infinity, 8 products make 8 samples.
_REAL: tuple[float, ...] = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)


@dataclasses.dataclass(frozen=True)
class Bilinear:
    """The matrices of a convolution in tiles.

    Attributes:
        outputs: A, from products to the outputs of a tile.
        window: B, from the samples under a tile to their factors.
        kernel: G, from taps to their factors.
    """

    outputs: Float[np.ndarray, "m p"]
    window: Float[np.ndarray, "p n"]
    kernel: Float[np.ndarray, "p r"]


@functools.cache
def bilinear(taps: int) -> Bilinear:
    """The matrices for a number of taps, in f32.

    >>> way, window, kernel = bilinear(3), np.arange(8.0), np.array([1.0, 2.0, -1.0])
    >>> y = way.outputs @ ((way.kernel @ kernel) * (way.window @ window))
    >>> np.allclose(y, np.correlate(window, kernel), atol=1e-5)
    True
    """
    # Of the few windows that were tried for 3, 7 and 11 taps these were among the fastest; the rest
    # follow suit.
    if taps <= 4:
        real, pairs = _REAL, 0
    elif taps == 5:
        real, pairs = _REAL, 2
    else:
        real, pairs = _REAL[:3], taps
    size = len(real) + 1 + 2 * pairs
    angles = np.pi * np.arange(1, pairs + 1) / (pairs + 1)

    def values(length: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the powers below `length` at the real points and infinity, and at the complex ones."""
        powers = np.arange(length)
        finite = np.power.outer(np.array(real), powers)
        return np.vstack([finite, powers == length - 1]), np.exp(1j * np.outer(angles, powers))

    def factors(length: int) -> np.ndarray:
        real, turned = values(length)
        return np.vstack([real, turned.real, turned.imag, turned.real + turned.imag])

    # From the products back to the values: (a + bi)(c + di) from ac, bd and (a + b)(c + d).
    at_real, turned = values(size)
    n, one = len(at_real), np.eye(pairs)
    recombined = np.zeros((size, n + 3 * pairs))
    recombined[:n, :n] = np.eye(n)
    recombined[n:, n:] = np.block([[one, -one, 0 * one], [-one, -one, one]])
    values_to_sequence = np.linalg.inv(np.vstack([at_real, turned.real, turned.imag]))
    # A product of polynomials, transposed, is a convolution of a window.
    outputs = factors(size - taps + 1).T
    window = (values_to_sequence @ recombined).T
    kernel = factors(taps)
    # What is passed on should be as large as what came in; the kernel takes up the rest.
    by_window, by_outputs = np.abs(window).max(1, keepdims=True), np.abs(outputs).max(0)
    return Bilinear(
        *(
            np.where(np.abs(matrix) < 1e-12, 0, matrix).astype(np.float32)
            for matrix in (
                outputs / by_outputs,
                window / by_window,
                kernel * by_window * by_outputs[:, None],
            )
        )
    )


def prepare(params: Tree) -> Tree:
    """Adds the factors of their kernels to the layers that gain by it.

    Those are the layers with a folded `kernel` of 3 to 16 taps between as many channels, 8 or
    more. A layer whose stride or groups do not fit has no use for its factors.
    """
    if not isinstance(params, Mapping):
        return params
    params = {name: prepare(value) for name, value in params.items()}
    kernel = params.get("kernel")
    if getattr(kernel, "ndim", 0) != 3:
        return params
    taps, inputs, outputs = kernel.shape
    if 3 <= taps <= _MOST_TAPS and inputs == outputs >= _NARROWEST:
        params[FACTORS] = kernel_factors(kernel)
    return params


@jax.jit
def kernel_factors(kernel: Float[Array, "r i o"]) -> Float[Array, "p i o"]:
    """What `fast_conv1d` takes in place of the kernel."""
    return jnp.einsum("pr,rio->pio", bilinear(kernel.shape[0]).kernel, kernel)


def fast_conv1d(
    x: Float[Array, "b t i"],
    factors: Float[Array, "p i o"],
    taps: int,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Array, "b s o"]:
    """What `conv1d` gives at stride 1 for the kernel that the factors are of, to f32 rounding.

    Args:
        x: signals.
        factors: of `kernel_factors`.
        taps: of the kernel.
        dilation: samples from one tap to the next.
        padding: zeros before and after each signal.

    >>> kernel = jnp.array([1.0, 2.0, 3.0])[:, None, None]
    >>> y = fast_conv1d(jnp.ones((1, 4, 1)), kernel_factors(kernel), 3, padding=(1, 1))
    >>> np.round(y[0, :, 0], 4).tolist()
    [5.0, 6.0, 6.0, 3.0]
    """
    way = bilinear(taps)
    (m, products), size = way.outputs.shape, way.window.shape[1]
    (batch, time, channels), features = x.shape, factors.shape[-1]
    before, after = padding
    length = time + before + after - dilation * (taps - 1)
    tiles = -(-length // (m * dilation))
    # Of every `dilation`-th sample; the samples between stand beside it as channels do.
    padded = (tiles + 1) * m * dilation
    x = jnp.pad(x, ((0, 0), (before, max(0, padded - before - time)), (0, 0)))[:, :padded]
    x = x.reshape(batch, tiles + 1, m, dilation * channels)
    # A window is its tile and the start of the next, for m is at least taps - 1.
    own, next_one = (part.transpose(2, 0, 1, 3) for part in (x[:, :-1], x[:, 1:, : size - m]))
    windows = jnp.concatenate([own, next_one]).reshape(size, -1)
    seen = (way.window.astype(x.dtype) @ windows).reshape(products, -1, channels)
    product = jnp.einsum("pqi,pio->pqo", seen, factors).reshape(products, -1)
    y = (way.outputs.astype(x.dtype) @ product).reshape(m, batch, tiles, dilation * features)
    return y.transpose(1, 2, 0, 3).reshape(batch, -1, features)[:, :length]
