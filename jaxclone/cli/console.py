"""What verbs show on standard error while they work."""

from __future__ import annotations

import contextlib
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
    """Prints a line for people."""
    tqdm.write(line, file=sys.stderr)
