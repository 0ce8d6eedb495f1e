"""The `jaxclone` command: finds the verb, prints its result, turns errors into lines and codes."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

from jaxclone import __version__
from jaxclone.cli.memory import use_huge_pages
from jaxclone.cli.options import COMMON_OPTIONS, choose

# Each verb is a module of this package, imported when it is called; its main(args) returns what to
# print.
VERBS = {
    "demo": "the whole way at miniature scale: train, clone unheard voices, report",
    "data": "recordings to a corpus, and what is in one",
    "train": "run a config, or continue its run",
    "plan": "what a config will need of hardware that is not here",
    "enroll": "recordings of a person to a voice",
    "convert": "a recording to the same words in another voice",
    "vocode": "a recording or a mel to sound, by a vocoder alone",
    "evaluate": "score converted recordings",
    "import": "published weights to a bundle",
    "export": "a bundle to another format",
}

DONE, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def command() -> int:
    """The program `jaxclone`; from Python, call `main`, which leaves the process alone."""
    use_huge_pages()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code.

    0 is done, 1 failed for a reason told in one line, 2 a command line that is wrong by itself:
    not understood, or with a value that no files and no machine would make right.
    What the verb returns goes to standard output, everything else to standard error.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    wanted = {option for option in COMMON_OPTIONS if option in args}
    args = [arg for arg in args if arg not in wanted]
    try:
        _show(_run(args, verbose="--verbose" in wanted), as_json="--json" in wanted)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _end("error: interrupted", INTERRUPTED)
    except BrokenPipeError:  # as in `jaxclone ... | head`; what is left has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if "--verbose" in wanted or (failure := _explain(error)) is None:
            raise
        return _end(*failure)
    return DONE


def _run(args: list[str], verbose: bool) -> dict[str, Any] | None:
    """What the verb returns; None when it only printed its help, or another process has it."""
    if args == ["--version"]:
        print(f"jaxclone {__version__}")
        return None
    try:
        verb, rest = choose(args, "jaxclone", VERBS)
        _set_logging(verbose)
        if not verbose:
            _hush()
        from jaxclone.cli.console import saying

        with saying(logging.INFO if verbose else logging.WARNING):
            return importlib.import_module(f"jaxclone.cli.{verb}").main(rest)
    except SystemExit as stop:
        if stop.code:
            raise
        return None


def _show(result: dict[str, Any] | None, as_json: bool) -> None:
    if result is None:
        return
    if as_json:
        print(json.dumps(_plain(result), allow_nan=False))
    else:
        print("\n".join(_lines(_plain(result))))


def _set_logging(verbose: bool) -> None:
    """What third parties log is shown on request only; what went wrong they also raise."""
    if not verbose:
        # XLA's errors too, which JAX raises: the alarm about a slow compilation is one of them, and
        # has no switch of its own. It is read when JAX is imported.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.INFO if verbose else absl.logging.FATAL)
    logging.getLogger("jax").setLevel(logging.INFO if verbose else logging.ERROR)
    # A save that fails leaves tasks behind whose errors nobody asks for: it has raised the first.
    for library in ("asyncio", "concurrent.futures"):
        logging.getLogger(library).setLevel(logging.INFO if verbose else logging.CRITICAL + 1)


@functools.cache
def _hush() -> None:
    """Silences the threads of a checkpoint that cannot be written: the save itself raises it.

    They go on after the command has told the reason, so this is for the rest of the process.
    """
    of_threads, unraisable = threading.excepthook, sys.unraisablehook

    def in_a_thread(problem: threading.ExceptHookArgs) -> None:
        if not type(problem.thread).__module__.startswith("orbax."):
            of_threads(problem)

    def in_a_callback(problem: sys.UnraisableHookArgs) -> None:
        if str(problem.exc_value) != "Event loop is closed":
            unraisable(problem)

    threading.excepthook, sys.unraisablehook = in_a_thread, in_a_callback


def _end(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _explain(error: Exception) -> tuple[str, int] | None:
    """One line and an exit code for what is not a bug of ours; None keeps the traceback."""
    from jaxclone.config import UsageError
    from jaxclone.train.errors import Interrupted
    from jaxclone.types import UserError

    if isinstance(error, Interrupted):
        return str(error), error.exit_code
    if isinstance(error, UserError):
        return f"error: {error}", BAD_USAGE if isinstance(error, UsageError) else FAILED
    if isinstance(error, MemoryError):
        return "error: out of memory; try a smaller batch or a shorter crop", FAILED
    if str(error).startswith("RESOURCE_EXHAUSTED"):  # what XLA says of a device
        reason = str(error).splitlines()[0]
        return f"error: out of device memory; try a smaller batch ({reason})", FAILED
    if isinstance(error, OSError):  # a full disk, a folder that is not ours: the machine's state
        place = f"{error.filename}: " if error.filename else ""
        return f"error: {place}{error.strerror or error}", FAILED
    return None


def _plain(value: Any) -> Any:
    """A result as JSON has it: numpy's numbers as Python's, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, bool, int, float)) or value is None else str(value)


def _lines(value: dict[str, Any], indent: str = "") -> list[str]:
    """A result for people: `name: value`, what is nested indented, a line for each row of a list.

    >>> _lines({"pairs": 2, "mean": {"mcd": 6.12345}, "rows": [{"mcd": 6.0, "file": "a.wav"}]})
    ['pairs: 2', 'mean:', '  mcd: 6.123', 'rows:', '  mcd: 6, file: a.wav']
    """
    lines = []
    for name, item in value.items():
        if isinstance(item, dict):
            lines += [f"{indent}{name}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and item and all(isinstance(row, dict) for row in item):
            lines += [f"{indent}{name}:", *(f"{indent}  {', '.join(_lines(row))}" for row in item)]
        else:
            text = f"{item:.4g}" if isinstance(item, float) else str(item)
            lines.append(f"{indent}{name}: {text}")
    return lines


if __name__ == "__main__":
    sys.exit(command())
