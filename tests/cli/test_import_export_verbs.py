from __future__ import annotations

import dataclasses
import importlib
import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
from published import random_model
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.main import main
from jaxclone.export.bundle import load_bundle, save_bundle
from jaxclone.types import UserError

pytest.importorskip("torch")
pytest.importorskip("transformers")


def run(capsys, *args):
    """Exit code, result, and what went to standard error."""
    code = main([*map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    random_model("wavlm").save_pretrained(folder)
    return folder


@pytest.fixture
def bundle(published, tmp_path, capsys):
    assert run(capsys, "import", "hf", published, "--out", tmp_path / "bundle")[0] == 0
    return tmp_path / "bundle"


def test_import(published, tmp_path, capsys):
    code, result, _ = run(capsys, "import", "hf", published, "--out", tmp_path / "bundle")
    assert code == 0
    n = sum(array.size for array in load_file(published / "model.safetensors").values())
    assert result == {
        "bundle": str(tmp_path / "bundle"),
        "models": ["encoder"],
        "parameters": n,
        "normalize_input": False,
        "audio": dataclasses.asdict(AudioSpec()),
        "left_out": [],
    }
    assert load_bundle(tmp_path / "bundle").origins["encoder"]["format"] == "hf"
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "Made by `jaxclone import hf" in card
    assert "the licence of the published weights" in card


def test_export_to_transformers(bundle, published, tmp_path, capsys):
    code, result, _ = run(capsys, "export", bundle, "--format", "hf", "--out", tmp_path / "out")
    assert (code, result) == (0, {"out": str(tmp_path / "out"), "format": "hf"})
    here, there = (load_file(path / "model.safetensors") for path in (tmp_path / "out", published))
    assert {name: x.tobytes() for name, x in here.items()} == {
        name: x.tobytes() for name, x in there.items()
    }


def test_export_to_one_file(bundle, tmp_path, capsys):
    out = tmp_path / "weights.safetensors"
    assert run(capsys, "export", bundle, "--format", "safetensors", "--out", out)[0] == 0
    table = load_bundle(bundle).models["encoder"]["relative_positions"]["table"]
    with safe_open(out, "numpy") as file:
        header = {name: json.loads(text) for name, text in file.metadata().items()}
        found = file.get_tensor("encoder/relative_positions/table")
    np.testing.assert_array_equal(found, table)
    assert header["encoder"]["relative_positions"]["buckets"] == 8
    assert header["audio"]["sample_rate"] == 16_000
    code, _, err = run(capsys, "export", bundle, "--format", "safetensors", "--out", out)
    assert (code, err) == (1, f"error: {out} exists: choose another name\n")


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["import"], 2, "required"),
        (["import", "onnx", "x", "--out", "y"], 2, "onnx"),
        (["import", "hf", "/no/such", "--out", "y"], 1, "error: /no/such is no folder; give one"),
        (["import", "fairseq", "/no/such.pt", "--out", "y"], 1, "/no/such.pt does not exist"),
        (["import", "hifigan", "/no/such", "--out", "y"], 1, "does not exist"),
        (["export", "/no/such", "--format", "hf", "--out", "y"], 1, "/no/such is not a bundle"),
        (["export", "x", "--format", "onnx", "--out", "y"], 2, "onnx"),
    ],
)
def test_mistakes(capsys, args, code, line):
    found, result, err = run(capsys, *args)
    assert (found, result) == (code, None)
    assert line in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("verb", "options"), [("import", "Import"), ("export", "Export")])
def test_every_format_has_its_module(verb, options):
    module = importlib.import_module(f"jaxclone.cli.{verb}")
    kind = get_type_hints(getattr(module, f"{options}Options"), include_extras=False)["format"]
    assert set(get_args(kind)) == module.FORMATS.keys()
    for path in module.FORMATS.values():
        assert callable(
            getattr(importlib.import_module(path), {"import": "read"}.get(verb, "write"))
        )


def test_only_a_bundle_is_ever_replaced(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text('{"type": "a run"}')
    with pytest.raises(UserError, match="is not a bundle"):
        save_bundle(folder, {}, {}, AudioSpec(), card="")
    assert (folder / "checkpoints").is_dir()
    bundle = tmp_path / "bundle"
    for _ in range(2):
        save_bundle(bundle, {}, {}, AudioSpec(), card="")
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not a bundle"):
        save_bundle(bundle, {}, {}, AudioSpec(), card="")
    assert (bundle / "notes.txt").exists()
