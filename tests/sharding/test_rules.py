from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from jaxclone.sharding.rules import shardings, spec, unbox

MESH = AbstractMesh((2, 4, 2), ("data", "fsdp", "tensor"))


def boxed(shape: tuple[int, ...], *names: str | None) -> nn.LogicallyPartitioned:
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize(
    ("names", "shape", "expected"),
    [
        (("embed", "mlp"), (8, 6), P("fsdp", "tensor")),
        (("mlp", "embed"), (6, 8), P("tensor", "fsdp")),
        (("kernel", "channels_in", "channels_out"), (3, 8, 4), P(None, "fsdp", "tensor")),
        (("layers", "embed", "heads"), (2, 8, 8), P(None, "fsdp", "tensor")),
        (("embed", None), (8, 8), P("fsdp", None)),
        # 6 is not a multiple of 4, 7 is not of 2: these dimensions stay whole.
        (("embed", "mlp"), (6, 6), P(None, "tensor")),
        (("embed", "mlp"), (8, 7), P("fsdp", None)),
        # Activations follow the batch: their width is not divided as well.
        (("batch", "time", "embed"), (16, 3, 8), P(("data", "fsdp"), None, None)),
        (("batch", "time", "mlp"), (16, 3, 8), P(("data", "fsdp"), None, "tensor")),
        # One mesh axis is not given to two dimensions.
        (("mlp", "heads"), (8, 8), P("tensor", None)),
    ],
)
def test_names_become_axes_of_the_mesh(
    names: tuple[str | None, ...], shape: tuple[int, ...], expected: P
) -> None:
    assert spec(names, shape, MESH) == expected


def test_a_state_is_placed_by_its_boxes() -> None:
    tree = {"kernel": boxed((8, 2), "embed", "mlp"), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    found = shardings(tree, MESH)
    assert jax.tree.map(lambda place: place.spec, found) == {
        "kernel": P("fsdp", "tensor"),
        "step": P(),
    }
    assert jax.tree.structure(found) == jax.tree.structure(unbox(tree))


def test_an_unruled_axis_raises_with_the_path() -> None:
    tree = {"encoder": {"kernel": boxed((8, 2), "embed", "feathers")}}
    with pytest.raises(ValueError, match=r"^encoder/kernel: no rule .* axis 'feathers'$"):
        shardings(tree, MESH)


def test_a_missing_name_raises_with_the_path() -> None:
    tree = {"encoder": {"kernel": boxed((8, 2), "embed")}}
    with pytest.raises(ValueError, match=r"^encoder/kernel: axes \('embed',\) for the shape"):
        shardings(tree, MESH)
