from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import toy

from jaxclone.audio.spec import AudioSpec
from jaxclone.cli.main import main
from jaxclone.export.bundle import load_bundle, save_bundle
from jaxclone.train.task import RunConfig

CONFIG = '''"""A toy.

Command: jaxclone train toy
"""

from data_pipelines.loader import CropConfig
from jaxclone.train.task import RunConfig


def get_config():
    data = CropConfig(corpus={corpus!r}, batch_size=4, crop_seconds=0.2)
    return RunConfig(name="toy", data=data, valid=data, eval_batches=1, steps=3, log_every=1)
'''


@pytest.fixture(scope="module", autouse=True)
def _toys():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunConfig, "task", toy.task)
        yield


@pytest.fixture(scope="module")
def config(toy_corpus, tmp_path_factory):
    """A config file."""
    path = tmp_path_factory.mktemp("config") / "toy.py"
    path.write_text(CONFIG.format(corpus=str(toy_corpus)))
    return str(path)


@pytest.fixture
def train(config, tmp_path):
    """Runs `jaxclone train` on the toy, in the run folder `tmp_path / "run"` or another."""
    return lambda *args: main(["train", config, "--out", str(tmp_path / "run"), *args])


@pytest.fixture(scope="module")
def done(config, tmp_path_factory):
    """The folder of a run that ended, and what the command printed."""
    run = tmp_path_factory.mktemp("done") / "run"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["train", config, "--out", str(run), "--seed", "7", "--json"]) == 0
    return run, out.getvalue()


def test_a_run_leaves_a_folder_and_a_bundle(done):
    run, out = done
    result = json.loads(out.splitlines()[-1])
    assert result["run"] == str(run)
    assert result["bundle"] == str(run / "bundle")
    assert (result["steps"], result["resumed_from"], result["compiles"]) == (3, 0, 1)
    assert np.isfinite(result["metrics"]["loss"])
    assert {"config.json", "checkpoints", "metrics.jsonl", "bundle"} <= {
        path.name for path in run.iterdir()
    }
    assert json.loads((run / "config.json").read_text())["seed"] == 7
    bundle = load_bundle(run / "bundle")
    assert bundle.configs == {"loudness": AudioSpec()}
    assert bundle.models["loudness"]["Dense_0"]["kernel"].shape == (16, 32)


def test_the_card_tells_the_command_the_data_and_the_scores(done):
    run, _ = done
    card = (run / "bundle" / "README.md").read_text()
    assert "# toy\n" in card
    assert f"--out {run} --seed 7`, seed 7.\n" in card
    assert "- corpus: 12 recordings, 0.005 h, 4 known speakers" in card
    assert "- valid/loss: " in card


def test_the_same_command_continues_the_run(done, train, tmp_path, capsys):
    shutil.copytree(done[0], tmp_path / "run")
    assert train("--seed", "7", "--steps", "5", "--json") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["resumed_from"], result["steps"]) == (3, 5)


