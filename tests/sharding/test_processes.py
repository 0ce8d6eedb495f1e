"""Several processes of one run, as `launch/local.py` starts them."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import toy

from jaxclone.train.loop import fit
from jaxclone.train.tracking import read_metrics

LAUNCH = Path(toy.__file__).resolve().parent.parent / "launch" / "local.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def launch(*options: str, code: str) -> list[str]:
    return [sys.executable, str(LAUNCH), *options, "--", sys.executable, "-c", code]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, env=toy.environment(), capture_output=True, text=True, timeout=280, check=False
    )


def test_each_process_is_told_who_it_is() -> None:
    names = ["COORDINATOR", "PROCESSES", "PROCESS_ID", "CPU_DEVICES"]
    code = f"""
import os
# In one piece: the processes write to the same pipe.
os.write(1, " ".join(os.environ["JAXCLONE_" + name] for name in {names}).encode() + b"\\n")
"""
    done = run(launch("--processes", "3", "--devices", "2", "--port", "1234", code=code))
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [f"localhost:1234 3 {i} 2" for i in range(3)]


def test_one_that_fails_ends_the_others() -> None:
    code = "import os, time; int(os.environ['JAXCLONE_PROCESS_ID']) and exit(3); time.sleep(60)"
    began = time.monotonic()
    done = run(launch("--patience", "0.1", code=code))
    assert time.monotonic() - began < 30
    assert done.returncode == 3
    assert done.stderr == "process 1 of 2 ended with 3\n"


def test_there_must_be_a_command() -> None:
    done = run([sys.executable, str(LAUNCH), "--processes", "2"])
    assert done.returncode == 2
    assert "give at least one process and, after --, the command to run" in done.stderr


@pytest.mark.parametrize(
    ("process", "problem"),
    [
        (0, "process 1 of 2 did not come to localhost:{port} within 2 s (--hosts.timeout)"),
        (1, "process 0 (localhost) of 2 does not answer at localhost:{port} within 2 s"),
    ],
)
def test_processes_that_do_not_meet_end_with_one_line(process: int, problem: str) -> None:
    port = free_port()
    environment = toy.environment(
        JAXCLONE_COORDINATOR=f"localhost:{port}",
        JAXCLONE_PROCESSES="2",
        JAXCLONE_PROCESS_ID=str(process),
        JAXCLONE_TIMEOUT="2",
    )
    done = subprocess.run(
        [sys.executable, toy.__file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {problem.format(port=port)}")


IN_CLUSTER = """
import os, signal, time, jax
from jaxclone.sharding import hosts
hosts.initialise_distributed(hosts.HostsConfig(port=int(os.environ["PORT"])))
assert jax.process_count() == 2 and jax.process_index() == int(os.environ["OMPI_COMM_WORLD_RANK"])
hosts.progress()
if jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


