"""`jaxclone plan`: what a run will need of hardware that is not here."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import tyro

from jaxclone import config as configs
from jaxclone.cli.console import say
from jaxclone.cli.options import parse
from jaxclone.config import UsageError
from jaxclone.export.plan import plan
from jaxclone.export.topology import Topology
from jaxclone.train.task import RunConfig
from jaxclone.types import UserError

_FLAGS = {"--topology": 1, "--slices": 1, "--fit": 0}


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """Compiles the training step of a config for hardware that is not here, and runs nothing.

    It tells the memory a device by kind, floating-point operations, communication, bounds of the
    step's time with what they assume, and the hours of the schedule. Fields of the config are
    overridden as for jaxclone train: --mesh.fsdp 8, --microbatches 4.

    Attributes:
        config: a config file or the name of one that comes with jaxclone.
        topology: v4, v5e, v5p, v6e or 7x and the shape of a slice, as in v5e:4x4 or v5p:4x4x4;
            h100:8 for a host of eight, h100:2x8 for two; cpu:1 for this machine. TPUs need
            jaxclone[tpu], GPUs jaxclone[cuda].
        slices: TPU slices joined by the network.
        fit: search the largest batch that fits; compiles about five times.
    """

    config: tyro.conf.Positional[str]
    topology: str
    slices: int = 1
    fit: bool = False


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone plan`."""
    mine, overrides = _divide(args)
    options = parse(PlanOptions, mine, "jaxclone plan")
    topology = Topology.parse(options.topology, options.slices)
    config = configs.load(options.config)
    if not isinstance(config, RunConfig):
        raise UserError(f"config {options.config} is a {type(config).__name__}, which is no run")
    config = configs.override(config, overrides, f"jaxclone plan {options.config}")
    # Devices of this machine are not asked for: a TPU library without a TPU would look for one.
    jax.config.update("jax_platforms", "cpu")
    if topology.kind == "cpu":
        with contextlib.suppress(RuntimeError):  # set already, at the start of this process
            jax.config.update("jax_num_cpu_devices", topology.chips)
    say(f"compiling the step of {options.config} for {options.topology}: minutes")
    with _quiet():
        return plan(config, topology, fit=options.fit)


def _divide(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options with the config's name, and the overrides of the config."""
    mine: list[str] = []
    overrides: list[str] = []
    named = False
    rest = list(args)
    while rest:
        arg = rest.pop(0)
        name = arg.split("=")[0]
        if name in _FLAGS or name in ("-h", "--help"):
            values = 0 if "=" in arg else _FLAGS.get(name, 0)
            mine += [arg, *rest[:values]]
            del rest[:values]
        elif named:
            overrides.append(arg)
        elif arg.startswith("-"):
            raise UsageError("jaxclone plan needs a config first; see jaxclone plan --help")
        else:
            named = True
            mine.append(arg)
    return mine, overrides


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what compilers write to the standard error of the process, unless asked to speak."""
    import absl.logging

    if absl.logging.get_verbosity() >= absl.logging.INFO:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
