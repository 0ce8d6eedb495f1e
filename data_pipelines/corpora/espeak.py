"""The embedded corpus: many synthetic voices, made on the spot by espeak-ng.

It needs no download and holds what a test of the whole way needs: voices that a speaker verifier
tells apart, several languages, phone times, and sentences held out by voice and by text, so that
every conversion between held-out voices has its true answer. It is a toy: nothing that is trained
on it alone clones real voices.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import io as bytesio
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from data_pipelines.corpora import espeak_worker, sentences
from data_pipelines.manifest import Row, write_manifest
from data_pipelines.transforms import generator
from jaxclone.audio import io, loudness
from jaxclone.types import UserError

Scale = Literal["demo", "tiny"]

SAMPLE_RATE = 22_050
# Exact digital silence, which no microphone gives, has a cepstrum far away from any other, and
# would rule every distance between two spectra.
_NOISE_DB = -65.0
# Silence before and after what is said, in seconds.
_MARGIN = 0.1


@dataclasses.dataclass(frozen=True)
class SyntheticVoice:
    """How one voice is made.

    Attributes:
        variant: espeak-ng's voice variant: formants, breath, intonation.
        pitch: 0 to 100, 50 being the variant's own.
        tract: every frequency times this, as by a vocal tract that is shorter by it.
        rate: words a minute.
        language: spoken besides English.
    """

    variant: str
    pitch: int
    tract: float
    rate: int
    language: str


# Chosen by measuring. Candidates: the variants that sound like a person, at pitches 15, 45 and 75
# and tracts 0.88, 1 and 1.13, left out when F0 leaves 64 to 420 Hz, when under 58 % of the frames
# are voiced, or when two sentences of the same candidate have a similarity below 0.86 (501 of 765
# remain). Each was embedded with Resemblyzer as the mean of three sentences; then 44 were taken
# greedily: next the one whose most similar voice among those taken is least similar, from the best
# of all starts. Four were dropped that, as the corpus has them, came closer than 0.8 to another:
# any two of the 40 have a cosine below 0.8, 0.6 in the mean. The test has those taken last, which
# lie between the others, as a new voice would.
VOICES = (
    SyntheticVoice("boris", 45, 0.88, 160, "de"),
    SyntheticVoice("steph", 45, 0.88, 170, "fr"),
    SyntheticVoice("edward", 75, 1.13, 155, "es"),
    SyntheticVoice("Alicia", 75, 0.88, 165, "it"),
    SyntheticVoice("f5", 75, 0.88, 175, "de"),
    SyntheticVoice("Marco", 15, 1.0, 180, "fr"),
    SyntheticVoice("steph3", 75, 1.13, 160, "es"),
    SyntheticVoice("iven2", 45, 1.0, 170, "it"),
    SyntheticVoice("kaukovalta", 15, 1.13, 155, "de"),
    SyntheticVoice("belinda", 15, 1.13, 165, "fr"),
    SyntheticVoice("travis", 45, 1.13, 175, "es"),
    SyntheticVoice("m5", 75, 1.0, 150, "it"),
    SyntheticVoice("anika", 45, 0.88, 160, "de"),
    SyntheticVoice("steph", 15, 1.13, 170, "fr"),
    SyntheticVoice("adam", 75, 0.88, 155, "es"),
    SyntheticVoice("Andrea", 45, 1.13, 165, "it"),
    SyntheticVoice("kaukovalta", 75, 0.88, 175, "de"),
    SyntheticVoice("RicishayMax", 75, 1.13, 150, "fr"),
    SyntheticVoice("m8", 45, 1.13, 160, "es"),
    SyntheticVoice("marcelo", 45, 0.88, 170, "it"),
    SyntheticVoice("klatt4", 45, 1.13, 155, "de"),
    SyntheticVoice("pedro", 45, 1.0, 165, "fr"),
    SyntheticVoice("sandro", 75, 1.0, 175, "es"),
    SyntheticVoice("RicishayMax", 45, 0.88, 150, "it"),
    SyntheticVoice("Lee", 75, 0.88, 170, "de"),
    SyntheticVoice("pablo", 75, 0.88, 165, "fr"),
    SyntheticVoice("ian", 75, 1.0, 150, "es"),
    SyntheticVoice("Jacky", 15, 1.13, 160, "it"),
    SyntheticVoice("boris", 75, 1.13, 170, "de"),
    SyntheticVoice("travis", 75, 0.88, 155, "fr"),
    SyntheticVoice("shelby", 45, 1.0, 160, "es"),
    SyntheticVoice("Storm", 75, 1.0, 160, "it"),
    SyntheticVoice("Nguyen", 75, 0.88, 170, "de"),
    SyntheticVoice("Alicia", 15, 1.13, 155, "fr"),
    SyntheticVoice("iven", 75, 1.13, 165, "es"),
    SyntheticVoice("klatt3", 75, 0.88, 160, "it"),
    SyntheticVoice("norbert", 75, 0.88, 170, "de"),
    SyntheticVoice("michel", 75, 1.13, 155, "fr"),
    SyntheticVoice("marcelo", 75, 1.13, 165, "es"),
    SyntheticVoice("f5", 45, 1.13, 160, "it"),
)
HELD_OUT = 10


@dataclasses.dataclass(frozen=True)
class _Size:
    """How much of everything a scale has."""

    train_voices: int
    test_voices: int
    train: int
    other: int
    valid: int
    target: int
    reference: int


_SIZES = {
    "demo": _Size(len(VOICES) - HELD_OUT, HELD_OUT, 20, 3, 2, 12, 8),
    "tiny": _Size(4, 2, 4, 1, 1, 2, 2),
}


@dataclasses.dataclass(frozen=True)
class _Utterance:
    name: str
    voice: int
    language: str
    text: str
    split: str
    role: str


def synthesize(out: str | Path, seed: int = 0, scale: Scale = "demo") -> Path:
    """Makes the corpus: FLAC files, `.phones.json` beside each, and a `manifest.tsv`.

    - `train`: 30 voices, each with 20 English sentences (of 64, so that many sentences are said by
      several voices) and 3 in another language; about 36 minutes.
    - `valid`: the same voices, other sentences.
    - `test`: 10 other voices. Each says the same 12 sentences (column `role`: "target") and 8
      others (`role`: "reference") to be enrolled on; nobody says any of them in `train`.

    The same seed gives the same bytes (with the same espeak-ng, on the same kind of machine).

    Args:
        out: the folder to write into.
        seed: of who says which sentence, and of small differences in pace and pitch.
        scale: "demo", or "tiny" for a few recordings of a few voices.

    Returns:
        The folder, for `sources.find_recordings`.

    Raises:
        UserError: espeak-ng is not installed, or the folder cannot be written.
    """
    program = _program()
    out = Path(out)
    plan = [_plan(voice, seed, scale) for voice in _cast(scale)]
    try:
        for utterances in plan:
            (out / _name(utterances[0].voice)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    # The work is done by a program for each voice; threads wait for them.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        voices = pool.map(functools.partial(_speak, program, out, seed), plan)
        rows = [row for voice in voices for row in voice]
    write_manifest(rows, out / "manifest.tsv")
    return out


def cached(cache_dir: str | Path | None = None, scale: Scale = "demo") -> Path:
    """The corpus, made at the first call and kept.

    Args:
        cache_dir: where to keep it; None for `$XDG_CACHE_HOME/jaxclone`, by default
            `~/.cache/jaxclone`.
        scale: as for `synthesize`.

    Returns:
        A folder whose name changes with the program, the voices and the sentences.

    Raises:
        UserError: as `synthesize`.
    """
    if cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache_dir = Path(cache) / "jaxclone"
    folder = Path(cache_dir) / f"espeak-{scale}-{_fingerprint()}"
    if folder.is_dir():
        return folder
    # Made under another name, so that what has the name is whole; two may make it at once.
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        synthesize(partial, scale=scale)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _program() -> dict[str, str]:
    """Where espeak-ng and its data are."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "the embedded corpus needs espeak-ng: pip install 'jaxclone[demo]'"
        ) from None
    return {
        "library": espeakng_loader.get_library_path(),
        "data": espeakng_loader.get_data_path(),
    }


