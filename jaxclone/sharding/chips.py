"""What accelerators can do, by what JAX calls them."""

from __future__ import annotations

import dataclasses
import re

GIB = 2.0**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at most.

    Attributes:
        kind: a regular expression of what JAX calls its devices, their `device_kind`.
        flops: bf16 operations a second.
        hbm_bytes: memory.
        hbm_bandwidth: bytes a second.
        link_bandwidth: bytes a second that it sends to chips of its slice or host, all links at
            once; half of what is published for both directions.
        network_bandwidth: bytes a second that it sends out of its slice or host.
        source: of these figures.
        platform: "tpu" or "cuda".
        devices: of JAX a chip.
        usable: part of the memory that a program gets.
        f32_flops: operations a second of f32 products at JAX's default precision.
    """

    kind: str
    flops: float
    hbm_bytes: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    source: str
    platform: str = "tpu"
    devices: int = 1
    usable: float = 1.0
    f32_flops: float | None = None

    def peak(self, precision: str) -> float:
        """Operations a second of a chip that computes in "bf16" or "f32"."""
        return self.flops if precision == "bf16" else self.f32_flops or self.flops


# TPUs: a product of f32 is one pass in bf16 by default. The compiler itself refuses what does not
# fit, reserved memory included.
CHIPS = {
    "v4": Chip(
        "TPU v4", 275e12, 32 * GIB, 1.2e12, 300e9, 6.25e9,
        "cloud.google.com/tpu/docs/v4; network taken as v5p's",
    ),
    "v5e": Chip(
        "TPU v5( lite|e)", 197e12, 16 * GIB, 819e9, 200e9, 3.125e9,
        "cloud.google.com/tpu/docs/v5e",
    ),
    "v5p": Chip(
        "TPU v5p?", 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9,
        "cloud.google.com/tpu/docs/tpu7x, column v5p",
    ),
    "v6e": Chip(
        "TPU v6( lite|e)", 918e12, 32 * GIB, 1638e9, 400e9, 12.5e9,
        "cloud.google.com/tpu/docs/v6e",
    ),
    "7x": Chip(
        "TPU7x", 2307e12, 192 * GIB, 7380e9, 600e9, 12.5e9,
        "cloud.google.com/tpu/docs/tpu7x",
        devices=2,
    ),
    "h100": Chip(
        "NVIDIA H100 80GB HBM3", 989.4e12, 80 * GIB, 3.35e12, 450e9, 50e9,
        "NVIDIA H100 SXM5 datasheet, without sparsity; network of a DGX H100",
        platform="cuda",
        usable=0.75,  # what JAX takes by default
        f32_flops=494.7e12,  # TF32
    ),
    "h200": Chip(
        "NVIDIA H200", 989.4e12, 141e9, 4.8e12, 450e9, 50e9,
        "NVIDIA H200 SXM datasheet, without sparsity; network of a DGX H200",
        platform="cuda",
        usable=0.75,
        f32_flops=494.7e12,
    ),
    "a100": Chip(
        "NVIDIA A100.*", 312e12, 80 * GIB, 2.039e12, 300e9, 25e9,
        "NVIDIA A100 80GB SXM datasheet, without sparsity; network of a DGX A100",
        platform="cuda",
        usable=0.75,
        f32_flops=156e12,
    ),
}  # fmt: skip


def device_peak(kind: str, precision: str) -> float | None:
    """Operations a second of one device, by its `device_kind`; None where they are not known.

    >>> device_peak("TPU v5 lite", "bf16"), device_peak("cpu", "f32")
    (197000000000000.0, None)
    """
    for chip in CHIPS.values():
        if re.fullmatch(chip.kind, kind):
            return chip.peak(precision) / chip.devices
    return None
