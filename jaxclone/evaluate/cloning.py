"""Cloning voices that training never heard, and scoring the result against what they really say."""

from __future__ import annotations

import collections
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data_pipelines.corpus import Corpus
from jaxclone.audio.spectral import log_mel
from jaxclone.evaluate.mcd import mcd_of, mel_cepstrum
from jaxclone.evaluate.pitch import f0_error
from jaxclone.evaluate.quality import copy_scores, find_listener
from jaxclone.evaluate.similarity import SpeakerVerifier, cosine
from jaxclone.synthesis.cloner import Cloner
from jaxclone.types import UserError


@dataclasses.dataclass(frozen=True)
class Pair:
    """A conversion to make, as indices of a corpus.

    Attributes:
        source: what is said.
        target: the voice it is to be said in.
        references: recordings of the target to enroll on.
        truth: the target saying the same; None when nobody recorded that.
    """

    source: int
    target: str
    references: tuple[int, ...]
    truth: int | None


@dataclasses.dataclass(frozen=True)
class PairScores:
    """One conversion and how good it is; scores that need a truth are None without one.

    Attributes:
        pair: what was converted.
        source: f32[t] waveforms, at the corpus's rate.
        reference: what the voice was enrolled on.
        converted: the result.
        truth: what the target really says.
        scores: by name.
    """

    pair: Pair
    source: np.ndarray
    reference: np.ndarray
    converted: np.ndarray
    truth: np.ndarray | None
    scores: dict[str, float | None]


def make_pairs(corpus: Corpus, split: str = "test", count: int = 24) -> list[Pair]:
    """Chooses conversions between the voices of a split, each target and source about as often.

    A conversion with a true answer (the target's own recording of the sentence) is preferred;
    where a target has none, the sentence is any that another voice says. Recordings whose column
    `role` is "reference" serve for enrolment, and the rest are converted; without the column a
    target is enrolled on whatever it says besides the sentence, and has to say something else.

    Raises:
        UserError: the split has fewer than two voices, or none that says enough.
    """
    indices = [int(i) for i in corpus.indices(split) if corpus.speaker[i] >= 0]
    rows = corpus.table
    said = collections.defaultdict(list)
    for i in indices:
        said[rows[i].speaker].append(i)
    if len(said) < 2:
        raise UserError(f"cloning needs two labelled voices or more in split {split!r}")
    is_target = {i: rows[i].extra.get("role", "target") == "target" for i in indices}

    def references(target: str, source: int) -> tuple[int, ...]:
        others = [i for i in said[target] if not rows[i].text or rows[i].text != rows[source].text]
        return tuple([i for i in others if not is_target[i]] or others)

    candidates: list[tuple[bool, int, str, int | None]] = []
    for target, theirs in said.items():
        truths = {rows[i].text: i for i in theirs if is_target[i] and rows[i].text}
        for i in indices:
            if rows[i].speaker == target or not is_target[i]:
                continue
            if rows[i].language != rows[theirs[0]].language or not references(target, i):
                continue
            truth = truths.get(rows[i].text)
            candidates.append((truth is None, i, target, truth))

    # Greedy: next comes a pair with a truth whose target, source and sentence are least used yet.
    used: collections.Counter[Any] = collections.Counter()
    pairs: list[Pair] = []
    while candidates and len(pairs) < count:
        best = min(
            candidates,
            key=lambda c: (
                c[0],
                used["target", c[2]],
                used["source", rows[c[1]].speaker],
                used["text", rows[c[1]].text],
                c[1],
            ),
        )
        candidates.remove(best)
        _, source, target, truth = best
        pairs.append(Pair(source, target, references(target, source), truth))
        for kind, value in (
            ("target", target),
            ("source", rows[source].speaker),
            ("text", rows[source].text),
        ):
            used[kind, value] += 1
    if not pairs:
        raise UserError(
            f"no voice of split {split!r} can be cloned: each needs a recording besides what "
            "another of its language says"
        )
    return pairs


def reference_of(
    corpus: Corpus, references: Sequence[int], seconds: float
) -> list[Float[np.ndarray, " _"]]:
    """The first `seconds` of these recordings, in pieces."""
    left = round(seconds * corpus.spec.sample_rate)
    waveforms: list[np.ndarray] = []
    for i in references:
        if left < corpus.spec.sample_rate // 2 and waveforms:
            break
        waveforms.append(corpus[i]["waveform"][:left])
        left -= len(waveforms[-1])
    return waveforms


