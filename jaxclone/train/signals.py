"""SIGTERM and SIGINT: how a run is told to stop."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

from jaxclone.train.errors import Interrupted

logger = logging.getLogger(__name__)


class StopSignals:
    """Within it, the first SIGTERM or SIGINT only sets `stop`; the second does what it always did.

    Signals reach the main thread alone: elsewhere, nothing is caught.
    """

    def __init__(self) -> None:
        self.stop = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.__exit__()
        self.stop = True
        logger.warning("%s: saving after this step", signal.Signals(number).name)


class Interrupting(StopSignals):
    """Within it, the first SIGTERM or SIGINT raises `Interrupted`; for work that is kept by pieces.

    Where all processes wait for one another the exception waits too, until they have met.
    """

    def __init__(self, doing: str) -> None:
        """What is done within it, in words: "units are made"."""
        super().__init__()
        self._doing = doing

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.__exit__()
        self.stop = True
        raise Interrupted(
            f"stopped by a signal while {self._doing}; what is ready was kept, and the same "
            "command continues"
        )
