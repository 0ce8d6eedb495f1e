"""What a run will need of hardware that is not here: its own training step, compiled for it.

Nothing is run and no array is made: the step of `jaxclone.train.program` is traced with shapes and
compiled for a description of the devices.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipelines.loader import CropConfig, batch_shapes
from jaxclone.export.hlo import Collective, Module
from jaxclone.export.topology import Topology
from jaxclone.sharding import flops
from jaxclone.sharding.chips import GIB
from jaxclone.sharding.mesh import activate, batch_parts, batch_sharding, make_mesh, platform
from jaxclone.train.cost import model_flops
from jaxclone.train.loop import check_batches
from jaxclone.train.program import Program
from jaxclone.train.task import RunConfig
from jaxclone.tree import flatten, n_parameters
from jaxclone.types import Batch, Episode, UserError

# Triton's kernels for products are chosen by trying them out on a GPU; the library's are not.
_OPTIONS: dict[str, Any] = {"cuda": {"xla_gpu_enable_triton_gemm": False}}


def plan(config: RunConfig, topology: Topology, *, fit: bool = False) -> dict[str, Any]:
    """What the training step of a run needs on a topology.

    Args:
        config: of the run.
        topology: what to compile for.
        fit: also search the largest batch that fits.

    Raises:
        UserError: a mesh or batch that does not fit the topology, or its compiler is missing.
    """
    mesh = make_mesh(config.mesh, topology.devices())
    check_batches(config, mesh)
    step = compile_step(config, mesh)
    audio = audio_seconds(config)
    model = model_flops(config, mesh, step.program.abstract, _batch_on(config, mesh))
    result: dict[str, Any] = {
        "config": config.name,
        "topology": {
            "chips": topology.chips,
            "slices": topology.slices,
            "mesh": ", ".join(f"{name}={size}" for name, size in mesh.shape.items()),
        },
        "batch": {
            "examples": examples(config),
            "examples_a_device_at_once": examples(config)
            // (batch_parts(mesh) * config.microbatches),
            "microbatches": config.microbatches,
            "audio_seconds": audio,
        },
        "parameters": step.parameters,
        "compile_seconds": step.seconds,
        "memory_gib_a_device": memory(step, topology),
        "whole_on_every_device": replicated(step.program, mesh),
        "flops": {
            "model_tflop_a_step": model / 1e12,
            "with_recomputation_tflop_a_step": step.flops / 1e12,
            "model_gflop_an_audio_second": model / audio / 1e9,
        },
    }
    if step.executable is not None:
        module = Module(step.executable.as_text())
        found = module.collectives(_slices(mesh))
        result["collectives_a_device_a_step"] = [_describe(item) for item in found]
        if module.unknown_loops:
            result["loops_of_unknown_length"] = module.unknown_loops
        if topology.chip is not None:
            result |= _estimate(config, topology, step.flops, model, module.traffic(), found)
    elif topology.chip is not None:
        at_peak = step.flops / topology.chips / topology.chip.peak(config.precision)
        result["compute_alone_seconds"] = at_peak
    if fit:
        result["fit"] = largest_batch(config, mesh, topology)
    return result


def examples(config: RunConfig) -> int:
    """Examples in a batch, of the longest bucket if there are any."""
    return int(jax.tree.leaves(batch_shapes(config.data, config.audio))[0].shape[0])


def audio_seconds(config: RunConfig) -> float:
    """Seconds of audio in a batch, its padding included."""
    batch = batch_shapes(config.data, config.audio)
    parts = (batch,) if isinstance(batch, Batch) else (batch.support, batch.query)
    return sum(math.prod(part.waveform.shape) for part in parts) / config.audio.sample_rate


class Step(NamedTuple):
    """A training step, compiled.

    Attributes:
        program: whose step it is.
        flops: operations as it computes them, over all devices.
        executable: None where it needs more memory than there is, or could not be compiled.
        shortage: what the compiler says of that.
        seconds: to compile.
        parameters: of all models.
    """

    program: Program
    flops: float
    executable: Any
    shortage: str
    seconds: float
    parameters: int


def compile_step(config: RunConfig, mesh: Mesh) -> Step:
    """Traces and compiles the step of a run for the devices of a mesh."""
    began = time.monotonic()
    with activate(mesh):
        program = Program(config.task(), mesh, config.seed)
        votes = jax.ShapeDtypeStruct((mesh.size, 2), jnp.int32)
        traced = program.train_step.trace(program.abstract, _batch_on(config, mesh), votes)
        executable, shortage = None, ""
        try:
            executable = traced.lower().compile(compiler_options=_OPTIONS.get(platform(mesh)))
        except jax.errors.JaxRuntimeError as error:
            # Without a GPU at hand, XLA cannot try out what it would choose from, and may give up.
            if "RESOURCE_EXHAUSTED" not in str(error) and platform(mesh) != "cuda":
                raise
            shortage = str(error).splitlines()[0][:200]
        models = n_parameters(
            [x for path, x in flatten(program.abstract).items() if _kind(path) == "parameters"]
        )
        operations = flops.count(traced.jaxpr, platform(mesh))
    return Step(program, operations, executable, shortage, time.monotonic() - began, models)


def _batch_on(config: RunConfig, mesh: Mesh) -> Batch | Episode:
    place = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        batch_shapes(config.data, config.audio),
    )


def memory(step: Step, topology: Topology) -> dict[str, Any]:
    """GiB of a device, by kind.

    Parameters, optimiser and batch are the step's arguments. What the compiler reserves besides is
    gradients, activations and working space; gradients are as large as the parameters they belong
    to, and laid out likewise.
    """
    held = dict.fromkeys(("parameters", "optimizer", "other_state"), 0.0)
    for path, leaf in flatten(step.program.abstract).items():
        held[_kind(path)] += _local_bytes(leaf)
    report: dict[str, Any] = {name: size / GIB for name, size in held.items()}
    chip = topology.chip
    limit = chip.hbm_bytes * chip.usable / chip.devices if chip else math.inf
    if step.executable is not None:
        stats = step.executable.memory_analysis()
        state = stats.argument_size_in_bytes
        report["batch"] = max(0.0, state - sum(held.values())) / GIB
        report["gradients_activations_temporaries"] = stats.temp_size_in_bytes / GIB
        report["code"] = stats.generated_code_size_in_bytes / GIB
        total = (
            state
            + stats.output_size_in_bytes
            - stats.alias_size_in_bytes
            + stats.temp_size_in_bytes
            + stats.generated_code_size_in_bytes
        )
        report["peak"] = total / GIB
        report["fits"] = total <= limit
    else:
        short = "RESOURCE_EXHAUSTED" in step.shortage
        report["fits"] = False if short else "unknown"
        report["the_compiler_says"] = step.shortage
        needed = re.search(r"([\d.]+)([MG])", step.shortage)
        if needed and short:
            needs = float(needed[1]) * (1 if needed[2] == "G" else 2**-10)
            report["gradients_activations_temporaries"] = needs
    if chip:
        report["of_the_chip"] = chip.hbm_bytes / GIB / chip.devices
        report["usable"] = limit / GIB
    return report


def _kind(path: str) -> str:
    if "opt_state" in path:
        return "optimizer"
    return "parameters" if "/params/" in path or path.startswith("frozen/") else "other_state"


def _local_bytes(leaf: Any) -> float:
    width = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return float(math.prod(leaf.sharding.shard_shape(leaf.shape)) * width)


def replicated(program: Program, mesh: Mesh) -> dict[str, Any]:
    """What of the parameters and their optimiser is not divided over the devices at all.

    {} on a single device.
    """
    if mesh.size == 1:
        return {}
    whole = {
        path: _local_bytes(leaf)
        for path, leaf in flatten(program.abstract).items()
        if leaf.shape and leaf.sharding.is_fully_replicated
    }
    total = sum(map(_local_bytes, flatten(program.abstract).values()))
    first = sorted(whole, key=lambda path: -whole[path])[:3]
    return {
        "gib": sum(whole.values()) / GIB,
        "part_of_what_a_device_holds": sum(whole.values()) / total,
        "largest": ", ".join(f"{path} ({whole[path] / 2**20:.3g} MiB)" for path in first),
    }


def _slices(mesh: Mesh) -> Sequence[int]:
    """What network each device is in: of a TPU its slice, of a GPU its host."""
    devices = mesh.devices.flat
    if platform(mesh) == "cuda":
        return [device.process_index for device in devices]
    return [getattr(device, "slice_index", 0) or 0 for device in devices]


def _describe(item: Collective) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "devices": item.group,
        "over_the_network": item.crossing,
        "times": item.times,
        "mib": item.bytes / 2**20,
    }


def _estimate(
    config: RunConfig,
    topology: Topology,
    operations: float,
    model_flops: float,
    traffic: float,
    found: Sequence[Collective],
) -> dict[str, Any]:
    """Bounds of the step's time, and what follows from them for the whole schedule."""
    chip = topology.chip
    assert chip is not None
    share = 1 / chip.devices  # of a chip, for a device
    peak = chip.peak(config.precision)
    parts = {
        "compute": operations / topology.chips / peak,
        "memory": traffic / (chip.hbm_bandwidth * share),
        "links": sum(x.wire_bytes for x in found if not x.crossing) / (chip.link_bandwidth * share),
        "network": sum(x.wire_bytes for x in found if x.crossing)
        / (chip.network_bandwidth * share),
    }
    bounds = {"all_overlapped": max(parts.values()), "nothing_overlapped": sum(parts.values())}
    audio = audio_seconds(config)
    buckets = isinstance(config.data, CropConfig) and config.data.buckets

    def consequences(seconds: float) -> dict[str, float]:
        hours = config.steps * seconds / 3600
        return {
            "step_seconds": seconds,
            "mfu": model_flops / topology.chips / peak / seconds,
            "audio_seconds_per_second": audio / seconds,
            "hours": hours,
            "chip_hours": hours * topology.chips,
        }

    return {
        "roofline_seconds": parts,
        "estimate": {name: consequences(seconds) for name, seconds in bounds.items()},
        "assumptions": {
            "chip": f"{peak / 1e12:.4g} TFLOP/s ({config.precision} products), "
            f"{chip.hbm_bandwidth / 1e9:.4g} GB/s of memory, {chip.link_bandwidth / 1e9:.4g} GB/s "
            f"out over all links, {chip.network_bandwidth / 1e9:.4g} GB/s out to the network "
            f"({chip.source})",
            "bounds": "each part runs at the chip's peak; the truth lies above the first bound, "
            "and near or above the second where kernels are small or collectives wait",
            "flops": "matrix products and convolutions, multiply-add as two; the MFU counts none "
            "twice, the compute time counts recomputation",
            **({"batch": "every one of the longest bucket"} if buckets else {}),
            "schedule": f"{config.steps} steps, without evaluation, checkpoints, waiting for data "
            "and restarts",
        },
    }