def _fingerprint() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for source in (__file__, espeak_worker.__file__, sentences.__file__):
        digest.update(Path(source).read_bytes())
    _program()
    digest.update(importlib.metadata.version("espeakng-loader").encode())
    return digest.hexdigest()


def _name(voice: int) -> str:
    return f"voice{voice:02d}"


def _cast(scale: Scale) -> list[int]:
    size = _SIZES[scale]
    first_held_out = len(VOICES) - HELD_OUT
    return [*range(size.train_voices), *range(first_held_out, first_held_out + size.test_voices)]


def _plan(voice: int, seed: int, scale: Scale) -> list[_Utterance]:
    """What a voice says."""
    size = _SIZES[scale]
    language = VOICES[voice].language
    rng = generator(seed, "espeak/plan", voice)
    if voice < len(VOICES) - HELD_OUT:
        parts = [
            ("en", sentences.TRAIN, size.train, "train", ""),
            (language, sentences.OTHER[language], size.other, "train", ""),
            ("en", sentences.VALID, size.valid, "valid", ""),
        ]
    else:
        parts = [
            ("en", sentences.TARGET, size.target, "test", "target"),
            ("en", sentences.REFERENCE, size.reference, "test", "reference"),
        ]
    utterances = []
    for code, texts, count, split, role in parts:
        # All held-out voices say the same targets.
        chosen = (
            range(size.target) if role == "target" else sorted(rng.permutation(len(texts))[:count])
        )
        for i in chosen:
            name = f"{_name(voice)}/{split}-{role or code}-{i:02d}"
            utterances.append(_Utterance(name, voice, code, texts[i], split, role))
    return utterances


