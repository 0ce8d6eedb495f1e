"""Reading a command line; imports nothing heavy, so that `jaxclone --help` answers at once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

COMMON_OPTIONS = {
    "--json": "print the result as one JSON object, the last line of standard output",
    "--verbose": "show the logs of the libraries, and the traceback of an error",
}


def choose(args: Sequence[str], prog: str, verbs: Mapping[str, str]) -> tuple[str, list[str]]:
    """The verb that a command line begins with, and what follows it.

    Args:
        args: the command line after `prog`.
        prog: the command so far: `jaxclone`, `jaxclone data`.
        verbs: one line of help by verb.

    Raises:
        UsageError: no verb, or one that is not in `verbs`.
        SystemExit: `--help` was asked for and printed.
    """
    if args and args[0] in verbs:
        return args[0], list(args[1:])
    if args and args[0] in ("-h", "--help"):
        print(overview(prog, verbs))
        raise SystemExit(0)
    from jaxclone.config import UsageError, did_you_mean

    if not args:
        raise UsageError(f"{prog} needs a verb: {', '.join(verbs)}; see {prog} --help")
    raise UsageError(f"{prog} has no verb {args[0]!r}{did_you_mean(args[0], verbs)}")


def parse(kind: Callable[..., T], args: Sequence[str], prog: str) -> T:
    """The options of a verb.

    Args:
        kind: a dataclass with a docstring that describes the verb and each field.
        args: the command line after `prog`.
        prog: the command: `jaxclone convert`.

    Raises:
        UsageError: what is wrong with the command line, in one line.
        SystemExit: `--help` was asked for and printed.
    """
    from jaxclone import config

    about = re.split(r"\n *(?:Args|Attributes):", inspect.getdoc(kind) or "")[0].strip()
    common = "; ".join(f"{name} to {line}" for name, line in COMMON_OPTIONS.items())
    return config.parse(kind, args, prog=prog, description=f"{about}\n\nAdd {common}.")


def overview(prog: str, verbs: Mapping[str, str]) -> str:
    """What `--help` prints for a command that has verbs.

    >>> print(overview("jaxclone data", {"build": "recordings to a corpus"}))
    usage: jaxclone data VERB ...
    <BLANKLINE>
      build      recordings to a corpus
    <BLANKLINE>
    jaxclone data VERB --help explains a verb. Each takes:
    <BLANKLINE>
      --json     print the result as one JSON object, the last line of standard output
      --verbose  show the logs of the libraries, and the traceback of an error
    """

    def table(rows: Mapping[str, str]) -> list[str]:
        return [f"  {name:<9}  {line}" for name, line in rows.items()]

    return "\n".join(
        [
            f"usage: {prog} VERB ...",
            "",
            *table(verbs),
            "",
            f"{prog} VERB --help explains a verb. Each takes:",
            "",
            *table(COMMON_OPTIONS),
        ]
    )
