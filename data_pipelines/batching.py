"""What each step is made of: random-access sequences of steps, functions of (seed, step) alone.

Because any step can be asked for without those before it, a run resumes at a step by starting
there, on any number of processes; and each process takes its rows of a step that all agree on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.transforms import generator, stream_seed
from jaxclone.types import UserError

# Epochs of a sequence that never ends.
_ENDLESS = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Step:
    """The content of one global batch.

    Attributes:
        first: the number in the stream of its first row.
        items: i64[batch] what each row is made of (a record, a speaker).
        size: samples of each row; None where the loader's own crop length holds.
    """

    first: int
    items: Int[np.ndarray, " batch"]
    size: int | None = None

    def part(self, index: int, count: int) -> Step:
        """The rows of one process of several: contiguous, so that parts make up the whole."""
        rows = len(self.items) // count
        start = index * rows
        return Step(self.first + start, self.items[start : start + rows], self.size)


class Shuffled:
    """Items in an order that is new in each epoch, cut into batches.

    Batches run on from one epoch into the next, so that each item comes exactly once an epoch.

    Args:
        items: what there is.
        batch_size: rows of a step.
        seed: of the run.
        name: of the random stream.
    """

    def __init__(self, items: Int[np.ndarray, " n"], batch_size: int, seed: int, name: str):
        stream = grain.MapDataset.source(items).seed(stream_seed(seed, name))
        self._stream = stream.shuffle().repeat()
        self._batch_size = batch_size

    def __len__(self) -> int:
        return len(self._stream) // self._batch_size

    def __getitem__(self, step: int) -> Step:
        first = step * self._batch_size
        items = [int(self._stream[first + row]) for row in range(self._batch_size)]
        return Step(first, np.array(items, np.int64))


class Bucketed:
    """Items of similar length together; batches of all lengths in random order.

    An item goes to the smallest size that holds it, or to the largest. What does not fill a batch
    goes on to the next larger size; at the largest it is left out of that epoch, and the next one
    shuffles others there. So every epoch has as many batches of each size.

    Args:
        items: what there is.
        n_samples: the length of each.
        rows: of a step of each size of the buckets, in samples.
        seed: of the run.
        name: of the random stream.
    """

    def __init__(
        self,
        items: Int[np.ndarray, " n"],
        n_samples: Int[np.ndarray, " n"],
        rows: Mapping[int, int],
        seed: int,
        name: str,
    ):
        self._rows = dict(sorted(rows.items()))
        self._items = items
        self._bucket = np.minimum(np.searchsorted([*self._rows], n_samples), len(rows) - 1)
        self._seed = seed
        self._name = name
        batches = self._batches(0)
        if not batches:
            fewest = min(rows.values())
            raise UserError(f"{len(items)} recordings do not fill one batch of {fewest}")
        self._per_epoch = len(batches)
        self._rows_per_epoch = sum(len(step.items) for step in batches)
        self._latest = (0, batches)

    def __len__(self) -> int:
        return self._per_epoch * _ENDLESS

    def __getitem__(self, step: int) -> Step:
        epoch, place = divmod(step, self._per_epoch)
        latest, batches = self._latest
        if latest != epoch:
            batches = self._batches(epoch)
            self._latest = (epoch, batches)
        found = batches[place]
        return dataclasses.replace(found, first=epoch * self._rows_per_epoch + found.first)

    def _batches(self, epoch: int) -> list[Step]:
        """The steps of an epoch, their rows numbered from its beginning."""
        rng = generator(self._seed, self._name, epoch)
        batches, left = [], self._items[:0]
        for bucket, (size, rows) in enumerate(self._rows.items()):
            members = rng.permutation(self._items[self._bucket == bucket])
            left = np.concatenate([left, members])
            while len(left) >= rows:
                batches.append((left[:rows], size))
                left = left[rows:]
        steps, first = [], 0
        for i in rng.permutation(len(batches)):
            items, size = batches[i]
            steps.append(Step(first, items.astype(np.int64), size))
            first += len(items)
        return steps
