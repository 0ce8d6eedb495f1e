"""Plans, against what the compiled step itself tells and against sums on paper."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
import toy
from jax.sharding import AbstractMesh

from jaxclone import config as configs
from jaxclone import rng
from jaxclone.export import plan as plans
from jaxclone.export.hlo import Collective
from jaxclone.export.plan import (
    audio_seconds,
    compile_step,
    examples,
    largest_batch,
    memory,
)
from jaxclone.export.topology import Topology
from jaxclone.sharding.chips import CHIPS, GIB
from jaxclone.sharding.mesh import MeshConfig, make_mesh
from jaxclone.sharding.rules import shardings, unbox
from jaxclone.train.task import RunConfig
from jaxclone.tree import flatten
from jaxclone.types import UserError

HERE = Topology.parse("cpu:1")
CONFIG = toy.config("", "")


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    monkeypatch.setattr(RunConfig, "task", toy.task)


@pytest.fixture(scope="module")
def step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "task", toy.task)
        return compile_step(CONFIG, make_mesh(CONFIG.mesh, HERE.devices()))


def test_memory_is_what_the_executable_reports(step):
    stats = step.executable.memory_analysis()
    report = {name: value * GIB for name, value in memory(step, HERE).items()}
    assert report["parameters"] == 4 * step.parameters
    assert report["optimizer"] == 8 * step.parameters + 4 * 2  # two moments, two counters
    arguments = ("parameters", "optimizer", "other_state", "batch")
    assert sum(report[name] for name in arguments) == stats.argument_size_in_bytes
    batch = 4 * 8 * (3200 + 2)  # the toy does not look at the speaker
    assert report["batch"] == pytest.approx(batch, abs=64)
    assert report["gradients_activations_temporaries"] == stats.temp_size_in_bytes
    # The state is updated in place: of the results, the metrics alone need room.
    assert report["peak"] - stats.argument_size_in_bytes - stats.temp_size_in_bytes < 400


def test_seconds_of_audio():
    assert audio_seconds(CONFIG) == pytest.approx(1.6)
    base = configs.load("pretrain/wav2vec2_base")
    assert audio_seconds(base) == pytest.approx(384 * 15.62)
    data = dataclasses.replace(
        base.data, batch_size=64, buckets=(4.0, 8.0, 12.0, 15.62), batch_seconds=5760.0
    )
    by_seconds = dataclasses.replace(base, data=data)
    assert (examples(by_seconds), audio_seconds(by_seconds)) == (320, pytest.approx(320 * 15.62))


CONFIG_FILE = """
import toy
def get_config():
    return toy.config("", "", microbatches=2)
"""
SCRIPT = """
import sys
import toy
from jaxclone.cli.main import main
from jaxclone.export import plan
from jaxclone.train.task import RunConfig
class Module(plan.Module):
    def __init__(self, text):
        super().__init__(text)
        loops = [x.shape for x in self.computations[self._entry].values() if x.op == "while"]
        print(*loops, sep="\\n")
