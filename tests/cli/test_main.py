from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import types

import numpy as np
import pytest

import jaxclone
from jaxclone.cli import main as command
from jaxclone.cli.console import progress
from jaxclone.cli.main import VERBS, main
from jaxclone.config import UsageError
from jaxclone.train.errors import Interrupted, RunError
from jaxclone.types import UserError


def run(*args, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "jaxclone.cli.main", *args],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


@pytest.fixture
def verb(monkeypatch):
    """Makes `jaxclone probe` do what is given: return a value or raise an exception."""

    def set_verb(outcome):
        def probe(args):
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome(args) if callable(outcome) else outcome

        monkeypatch.setitem(VERBS, "probe", "for tests")
        module = types.SimpleNamespace(main=probe)
        monkeypatch.setitem(sys.modules, "jaxclone.cli.probe", module)

    return set_verb


def test_help_lists_the_verbs_at_once():
    start = time.perf_counter()
    done = run("--help")
    took = time.perf_counter() - start
    assert done.returncode == 0
    assert done.stderr == ""
    for name, line in VERBS.items():
        assert f"  {name:<9}  {line}" in done.stdout
    assert "--json" in done.stdout
    # It takes 0.1 s where nothing else runs; importing jax alone takes ten times that.
    assert took < 5


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jaxclone.cli.main import main; main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'tyro', 'flax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_verb_is_a_module_with_a_main_and_explains_itself(capsys):
    for name in VERBS:
        assert main([name, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"usage: jaxclone {name}")
        assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["trian"], "error: jaxclone has no verb 'trian'; did you mean 'train'?\n"),
        (["data", "inof"], "error: jaxclone data has no verb 'inof'; did you mean 'info'?\n"),
    ],
)
def test_an_unknown_verb_names_the_nearest(capsys, args, line):
    assert main(args) == 2
    assert capsys.readouterr() == ("", line)


def test_no_verb(capsys):
    assert main([]) == 2
    assert "error: jaxclone needs a verb: demo, data, train" in capsys.readouterr().err


def test_a_process_ends_with_the_code_and_one_line():
    done = run("data", "info", "/nowhere")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: /nowhere is not a built corpus")
    assert done.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    code = f"{{ sleep 0.3; {sys.executable} -m jaxclone.cli.main --help; }} | true"
    done = subprocess.run(["sh", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


# Results.


RESULT = {
    "out": "a.wav",
    "mcd": np.float32(5.25),
    "pairs": np.int64(3),
    "good": np.True_,
    "undefined": float("nan"),
    "nothing": None,
    "stages": {"one": 1.5, "two": {"three": 3}},
    "list": (1, 2.5),
}
PLAIN = {
    "out": "a.wav",
    "mcd": 5.25,
    "pairs": 3,
    "good": True,
    "undefined": None,
    "nothing": None,
    "stages": {"one": 1.5, "two": {"three": 3}},
    "list": [1, 2.5],
}


@pytest.mark.parametrize("args", [["--json", "probe"], ["probe", "--json"]])
def test_json_is_one_object_on_the_last_line(verb, capsys, args):
    def chatty(args):
        assert args == []
        sys.stdout.write("a library says hello\n")
        return RESULT

    verb(chatty)
    assert main(args) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == PLAIN


def test_without_json_the_result_is_for_people(verb, capsys):
    verb(RESULT)
    assert main(["probe"]) == 0
    out = capsys.readouterr().out
    assert "mcd: 5.25\n" in out
    assert "stages:\n  one: 1.5\n  two:\n    three: 3\n" in out


def test_a_process_without_a_result_prints_nothing(verb, capsys):
    verb(None)
    assert main(["probe", "--json"]) == 0
    assert capsys.readouterr().out == ""


# Errors.


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("x.wav does not exist"), 1, "error: x.wav does not exist"),
        (RunError("step 3: loss is nan"), 1, "error: step 3: loss is nan"),
        (UsageError("unknown option --x"), 2, "error: unknown option --x"),
        (Interrupted("stopped by a signal"), 75, "stopped by a signal"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (MemoryError(), 1, "error: out of memory; try a smaller batch"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte\nmore"),
            1,
            "error: out of device memory; try a smaller batch",
        ),
        (
            OSError(28, "No space left on device", "/runs/x"),
            1,
            "error: /runs/x: No space left on device",
        ),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: /x: Permission denied"),
        (OSError("cannot"), 1, "error: cannot"),
    ],
)
def test_a_mistake_or_the_state_of_the_machine_is_one_line(verb, capsys, error, code, line):
    verb(error)
    assert main(["probe"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_bug_keeps_its_traceback(verb):
    verb(KeyError("bug"))
    with pytest.raises(KeyError):
        main(["probe"])


def test_verbose_keeps_every_traceback(verb):
    verb(UserError("mistake"))
    with pytest.raises(UserError):
        main(["probe", "--verbose"])


def test_libraries_are_heard_only_when_asked_for(verb, monkeypatch):
    import absl.logging

    seen = []
    verb(lambda _: seen.append(absl.logging.get_verbosity()) or {})
    before = absl.logging.get_verbosity()
    try:
        main(["probe"])
        main(["probe", "--verbose"])
    finally:
        absl.logging.set_verbosity(before)
    assert seen == [absl.logging.FATAL, absl.logging.INFO]


def test_what_we_log_is_one_line_above_the_progress_bar(verb, capsys, caplog):
    def work(_):
        with progress("work") as show:
            show(1, 2)
            logging.getLogger("jaxclone.train.signals").warning("%s: saving", "SIGTERM")
            logging.getLogger("jaxclone.train.loop").info("continues")
        return {}

    verb(work)
    main(["probe"])
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert [line for line in lines if "SIGTERM" in line] == ["warning: SIGTERM: saving"]
    assert not any("continues" in line for line in lines)
    assert not caplog.records
    logging.getLogger("jaxclone").warning("as before")
    assert [record.message for record in caplog.records] == ["as before"]


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxclone {jaxclone.__version__}\n"


def test_the_entry_point_is_main():
    assert command.main is main
