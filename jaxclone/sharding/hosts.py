"""The processes of a run on its hosts: how they find one another, and how one of them ends."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxclone.sharding.roll import FAILED, LOST, Place, Roll, listen
from jaxclone.types import UserError

# How long a process that fails waits for the others to fail likewise.
LEAVING_SECONDS = 5.0
# JAX's own time-outs abort with a stack trace: they come last.
_LATER_SECONDS = 60
# The address of process 0, as all processes learn it where a cluster tells it to JAX alone.
_ADDRESS_BYTES = 256


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """How the processes of a run find one another, and how long they wait for each other.

    Where a field has its default, the environment variable `JAXCLONE_<FIELD>` is asked, such as
    `JAXCLONE_COORDINATOR`; that of `process` is `JAXCLONE_PROCESS_ID`.

    Attributes:
        coordinator: `host:port` of process 0, the port any free one; with it, `processes` and
            `process` must be there too.
        processes: how many there are.
        process: which this is, from 0.
        names: of their hosts in order, separated by commas, to tell which did not come.
        cluster: "auto" asks SLURM, Open MPI, Cloud TPU or Kubernetes where one of them has started
            several processes and there is no `coordinator`; "off" does not.
        port: of process 0 for JAX where the cluster says the rest; 0 for its usual one.
        timeout: seconds that processes wait for one another at the start.
        heartbeat: seconds without a sign of life after which a process counts as lost.
        barrier: seconds that those who have come to a step wait for the others.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = -1
    names: str = ""
    cluster: Literal["auto", "off"] = "auto"
    port: int = 0
    timeout: float = 300.0
    heartbeat: float = 100.0
    barrier: float = 1800.0


_roll: Roll | None = None


def initialise_distributed(config: HostsConfig = HostsConfig()) -> None:
    """Joins the processes of a run, as the config, the environment or the cluster says.

    Nothing is done when they say nothing. Call it before anything else touches a device. With
    the variable `JAXCLONE_CPU_DEVICES`, this process has so many CPU devices.

    Raises:
        UserError: a setting is missing or no number; the others do not come in time, in which case
            the line names them.
    """
    global _roll
    if "JAXCLONE_CPU_DEVICES" in os.environ:
        jax.config.update("jax_num_cpu_devices", _number("JAXCLONE_CPU_DEVICES"))
    config = _completed(config)
    for field in ("timeout", "heartbeat", "barrier"):
        if getattr(config, field) <= 0:
            raise UserError(f"--hosts.{field} must be above 0, got {getattr(config, field):g}")
    if config.coordinator:
        roll = _meet(config)
    elif config.cluster == "auto" and (launcher := launched_by()):
        roll = _meet_in_cluster(config, launcher)
    else:
        return
    if roll is not None:
        _roll = roll
        atexit.register(roll.leave, failed=False)


