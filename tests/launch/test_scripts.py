"""The launch scripts, with stand-ins for the programs of a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def stand_in(folder: Path, name: str, body: str) -> None:
    """A program of that name, first on the path."""
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def run(folder: Path, script: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(LAUNCH / script), *args],
        env=os.environ | {"PATH": path, "PAUSE": "0", "HERE": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_is_a_shell_script(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


# Ends with the next code of a file, one a line.
CODES = 'code=$(head -1 "$HERE/codes"); sed -i 1d "$HERE/codes"; exit "$code"'


@pytest.mark.parametrize(
    ("codes", "end", "starts"),
    [
        ("0", 0, 1),
        ("75 75 0", 0, 3),
        ("75 1", 1, 2),
        ("2 0", 2, 1),
        ("134 137 0", 0, 3),
        ("134 134 75 134 134 0", 0, 6),
        ("134 137 134 0", 134, 3),
        ("137 137 137 0", 137, 3),
    ],
)
def test_again_starts_what_is_to_be_continued(
    tmp_path: Path, codes: str, end: int, starts: int
) -> None:
    (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
    stand_in(tmp_path, "jaxclone", f'echo "$@"; {CODES}')
    done = run(tmp_path, "gpu_host.sh", "config", "--name", "two words", CRASHES="2")
    assert done.returncode == end
    assert done.stdout.splitlines() == ["train config --name two words"] * starts


def test_again_has_an_end(tmp_path: Path) -> None:
    assert run(tmp_path, "again.sh", "bash", "-c", "echo x; exit 75", TIMES="3").returncode == 75


def test_processes_that_are_aborted_are_started_again(tmp_path: Path) -> None:
    """As where process 0 dies: this is what JAX does to the others."""
    dies_once = f"""
import os, pathlib, time
here = pathlib.Path({str(tmp_path)!r}, os.environ["JAXCLONE_PROCESS_ID"])
again = here.exists()
here.touch()
if not again and here.name == "1":
    os.abort()
time.sleep(0 if again else 30)
"""
    local = [sys.executable, str(LAUNCH / "local.py"), "--patience", "0", "--"]
    done = run(tmp_path, "again.sh", *local, sys.executable, "-c", dies_once)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == "process 1 of 2 ended with -6"


def test_again_passes_a_signal_on_and_ends(tmp_path: Path) -> None:
    waits = 'trap "exit 75" TERM; touch "$HERE/started"; while :; do sleep 0.05; done'
    stand_in(tmp_path, "waits", waits)
    with subprocess.Popen(
        ["bash", str(LAUNCH / "again.sh"), str(tmp_path / "waits")],
        env=os.environ | {"HERE": str(tmp_path)},
    ) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75


@pytest.mark.parametrize(
    ("code", "requeued", "starts"), [(0, False, 1), (75, True, 1), (1, False, 1), (134, False, 3)]
)
def test_slurm_tells_each_process_who_it_is(
    tmp_path: Path, code: int, requeued: bool, starts: int
) -> None:
    stand_in(
        tmp_path,
        "scontrol",
        'if [[ $1 == show ]]; then printf "n1\\nn2\\nn3\\n"; else echo "$@" >>"$HERE/requeued"; fi',
    )
    # srun sets the number of a task and runs the command.
    stand_in(tmp_path, "srun", 'shift; for i in 0 2; do SLURM_PROCID=$i "$@" || code=$?; done; '
             'exit "${code:-0}"')  # fmt: skip
    settings = "$JAXCLONE_COORDINATOR $JAXCLONE_PROCESSES $JAXCLONE_PROCESS_ID $JAXCLONE_NAMES"
    stand_in(tmp_path, "jaxclone", f'echo "{settings} $*"; exit {code}')
    slurm = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_NNODES": "3", "SLURM_JOB_ID": "77"}
    done = run(tmp_path, "slurm.sbatch", "config", "--steps", "9", CRASHES="2", **slurm)
    assert done.returncode == code, done.stderr
    told = [f"n1:8482 3 {process} n1,n2,n3 train config --steps 9" for process in (0, 2)]
    assert done.stdout.splitlines() == starts * told
    asked = tmp_path / "requeued"
    assert asked.exists() == requeued
    if requeued:
        assert asked.read_text() == "requeue 77\n"


def test_a_tpu_slice_is_reached_by_gcloud(tmp_path: Path) -> None:
    (tmp_path / "codes").write_text("75\n134\n0\n")
    stand_in(tmp_path, "gcloud", f'printf "%s|" "$@"; echo; {CODES}')
    done = run(tmp_path, "tpu_pod.sh", "config", "--name", "a b", TPU="slice", ZONE="z1")
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert others == [first, first]
    assert first.startswith("compute|tpus|tpu-vm|ssh|slice|--zone|z1|--worker=all|--command|")
    assert r" jaxclone train config --name a\ b ; exit $?" in first
    missing = run(tmp_path, "tpu_pod.sh", "config", TPU="slice")
    assert missing.returncode == 1
    assert "its zone" in missing.stderr


def test_the_jobset_fits_its_topology() -> None:
    (jobset,) = yaml.safe_load_all((LAUNCH / "gke_jobset.yaml").read_text())
    assert jobset["kind"] == "JobSet"
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == hosts
    (command,) = container["args"]
    assert f"JAXCLONE_PROCESSES={hosts} " in command
    # What GKE tells a pod becomes what a process is told.
    echo = command.replace("exec jaxclone train", "; echo $JAXCLONE_COORDINATOR #")
    told = {"TPU_WORKER_HOSTNAMES": "a.b,c.d", "TPU_WORKER_ID": "1"}
    done = subprocess.run(
        [*container["command"], echo],
        env=os.environ | told,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "a.b:8482\n"
    # 75, 134 and 137 must lead to another start: they are not among the codes that end the job set.
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_a_command_that_is_not_there_is_one_line() -> None:
    command = [sys.executable, str(LAUNCH / "local.py"), "--", "no-such-command"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("no-such-command cannot be started: No such file or directory\n")
