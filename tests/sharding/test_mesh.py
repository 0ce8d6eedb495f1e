from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclone.sharding import mesh as meshes
from jaxclone.sharding.mesh import MeshConfig, make_mesh
from jaxclone.types import UserError


def test_one_device_is_a_mesh() -> None:
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(data=2, fsdp=2), 8, "data=2 x fsdp=2 x tensor=1 does not fit 8 devices"),
        (MeshConfig(tensor=3), 8, "data=-1 x fsdp=1 x tensor=3 does not fit 8 devices"),
        (MeshConfig(fsdp=-1), 8, "only one axis of the mesh can be -1, got data and fsdp"),
        (MeshConfig(fsdp=0), 8, r"mesh\.fsdp must be a number of devices or -1, got 0"),
    ],
)
def test_a_mesh_that_does_not_fit(config: MeshConfig, devices: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_mesh(config, [object()] * devices)


def test_to_host_gives_whole_arrays_and_keys() -> None:
    tree = {"a": jnp.arange(3), "b": np.ones(2), "key": jax.random.key(7)}
    found = meshes.to_host(tree)
    assert isinstance(found["a"], np.ndarray)
    np.testing.assert_array_equal(found["a"], [0, 1, 2])
    assert jax.random.bits(found["key"]) == jax.random.bits(tree["key"])
