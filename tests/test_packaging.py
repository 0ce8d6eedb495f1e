"""What is installed: every version pinned, and a wheel that works outside of the checkout."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from jaxclone import config as configs

CHECKOUT = Path(__file__).resolve().parent.parent
SHIPPED = ("jaxclone", "data_pipelines", "configs", "setup.cfg", "pyproject.toml", "README.md")
SHIPPED += ("LICENSE",)


def pins() -> dict[str, Requirement]:
    """Each line of constraints.txt, by the name of its package."""
    lines = (CHECKOUT / "constraints.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def dependencies(name: str, extras: set[str], seen: dict[str, set[str]]) -> None:
    """Adds to `seen` everything that a package needs here, with the extras it is needed with."""
    if extras <= seen.get(name, set()) and name in seen:
        return
    seen[name] = seen.get(name, set()) | extras
    for line in metadata.requires(name) or []:
        needed = Requirement(line)
        marker = needed.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *extras}):
            dependencies(canonicalize_name(needed.name), set(needed.extras), seen)


def test_every_dependency_is_pinned_to_one_version():
    seen: dict[str, set[str]] = {}
    dependencies("jaxclone", {"demo", "dev"}, seen)
    assert len(seen) > 50
    assert set(seen) - {"jaxclone"} <= set(pins())
    for pin in pins().values():
        assert re.fullmatch(r"==[^*+,]+", str(pin.specifier)), pin
        assert pin.url is None


def test_every_folder_of_configs_is_installed():
    setup = configparser.RawConfigParser()
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    folders = {p.relative_to(CHECKOUT).parent.as_posix() for p in CHECKOUT.glob("configs/**/*.py")}
    expected = {f"share/jaxclone/{folder}": f"{folder}/*.py" for folder in folders}
    assert dict(setup["options.data_files"]) == expected


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what git holds, so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        here = CHECKOUT / name
        if here.is_dir():
            shutil.copytree(here, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, source / name)
    out = tmp_path_factory.mktemp("wheel")
    build = ["pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    subprocess.run([sys.executable, "-m", *build], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.mark.slow
def test_wheel_holds_the_packages_and_the_configs_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "jaxclone",
        "data_pipelines",
        f"{wheel.name.rsplit('-', 3)[0]}.data",
    }
    modules = [p for top in ("jaxclone", "data_pipelines") for p in (CHECKOUT / top).rglob("*.py")]
    assert {p.relative_to(CHECKOUT).as_posix() for p in modules} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_installed_wheel_works_outside_of_the_checkout(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    # Dependencies come from this environment: from its packages, not from what is editable in it.
    (purelib,) = venv.glob("lib/python*/site-packages")
    (purelib / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    install = ["pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)

    def run(*command: str | Path) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import jaxclone, data_pipelines as d; print(jaxclone.__file__, d)")
    assert where.count(str(venv)) == 2
    found = run(python, "-c", "from jaxclone import config; print(*config.names())").split()
    assert found == configs.names()
    run(python, "-c", "from jaxclone import config; [config.load(n) for n in config.names()]")
    assert "demo" in run(venv / "bin" / "jaxclone", "--help")