def largest_batch(config: RunConfig, mesh: Mesh, topology: Topology) -> dict[str, Any]:
    """The most examples a device takes at once, and what of the configured batch follows.

    A bisection between what fits and what does not, led by the line through the last two needs of
    memory.
    """
    parts, configured = batch_parts(mesh), examples(config)
    if isinstance(config.data, CropConfig):  # counts are of the longest bucket
        data = dataclasses.replace(config.data, batch_seconds=0.0)
        config = dataclasses.replace(config, data=data)
    needs: dict[int, float] = {}

    def fits(count: int) -> bool:
        data = dataclasses.replace(config.data, batch_size=count * parts)
        step = compile_step(dataclasses.replace(config, data=data, microbatches=1), mesh)
        report = memory(step, topology)
        needs[count] = report.get("peak", report.get("gradients_activations_temporaries", 0.0))
        return report["fits"] is True

    if topology.chip is None:
        raise UserError("--fit needs a topology whose memory is known")
    limit = topology.chip.hbm_bytes * topology.chip.usable / topology.chip.devices / GIB
    low, high, probe = 0, 0, max(1, configured // (parts * config.microbatches))
    while not (high and high - low <= 1):
        if fits(probe):
            low = probe
        else:
            high = probe
        guess = _guess(needs, limit) or probe * 2
        top = high - 1 if high else max(probe * 4, low + 1)
        probe = min(max(guess, low + 1), top)
    shared = config.data.batch_size // parts  # what micro-batches can divide
    fitting = [
        m for m in range(1, shared + 1) if shared % m == 0 and configured // (parts * m) <= low
    ]
    return {
        "examples_a_device_at_once": low,
        "batch_without_microbatches": low * parts,
        "microbatches_for_the_configured_batch": fitting[0] if fitting else None,
        "compiled": len(needs),
    }


def _guess(needs: dict[int, float], limit: float) -> int | None:
    """Where the line through two needs of memory reaches the limit."""
    if len(needs) < 2:
        return None
    (x0, y0), (x1, y1) = sorted(needs.items(), key=lambda item: abs(item[1] - limit))[:2]
    slope = (y1 - y0) / (x1 - x0)
    return int(x0 + (limit - y0) / slope) if slope > 0 else None
