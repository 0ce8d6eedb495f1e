"""The report: one HTML file with scores, players, spectrograms and loss curves.

Recordings are FLAC, which is lossless and plays in every browser; spectrograms are PNG, curves SVG.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from jaxtyping import Float

from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.evaluate.page import charts, data_url, page, table
from jaxclone.types import UserError


@dataclasses.dataclass(frozen=True)
class ReportPair:
    """One conversion to listen to.

    Attributes:
        title: whose words in whose voice.
        text: what is said; "" when nobody knows.
        source: waveforms at the spec's rate, in [-1, 1]: what was said.
        reference: what the voice was made from.
        converted: the result.
        truth: the target saying the same; None when there is no such recording.
        scores: by name, None where one could not be had.
    """

    title: str
    text: str
    source: Float[np.ndarray, " source"]
    reference: Float[np.ndarray, " reference"]
    converted: Float[np.ndarray, " converted"]
    truth: Float[np.ndarray, " truth"] | None
    scores: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Score:
    """How a score is shown: its name, unit, decimals, where better lies and what it means."""

    name: str
    unit: str
    decimals: int
    better: str
    meaning: str


_LOWER, _HIGHER = "lower is better", "higher is better"
_BASELINE, _CEILING = "baseline", "ceiling"
SCORES = {
    "mcd_converted": Score(
        "MCD, converted",
        "dB",
        2,
        _LOWER,
        "how far the clone's spectrum is from the target's own recording",
    ),
    "mcd_source": Score(
        "MCD, source", "dB", 2, _BASELINE, "the same before conversion, from the untouched source"
    ),
    "mcd_copy_synthesis": Score(
        "MCD, copy synthesis",
        "dB",
        2,
        _CEILING,
        "the target's own recording through mel and vocoder alone",
    ),
    "pesq_copy_synthesis": Score(
        "PESQ, copy synthesis",
        "",
        2,
        _CEILING,
        "wideband MOS-LQO of the target's own recording through mel and vocoder alone",
    ),
    "stoi_copy_synthesis": Score(
        "STOI, copy synthesis", "", 3, _CEILING, "intelligibility of the same"
    ),
    "similarity_target": Score(
        "Similarity, converted",
        "",
        3,
        _HIGHER,
        "cosine of clone and target, by a speaker verifier that took no part in training",
    ),
    "similarity_source": Score(
        "Similarity, source",
        "",
        3,
        _BASELINE,
        "the same before conversion, of the untouched source",
    ),
    "similarity_copy_synthesis": Score(
        "Similarity, copy synthesis",
        "",
        3,
        _CEILING,
        "the target's own recording through mel and vocoder alone",
    ),
    "similarity_truth": Score(
        "Similarity, truth", "", 3, _CEILING, "another recording of the target, untouched"
    ),
    "fraction_closer_to_target": Score(
        "Closer to the target",
        "%",
        0,
        _HIGHER,
        "conversions more similar to the target than their source was",
    ),
    "f0_rmse_cents": Score(
        "F0 error",
        "cents",
        0,
        _LOWER,
        "pitch, against the target's own recording; 100 cents are a semitone",
    ),
    "f0_correlation": Score(
        "F0 correlation", "", 2, _HIGHER, "melody, against the target's own recording"
    ),
    "f0_voicing_error": Score(
        "Voicing error",
        "%",
        1,
        _LOWER,
        "frames with a pitch where the target's own recording has none, or the reverse",
    ),
    "wer": Score("WER", "%", 1, _LOWER, "words that a recogniser gets wrong, against the text"),
    "cer": Score(
        "CER", "%", 1, _LOWER, "characters that a recogniser gets wrong, against the text"
    ),
}
# What is shown elsewhere or only counts.
_NOT_SCORES = ("pairs", "pairs_with_truth", "reference_seconds", "seed")
_COLUMNS = {
    "source": "Source",
    "reference": "Reference",
    "converted": "Converted",
    "truth": "Truth",
}
_LEGEND = (
    "<p>The source, the recording that the target's voice was made from, the source in that voice, "
    "and the target's own recording of the same words. Pictures are mel spectrograms, low "
    "frequencies at the bottom, with the same colours within a row.</p>"
)


def write_report(
    path: str | Path,
    *,
    title: str,
    audio: AudioSpec,
    scores: Mapping[str, Any],
    pairs: Sequence[ReportPair],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    config: str,
    notes: str = "",
) -> Path:
    """Writes the report of an evaluation.

    Args:
        path: of the HTML file; its folder is made.
        title: its heading.
        audio: the rate of the waveforms and the spectrograms to draw.
        scores: numbers by name, as in `metrics.json`. Those of `SCORES` are explained; "adaptation"
            maps inner steps to scores, "seconds_by_stage" and "versions" have tables of their own.
        pairs: conversions to listen to; a second of sound takes about 40 KB.
        curves: (step, value) by name, a chart each.
        config: the whole configuration, as text.
        notes: a sentence or two under the heading.

    Returns:
        The path.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    adaptation = scores.get("adaptation") or {}
    sections = [
        ("Scores", _tiles(scores) + _score_table(scores)),
        ("Steps of adaptation", _adaptation_table(adaptation) if adaptation else ""),
        ("Listen", _LEGEND + "".join(_pair(pair, audio) for pair in pairs) if pairs else ""),
        ("Training", charts(curves)),
        ("Time", _bars(scores.get("seconds_by_stage") or {})),
        ("Made with", _facts(scores)),
        (
            "Configuration",
            f"<details><summary>All settings</summary><pre>{escape(config)}</pre></details>",
        ),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(title, notes, sections), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


# Scores.


def _number(value: Any, score: Score) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    value = 100 * value if score.unit == "%" else value
    return f"{value:.{score.decimals}f}" + (f"\u202f{score.unit}" if score.unit else "")


def _describe(name: str) -> Score:
    """A score that is not explained is shown under its own name."""
    return SCORES.get(name) or Score(name.replace("_", " "), "", 3, "", "")


def _tiles(scores: Mapping[str, Any]) -> str:
    """The answers to the questions that everybody asks first."""
    tiles = []

    def tile(name: str, comparison: str) -> None:
        score = SCORES[name]
        tiles.append(
            f"<div class=tile><span>{escape(score.name)}</span>"
            f"<strong>{_number(scores[name], score)}</strong><span>{comparison}</span></div>"
        )

    converted, source = scores.get("mcd_converted"), scores.get("mcd_source")
    if converted and source:
        change = f"{abs(1 - converted / source):.0%} {'below' if converted < source else 'above'}"
        tile("mcd_converted", f"{change} the source's {_number(source, SCORES['mcd_source'])}")
    converted, source = scores.get("similarity_target"), scores.get("similarity_source")
    if converted is not None and source is not None:
        was = _number(source, SCORES["similarity_source"])
        tile("similarity_target", f"the source has {was}; 1 is the same")
    if scores.get("fraction_closer_to_target") is not None:
        tile("fraction_closer_to_target", f"of {scores.get('pairs', 'all')} conversions")
    return f"<div class=tiles>{''.join(tiles)}</div>" if tiles else ""


def _score_table(scores: Mapping[str, Any]) -> str:
    def is_score(name: str) -> bool:
        value = scores[name]
        return name not in _NOT_SCORES and (value is None or isinstance(value, int | float))

    known = [name for name in SCORES if name in scores]
    names = known + [name for name in scores if name not in SCORES and is_score(name)]
    rows = [
        (f"{escape(s.name)}<small>{escape(s.meaning)}</small>", _number(scores[name], s), s.better)
        for name, s in ((name, _describe(name)) for name in names)
    ]
    return table(("Score", "Mean", "Direction"), rows, numbers=(1,))


def _adaptation_table(adaptation: Mapping[str, Mapping[str, Any]]) -> str:
    columns = {"mcd": SCORES["mcd_converted"], "similarity": SCORES["similarity_target"]}
    rows = [
        (escape(str(steps)), *(_number(row.get(name), score) for name, score in columns.items()))
        for steps, row in sorted(adaptation.items(), key=lambda item: int(item[0]))
    ]
    heading = ("Inner steps", f"MCD<small>{_LOWER}</small>", f"Similarity<small>{_HIGHER}</small>")
    return table(heading, rows, numbers=(0, 1, 2))


# Conversions.


def _pair(pair: ReportPair, audio: AudioSpec) -> str:
    waveforms = {
        name: np.clip(np.nan_to_num(wave), -1, 1)
        for name in _COLUMNS
        if (wave := getattr(pair, name)) is not None
    }
    mels = {name: _mel(wave, audio) for name, wave in waveforms.items()}
    # One range of colours for all, so that loud looks loud.
    loudest = max(float(mel.max()) for mel in mels.values())
    figures = "".join(
        _figure(f"{pair.title}: {name}", name, waveforms.get(key), mels.get(key), loudest, audio)
        for key, name in _COLUMNS.items()
    )
    chips = "".join(
        f"<li>{escape(score.name)} <b>{_number(value, score)}</b></li>"
        for name, value in pair.scores.items()
        if (score := SCORES.get(name)) is not None
    )
    text = f"<p>“{escape(pair.text)}”</p>" if pair.text else ""
    return (
        f"<article><h3>{escape(pair.title)}</h3>{text}"
        f"<div class=figures>{figures}</div><ul class=chips>{chips}</ul></article>"
    )


def _mel(waveform: Float[np.ndarray, " t"], audio: AudioSpec) -> Float[np.ndarray, "n_mels frames"]:
    """A log-mel spectrogram, high frequencies first as pictures have them."""
    # Whole blocks of some seconds, so that waveforms of many lengths compile a few times only.
    block = 4 * audio.sample_rate
    padded = np.zeros(-(-len(waveform) // block) * block, np.float32)
    padded[: len(waveform)] = waveform
    mel = jax.jit(log_mel, static_argnums=1)(padded, audio, len(waveform))
    return np.asarray(mel)[: max(1, audio.n_frames(len(waveform)))].T[::-1]


def _figure(
    label: str,
    name: str,
    waveform: Float[np.ndarray, " t"] | None,
    mel: Float[np.ndarray, "n_mels frames"] | None,
    loudest: float,
    audio: AudioSpec,
) -> str:
    if waveform is None or mel is None:
        return f"<figure><figcaption>{name}</figcaption><p>no such recording</p></figure>"
    seconds = f"{len(waveform) / audio.sample_rate:.1f}\u202fs"
    label = escape(label, quote=True)
    picture = data_url("image/png", _png(mel, loudest, audio))
    sound = data_url("audio/flac", _flac(waveform, audio.sample_rate))
    return (
        f"<figure><figcaption>{name} <small>{seconds}</small></figcaption>"
        f'<img alt="Spectrogram of {label}" src="{picture}">'
        f'<audio controls preload=metadata aria-label="{label}" src="{sound}"></audio></figure>'
    )


def _flac(waveform: Float[np.ndarray, " t"], sample_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _png(mel: Float[np.ndarray, "n_mels frames"], loudest: float, audio: AudioSpec) -> bytes:
    """A picture of one pixel a frame and band; the 70 dB below the loudest have colours."""
    from matplotlib.image import imsave

    decibel = (math.log(10) if audio.log == "ln" else 1.0) / 20
    buffer = io.BytesIO()
    imsave(buffer, mel, vmin=loudest - 70 * decibel, vmax=loudest, cmap="magma", format="png")
    return buffer.getvalue()


# How it was made.


def _bars(seconds: Mapping[str, float]) -> str:
    if not seconds:
        return ""
    longest = max(seconds.values()) or 1.0
    rows = [
        (
            escape(stage),
            f"{value:.0f}\u202fs",
            f"<div class=bar style='width:{value / longest * 20:.2f}rem'></div>",
        )
        for stage, value in seconds.items()
    ]
    rows.append(("all", f"{sum(seconds.values()):.0f}\u202fs", ""))
    return table(("Stage", "Seconds", ""), rows, numbers=(1,))


def _facts(scores: Mapping[str, Any]) -> str:
    facts = {name.replace("_", " "): scores[name] for name in _NOT_SCORES if name in scores}
    facts |= scores.get("versions") or {}
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>"
        for name, value in facts.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
