"""Imports go one way, and importing jaxclone loads nothing heavy."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# A room imports its own modules and rooms of earlier rows; rooms of one row may import each other
# as long as no cycle comes of it.
ROWS = [
    {"types"},
    {"config", "files", "rng", "tensors", "tree"},
    {"audio"},
    {"nn"},
    {"models"},
    {"losses"},
    {"adapt"},
    {"sharding"},
    {"train"},
    {"synthesis", "evaluate", "export", "interop"},
    {"cli"},
]
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
DATA = "data_pipelines"
DATA_MAY_IMPORT = {"audio", "files", "types", "rng"}
# Slow to load, or installed by an extra alone: imported by the function that needs it.
HEAVY = {
    "espeakng_loader",
    "matplotlib",
    "pesq",
    "pystoi",
    "pyworld",
    "resemblyzer",
    "tensorflow_datasets",
    "torch",
    "transformers",
    "wandb",
}


def modules(root: Path) -> dict[str, ast.Module]:
    """The parsed modules of both packages by dotted name."""
    found = {}
    for package in ("jaxclone", DATA):
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(node: ast.AST, *, in_functions: bool) -> Iterator[str]:
    """Dotted names that are imported; `from a import b` counts as `a.b`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif in_functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(child, in_functions=in_functions)


def room_of(name: str) -> str | None:
    """The room a module belongs to; None for what is not ours and for the version number."""
    package, _, rest = name.partition(".")
    if package == DATA:
        return DATA
    room = rest.partition(".")[0]
    return room if package == "jaxclone" and room != "__version__" else None


def allowed(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    if importer == DATA:
        return imported in DATA_MAY_IMPORT
    if importer not in ROW:  # jaxclone/__init__.py
        return False
    if imported == DATA:
        return ROW[importer] >= ROW["train"]
    return imported in ROW and ROW[imported] <= ROW[importer]


def violations(root: Path) -> list[str]:
    """Every import that goes the wrong way, and any circle of rooms."""
    found = []
    graph: dict[str, set[str]] = {}
    for name, tree in modules(root).items():
        importer = room_of(name)
        for imported in imports(tree, in_functions=True):
            room = room_of(imported)
            if room is None or room == importer:
                continue
            graph.setdefault(importer, set()).add(room)
            if not allowed(importer, room):
                found.append(f"{name} imports {imported}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found.append(f"rooms import each other in a circle: {' -> '.join(error.args[1])}")
    return found


def heavy_imports(root: Path) -> list[str]:
    return [
        f"{name} imports {imported} at module level"
        for name, tree in modules(root).items()
        for imported in imports(tree, in_functions=False)
        if imported.partition(".")[0] in HEAVY
    ]


def test_imports_go_one_way():
    assert violations(CHECKOUT) == []


def test_every_module_has_a_room():
    rooms = {room_of(name) for name in modules(CHECKOUT)} - {""}
    assert rooms <= {DATA, *ROW}


def test_heavy_packages_are_imported_where_they_are_used():
    assert heavy_imports(CHECKOUT) == []


@pytest.mark.parametrize(
    ("path", "line", "message"),
    [
        (
            "jaxclone/audio/a.py",
            "import jaxclone.models.m",
            "jaxclone.audio.a imports jaxclone.models.m",
        ),
        ("jaxclone/models/m.py", "from jaxclone import losses", "imports jaxclone.losses"),
        ("jaxclone/nn/n.py", "def f():\n    from data_pipelines import manifest", "data_pipelines"),
        ("data_pipelines/p.py", "from jaxclone.config import load", "imports jaxclone.config.load"),
        ("data_pipelines/p.py", "from jaxclone.train.state import S", "jaxclone.train.state.S"),
        (
            "jaxclone/__init__.py",
            "from jaxclone.types import Batch",
            "imports jaxclone.types.Batch",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path, path, line, message):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(line)
    (found,) = violations(tmp_path)
    assert message in found


def test_a_circle_of_rooms_is_found(tmp_path):
    for room, other in [("synthesis", "export"), ("export", "evaluate"), ("evaluate", "synthesis")]:
        (tmp_path / "jaxclone" / room).mkdir(parents=True)
        (tmp_path / "jaxclone" / room / "x.py").write_text(f"import jaxclone.{other}.x")
    (found,) = violations(tmp_path)
    assert "in a circle" in found


def test_a_heavy_import_is_found_at_module_level_only(tmp_path):
    (tmp_path / "jaxclone").mkdir()
    path = tmp_path / "jaxclone" / "x.py"
    path.write_text("def f():\n    import torch")
    assert heavy_imports(tmp_path) == []
    path.write_text("try:\n    import torch.nn\nexcept ImportError:\n    torch = None")
    assert heavy_imports(tmp_path) == ["jaxclone.x imports torch.nn at module level"]


def test_the_command_starts_without_anything_heavy():
    """Through what we import as well: an optional package must not come in by a side door."""
    code = "import sys, jaxclone.cli.main; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    assert not HEAVY & set(loaded.stdout.split())
