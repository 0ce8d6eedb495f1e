from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from jaxclone.audio.spec import AudioSpec
from jaxclone.evaluate.page import line_chart
from jaxclone.evaluate.report import ReportPair, write_report
from jaxclone.types import UserError

SPEC = AudioSpec(n_fft=512, win_length=512)
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'too'"
SCORES = {
    "mcd_converted": 6.0,
    "mcd_source": 8.0,
    "mcd_copy_synthesis": 4.0,
    "similarity_target": 0.8125,
    "similarity_source": 0.6,
    "fraction_closer_to_target": 0.875,
    "some_new_score": float("nan"),
    "adaptation": {
        "20": {"mcd": 5.5, "similarity": 0.8},
        "5": {"mcd": 5.75, "similarity": None},
        "0": {"mcd": 6.0, "similarity": 0.7},
    },
    "pairs": 16,
    "seconds_by_stage": {"pretrain": 30.0, "vocoder": 90.0},
    "versions": {"jax": "1.2.3"},
    "seed": 7,
}
VOID = {"meta", "img", "line", "polyline"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every element is closed where it should."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def pair(speech, **changes) -> ReportPair:
    fields = {
        "title": HOSTILE,
        "text": HOSTILE,
        "source": speech,
        "reference": speech[:20_001],
        "converted": speech[:13_000] * 1.5,
        "truth": speech[:12_345],
        "scores": {"mcd_converted": 6.25, "mcd_source": None},
    }
    return ReportPair(**fields | changes)


def write(tmp_path, pairs, **changes) -> tuple[str, Page]:
    fields = {
        "title": HOSTILE,
        "audio": SPEC,
        "scores": SCORES,
        "pairs": pairs,
        "curves": {HOSTILE: [(step, 3.0 / (1 + step)) for step in range(0, 900, 2)]},
        "config": '{"name": "' + HOSTILE + '"}',
        "notes": HOSTILE,
    }
    path = write_report(tmp_path / "new" / "report.html", **fields | changes)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def data_of(url: str | None, kind: str) -> bytes:
    assert url is not None
    head, _, data = url.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(data)


def test_report_shows_the_scores(tmp_path, speech):
    _, page = write(tmp_path, [pair(speech)])
    words = re.sub(r"\s+", " ", page.text)
    assert "25% below the source's 8.00 dB" in words
    assert "88 %" in words
    assert "of 16 conversions" in words
    assert "some new score –" in words
    assert re.search(r"0 6.00 dB 0.700 5 5.75 dB – 20 5.50 dB 0.800", words)
    assert "pretrain 30 s vocoder 90 s all 120 s" in words
    assert "jax 1.2.3" in words
    assert "seed 7" in words


def test_report_needs_nothing_from_outside(tmp_path, speech):
    text, page = write(tmp_path, [pair(speech)])
    assert "//" not in re.sub(r"base64,[^\"]*", "", text)
    addresses = [a.get("src") or a.get("href") for _, a in page.tags]
    assert all(url.startswith("data:") for url in addresses if url)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_text_is_escaped(tmp_path, speech):
    _, page = write(tmp_path, [pair(speech)])
    assert page.all("script") == []
    assert page.text.count("alert(1)") >= 5  # the title twice, notes, pair, text, chart, config


def test_recordings_can_be_heard_and_seen(tmp_path, speech):
    _, page = write(tmp_path, [pair(speech)])
    sounds = [data_of(a["src"], "audio/flac") for a in page.all("audio")]
    waves = [soundfile.read(io.BytesIO(sound), dtype="float32") for sound in sounds]
    assert [rate for _, rate in waves] == [SPEC.sample_rate] * 4
    source, reference, converted, truth = (wave for wave, _ in waves)
    np.testing.assert_allclose(source, speech, atol=2**-15)
    assert (len(reference), len(truth)) == (20_001, 12_345)
    np.testing.assert_allclose(converted, np.clip(1.5 * speech[:13_000], -1, 1), atol=2**-14)

    from matplotlib.image import imread

    pictures = [imread(io.BytesIO(data_of(a["src"], "image/png"))) for a in page.all("img")]
    frames = [SPEC.n_frames(len(wave)) for wave, _ in waves]
    assert [picture.shape[:2] for picture in pictures] == [(SPEC.n_mels, n) for n in frames]
    assert all(a["alt"] for a in page.all("img"))
    assert all(a["aria-label"] for a in page.all("audio"))


def test_low_frequencies_are_at_the_bottom(tmp_path):
    hum = np.sin(2 * np.pi * 200 * np.arange(16_000) / SPEC.sample_rate).astype(np.float32)
    _, page = write(tmp_path, [pair(hum, truth=None)])
    from matplotlib.image import imread

    picture = imread(io.BytesIO(data_of(page.all("img")[0]["src"], "image/png")))
    brightness = picture[..., :3].sum(-1).mean(1)
    assert brightness.argmax() > SPEC.n_mels * 0.8


def test_a_pair_without_a_truth(tmp_path, speech):
    _, page = write(tmp_path, [pair(speech, truth=None, text="")])
    assert len(page.all("audio")) == 3
    assert "no such recording" in page.text


def test_sounds_that_are_hardly_there(tmp_path):
    """Shorter than a frame, digital silence, and a conversion that went wrong."""
    broken = np.full(8_000, np.nan, np.float32)
    _, page = write(
        tmp_path,
        [pair(np.zeros(50, np.float32), converted=broken, truth=np.zeros(9_000, np.float32))],
    )
    assert len(page.all("audio")) == 4


def test_an_evaluation_with_next_to_nothing(tmp_path):
    _, page = write(tmp_path, [], scores={"mcd_converted": None}, curves={"loss": [(0, 1.0)]})
    assert page.all("article") + page.all("svg") == []
    assert "MCD, converted" in page.text


def test_eight_pairs_stay_small(tmp_path, speech):
    pairs = [pair(np.tile(speech, 3)) for _ in range(8)]
    text, _ = write(tmp_path, pairs)
    assert len(text) < 8e6


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "new").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"new/report.html cannot be written: "):
        write(tmp_path, [])


def test_line_chart_stays_inside_its_frame_and_drops_what_is_too_much():
    steps = np.arange(10_000)
    chart = line_chart("loss", np.stack([steps, np.cos(steps / 500)], axis=1))
    thin, bold = re.findall(r'points="([^"]*)"', chart)
    for line in (thin, bold):
        points = np.array([[float(v) for v in p.split(",")] for p in line.split()])
        assert len(points) == 400
        assert (points.min(0) >= [44, 8]).all()
        assert (points.max(0) <= [352, 148]).all()
    assert ">9999<" in chart


def test_line_chart_of_a_constant():
    assert "nan" not in line_chart("loss", np.array([[5.0, 2.0], [5.0, 2.0]]))
