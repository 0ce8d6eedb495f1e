"""Huge pages for the command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jaxclone.cli.main import main
from jaxclone.cli.memory import HUGE_PAGES, TUNABLES, use_huge_pages

TOLD = "import os, sys; from jaxclone.cli.memory import *; use_huge_pages()"
TOLD += "; print(os.getpid(), os.environ[TUNABLES], sys.argv[1:])"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_the_command_is_started_anew_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(TUNABLES, raising=False)
    command = [sys.executable, "-c", TOLD, "a b", "--c"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert out.splitlines() == [f"{process.pid} {HUGE_PAGES} ['a b', '--c']"]


def test_who_has_chosen_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=0")
    monkeypatch.setattr("os.execv", lambda *args: pytest.fail("started anew"))
    use_huge_pages()


def test_it_goes_on_where_it_cannot_be_started_anew(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object) -> None:
        raise OSError("no such program")

    monkeypatch.setenv(TUNABLES, "")  # so that it is as it was in the end
    monkeypatch.delenv(TUNABLES)
    monkeypatch.setattr("os.execv", fail)
    use_huge_pages()
    assert TUNABLES not in os.environ


def test_only_the_program_is_started_anew(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv(TUNABLES, "")
    monkeypatch.delenv(TUNABLES)
    monkeypatch.setattr("os.execv", lambda *args: pytest.fail("started anew"))
    monkeypatch.setattr("sys.argv", ["jaxclone", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.startswith("jaxclone ")