def _speak(
    program: dict[str, str], out: Path, seed: int, utterances: list[_Utterance]
) -> list[Row]:
    """Writes all recordings of one voice."""
    voice = VOICES[utterances[0].voice]
    rng = generator(seed, "espeak/speech", utterances[0].voice)
    job = {
        **program,
        "sentences": [
            {
                "text": utterance.text,
                "voice": f"{utterance.language}+{voice.variant}",
                # Nobody says two sentences at quite the same pace and pitch. The tract changes the
                # pace too, which is undone here.
                "rate": round(voice.rate / voice.tract * rng.uniform(0.95, 1.05)),
                "pitch": voice.pitch + int(rng.integers(-2, 3)),
                "range": 50 + int(rng.integers(-8, 9)),
            }
            for utterance in utterances
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", espeak_worker.__name__],
        input=json.dumps(job).encode(),
        capture_output=True,
        check=False,
        # The package may be a checkout that is nowhere on the other program's path.
        cwd=Path(__file__).resolve().parents[2],
    )
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(f"espeak-ng failed for the variant {voice.variant}: {reason[-1]}")
    return [
        _write(out, utterance, voice.tract, rng, spoken)
        for utterance, spoken in zip(utterances, _spoken(done.stdout), strict=True)
    ]


def _spoken(output: bytes) -> Iterator[dict[str, Any]]:
    """What the program wrote, with the samples as `waveform`."""
    stream = bytesio.BytesIO(output)
    while header := stream.readline():
        spoken = json.loads(header)
        pcm = np.frombuffer(stream.read(2 * spoken["samples"]), "<i2")
        yield {**spoken, "waveform": pcm.astype(np.float32) / 32768.0}


def _write(
    out: Path,
    utterance: _Utterance,
    tract: float,
    rng: np.random.Generator,
    spoken: dict[str, Any],
) -> Row:
    # Played faster by the tract, which raises formants and pitch alike.
    rate = round(spoken["rate"] * tract)
    waveform = io.resample(spoken["waveform"], rate, SAMPLE_RATE)
    # Symbols without a name are pauses; one of a third of a second ends each sentence.
    phones = [
        [symbol, start / rate, end / rate]
        for (symbol, start), (_, end) in itertools.pairwise(spoken["phones"])
        if symbol and end > start
    ]
    end = round(phones[-1][2] * SAMPLE_RATE)
    waveform = _in_quiet(waveform[:end], rng)
    phones = [[symbol, round(a + _MARGIN, 6), round(b + _MARGIN, 6)] for symbol, a, b in phones]
    path = out / f"{utterance.name}.flac"
    io.write(path, waveform, SAMPLE_RATE)
    path.with_suffix(".phones.json").write_text(json.dumps(phones, ensure_ascii=False), "utf-8")
    return Row(
        path=str(path.resolve()),
        speaker=_name(utterance.voice),
        text=utterance.text,
        language=utterance.language,
        seconds=len(waveform) / SAMPLE_RATE,
        sample_rate=SAMPLE_RATE,
        split=utterance.split,
        extra={"role": utterance.role},
    )


def _in_quiet(
    waveform: Float[np.ndarray, " t"], rng: np.random.Generator
) -> Float[np.ndarray, " t2"]:
    """At the usual level, with a margin on both sides and a faint noise under all of it."""
    margin = round(_MARGIN * SAMPLE_RATE)
    quiet = np.pad(loudness.normalise(waveform), (margin, margin))
    noise = rng.standard_normal(len(quiet)) * 10 ** (_NOISE_DB / 20)
    return (quiet + noise).astype(np.float32)
