"""The whole way in its smallest size, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")
pytest.importorskip("resemblyzer")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Runs `jaxclone demo --smoke --json`; (folder, last line of standard output)."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "jaxclone.cli.main", "demo", "--smoke", "--json"]
    command += ["--out", str(folder / "out"), "--pairs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out", json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_leaves_what_it_promises(demo):
    out, printed = demo
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == printed
    for name in (
        "mcd_converted",
        "mcd_source",
        "mcd_copy_synthesis",
        "similarity_target",
        "similarity_source",
    ):
        assert np.isfinite(metrics[name]), name
    assert 0 <= metrics["fraction_closer_to_target"] <= 1
    assert set(metrics["adaptation"]) == {"0", "5", "20"}
    assert all(set(row) == {"mcd", "similarity"} for row in metrics["adaptation"].values())
    assert metrics["pairs"] == 2
    stages = ["corpus", "pretrain", "converter", "vocoder", "meta", "evaluate"]
    assert list(metrics["seconds_by_stage"]) == stages
    assert metrics["versions"]["jax"]
    assert metrics["seed"] == 0
    waveform, rate = soundfile.read(out / "clone.wav")
    assert rate == 16_000
    assert len(waveform) > rate / 2
    assert np.abs(waveform).max() > 0
    page = (out / "report.html").read_text()
    assert page.count("<audio") >= 2 * 3
    assert 'src="http' not in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_bundle_clones_a_recording(demo, speech, tmp_path):
    out, _ = demo
    soundfile.write(tmp_path / "stereo.wav", np.stack([speech, speech], 1).repeat(6, 0), 96_000)
    command = [sys.executable, "-m", "jaxclone.cli.main", "convert", str(tmp_path / "stereo.wav")]
    command += ["--reference", str(tmp_path / "stereo.wav"), "--out", str(tmp_path / "clone.wav")]
    command += ["--model", str(out / "bundle")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert soundfile.info(tmp_path / "clone.wav").frames == len(speech)
