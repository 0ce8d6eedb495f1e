"""PESQ, STOI and distances of copies."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from jaxclone.audio.io import resample
from jaxclone.audio.spec import AudioSpec, hifigan_22k
from jaxclone.evaluate import quality
from jaxclone.evaluate.quality import Listener, copy_scores
from jaxclone.types import UserError

SPEC = AudioSpec()


@pytest.fixture(scope="module")
def listener() -> Listener:
    pytest.importorskip("pesq")
    pytest.importorskip("pystoi")
    return Listener()


@pytest.fixture(scope="module")
def copies(speech) -> list[np.ndarray]:
    """The recording under more and more noise, from none on."""
    noise = np.random.default_rng(0).standard_normal(len(speech)).astype(np.float32)
    return [speech + level * noise for level in np.float32([0, 0.003, 0.03, 0.3])]


def test_scores_fall_with_the_noise(listener, speech, copies):
    scores = [copy_scores(listener, speech, copy, SPEC) for copy in copies]
    for name, best in (("pesq", 4.64), ("stoi", 1.0)):
        values = [row[name] for row in scores]
        assert values[0] == pytest.approx(best, abs=0.01)
        assert values == sorted(values, reverse=True)
        assert values[0] > values[-1] + 0.2
    for name in ("mel_l1", "stft"):
        values = [row[name] for row in scores]
        assert values[0] < 1e-5
        assert values == sorted(values)


def test_they_are_those_of_the_packages(listener, speech, copies):
    import pesq
    import pystoi

    scores = listener.scores(speech, copies[2], 16_000)
    assert scores["pesq"] == pytest.approx(pesq.pesq(16_000, speech, copies[2], "wb"))
    assert scores["stoi"] == pytest.approx(pystoi.stoi(speech, copies[2], 16_000))


def test_another_rate_is_heard_at_sixteen_kilohertz(listener, speech, copies):
    fine = [resample(x, 16_000, 22_050) for x in (speech, copies[2])]
    again, scores = listener.scores(*fine, 22_050), listener.scores(speech, copies[2], 16_000)
    assert again["pesq"] == pytest.approx(scores["pesq"], abs=0.1)
    assert again["stoi"] == pytest.approx(scores["stoi"], abs=0.01)
    assert set(copy_scores(listener, *fine, hifigan_22k())) == {"pesq", "stoi", "mel_l1", "stft"}


def test_what_a_measure_is_not_defined_on_has_no_score(listener, speech):
    silence = np.zeros_like(speech)
    assert listener.scores(silence, speech, 16_000) == {}
    assert listener.scores(speech, silence, 16_000) == {}
    assert listener.scores(speech[:3000], speech[:3000], 16_000) == {}
    # A third of a second: enough for PESQ, too little for STOI.
    assert "stoi" not in listener.scores(speech[2000:7000], speech[2000:7000], 16_000)
    assert listener.scores(speech[:0], speech[:0], 16_000) == {}


def test_a_judge_hears_each_up_to_its_length(listener, speech, copies):
    judge = quality.judge(SPEC)
    size = 16_000
    truth = np.stack([speech[:size], speech[16_000:], speech[:size]])
    copy = np.stack([copies[2][:size], copies[1][16_000:], copies[2][:size]])
    length = np.array([size, 12_000, 0], np.int32)  # the last has no score
    # Whatever follows an end is not heard.
    copy[1, 12_000:] = 1.0
    expected = [
        listener.scores(truth[i, :n], copy[i, :n], 16_000) for i, n in enumerate(length[:2])
    ]
    found = judge(truth, copy, length)
    for name in ("pesq", "stoi"):
        assert found[name] == pytest.approx(np.mean([row[name] for row in expected]))


@pytest.mark.parametrize("package", ["pesq", "pystoi"])
def test_a_missing_package_names_the_command(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as error:
        Listener()
    assert str(error.value).endswith("pip install 'jaxclone[eval]'")
    assert "\n" not in str(error.value)
    assert quality.judge(SPEC) is None
