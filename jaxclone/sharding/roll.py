"""Who of a run's processes is there: when it starts, and as long as it goes on.

JAX's coordination service ends a process in which it finds something wrong by aborting it, with a
stack trace, and without a word about who is missing at the start. So the processes keep a
connection to process 0 besides, on which they say that they are there and how far they are. What
is heard of a process is what ends a run with one line that names it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from jaxclone.types import UserError

# How long a process that lost another waits: for its own error, which says more, and for the
# others to read theirs before its end looks like a loss to them.
GRACE_SECONDS = 5.0
# The exit code of a run that lost a process: EX_TEMPFAIL, start it again. 1 where one failed.
LOST, FAILED = 75, 1
# A stranger at the door is not waited for.
_HELLO_SECONDS = 5.0


class Place(NamedTuple):
    """One process among those of a run.

    Attributes:
        processes: how many there are.
        process: which this is, from 0.
        names: of their hosts, in order, as far as they are known before they come.
    """

    processes: int
    process: int
    names: Sequence[str] = ()


class _Link:
    """A connection to one process, line by line."""

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._rest = b""
        self._writing = threading.Lock()

    def send(self, *words: object) -> None:
        """One line; that nobody reads it is found out by who reads here."""
        with contextlib.suppress(OSError), self._writing:
            self._connection.sendall(" ".join(map(str, words)).encode() + b"\n")

    def receive(self, timeout: float) -> list[str]:
        """The words of the next line; [] when the other has gone.

        Raises:
            TimeoutError: none came.
        """
        try:
            self._connection.settimeout(timeout)
            while b"\n" not in self._rest:
                more = self._connection.recv(4096)
                if not more:
                    return []
                self._rest += more
        except TimeoutError:
            raise
        except OSError:
            return []
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode(errors="replace").split(" ")

    def close(self) -> None:
        self._connection.close()


class Roll:
    """The processes of a run as process 0 hears of them, and the others hear of it from process 0.

    Attributes:
        address: `host:port` where process 0 listens.
    """

    def __init__(
        self,
        place: Place,
        address: str,
        heartbeat: float,
        patience: float,
        listener: socket.socket | None = None,
    ):
        """A process that may be met.

        Args:
            place: of this process.
            address: `host:port` of process 0.
            heartbeat: seconds without a sign of life after which a process is lost.
            patience: seconds that the others wait at a step for the last.
            listener: of process 0, see `listen`.
        """
        self.address = address
        self._place = place
        self._heartbeat = heartbeat
        self._patience = patience
        self._listener = listener
        self._hosts = {0: address.rsplit(":", 1)[0], **dict(enumerate(place.names))}
        self._hosts[place.process] = socket.gethostname()
        self._links: dict[int, _Link] = {}
        self._progress = dict.fromkeys(range(place.processes), 0)
        self._moved = time.monotonic()
        self._left = threading.Event()
        self._ending = threading.Lock()
        self._ended = False

    def _name(self, processes: Sequence[int]) -> str:
        """`process 2 of 4 (node2)`."""
        named = [
            f"{process} ({self._hosts[process]})" if process in self._hosts else str(process)
            for process in processes
        ]
        kind = "process" if len(named) == 1 else "processes"
        return f"{kind} {', '.join(named)} of {self._place.processes}"

    def meet(self, timeout: float, message: str = "") -> str:
        """Waits until all are there.

        Args:
            timeout: seconds.
            message: of process 0 to all, one word.

        Returns:
            the message of process 0.

        Raises:
            UserError: some did not come in time; the line names them, in every process.
        """
        deadline = time.monotonic() + timeout
        if self._place.process == 0:
            assert self._listener is not None, "process 0 listens"
            with self._listener:
                self._gather(self._listener, deadline, timeout)
            for link in self._links.values():
                link.send("go", message)
        else:
            message = self._report(deadline, timeout)
        self._moved = time.monotonic()
        for process, link in self._links.items():
            threading.Thread(target=self._listen, args=(process, link), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        return message

    def _gather(self, listener: socket.socket, deadline: float, timeout: float) -> None:
        expected = set(range(1, self._place.processes))
        while missing := sorted(expected - self._links.keys()):
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                link = _Link(listener.accept()[0])
            except TimeoutError:
                line = (
                    f"{self._name(missing)} did not come to {self.address} within {timeout:g} s "
                    "(--hosts.timeout)"
                )
                for other in self._links.values():
                    other.send("lost", FAILED, line)
                    other.close()
                raise UserError(line) from None
            try:
                kind, process, of, host = link.receive(_HELLO_SECONDS)
                number = int(process)
            except (TimeoutError, ValueError):
                link.close()  # nobody of ours
                continue
            if kind != "here" or number not in expected or of != str(self._place.processes):
                link.send(
                    "lost",
                    FAILED,
                    f"process 0 of {self._place.processes} did not expect a process {number} of "
                    f"{of} (another run at {self.address}?)",
                )
                link.close()
                continue
            if number in self._links:  # it was started again meanwhile
                self._links[number].close()
            self._links[number], self._hosts[number] = link, host

    def _report(self, deadline: float, timeout: float) -> str:
        host, port = self.address.rsplit(":", 1)
        while True:
            try:
                remaining = max(0.01, deadline - time.monotonic())
                link = _Link(socket.create_connection((host.strip("[]"), int(port)), remaining))
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{self._name([0])} does not answer at {self.address} within {timeout:g} "
                        f"s (--hosts.timeout): {error}"
                    ) from error
                time.sleep(0.1)
        link.send("here", self._place.process, self._place.processes, socket.gethostname())
        try:
            # Process 0 may have started as late as it was reached, and then waits for others.
            words = link.receive(2 * timeout + GRACE_SECONDS)
        except TimeoutError:
            words = []
        if words and words[0] == "go":
            self._links[0] = link
            return words[1]
        link.close()
        match words:
            case ["lost", _, *line]:
                raise UserError(" ".join(line))
            case _:
                raise UserError(f"{self._name([0])} went away while others were waited for")

    def progress(self) -> None:
        """Says that this process has come to the next step of what all do together."""
        self._note(self._place.process, self._progress[self._place.process] + 1)

    def _note(self, process: int, steps: int) -> None:
        if steps > max(self._progress.values()):
            self._moved = time.monotonic()
        self._progress[process] = steps

    def leave(self, failed: bool) -> None:
        """What happens to the others is no longer of interest, nor to them what happens here."""
        if not self._left.is_set():
            self._left.set()
            for link in self._links.values():
                link.send("failed" if failed else "done")

    def stop(self) -> None:
        """Ends the others, which may be waiting for this process: it was told to stop."""
        if not self._left.is_set():
            self._left.set()
            for link in self._links.values():
                link.send("lost", LOST, f"{self._name([self._place.process])} was told to stop")

    def await_verdict(self, told: bool) -> None:
        """Gives a loss, of which an error here may be a consequence, the time to end the run.

        Args:
            told: the error has a line of its own, and is less likely to be one.
        """
        self._left.wait(1.0 if told else GRACE_SECONDS + 1)

    def _beat(self) -> None:
        """Says that this process is there; in process 0, sees who keeps the others waiting."""
        while not self._left.wait(min(self._heartbeat / 5, self._patience / 5)):
            for link in self._links.values():
                link.send("at", self._progress[self._place.process])
            furthest = max(self._progress.values())
            behind = [process for process, steps in self._progress.items() if steps < furthest]
            waited = time.monotonic() - self._moved
            if self._place.process == 0 and behind and waited > self._patience:
                self._lose(
                    LOST,
                    f"{self._name(behind)} kept the others waiting at a step for "
                    f"{self._patience:g} s (--hosts.barrier)",
                )

    def _listen(self, process: int, link: _Link) -> None:
        with contextlib.closing(link):
            loss = self._follow(process, link)
        if loss is not None:
            self._lose(*loss)

    def _follow(self, process: int, link: _Link) -> tuple[int, str] | None:
        """Reads what a process says until it is done (None) or lost (exit code, line)."""
        while True:
            try:
                words = link.receive(self._heartbeat)
            except TimeoutError:
                silent = f"gave no sign of life for {self._heartbeat:g} s (--hosts.heartbeat)"
                return LOST, f"{self._name([process])} {silent}"
            match words:
                case ["at", steps]:
                    self._note(process, int(steps))
                case ["done"]:
                    return None
                case ["failed"]:
                    return FAILED, f"{self._name([process])} failed, see what it says"
                case ["lost", code, *line]:
                    return int(code), " ".join(line)
                case []:
                    return LOST, f"{self._name([process])} is gone"

    def _lose(self, code: int, line: str) -> None:
        """Ends all processes, unless this one is ending by itself."""
        with self._ending:  # one line is enough
            if self._place.process == 0:
                for link in self._links.values():
                    link.send("lost", code, line)
            # An error of its own says more than that another had it too.
            # After a loss there is no time: JAX may be about to abort this process.
            if self._left.wait(GRACE_SECONDS if code == FAILED else 0) or self._ended:
                return
            self._ended = True
            end = "; what was saved is whole, the same command continues" if code == LOST else ""
            # Which knows of a progress bar that may stand where this goes.
            tqdm.write(f"error: process {self._place.process}: {line}{end}", file=sys.stderr)
            sys.stderr.flush()
            if self._place.process == 0:
                time.sleep(GRACE_SECONDS / 10)
            os._exit(code)


def listen(place: Place, host: str, port: int, heartbeat: float, patience: float) -> Roll:
    """The roll of process 0.

    Args:
        place: of this process.
        host: how the others reach it.
        port: 0 for any free one.
        heartbeat: as for `Roll`.
        patience: as for `Roll`.

    Raises:
        UserError: the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, backlog=place.processes, dualstack_ipv6=both
        )
    except OSError as error:
        raise UserError(f"process 0 cannot listen on port {port}: {error.strerror}") from error
    address = f"{host}:{listener.getsockname()[1]}"
    return Roll(place, address, heartbeat, patience, listener)
