"""How a run ends before its last step."""

from __future__ import annotations

from jaxclone.types import UserError


class RunError(UserError):
    """A run that cannot go on, told in one line. What it had saved is whole."""


class Interrupted(Exception):
    """A signal stopped the run between two steps; it was saved, and the same command continues it.

    The command line exits with `exit_code`, EX_TEMPFAIL of sysexits.h: not done, not a failure,
    start it again.
    """

    exit_code = 75
