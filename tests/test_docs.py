"""What the documents promise is there: files, commands, and code that is Python."""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path

import pytest

from jaxclone import config as configs
from jaxclone.cli.main import VERBS

CHECKOUT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(CHECKOUT.glob("*.md"))


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request) -> str:
    return request.param.read_text("utf-8")


def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)", document)
    local = [link for link in links if not link.startswith(("http:", "https:", "mailto:"))]
    assert [link for link in local if not (CHECKOUT / link).exists()] == []


def test_commands_exist(document):
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text("utf-8"), re.M)
    code = "\n".join(re.findall(r"`[^`]+`|^ {4}.+$|^```[^`]+```", document, re.M))
    assert set(re.findall(r"\bmake ([a-z][a-z-]+)", code)) <= set(targets)
    assert set(re.findall(r"\bjaxclone ([a-z][a-z-]+)", code)) <= set(VERBS)
    trained = re.findall(r"\bjaxclone train ([a-z0-9_-]+/[a-z0-9_-]+)", code)
    assert set(trained) <= set(configs.names())


def test_python_is_python(document):
    for block in re.findall(r"```python\n(.*?)```", document, re.S):
        ast.parse(textwrap.dedent(block))
