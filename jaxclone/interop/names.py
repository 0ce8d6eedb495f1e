"""Tables of names: what a published format calls each parameter, and how it lays the array out."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxclone.tree import flatten
from jaxclone.types import Tree, UserError

Shape = tuple[int, ...]
# One name of theirs, or several spellings of it: the first that a file has is read, and the first
# is written.
Spelling = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of ours becomes one of theirs: other axes first, then another shape.

    Attributes:
        order: brings a tuple with an item for each axis of ours into their order.
        shape: of theirs, from the shape of ours in that order; the same numbers in a row.
    """

    order: Callable[[Shape], Shape] = lambda axes: axes
    shape: Callable[[Shape], Shape] = lambda shape: shape

    def their_shape(self, shape: Shape) -> Shape:
        """The shape of theirs, from the shape of ours."""
        return self.shape(self.order(shape))

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """An array of ours as they have it."""
        axes = self.order(tuple(range(array.ndim)))
        return array.transpose(axes).reshape(self.their_shape(array.shape))

    def to_ours(self, array: np.ndarray, shape: Shape) -> np.ndarray:
        """An array of theirs as we have it, in our shape."""
        axes = self.order(tuple(range(len(shape))))
        return array.reshape(self.order(shape)).transpose(tuple(np.argsort(axes)))


SAME = Layout()
# PyTorch has first what is put out.
REVERSED = Layout(lambda axes: axes[::-1])
# A transposed convolution [taps, in, out]: [in, out, taps].
TRANSPOSED = Layout(lambda axes: (*axes[1:], axes[0]))
# A convolution along the first axis of an image.
COLUMN = Layout(REVERSED.order, lambda shape: (*shape, 1))
# A vector over what is put in and the taps, which spectral norm takes for one axis.
FLAT = Layout(REVERSED.order, lambda shape: (math.prod(shape),))
# Codebooks [groups, codes, width] one under the other.
CODEBOOKS = Layout(shape=lambda shape: (1, math.prod(shape[:2]), shape[2]))
# A number for each head, laid along the second axis of [batch, head, query, key].
HEADS = Layout(shape=lambda shape: (1, *shape, 1, 1))


@dataclasses.dataclass(frozen=True)
class Name:
    """A row of a table.

    Attributes:
        ours: path of the parameter; `#` stands for a number.
        theirs: its spellings; `#` is the same number, `*` counts arrays of theirs that are stacked
            along the first axis of ours.
        layout: of each array.
    """

    ours: str
    theirs: tuple[str, ...]
    layout: Layout = SAME


Table = Sequence[Name]


def _module(ours: str, theirs: Spelling, *tensors: tuple[str, Spelling, Layout]) -> Iterator[Name]:
    for mine, kinds, layout in tensors:
        spellings = (f"{name}.{kind}" for name in _spellings(theirs) for kind in _spellings(kinds))
        yield Name(f"{ours}/{mine}", tuple(spellings), layout)


def _spellings(name: Spelling) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name


def weights(ours: str, theirs: Spelling, layout: Layout = REVERSED) -> Iterator[Name]:
    """The rows of a linear layer or a convolution."""
    return _module(ours, theirs, ("kernel", "weight", layout), ("bias", "bias", SAME))


def norm(ours: str, theirs: Spelling) -> Iterator[Name]:
    """The rows of a normalisation."""
    return _module(ours, theirs, ("scale", "weight", SAME), ("bias", "bias", SAME))


def weight_norm(
    ours: str, theirs: Spelling, layout: Layout = REVERSED, *, older: bool = False
) -> Iterator[Name]:
    """The rows of a weight-normalised convolution, or of its kernel where the norm was removed.

    Args:
        ours: path of the layer.
        theirs: its spellings.
        layout: of the kernel.
        older: write as PyTorch did before 2.0; either is read.
    """
    scale, direction = (
        ("parametrizations.weight.original0", "weight_g"),
        ("parametrizations.weight.original1", "weight_v"),
    )
    step = -1 if older else 1
    return _module(
        ours,
        theirs,
        ("scale", scale[::step], layout),
        ("direction", direction[::step], layout),
        ("kernel", "weight", layout),
        ("bias", "bias", SAME),
    )


