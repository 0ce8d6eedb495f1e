"""Runs a command as several processes of one training run, on this machine.

    python launch/local.py --processes 2 --devices 2 -- jaxclone train CONFIG

Each process gets the variables that `jaxclone.sharding.hosts.initialise_distributed` reads. With
`--devices`, each has that many CPU devices; without, it has the devices that JAX finds, so divide
them by `CUDA_VISIBLE_DEVICES` or the like. SIGTERM and SIGINT are passed on. The first process
that ends with a failure, or with 75 because it was stopped, ends the others, and its exit code is
this command's (134 or 137 where it was aborted or killed). `launch/again.sh` before all of this
starts it again where that makes sense.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(
    command: list[str], processes: int, devices: int | None, port: int
) -> list[subprocess.Popen]:
    """Starts all processes of a run."""
    started = []
    for index in range(processes):
        variables = {
            "JAXCLONE_COORDINATOR": f"localhost:{port}",
            "JAXCLONE_PROCESSES": str(processes),
            "JAXCLONE_PROCESS_ID": str(index),
        }
        if devices is not None:
            variables |= {"JAXCLONE_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu"}
        started.append(subprocess.Popen(command, env=os.environ | variables))
    return started


def wait(running: list[subprocess.Popen], patience: float) -> int:
    """Waits until all are done, or one has failed and the others were ended; the exit code.

    Once one has failed, the others have `patience` seconds to end by themselves.
    """
    while True:
        codes = [process.poll() for process in running]
        failed = [(index, code) for index, code in enumerate(codes) if code]
        if failed:
            break
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.1)
    index, code = failed[0]
    deadline = time.monotonic() + patience
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    sys.stderr.write(f"process {index} of {len(running)} ended with {code}\n")
    return code if code > 0 else 128 - code


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (default 2)")
    parser.add_argument("--devices", type=int, help="CPU devices of each process")
    parser.add_argument("--port", type=int, help="of the first process (default: any free one)")
    parser.add_argument(
        "--patience",
        type=float,
        default=10.0,
        help="seconds that the others have to end when one has failed (default 10)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and what to run")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or options.processes < 1:
        parser.error("give at least one process and, after --, the command to run")
    try:
        running = start(command, options.processes, options.devices, options.port or free_port())
    except OSError as error:
        parser.error(f"{command[0]} cannot be started: {error.strerror}")

    def pass_on(number: int, _: object) -> None:
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    return wait(running, options.patience)


if __name__ == "__main__":
    sys.exit(main())