def evaluate_cloning(
    cloner: Cloner,
    corpus: Corpus,
    pairs: Sequence[Pair],
    *,
    steps: Sequence[int] = (0, 5, 20),
    reference_seconds: float = 5.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], list[PairScores]]:
    """Clones each pair and scores it.

    MCD is against the target's own recording, as is the quality of its copy synthesis (PESQ and
    STOI where their packages are installed), similarity against the recordings that the voice was
    enrolled on, by a verifier that no training has seen.

    Args:
        cloner: what speaks.
        corpus: where the recordings are.
        pairs: of `make_pairs`.
        steps: inner steps of adaptation to compare; the first is what the other scores are of.
        reference_seconds: of recording that a voice is enrolled on.
        on_progress: called with (pairs done, pairs in all).

    Returns:
        Means over the pairs by name ("adaptation" maps steps to its mcd and similarity), and the
        pairs one by one.
    """
    rate = corpus.spec.sample_rate
    verifier, listener = SpeakerVerifier(), find_listener()
    voices: dict[tuple[str, int], Any] = {}
    results = []
    for done, pair in enumerate(pairs, start=1):
        reference = reference_of(corpus, pair.references, reference_seconds)
        heard = np.concatenate(reference)
        target = verifier.embed(heard, rate)
        source = corpus[pair.source]["waveform"]
        truth = None if pair.truth is None else corpus[pair.truth]["waveform"]
        true_cepstrum = None if truth is None else mel_cepstrum(truth, rate)

        def distance(waveform: np.ndarray, to: np.ndarray | None = true_cepstrum) -> float | None:
            return None if to is None else mcd_of(mel_cepstrum(waveform, rate), to)

        def likeness(waveform: np.ndarray, to: np.ndarray = target) -> float | None:
            try:
                return cosine(verifier.embed(waveform, rate), to)
            except UserError:  # nothing in it sounds like speech: no score of this pair
                return None

        scores: dict[str, float | None] = {}
        converted: np.ndarray | None = None
        for n in steps:
            if (pair.target, n) not in voices:
                voices[pair.target, n] = cloner.enroll(reference, steps=n)
            spoken = cloner.convert(source, voices[pair.target, n])
            scores[f"mcd_{n}"] = distance(spoken)
            scores[f"similarity_{n}"] = likeness(spoken)
            if converted is None:
                converted = spoken
        assert converted is not None, "steps must not be empty"
        scores["mcd_converted"] = scores[f"mcd_{steps[0]}"]
        scores["similarity_target"] = scores[f"similarity_{steps[0]}"]
        scores["mcd_source"] = distance(source)
        scores["similarity_source"] = likeness(source)
        if truth is not None:
            copy = copy_synthesis(cloner, truth)
            scores["mcd_copy_synthesis"] = distance(copy)
            scores["similarity_copy_synthesis"] = likeness(copy)
            quality = copy_scores(listener, truth, copy, corpus.spec)
            scores |= {f"{name}_copy_synthesis": value for name, value in quality.items()}
            scores["similarity_truth"] = likeness(truth)
            error = f0_error(converted, truth, cloner.audio)
            scores |= {f"f0_{name}": value for name, value in error.items()}
        results.append(PairScores(pair, source, heard, converted, truth, scores))
        if on_progress is not None:
            on_progress(done, len(pairs))
    return summarise(results, steps, reference_seconds), results


def copy_synthesis(cloner: Cloner, waveform: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """The recording through mel and vocoder alone: what no conversion can be better than."""
    return cloner.vocode(np.asarray(log_mel(waveform, cloner.audio)))


def summarise(
    results: Sequence[PairScores], steps: Sequence[int], reference_seconds: float
) -> dict[str, Any]:
    """Means over the pairs that have each score."""

    def mean(name: str) -> float | None:
        values = [value for r in results if (value := r.scores.get(name)) is not None]
        return statistics.fmean(values) if values else None

    gains = [
        after - before
        for r in results
        if (after := r.scores["similarity_target"]) is not None
        and (before := r.scores["similarity_source"]) is not None
    ]
    names = [
        "mcd_converted",
        "mcd_source",
        "mcd_copy_synthesis",
        "similarity_target",
        "similarity_source",
        "similarity_copy_synthesis",
        "similarity_truth",
    ]
    more = {n for r in results for n in r.scores if n.startswith("f0_") or n.endswith("_synthesis")}
    names += sorted(more - set(names))
    return {
        **{name: mean(name) for name in names},
        "fraction_closer_to_target": statistics.fmean(g > 0 for g in gains) if gains else None,
        "adaptation": {
            str(n): {"mcd": mean(f"mcd_{n}"), "similarity": mean(f"similarity_{n}")} for n in steps
        },
        "pairs": len(results),
        "pairs_with_truth": sum(r.truth is not None for r in results),
        "reference_seconds": reference_seconds,
    }