def spectral_norm(params: str, variables: str, theirs: Spelling) -> Iterator[Name]:
    """The rows of a spectrally normalised convolution: its parameters and its singular vectors."""
    yield from _module(params, theirs, ("kernel", "weight_orig", REVERSED), ("bias", "bias", SAME))
    yield from _module(variables, theirs, ("left", "weight_u", SAME), ("right", "weight_v", FLAT))


def to_ours(tensors: Mapping[str, np.ndarray], shapes: Tree, table: Table, what: str) -> Tree:
    """Renames and lays out published tensors.

    Args:
        tensors: by their names.
        shapes: the parameters that are wanted, as arrays or shapes.
        table: names each of them.
        what: names the checkpoint in messages.

    Returns:
        f32 arrays in the structure of `shapes`.

    Raises:
        UserError: a tensor is missing, of another shape, not of floating-point numbers, or has no
            place here; it is named.
    """
    left = dict(tensors)

    def take(spellings: Sequence[str], layout: Layout, shape: Shape) -> np.ndarray:
        name = next((name for name in spellings if name in left), None)
        if name is None:
            raise UserError(f"{what} lacks the tensor {spellings[0]}")
        array, wanted = left.pop(name), layout.their_shape(shape)
        if array.shape != wanted:
            raise UserError(
                f"{what}: {name} has the shape {list(array.shape)}, the configuration asks for "
                f"{list(wanted)}"
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):  # knows bfloat16, which numpy does not
            raise UserError(f"{what}: {name} holds {array.dtype}, no floating-point numbers")
        with np.errstate(over="ignore"):
            found = layout.to_ours(array, shape).astype(np.float32)
        if not np.isfinite(found).all():
            raise UserError(f"{what}: {name} holds values beyond those of float32")
        return found

    tree: dict[str, Tree] = {}
    for path, leaf in flatten(shapes).items():
        row, spellings = _row(path, table)
        if _is_stacked(row):
            layers = range(leaf.shape[0])
            array = np.stack(
                [take(_layer(spellings, i), row.layout, leaf.shape[1:]) for i in layers]
            )
        else:
            array = take(spellings, row.layout, leaf.shape)
        _insert(tree, path, array)
    if left:
        raise UserError(f"{what} has the tensor {min(left)}, for which there is no place")
    return tree


def to_theirs(params: Tree, table: Table) -> dict[str, np.ndarray]:
    """The arrays of `params` as a published format names and lays them out.

    Args:
        params: parameters, each of which the table names.
        table: their names.
    """
    tensors = {}
    for path, leaf in flatten(params).items():
        row, spellings = _row(path, table)
        array = np.asarray(leaf)
        if _is_stacked(row):
            for i, part in enumerate(array):
                tensors[_layer(spellings, i)[0]] = row.layout.to_theirs(part)
        else:
            tensors[spellings[0]] = row.layout.to_theirs(array)
    return tensors


def _row(path: str, table: Table) -> tuple[Name, tuple[str, ...]]:
    """The row of one of our parameters, and its spellings with the number put in."""
    for row in table:
        if match := re.fullmatch(re.escape(row.ours).replace(r"\#", r"(\d+)"), path):
            number = "".join(match.groups())
            return row, tuple(name.replace("#", number) for name in row.theirs)
    raise KeyError(f"no row of the table names the parameter {path}")


def _is_stacked(row: Name) -> bool:
    return "*" in row.theirs[0]


def _layer(spellings: Sequence[str], index: int) -> tuple[str, ...]:
    return tuple(name.replace("*", str(index)) for name in spellings)


def _insert(tree: dict[str, Tree], path: str, array: np.ndarray) -> None:
    *folders, leaf = path.split("/")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[leaf] = array
