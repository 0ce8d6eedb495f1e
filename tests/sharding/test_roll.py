"""The roll of a run's processes, here as threads of one."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from jaxclone.sharding import roll as rolls
from jaxclone.sharding.roll import Place, Roll, listen
from jaxclone.types import UserError

HOST = socket.gethostname()


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes of the processes that would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(rolls, "GRACE_SECONDS", 0.2)
    return codes


MADE: list[Roll] = []


@pytest.fixture(autouse=True)
def no_threads_left(ended: list[int]) -> Iterator[None]:
    """A thread that outlives a test would end those that follow."""
    before = threading.active_count()
    yield
    for roll in MADE:
        roll.leave(failed=False)
        for link in roll._links.values():
            with contextlib.suppress(OSError):
                link._connection.shutdown(socket.SHUT_RDWR)
            link.close()
    MADE.clear()
    until(lambda: threading.active_count() <= before)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def make(processes: int, heartbeat: float = 60.0, patience: float = 60.0) -> list[Roll]:
    first = listen(Place(processes, 0), "localhost", 0, heartbeat, patience)
    others = [
        Roll(Place(processes, process), first.address, heartbeat, patience)
        for process in range(1, processes)
    ]
    MADE.extend([first, *others])
    return [first, *others]


def met(pool: ThreadPoolExecutor, rolls: list[Roll], timeout: float = 10.0) -> list[Future]:
    return [pool.submit(roll.meet, timeout, "hello") for roll in rolls]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_are_there_and_hear_process_0(pool: ThreadPoolExecutor) -> None:
    processes = make(4)
    assert [future.result() for future in met(pool, processes)] == ["hello"] * 4


def test_those_who_do_not_come_are_named_in_every_process(pool: ThreadPoolExecutor) -> None:
    first = listen(Place(4, 0, ("a", "b", "c", "d")), "localhost", 0, 60.0, 60.0)
    other = Roll(Place(4, 2), first.address, 60.0, 60.0)
    message = (
        rf"^processes 1 \(b\), 3 \(d\) of 4 did not come to {first.address} within 1 s "
        r"\(--hosts\.timeout\)$"
    )
    for future in met(pool, [first, other], 1.0):
        with pytest.raises(UserError, match=message):
            future.result()


def test_process_0_that_does_not_come_is_named() -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
    late = Roll(Place(2, 1), f"localhost:{port}", 60.0, 60.0)
    message = rf"^process 0 \(localhost\) of 2 does not answer at localhost:{port} within 0\.3 s"
    with pytest.raises(UserError, match=message):
        late.meet(0.3)


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"^process 0 cannot listen on port {port}: "):
            listen(Place(2, 0), "localhost", port, 1.0, 1.0)


def test_strangers_are_not_counted(pool: ThreadPoolExecutor) -> None:
    processes = make(2)
    host, port = processes[0].address.split(":")
    waiting = met(pool, processes[:1])
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with socket.create_connection((host, int(port))) as other_run:
            other_run.sendall(b"here 5 8 elsewhere\n")
            assert b"did not expect a process 5 of 8" in other_run.recv(1000)
        waiting += met(pool, processes[1:])
        assert [future.result() for future in waiting] == ["hello"] * 2


def test_a_process_may_be_started_again_while_others_are_waited_for(
    pool: ThreadPoolExecutor,
) -> None:
    processes = make(3)
    waiting = met(pool, processes[:1])
    host, port = processes[0].address.split(":")
    with socket.create_connection((host, int(port))) as early:
        early.sendall(b"here 1 3 elsewhere\n")
    waiting += met(pool, processes[1:])
    assert [future.result() for future in waiting] == ["hello"] * 3


def test_a_process_that_is_gone_ends_all_with_its_name(
    pool: ThreadPoolExecutor, ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    processes = make(3)
    for future in met(pool, processes):
        future.result()
    processes[2]._links[0]._connection.shutdown(socket.SHUT_RDWR)  # as the kernel does for a corpse
    until(lambda: ended == [75, 75, 75])
    lines = capfd.readouterr().err.splitlines()
    for process in (0, 1):
        assert (
            f"error: process {process}: process 2 ({HOST}) of 3 is gone; what was saved is whole, "
            "the same command continues"
        ) in lines


def test_a_process_without_a_sign_of_life_is_lost(
    ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    (first, _) = make(2, heartbeat=0.3)
    host, port = first.address.split(":")
    with socket.create_connection((host, int(port))) as mute:
        mute.sendall(b"here 1 2 elsewhere\n")
        first.meet(5.0)
        until(lambda: ended == [75])
    err = capfd.readouterr().err
    assert "process 1 (elsewhere) of 2 gave no sign of life for 0.3 s (--hosts.heartbeat)" in err


def test_a_process_that_stays_behind_is_lost(
    ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    first, _ = make(2, patience=0.3)
    host, port = first.address.split(":")
    with socket.create_connection((host, int(port))) as stuck:
        stuck.sendall(b"here 1 2 elsewhere\nat 6\n")
        first.meet(5.0)
        for _ in range(7):
            first.progress()
        until(lambda: ended == [75])
    err = capfd.readouterr().err
    assert "process 1 (elsewhere) of 2 kept the others waiting at a step for 0.3 s (--hosts" in err


def test_who_fails_says_so_and_who_fails_too_tells_its_own_reason(
    pool: ThreadPoolExecutor, ended: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    processes = make(3)
    for future in met(pool, processes):
        future.result()
    processes[1].leave(failed=True)
    processes[2].leave(failed=True)  # for the same reason: it has a line of its own
    until(lambda: ended == [1])
    time.sleep(0.3)
    assert ended == [1]
    err = capfd.readouterr().err
    assert err.count("failed, see what it says") == 1
    assert err.startswith("error: process 0: process ")


def test_those_who_are_done_are_not_missed(pool: ThreadPoolExecutor, ended: list[int]) -> None:
    processes = make(2, heartbeat=0.3)
    for future in met(pool, processes):
        future.result()
    processes[1].leave(failed=False)
    processes[1]._links[0].close()
    time.sleep(0.6)
    assert ended == []
