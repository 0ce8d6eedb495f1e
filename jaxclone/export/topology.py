"""Hardware that a plan can be made for, and how to compile for it without having it."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from jaxclone.config import UsageError, did_you_mean
from jaxclone.sharding.chips import CHIPS, Chip
from jaxclone.types import UserError

# What XLA must know of an H100 SXM5 to compile for it (NVIDIA H100 whitepaper; the CUDA
# programming guide's table of compute capability 9.0).
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 85899345920
  memory_bandwidth: 3352000000000
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_TARGETS = {"h100": _H100}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips and how they are wired.

    Attributes:
        kind: a name of `CHIPS` that there is a compiler for, or "cpu" for devices of this machine.
        shape: chips along each axis of a TPU slice; hosts and GPUs of each.
        slices: of TPUs, joined by the network.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def parse(cls, text: str, slices: int = 1) -> Topology:
        """Reads `v5e:4x4`, `v5p:4x4x4`, `7x:2x2x1`, `h100:8`, `h100:2x8` (hosts first) or `cpu:2`.

        Raises:
            UsageError: no such kind, or no such shape.
        """
        kind, _, shape = text.lower().removeprefix("tpu").partition(":")
        compiled = [name for name, chip in CHIPS.items() if chip.platform == "tpu"]
        kinds = (*compiled, *_TARGETS, "cpu")
        if kind not in kinds:
            raise UsageError(f"no topology of kind {kind!r}{did_you_mean(kind, kinds)}")
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
            raise UsageError(
                f"the topology {text!r} has no shape: write it as v5e:4x4, v5p:4x4x4 or h100:8"
            )
        if slices < 1 or (slices > 1 and (kind not in CHIPS or CHIPS[kind].platform != "tpu")):
            raise UsageError(f"--slices {slices}: slices, at least one, are of TPUs")
        return cls(kind, tuple(map(int, shape.split("x"))), slices)

    @property
    def chip(self) -> Chip | None:
        """None for a CPU, of which nothing is known."""
        return CHIPS.get(self.kind)

    @property
    def chips(self) -> int:
        """In all slices."""
        return self.slices * math.prod(self.shape)

    def devices(self) -> Sequence[Any]:
        """Devices that programs can be compiled for, and not run on.

        Raises:
            UserError: the compiler for them is not installed, or knows no such shape.
        """
        match self.chip.platform if self.chip else "cpu":
            case "tpu":
                return self._tpus()
            case "cuda":
                return self._gpus()
        if self.chips > jax.device_count():
            raise UserError(f"this process has {jax.device_count()} devices, not {self.chips}")
        return jax.devices()[: self.chips]

    def _tpus(self) -> Sequence[Any]:
        _require("libtpu", "tpu")
        # The library would look for a TPU host's metadata, and lock the chips that are not there.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        name = f"tpu{self.kind}" if self.kind == "7x" else self.kind
        options: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        if self.kind == "v4":  # as JAX runs it: the two cores of a chip are one device
            options["chip_config_name"] = "megacore"
        shape = "x".join(map(str, self.shape))
        try:
            return topologies.get_topology_desc(
                platform="tpu", topology_name=f"{name}:{shape}", **options
            ).devices
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"no topology {self.kind}:{shape} ({reason})") from None

    def _gpus(self) -> Sequence[Any]:
        _require("jax_plugins.xla_cuda12", "cuda")
        from jax.experimental import topologies

        hosts, gpus = (1, *self.shape)[-2:]
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=_TARGETS[self.kind],
            topology=f"1x{hosts}x{gpus}",
        ).devices


def _require(package: str, extra: str) -> None:
    import importlib.util

    try:
        found = importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        raise UserError(
            f"compiling for this topology needs {package.rpartition('.')[2]}: "
            f"pip install 'jaxclone[{extra}]'"
        )
