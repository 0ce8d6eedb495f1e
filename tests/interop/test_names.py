from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.interop.names import (
    CODEBOOKS,
    COLUMN,
    FLAT,
    HEADS,
    TRANSPOSED,
    Name,
    norm,
    to_ours,
    to_theirs,
    weight_norm,
    weights,
)
from jaxclone.types import UserError

TABLE = (
    *weights("stem/conv_#", "convs.#.0"),
    *weights("layers/up", "layers.*.fc1"),
    *norm("layers/norm", "layers.*.ln"),
    *weight_norm("positional", "pos"),
    Name("codebook", ("vars",), CODEBOOKS),
    Name("layers/gate", ("layers.*.gate",), HEADS),
)


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


OURS = {
    "stem": {"conv_0": {"kernel": draw(5, 1, 3)}, "conv_11": {"kernel": draw(2, 3, 3)}},
    "layers": {
        "up": {"kernel": draw(2, 3, 4), "bias": draw(2, 4)},
        "norm": {"scale": draw(2, 3), "bias": draw(2, 3)},
        "gate": draw(2, 5),
    },
    "positional": {"scale": draw(7, 1, 1), "direction": draw(7, 2, 6), "bias": draw(6)},
    "codebook": draw(2, 4, 3),
}
THEIRS = {
    "convs.0.0.weight": (3, 1, 5),
    "convs.11.0.weight": (3, 3, 2),
    **{f"layers.{i}.fc1.weight": (4, 3) for i in range(2)},
    **{f"layers.{i}.fc1.bias": (4,) for i in range(2)},
    **{f"layers.{i}.ln.{kind}": (3,) for i in range(2) for kind in ("weight", "bias")},
    **{f"layers.{i}.gate": (1, 5, 1, 1) for i in range(2)},
    "pos.parametrizations.weight.original0": (1, 1, 7),
    "pos.parametrizations.weight.original1": (6, 2, 7),
    "pos.bias": (6,),
    "vars": (1, 8, 3),
}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_there_and_back():
    theirs = to_theirs(OURS, TABLE)
    assert {name: array.shape for name, array in theirs.items()} == THEIRS
    np.testing.assert_array_equal(
        theirs["layers.1.fc1.weight"], OURS["layers"]["up"]["kernel"][1].T
    )
    np.testing.assert_array_equal(theirs["vars"][0, 4:], OURS["codebook"][1])
    assert_same(to_ours(theirs, OURS, TABLE, "it"), OURS)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_older_spellings_and_other_precisions(dtype):
    theirs = {k: v.astype(dtype) for k, v in to_theirs(OURS, TABLE).items()}
    theirs["pos.weight_g"] = theirs.pop("pos.parametrizations.weight.original0")
    theirs["pos.weight_v"] = theirs.pop("pos.parametrizations.weight.original1")
    rounded = jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), OURS)
    assert_same(to_ours(theirs, OURS, TABLE, "it"), rounded)


def test_numbers_beyond_float32():
    theirs = to_theirs(OURS, TABLE)
    theirs["vars"] = np.full(theirs["vars"].shape, 1e300)
    with pytest.raises(UserError, match=r"^it: vars holds values beyond those of float32$"):
        to_ours(theirs, OURS, TABLE, "it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.fc1.bias": None}, r"^it lacks the tensor layers\.1\.fc1\.bias$"),
        (
            {"pos.parametrizations.weight.original0": None},
            r"^it lacks the tensor pos\.parametrizations\.weight\.original0$",
        ),
        ({"more": draw(1)}, r"^it has the tensor more, for which there is no place$"),
        ({"layers.2.gate": draw(1)}, r"^it has the tensor layers\.2\.gate, for which"),
        # Both spellings of one array: which of them is meant?
        ({"pos.weight_g": draw(1, 1, 7)}, r"^it has the tensor pos\.weight_g, for which"),
        (
            {"layers.0.fc1.weight": draw(3, 4)},
            r"^it: layers\.0\.fc1\.weight has the shape \[3, 4\], .* asks for \[4, 3\]$",
        ),
        ({"vars": draw(2, 4, 3)}, r"^it: vars has the shape \[2, 4, 3\], .* for \[1, 8, 3\]$"),
        ({"vars": np.zeros((1, 8, 3), int)}, r"^it: vars holds int64, no floating-point numbers$"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    theirs = to_theirs(OURS, TABLE) | change
    theirs = {name: array for name, array in theirs.items() if array is not None}
    with pytest.raises(UserError, match=message):
        to_ours(theirs, OURS, TABLE, "it")


@pytest.mark.parametrize(
    ("layout", "ours", "theirs"),
    [
        (TRANSPOSED, (5, 2, 3), (2, 3, 5)),
        (TRANSPOSED, (1, 2, 1), (2, 1, 1)),
        (COLUMN, (5, 2, 3), (3, 2, 5, 1)),
        (FLAT, (5, 2), (10,)),
    ],
)
def test_layouts_of_convolutions(layout, ours, theirs):
    array = draw(*ours)
    there = layout.to_theirs(array)
    assert there.shape == layout.their_shape(ours) == theirs
    np.testing.assert_array_equal(layout.to_ours(there, ours), array)
    if layout is TRANSPOSED:
        np.testing.assert_array_equal(there[1, :, 0], array[0, 1])
    else:  # as PyTorch counts: outputs, inputs, taps
        np.testing.assert_array_equal(there.ravel(), array.T.ravel())


def test_a_parameter_that_no_row_names():
    with pytest.raises(KeyError, match="no row of the table names the parameter layers/down"):
        to_theirs({"layers": {"down": draw(2)}}, TABLE)
