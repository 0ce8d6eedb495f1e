"""On any mesh, a run is the run on one device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import toy

from jaxclone.train.loop import fit

STEPS = 5
MESHES = {
    "data": {"data": 4},
    "fsdp": {"data": 1, "fsdp": 4},
    "data_tensor": {"data": 2, "tensor": 2},
}
# The devices of a process are counted once, at its start: other counts need another process.
SCRIPT = """
import json, sys
from pathlib import Path
import jax, numpy as np, toy
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.loop import fit

initialise_distributed()
corpus, out, steps, meshes = sys.argv[1:]
for name, sizes in json.loads(meshes).items():
    run = toy.config(corpus, Path(out) / name, mesh=MeshConfig(**sizes), steps=int(steps))
    state, summary = fit(run, toy.task(run))
    np.savez(Path(out) / name / "params.npz", **toy.parameters(state))
    arrays = toy.flatten(state.model.params)
    parts = {path: x.addressable_shards[0].data.shape for path, x in arrays.items()}
    print(json.dumps({"parts": parts, "compiles": summary["compiles"]}))
"""


@pytest.fixture(scope="module")
def reports(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each mesh reports, and its parameters."""
    out = tmp_path_factory.mktemp("meshes")
    environment = toy.environment(JAXCLONE_CPU_DEVICES="4")
    command = [sys.executable, "-c", SCRIPT, str(toy_corpus), str(out), str(STEPS)]
    done = subprocess.run(
        [*command, json.dumps(MESHES)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(MESHES, map(json.loads, done.stdout.splitlines())))
    for name, report in found.items():
        report["params"] = dict(np.load(out / name / "params.npz"))
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        report["loss"] = [json.loads(line)["loss"] for line in lines]
    return found


@pytest.fixture(scope="module")
def alone(toy_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The same on one device."""
    run = toy.config(toy_corpus, tmp_path_factory.mktemp("alone"), steps=STEPS)
    state, _ = fit(run, toy.task(run))
    lines = (Path(run.out) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {"params": toy.parameters(state), "loss": losses}


@pytest.mark.parametrize("mesh", MESHES)
def test_sharded_is_unsharded(reports: dict[str, dict], alone: dict, mesh: str) -> None:
    np.testing.assert_allclose(reports[mesh]["loss"], alone["loss"], rtol=1e-5)
    for name, value in alone["params"].items():
        np.testing.assert_allclose(reports[mesh]["params"][name], value, atol=1e-5)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_sharded_step_is_compiled_once(reports: dict[str, dict], mesh: str) -> None:
    assert reports[mesh]["compiles"] == 1


def test_parameters_are_divided_as_the_rules_say(reports: dict[str, dict]) -> None:
    dense = {mesh: report["parts"]["Dense_0/kernel"] for mesh, report in reports.items()}
    assert dense == {"data": [16, 32], "fsdp": [4, 32], "data_tensor": [16, 16]}
    # One input channel cannot be divided over four devices.
    convolution = {mesh: report["parts"]["Conv_0/kernel"] for mesh, report in reports.items()}
    assert convolution == {"data": [320, 1, 16], "fsdp": [320, 1, 16], "data_tensor": [320, 1, 8]}
