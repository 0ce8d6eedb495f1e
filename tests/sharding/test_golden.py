"""Where each parameter of each configuration lies, on meshes of eight devices.

What is expected is in `tests/golden/<config>/<mesh>.txt`: a line a parameter, with its shape and,
for each dimension, the axes of the mesh that divide it. A change of rules or models shows as a
difference there, to be read and committed. To write the files anew:

    python tests/sharding/test_golden.py
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, NamedSharding

from jaxclone import config as configs
from jaxclone import rng
from jaxclone.sharding.rules import shardings, unbox
from jaxclone.tree import flatten

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
AXES = ("data", "fsdp", "tensor")
MESHES = {
    "fsdp8": AbstractMesh((1, 8, 1), AXES),
    "fsdp4_tensor2": AbstractMesh((1, 4, 2), AXES),
    "data2_fsdp2_tensor2": AbstractMesh((2, 2, 2), AXES),
}


@functools.cache
def abstract_state(config: str) -> object:
    """The boxed shapes of the state that a configuration's run begins with."""
    return jax.eval_shape(configs.load(config).task().init, rng.root(0), {})


def describe(place: NamedSharding, shape: tuple[int, ...]) -> str:
    """A dimension an entry: its size, and the axes that divide it."""
    entries = []
    for size, axes in zip(shape, [*place.spec, *[None] * len(shape)], strict=False):
        axes = (axes,) if isinstance(axes, str) else axes or ()
        dividing = "+".join(axis for axis in axes if place.mesh.shape[axis] > 1)
        entries.append(f"{size}/{dividing}" if dividing else str(size))
    return " ".join(entries)


def layout(config: str, mesh: str) -> str:
    """The content of a file; of the optimiser, whose arrays follow the parameters, nothing."""
    state = abstract_state(config)
    places, shapes = flatten(shardings(state, MESHES[mesh])), flatten(unbox(state))
    return "".join(
        f"{path}: {describe(places[path], shapes[path].shape)}\n"
        for path in places
        if "opt_state" not in path and shapes[path].shape
    )


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("config", configs.names())
def test_layout(config: str, mesh: str) -> None:
    path = GOLDEN / config / f"{mesh}.txt"
    assert path.is_file(), f"there is no {path}: write it with python {Path(__file__).name}"
    assert layout(config, mesh).splitlines() == path.read_text().splitlines()


@pytest.mark.parametrize("config", configs.names())
def test_the_optimiser_lies_with_its_parameters(config: str) -> None:
    places = flatten(shardings(abstract_state(config), MESHES["fsdp4_tensor2"]))
    parameters = {path: place for path, place in places.items() if "/params/" in path}
    moments = 0
    for path, place in places.items():
        for name, expected in parameters.items():
            model, _, rest = name.partition("/params/")
            if path.startswith(f"{model}/opt_state/") and path.endswith(f"/mu/{rest}"):
                assert place.spec == expected.spec, path
                moments += 1
    assert moments


def test_no_file_is_left_over() -> None:
    found = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*.txt")}
    assert found == {f"{config}/{mesh}.txt" for config in configs.names() for mesh in MESHES}


def rewrite() -> None:
    """Writes all files anew."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for config in configs.names():
        (GOLDEN / config).mkdir(parents=True)
        for mesh in MESHES:
            (GOLDEN / config / f"{mesh}.txt").write_text(layout(config, mesh))


if __name__ == "__main__":
    rewrite()