def test_a_full_disk_is_one_line_and_loses_nothing(done, config, tmp_path):
    # A limit on the size of files stands in for the disk: writing beyond it fails likewise.
    run = tmp_path / "run"
    shutil.copytree(done[0], run)
    script = (
        "import resource, sys, toy; from jaxclone.cli.main import main; "
        "toy.RunConfig.task = toy.task; resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, 2**14)); "
        "sys.exit(main(sys.argv[1:]))"
    )
    args = ["train", config, "--out", str(run), "--seed", "7", "--steps", "5"]
    stopped = subprocess.run(
        [sys.executable, "-c", script, *args],
        env=toy.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 1, stopped.stderr
    line = stopped.stderr.splitlines()[-1]
    assert line.startswith(f"error: a checkpoint could not be written to {run}/checkpoints: ")
    assert line.endswith(f"; the last checkpoint is of step 3, in {run}/checkpoints")
    assert "Traceback" not in stopped.stderr
    assert main(args) == 0


def test_a_run_starts_from_a_bundle(done, train, tmp_path):
    start = str(done[0] / "bundle")
    assert train("--steps", "0", "--init_from", start) == 0
    before, after = (
        load_bundle(folder).models["loudness"] for folder in (start, tmp_path / "run" / "bundle")
    )
    np.testing.assert_array_equal(before["Conv_0"]["kernel"], after["Conv_0"]["kernel"])
    card = (tmp_path / "run" / "bundle" / "README.md").read_text()
    assert f"and what it learnt from was trained on: {start}" in card


@pytest.mark.parametrize(
    ("name", "settings", "audio", "message"),
    [
        ("loudness", AudioSpec(n_mels=40), AudioSpec(), "its loudness is another model"),
        ("loudness", AudioSpec(n_mels=40), AudioSpec(), ": n_mels differ"),
        ("loudness", AudioSpec(), AudioSpec(fmin=50.0), "does not match: fmin 50.0 (expected 0.0)"),
        ("other", AudioSpec(), AudioSpec(), "holds other, and none of the models of this run"),
    ],
)
def test_a_start_from_another_model(train, tmp_path, capsys, name, settings, audio, message):
    weights = {name: {"kernel": np.zeros(1, np.float32)}}
    save_bundle(tmp_path / "b", weights, {name: settings}, audio, card="")
    assert train("--init_from", str(tmp_path / "b")) == 1
    assert message in one_line(capsys)


def test_a_start_from_weights_of_another_shape(train, tmp_path, capsys):
    weights = {"loudness": {"kernel": np.zeros(1, np.float32)}}
    save_bundle(tmp_path / "b", weights, {"loudness": AudioSpec()}, AudioSpec(), card="")
    assert train("--init_from", str(tmp_path / "b")) == 1
    assert "the pretrained models do not fit this run" in one_line(capsys)


def one_line(capsys):
    """What the command says of its failure."""
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--data.corpsu", "x"], 2, "unknown option --data.corpsu; did you mean '--data.corpus'?"),
        (["--steps", "many"], 2, "--steps: invalid literal for int() with base 10: 'many'"),
        (["--precision", "f8"], 2, "invalid choice 'f8' for argument '--precision'"),
        (["--data.corpus", "/nowhere"], 1, "/nowhere is not a built corpus"),
        (["--data.split", "tests"], 1, "has no split 'tests'"),
        (["--init_from", "/nowhere"], 1, "/nowhere is not a bundle: it has no config.json"),
        (["--out", "/dev/null/x"], 1, "the run folder /dev/null/x cannot be written: Not a dir"),
        (["--mesh.data", "3"], 1, "a mesh of data=3 x fsdp=1 x tensor=1 does not fit"),
    ],
)
def test_bad_input(train, capsys, args, code, message):
    assert train(*args) == code
    assert message in one_line(capsys)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seed", "7", "--audio.n_mels", "40"], "does not match: n_mels 80 (expected 40)"),
        (["--seed", "1"], "error: seed is not what the run in"),
        (["--seed", "7", "--data.batch_size", "2"], "data.batch_size is not what the run in"),
    ],
)
def test_a_run_folder_of_another_run(done, train, capsys, args, message):
    assert train("--out", str(done[0]), *args) == 1
    assert message in one_line(capsys)


def test_a_config_that_trains_nothing(tmp_path, capsys):
    path = tmp_path / "spec.py"
    path.write_text("from jaxclone.audio.spec import AudioSpec as get_config\n")
    assert main(["train", str(path)]) == 1
    assert "is a AudioSpec, which is no run to train" in one_line(capsys)


def test_an_unknown_config_names_the_nearest(capsys):
    assert main(["train", "demo/pretran"]) == 1
    assert "no config file or name 'demo/pretran'; did you mean 'demo/pretrain'?" in one_line(
        capsys
    )


def test_no_config(capsys):
    assert main(["train"]) == 2
    assert "needs a config" in one_line(capsys)


def test_help_lists_configs(capsys):
    assert main(["train", "--help"]) == 0
    assert "  demo/pretrain\n" in capsys.readouterr().out


def test_help_of_a_config_shows_its_docstring_and_fields(train, capsys):
    assert train("--help") == 0
    out = capsys.readouterr().out
    assert "A toy.\n\nCommand: jaxclone train toy\n" in out
    assert "--checkpoint_minutes FLOAT" in out
