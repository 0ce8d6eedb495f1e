"""How a process learns which it is: from flags, the environment or a cluster."""

from __future__ import annotations

import os

import jax
import pytest

from jaxclone.sharding import hosts
from jaxclone.sharding.hosts import HostsConfig, initialise_distributed, launched_by
from jaxclone.types import UserError


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says nothing."""
    for name in list(os.environ):
        if name.startswith(("JAXCLONE_", "SLURM_", "OMPI_", "TPU_", "KUBERNETES_", "JOB_")):
            monkeypatch.delenv(name)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `jax.distributed.initialize` was called with."""
    calls: list[dict] = []

    def initialize(coordinator=None, processes=None, process=None, **settings) -> None:
        calls.append(settings | {"place": (coordinator, processes, process)})

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return calls


def test_nothing_is_joined_when_nobody_says_so(joined: list[dict]) -> None:
    initialise_distributed()
    assert joined == []


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        # Within an allocation, but not started by srun; and by srun as a single process.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_NTASKS": "4"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_ML_PLATFORM": "JAX"}, "Cloud TPU"),
        # JAX sets the second where there are no chips, and so do images with a single host.
        ({"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}, None),
        (
            {
                "TPU_ML_PLATFORM": "JAX",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_WORKER_HOSTNAMES": "a,b",
                "TPU_WORKER_ID": "1",
            },
            "Cloud TPU",
        ),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_who_has_started_this_process(
    variables: dict[str, str], launcher: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_by() == launcher


def test_a_cluster_is_left_to_jax(joined: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "")  # put back afterwards
    initialise_distributed(HostsConfig(port=1234, timeout=7.0, heartbeat=20.0))
    (call,) = joined
    assert call["place"] == (None, None, None)
    assert call["heartbeat_timeout_seconds"] > 20
    assert call["initialization_timeout"] > 7
    assert os.environ["JAX_COORDINATOR_PORT"] == "1234"
    initialise_distributed(HostsConfig(cluster="off"))
    assert len(joined) == 1


def test_a_cluster_that_does_not_tell_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(*_, **__) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n[1-4]")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(UserError, match=r"^SLURM seems to have .*: give --hosts\.coordinator"):
        initialise_distributed()
    # Chips of a single host are no cluster.
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    initialise_distributed()


def test_flags_go_before_the_environment(
    joined: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXCLONE_COORDINATOR", "localhost:1")
    monkeypatch.setenv("JAXCLONE_PROCESSES", "1")
    monkeypatch.setenv("JAXCLONE_PROCESS_ID", "0")
    initialise_distributed()
    assert joined == []  # one process needs nobody
    with pytest.raises(UserError, match=r"got 1 and 3$"):
        initialise_distributed(HostsConfig(process=3))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            HostsConfig("node:1"),
            r"^with a coordinator, give --hosts\.processes and .* got 0 and -1",
        ),
        (HostsConfig("node:1", 2, 2), "got 2 and 2"),
        (HostsConfig("node", 2, 1), r"^--hosts\.coordinator must be host:port, got 'node'$"),
        (HostsConfig("node:x", 2, 1), "got 'node:x'"),
        (HostsConfig(heartbeat=0.0), r"^--hosts\.heartbeat must be above 0, got 0$"),
    ],
)
def test_settings_that_cannot_be_are_one_line(config: HostsConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        initialise_distributed(config)


def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCLONE_COORDINATOR", "localhost:1")
    monkeypatch.setenv("JAXCLONE_PROCESSES", "two")
    with pytest.raises(UserError, match=r"^JAXCLONE_PROCESSES must be a number, got 'two'$"):
        initialise_distributed()


def test_a_single_process_makes_no_progress_report() -> None:
    hosts.progress()
    with pytest.raises(KeyError), hosts.failing_alone():
        raise KeyError
