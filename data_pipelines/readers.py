"""What a step describes, read: crops with their F0, references, episodes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines.batching import Step
from data_pipelines.corpus import Corpus
from data_pipelines.episodes import draw_episode
from data_pipelines.transforms import Take, crop_start, elsewhere, generator, pad_to
from data_pipelines.units import NO_UNIT, Units
from jaxclone.types import Batch, Episode

Fields = dict[str, Any]


class Recordings:
    """Some recordings of a corpus, by record and by speaker.

    Args:
        corpus: where they are.
        records: which.
        f0: whether crops carry F0.
        keep: whether to keep what has been decoded, as 16-bit samples.
        units: of each frame, when crops carry them.
    """

    def __init__(
        self,
        corpus: Corpus,
        records: Int[np.ndarray, " n"],
        f0: bool,
        keep: bool,
        units: Units | None = None,
    ):
        self.spec = corpus.spec
        self._corpus = corpus
        self._f0 = f0
        self._keep = keep
        self._units = units
        self._kept: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        by_speaker: dict[int, list[int]] = collections.defaultdict(list)
        for record in records:
            by_speaker[int(corpus.speaker[record])].append(int(record))
        self._by_speaker = {speaker: np.array(own) for speaker, own in by_speaker.items()}

    def whole(self, record: int) -> Take:
        """All of a recording."""
        return Take(record, 0, int(self._corpus.n_samples[record]))

    def same_speaker(self, record: int) -> Int[np.ndarray, " n"]:
        """The recordings of a recording's speaker, itself among them; itself when unlabelled."""
        speaker = int(self._corpus.speaker[record])
        return np.array([record]) if speaker < 0 else self._by_speaker[speaker]

    def of_speaker(self, speaker: int) -> list[Take]:
        """The recordings of a speaker, whole."""
        return [self.whole(int(record)) for record in self._by_speaker[speaker]]

    def crop(self, take: Take, start: int, size: int) -> Fields:
        """Fields of a Batch for one row: [start, start + size) of a stretch, padded to `size`."""
        waveform, f0 = self._decoded(take.record)
        piece = waveform[start : min(start + size, take.high)]
        if piece.dtype == np.int16:
            piece = piece.astype(np.float32) / 32768.0
        fields = {
            "waveform": pad_to(piece, size),
            "length": np.int32(len(piece)),
            "speaker": self._corpus.speaker[take.record],
        }
        if self._f0:
            assert f0 is not None, "a corpus without F0"
            hop = self.spec.hop_length
            track = f0[start // hop :][: len(piece) // hop]
            fields["f0"] = pad_to(track, size // hop)
        if self._units is not None:
            hop = self.spec.hop_length
            units = self._units[take.record][start // hop :][: len(piece) // hop]
            fields["units"] = pad_to(units.astype(np.int32), size // hop, NO_UNIT)
        return fields

    def _decoded(self, record: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The samples (i16 when kept, else f32) and F0 of a recording."""
        if record in self._kept:
            return self._kept[record]
        content = self._corpus[record]
        decoded = content["waveform"], content["f0"]
        if self._keep:
            # Nothing is lost: the corpus holds 16-bit samples.
            decoded = np.rint(decoded[0] * 32768.0).astype(np.int16), decoded[1]
            self._kept[record] = decoded
        return decoded


@dataclasses.dataclass(frozen=True)
class CropReader:
    """Reads a step whose items are records: one random crop of each, or all of it if it fits.

    Attributes:
        recordings: what the records are.
        seed: of the run.
        name: of the random stream.
        size: samples of a crop where the step does not say.
        reference_size: samples of a crop of another recording of the same speaker; 0 for none.
    """

    recordings: Recordings
    seed: int
    name: str
    size: int
    reference_size: int

    def __call__(self, step: Step) -> Batch:
        size = step.size or self.size
        rows = [self._row(step.first + i, int(item), size) for i, item in enumerate(step.items)]
        return _batch(rows)

    def _row(self, number: int, record: int, size: int) -> Fields:
        rng = generator(self.seed, self.name, number)
        take = self.recordings.whole(record)
        start = crop_start(rng, take, size, self.recordings.spec.hop_length)
        fields = self.recordings.crop(take, start, size)
        fields["example"] = np.int32(number)
        if self.reference_size:
            reference = self._reference(rng, take, start)
            fields["reference"] = reference["waveform"]
            fields["reference_length"] = reference["length"]
        return fields

    def _reference(self, rng: np.random.Generator, take: Take, start: int) -> Fields:
        hop = self.recordings.spec.hop_length
        own = self.recordings.same_speaker(take.record)
        if len(own) == 1:
            place = elsewhere(rng, take.high, start, self.reference_size, hop)
            return self.recordings.crop(take, place, self.reference_size)
        others = own[own != take.record]
        other = self.recordings.whole(int(others[rng.integers(len(others))]))
        place = crop_start(rng, other, self.reference_size, hop)
        return self.recordings.crop(other, place, self.reference_size)


@dataclasses.dataclass(frozen=True)
class EpisodeReader:
    """Reads a step whose items are speakers: support and query crops of each.

    Attributes:
        recordings: of all speakers.
        seed: of the run.
        name: of the random stream.
        size: samples of a crop.
        support: crops to adapt on.
        query: crops to measure on.
    """

    recordings: Recordings
    seed: int
    name: str
    size: int
    support: int
    query: int

    def __call__(self, step: Step) -> Episode:
        tasks = [self._task(step.first + i, int(item)) for i, item in enumerate(step.items)]
        shape = (len(tasks), self.support + self.query)
        shots = _batch([crop for crops in tasks for crop in crops])
        both = {
            name: array.reshape(shape + array.shape[1:])
            for name, array in vars(shots).items()
            if array is not None
        }
        return Episode(
            support=Batch(**{name: array[:, : self.support] for name, array in both.items()}),
            query=Batch(**{name: array[:, self.support :] for name, array in both.items()}),
        )

    def _task(self, number: int, speaker: int) -> list[Fields]:
        """The crops of one speaker, the support's first."""
        shots = self.support + self.query
        rng = generator(self.seed, self.name, number)
        hop = self.recordings.spec.hop_length
        takes = self.recordings.of_speaker(speaker)
        support, query = draw_episode(rng, takes, self.support, self.query, hop)
        crops = [
            self.recordings.crop(take, crop_start(rng, take, self.size, hop), self.size)
            for take in support + query
        ]
        for shot, crop in enumerate(crops):
            crop["example"] = np.int32(number * shots + shot)
        return crops


def _batch(rows: Sequence[Fields]) -> Batch:
    return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})