plan.Module = Module
RunConfig.task = toy.task
sys.exit(main(["plan", *sys.argv[1:], "--topology", "cpu:4", "--mesh.fsdp", "4", "--json"]))
"""


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory):
    """The plan of micro-batches on four devices, and the shapes that its outer loops carry."""
    path = tmp_path_factory.mktemp("config") / "toy.py"
    path.write_text(CONFIG_FILE)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)],
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *loops, result = done.stdout.splitlines()
    return json.loads(result), "\n".join(loops)


def test_a_device_holds_its_part(on_four_devices, step):
    result, _ = on_four_devices
    held = result["memory_gib_a_device"]["parameters"] * GIB
    # Of the parameters only the second layer, of 16 x 32, can be divided.
    assert held == 4 * (step.parameters - 16 * 32 * 3 // 4)
    assert result["topology"] == {"chips": 4, "slices": 1, "mesh": "data=1, fsdp=4, tensor=1"}
    assert result["batch"]["examples_a_device_at_once"] == 1
    assert 0 < result["whole_on_every_device"]["part_of_what_a_device_holds"] < 1
    kinds = {(item["kind"], item["devices"]) for item in result["collectives_a_device_a_step"]}
    assert ("all-gather", 4) in kinds
    assert ("all-reduce", 4) in kinds
    assert "estimate" not in result  # of this processor nothing is known


def test_gradients_are_divided_like_their_parameters(on_four_devices):
    """The loop over micro-batches carries their sum."""
    _, loops = on_four_devices
    assert "f32[4,32]" in loops
    assert loops.count("f32[16,32]") <= 1  # the weights, gathered before the loop


@pytest.mark.parametrize("config", ["pretrain/wav2vec2_large", "pretrain/wav2vec2_1b"])
def test_large_models_are_divided_over_fsdp(config):
    """Parameters and both moments: what every device holds whole is less than a hundredth."""
    mesh = AbstractMesh((2, 8, 1), ("data", "fsdp", "tensor"))
    boxed = jax.eval_shape(configs.load(config).task().init, rng.root(0), {})
    places, shapes = flatten(shardings(boxed, mesh)), flatten(unbox(boxed))
    size = {path: math.prod(shapes[path].shape) for path in shapes}
    for kind in ("/params/", "/mu/", "/nu/"):
        paths = [path for path in shapes if kind in path]
        whole = [path for path in paths if places[path].is_fully_replicated]
        assert paths
        assert sum(map(size.get, whole)) < 0.01 * sum(map(size.get, paths)), whole


def test_bounds_of_the_time():
    config = dataclasses.replace(CONFIG, precision="bf16", steps=3600)
    topology = Topology.parse("v5e:2x2")
    chip = CHIPS["v5e"]
    operations = 4 * chip.flops  # a second on four chips
    found = [
        Collective("all-gather", 4, False, 1, chip.link_bandwidth * 4 / 3 / 2),
        Collective("all-reduce", 2, True, 1, chip.network_bandwidth / 4),
    ]
    traffic = chip.hbm_bandwidth / 4
    result = plans._estimate(config, topology, operations, 2 * chip.flops, traffic, found)
    assert result["roofline_seconds"] == pytest.approx(
        {"compute": 1.0, "memory": 0.25, "links": 0.5, "network": 0.25}
    )
    best, worst = (result["estimate"][x] for x in ("all_overlapped", "nothing_overlapped"))
    assert best["step_seconds"] == pytest.approx(1.0)
    assert best["mfu"] == pytest.approx(0.5)
    assert best["audio_seconds_per_second"] == pytest.approx(1.6)
    assert best["hours"] == pytest.approx(1.0)
    assert best["chip_hours"] == pytest.approx(4.0)
    assert worst["step_seconds"] == pytest.approx(2.0)


@pytest.mark.parametrize("most", [1, 7, 40])
def test_the_largest_batch_is_found(monkeypatch, most: int):
    limit = CHIPS["v5e"].hbm_bytes / GIB
    compiled = []

    def compile_step(config, mesh):
        compiled.append(config.data.batch_size)
        return config.data.batch_size

    def memory(examples, topology):
        peak = 1 + (limit - 1) * examples / (most + 0.5)
        return {"fits": examples <= most, "peak": peak}

    monkeypatch.setattr(plans, "compile_step", compile_step)
    monkeypatch.setattr(plans, "memory", memory)
    data = dataclasses.replace(CONFIG.data, batch_size=32)
    config = dataclasses.replace(CONFIG, data=data)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    result = largest_batch(config, mesh, Topology.parse("v5e:1x1"))
    assert result["examples_a_device_at_once"] == most
    assert result["microbatches_for_the_configured_batch"] == {1: 32, 7: 8, 40: 1}[most]
    assert len(compiled) == len(set(compiled)) <= 6


@pytest.mark.parametrize(("most", "microbatches"), [(352, 1), (319, 2), (6, 64), (4, None)])
def test_the_largest_batch_by_seconds(monkeypatch, most: int, microbatches: int | None):
    """The longest bucket has 5 times `batch_size`, which is what micro-batches divide."""
    monkeypatch.setattr(plans, "compile_step", lambda config, mesh: config.data.batch_size)
    monkeypatch.setattr(
        plans, "memory", lambda count, _: {"fits": count <= most, "peak": 1.0 + count}
    )
    base = configs.load("pretrain/wav2vec2_base")
    data = dataclasses.replace(base.data, batch_size=64, buckets=(4.0, 15.62), batch_seconds=5760.0)
    config = dataclasses.replace(base, data=data, microbatches=8)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    result = largest_batch(config, mesh, Topology.parse("v5e:1x1"))
    assert result["examples_a_device_at_once"] == most
    assert result["microbatches_for_the_configured_batch"] == microbatches


def test_not_even_one_example_fits(monkeypatch):
    monkeypatch.setattr(plans, "compile_step", lambda config, mesh: None)
    monkeypatch.setattr(plans, "memory", lambda step, topology: {"fits": False})
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    result = largest_batch(CONFIG, mesh, Topology.parse("v5e:1x1"))
    assert result["examples_a_device_at_once"] == 0
    assert result["microbatches_for_the_configured_batch"] is None


@pytest.mark.parametrize(
    ("text", "slices", "problem"),
    [
        ("v5x:4x4", 1, "no topology of kind 'v5x'; did you mean 'v5p'?"),
        ("v5e", 1, "has no shape"),
        ("v5e:4x0", 1, "has no shape"),
        ("h100:8", 2, "slices, at least one, are of TPUs"),
        ("v5e:4x4", 0, "slices, at least one"),
    ],
)
def test_a_topology_that_there_is_not(text: str, slices: int, problem: str):
    with pytest.raises(UserError) as error:
        Topology.parse(text, slices)
    assert problem in str(error.value)


@pytest.mark.parametrize(
    ("text", "package", "extra"),
    [("v5e:2x2", "libtpu", "tpu"), ("h100:8", "jax_plugins.xla_cuda12", "cuda")],
)
def test_a_compiler_that_is_missing_is_named(monkeypatch, text: str, package: str, extra: str):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"needs {package.split('.')[-1]}.*jaxclone\[{extra}\]"):
        Topology.parse(text).devices()


def test_slices_lie_along_the_data_axis():
    devices = [SimpleNamespace(slice_index=i // 4) for i in range(8)]
    with pytest.raises(UserError, match=r"mesh.data=1 must be a multiple of the 2 slices"):
        make_mesh(MeshConfig(fsdp=8), devices)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
@pytest.mark.parametrize(
    ("text", "slices"),
    [("v4:2x2x2", 1), ("v5e:4x4", 2), ("v5p:4x4x4", 1), ("v6e:16x16", 1), ("7x:2x2x1", 1)],
)
def test_eight_devices_are_an_axis_of_every_tpu(text: str, slices: int):
    topology = Topology.parse(text, slices)
    mesh = make_mesh(MeshConfig(fsdp=8), topology.devices())
    assert mesh.size == topology.chips * topology.chip.devices
    found = plans._slices(mesh)
    assert found == sorted(found)
    assert len(set(found)) == slices


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_step_compiles_for_tpus_that_are_not_here():
    code = "import sys; from jaxclone.cli.main import main; sys.exit(main())"
    arguments = ["plan", "pretrain/wav2vec2_base:smoke", "--topology", "v5e:2x2", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["memory_gib_a_device"]["fits"]
    assert result["estimate"]["all_overlapped"]["step_seconds"] > 0