def launched_by() -> str | None:
    """What has started this process as one of several, as far as the environment tells.

    The variables are those that `jax.distributed.initialize` reads, or sets for a Cloud TPU.
    """
    variables = os.environ
    if "SLURM_STEP_NODELIST" in variables and variables.get("SLURM_NTASKS", "1") != "1":
        return "SLURM"
    if variables.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return "Open MPI"
    if "TPU_ML_PLATFORM" in variables:  # JAX found chips here
        if "TPU_SKIP_MDS_QUERY" not in variables or "," in variables.get(
            "TPU_WORKER_HOSTNAMES", ""
        ):
            return "Cloud TPU"
    elif {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= variables.keys():
        return "Kubernetes"
    return None


def progress() -> None:
    """Says to the others that this process has come to the next step that all take together."""
    if _roll is not None:
        _roll.progress()


@contextlib.contextmanager
def failing_alone() -> Iterator[None]:
    """Within it, a process that fails does not wait for others that may wait for it.

    An error that comes of the loss of another process is not told: the loss is. Where `SystemExit`
    or an exception that is common to all processes must not count, catch it within.
    """
    try:
        yield
    except BaseException as error:
        if _roll is not None:
            _roll.await_verdict(told=isinstance(error, UserError))
        fail_at_exit()
        raise


def fail_at_exit() -> None:
    """For a process that fails: at its exit, it does not wait for others that may wait for it.

    Those that fail likewise still take leave of one another; where one does not come within
    seconds, this process ends with 1. With a single process, nothing is done.
    """
    if _roll is not None:
        _roll.leave(failed=True)
    _leave_at_exit(FAILED)


def stop_at_exit() -> None:
    """For a process that was told to stop where others may wait for it: all end, to start again.

    As `fail_at_exit`, but every process ends with the code of a run that can be continued.
    """
    if _roll is not None:
        _roll.stop()
    _leave_at_exit(LOST)


def _leave_at_exit(code: int) -> None:
    if jax.process_count() > 1:
        atexit.register(_take_leave, code)


def _take_leave(code: int) -> None:
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(LEAVING_SECONDS)
    if leaving.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _completed(config: HostsConfig) -> HostsConfig:
    """With what the environment says where the config has its default."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(HostsConfig):
        variable = f"JAXCLONE_{field.name.upper()}" + ("_ID" if field.name == "process" else "")
        if variable not in os.environ or getattr(config, field.name) != field.default:
            continue
        is_text = isinstance(field.default, str)
        found[field.name] = os.environ[variable] if is_text else _number(variable)
    return dataclasses.replace(config, **found)


def _meet(config: HostsConfig) -> Roll | None:
    """Joins by the config's own numbers; None when it is one process."""
    processes, process = config.processes, config.process
    if not 0 <= process < processes:
        raise UserError(
            f"with a coordinator, give --hosts.processes and --hosts.process below it: got "
            f"{processes} and {process}"
        )
    host, colon, port = config.coordinator.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(f"--hosts.coordinator must be host:port, got {config.coordinator!r}")
    if processes == 1:
        return None
    names = config.names or os.environ.get("TPU_WORKER_HOSTNAMES", "")
    place = Place(processes, process, [name for name in names.split(",") if name])
    service = ""
    if process == 0:
        roll = listen(place, host, int(port), config.heartbeat, config.barrier)
        service = str(_free_port())
    else:
        roll = Roll(place, config.coordinator, config.heartbeat, config.barrier)
    service = roll.meet(config.timeout, service)
    _initialise(config, f"{host}:{service}", processes, process, "deactivate")
    return roll


def _meet_in_cluster(config: HostsConfig, launcher: str) -> Roll | None:
    """Joins as JAX finds out by itself, after which the processes learn where process 0 is."""
    if config.port:
        os.environ["JAX_COORDINATOR_PORT"] = str(config.port)

    def give_up() -> None:
        sys.stderr.write(
            f"error: {socket.gethostname()}: the processes that {launcher} started did not meet "
            f"within {config.timeout:g} s (--hosts.timeout); with --hosts.coordinator, the line "
            "names those that are missing\n"
        )
        sys.stderr.flush()
        os._exit(1)

    # JAX would abort the process, which cannot be caught: be there before it.
    watch = threading.Timer(config.timeout, give_up)
    watch.daemon = True
    watch.start()
    try:
        _initialise(config)
    except (ValueError, RuntimeError) as error:
        if launcher == "Cloud TPU" and "coordinator_address" in str(error):
            return None  # chips of one host, of which no cluster knows
        raise UserError(
            f"{launcher} seems to have started several processes, but they do not find one "
            f"another ({str(error).splitlines()[0]}): give --hosts.coordinator, or --hosts.cluster "
            "off for a single process"
        ) from error
    finally:
        watch.cancel()
    processes, process = jax.process_count(), jax.process_index()
    if processes == 1:
        return None
    place = Place(processes, process)
    roll, address = None, np.zeros(_ADDRESS_BYTES, np.uint8)
    if process == 0:
        roll = listen(place, _own_address(), 0, config.heartbeat, config.barrier)
        text = np.frombuffer(roll.address.encode(), np.uint8)
        address[: len(text)] = text
    told = np.asarray(multihost_utils.broadcast_one_to_all(address)).astype(np.uint8)
    where = told.tobytes().rstrip(b"\0").decode()
    roll = roll or Roll(place, where, config.heartbeat, config.barrier)
    roll.meet(config.timeout)
    return roll


def _initialise(
    config: HostsConfig,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    method: str | None = None,
) -> None:
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method=method,
        initialization_timeout=round(config.timeout) + _LATER_SECONDS,
        heartbeat_timeout_seconds=round(config.heartbeat) + _LATER_SECONDS,
        shutdown_timeout_seconds=round(config.timeout),
    )


def _own_address() -> str:
    """The address of this host in the network that its default route leads to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # for documentation (RFC 5737); nothing is sent
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not text.isdecimal():
        raise UserError(f"{variable} must be a number, got {text!r}")
    return int(text)
