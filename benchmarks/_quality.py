"""Vocoders trained alike, and how good their copies of unheard recordings are."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.corpus import Corpus
from jaxclone import rng
from jaxclone.audio import io
from jaxclone.audio.griffin_lim import griffin_lim
from jaxclone.audio.spec import AudioSpec
from jaxclone.audio.spectral import log_mel
from jaxclone.evaluate.mcd import mcd_of, mel_cepstrum
from jaxclone.evaluate.quality import Listener, copy_scores, means
from jaxclone.export.bundle import load_bundle
from jaxclone.synthesis.vocoder import Vocoder

Speak = Callable[[np.ndarray], np.ndarray]
Rows = dict[str, dict[str, Any]]

# Their size `mini`: each takes about as long on the same machine.
TRAINED = ("hifigan_v2", "melgan", "multiband_melgan", "vocos", "diffwave")
# Iterations of Griffin-Lim.
_ITERATIONS = (32, 100)
# Recordings of one voice that are copied, and those of them that are kept to be heard.
_EACH, _KEPT = 4, 1


def train(name: str, corpus: Path, run: Path) -> None:
    """Trains a vocoder, unless it is there, and notes what that took."""
    if (run / "cost.json").exists():
        return
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    data = ["--data.corpus", corpus, "--valid.corpus", corpus]
    with (run.parent / f"{name}.log").open("w") as log:
        subprocess.run(
            ["jaxclone", "train", f"vocoder/{name}:mini", "--out", run, *data],
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    cost = {
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "cpu_minutes": round(cpu / 60, 1),
        "cores": len(os.sched_getaffinity(0)),
    }
    (run / "cost.json").write_text(json.dumps(cost))


def by_griffin_lim(audio: AudioSpec, iterations: int) -> Speak:
    """Griffin-Lim of so many iterations."""
    key = rng.stream(rng.root(0), "quality")
    return lambda mel: np.asarray(griffin_lim(jnp.asarray(mel), audio, key, iterations))


def compare(corpus: Path, runs: Path, names: Iterable[str], *, train_only: bool = False) -> Rows:
    """Trains vocoders on a corpus, and lets each copy recordings of its split `test`.

    Args:
        corpus: of 16 kHz, in the default AudioSpec.
        runs: where the runs are, or will be; the copies go to its folder `copies`.
        names: of `TRAINED`, and "griffin_lim".
        train_only: ends there.

    Returns:
        For each vocoder: what its training took, its parameters, seconds of work for a second of
        audio, and for each kind of recording (the column `corpus`) the mean of its scores.
    """
    runs.mkdir(parents=True, exist_ok=True)
    data, listener = Corpus.open(corpus, AudioSpec()), Listener()
    rate, said = data.spec.sample_rate, Counter[str]()
    chosen = []
    for i in map(int, data.indices("test")):
        said[data.table[i].speaker] += 1
        if said[data.table[i].speaker] <= _EACH:
            chosen.append(i)
    result: Rows = {}
    speakers: dict[str, Speak] = {}
    for name in names:
        if name == "griffin_lim":
            for n in _ITERATIONS:
                speakers[f"griffin_lim_{n}"] = by_griffin_lim(data.spec, n)
                result[f"griffin_lim_{n}"] = {}
            continue
        train(name, corpus, runs / name)
        bundle = load_bundle(runs / name / "bundle")
        params = bundle.models["vocoder"]
        speakers[name] = Vocoder(bundle.configs["vocoder"], params, data.spec)
        cost = json.loads((runs / name / "cost.json").read_text())
        result[name] = cost | {"parameters": sum(p.size for p in jax.tree.leaves(params))}
    if train_only:
        return result
    (runs / "copies").mkdir(exist_ok=True)
    for name, speak in speakers.items():
        scores, took, spoken = defaultdict(list), 0.0, 0.0
        for count, i in enumerate(chosen):
            truth = data[i]["waveform"]
            mel = np.asarray(log_mel(truth, data.spec))
            speak(mel)  # compiles
            start = time.perf_counter()
            copy = np.asarray(speak(mel))
            took, spoken = took + time.perf_counter() - start, spoken + len(copy) / rate
            row = copy_scores(listener, truth, copy, data.spec)
            size = min(len(truth), len(copy))
            row["mcd"] = mcd_of(mel_cepstrum(truth[:size], rate), mel_cepstrum(copy[:size], rate))
            kind = data.table[i].extra.get("corpus") or "all"
            if len(scores[kind]) < _KEPT:
                io.write(runs / "copies" / f"{count:03d}-{name}.wav", copy, rate)
                io.write(runs / "copies" / f"{count:03d}-truth.wav", truth, rate)
            scores[kind].append(row)
        result[name]["real_time_factor"] = round(took / spoken, 5)
        for kind, rows in scores.items():
            heard = {k: round(v, 3) for k, v in means(rows).items()}
            result[name][kind] = heard | {"recordings": len(rows)}
    return result
