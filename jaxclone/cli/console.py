"""What verbs show on standard error while they work."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator

from tqdm import tqdm


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar as a function of (done, in all); on a terminal it disappears when done.

    It is drawn at the first call, so that what fails at once leaves its one line alone.
    """
    with tqdm(desc=what, leave=False, file=sys.stderr, mininterval=0.5, delay=1e-3) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def say(line: str) -> None:
    """Prints a line for people, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)


@contextlib.contextmanager
def saying(level: int) -> Iterator[None]:
    """Within it, what our packages log is said, and left to no other handler.

    Args:
        level: the least that is said, `logging.WARNING`.
    """
    loggers = [logging.getLogger(name) for name in ("jaxclone", "data_pipelines")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    handler = _Sayer()
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, propagate) in zip(loggers, before):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = propagate


class _Sayer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(f"{record.levelname.lower()}: {self.format(record)}")
        except (OSError, RuntimeError, ValueError):  # a closed or busy standard error
            self.handleError(record)