@pytest.mark.slow
def test_processes_that_jax_brings_together_know_one_another_too() -> None:
    """By the variables of Open MPI, which JAX reads: of no other cluster can one be made here."""
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", IN_CLUSTER],
            env=toy.environment(
                OMPI_MCA_orte_hnp_uri="4096.0;tcp://127.0.0.1:1",
                OMPI_COMM_WORLD_SIZE="2",
                OMPI_COMM_WORLD_RANK=str(rank),
                OMPI_COMM_WORLD_LOCAL_RANK=str(rank),
                JAX_PLATFORMS="cpu",
                PORT=str(port),
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    err = [process.communicate(timeout=240)[1] for process in running]
    assert [process.returncode for process in running] == [75, -signal.SIGKILL]
    (line,) = [line for line in err[0].splitlines() if line.startswith("error: ")]
    assert line.startswith("error: process 0: process 1 (")
    assert "of 2 is gone" in line


ONE_FAILS = """
import sys, jax, numpy as np
from jax.experimental.multihost_utils import process_allgather
from jaxclone.sharding.hosts import fail_at_exit, initialise_distributed
initialise_distributed()
process_allgather(np.array(1))
if jax.process_index() == 1:
    fail_at_exit()
    sys.exit("error: the disk is full")
process_allgather(np.array(1))
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_does_not_wait(tmp_path: Path) -> None:
    done = run(launch("--devices", "1", "--patience", "1", code=ONE_FAILS))
    assert done.returncode == 1
    assert "error: the disk is full" in done.stderr.splitlines()
    assert done.stderr.splitlines()[-1] == "process 1 of 2 ended with 1"


@pytest.mark.slow
def test_a_signal_stops_all_at_one_step(toy_corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(LAUNCH), "--processes", "2", "--devices", "1", "--"]
    command += [sys.executable, toy.__file__, "--data.corpus", str(toy_corpus)]
    command += ["--out", str(tmp_path), "--checkpoint_every", "0", "--steps", "100000"]
    with subprocess.Popen(
        command, env=toy.environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        toy.wait_for_step(tmp_path, 5, process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert process.returncode == 75
    (saved,) = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert err.count(f"stopped by a signal after step {saved} and saved") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "process", "reason"),
    [
        (signal.SIGKILL, 1, "is gone"),
        (signal.SIGSTOP, 1, "gave no sign of life for 5 s (--hosts.heartbeat)"),
    ],
)
def test_a_process_that_is_lost_in_the_middle_is_named(
    toy_corpus: Path, tmp_path: Path, number: signal.Signals, process: int, reason: str
) -> None:
    port = free_port()
    command = [sys.executable, toy.__file__, "--data.corpus", str(toy_corpus)]
    command += ["--out", str(tmp_path), "--checkpoint_every", "2", "--steps", "100000"]
    environment = toy.environment(
        JAXCLONE_COORDINATOR=f"localhost:{port}",
        JAXCLONE_PROCESSES="2",
        JAXCLONE_CPU_DEVICES="1",
        JAX_PLATFORMS="cpu",
    )
    running = [
        subprocess.Popen(
            [*command, "--hosts.process", str(i), "--hosts.heartbeat", "5"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    victim, other = running[process], running[1 - process]
    try:
        toy.wait_for_step(tmp_path, 5, other)
        victim.send_signal(number)
        began = time.monotonic()
        _, err = other.communicate()
        assert time.monotonic() - began < 60
    finally:
        victim.kill()
        victim.communicate()
    assert other.returncode == 75
    assert f'File "{toy.__file__}"' not in err, "no traceback"
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: process {1 - process}: process {process} (")
    assert line.endswith(f"of 2 {reason}; what was saved is whole, the same command continues")
    assert list((tmp_path / "checkpoints").iterdir())


EVALUATED = """
import dataclasses, sys, toy
from jaxclone.sharding.hosts import initialise_distributed
from jaxclone.sharding.mesh import MeshConfig
from jaxclone.train.loop import fit
initialise_distributed()
corpus, out = sys.argv[1:]
run = toy.config(corpus, out, steps=2, mesh=MeshConfig(data=1, fsdp=-1))
run = dataclasses.replace(run, valid=run.data, eval_batches=2)
fit(run, toy.task(run))
"""


@pytest.mark.slow
def test_evaluation_and_showcase_are_those_of_one_process(toy_corpus: Path, tmp_path: Path) -> None:
    arguments = [str(toy_corpus), str(tmp_path / "two")]
    done = run([*launch("--devices", "2", code=EVALUATED), *arguments])
    assert done.returncode == 0, done.stderr
    config = toy.config(toy_corpus, tmp_path / "one", steps=2, eval_batches=2)
    config = dataclasses.replace(config, valid=config.data)
    fit(config, toy.task(config))
    two, one = (read_metrics(tmp_path / name)[-1] for name in ("two", "one"))
    assert two["valid/loss"] == pytest.approx(one["valid/loss"], rel=1e-5)
    media = [tmp_path / name / "media" / "2" for name in ("one", "two")]
    sounds = [(folder / "voices" / "first.wav").read_bytes() for folder in media]
    assert sounds[0] == sounds[1]
    kernels = [matplotlib.image.imread(folder / "kernel.png") for folder in media]
    np.testing.assert_allclose(kernels[0], kernels[1], atol=0.02)
