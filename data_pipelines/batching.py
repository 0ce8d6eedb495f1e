"""What each step is made of: random-access sequences of steps, functions of (seed, step) alone.

Because any step can be asked for without those before it, a run resumes at a step by starting
there, on any number of processes; and each process takes its rows of a step that all agree on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from data_pipelines.transforms import generator
from jaxclone.types import UserError

# The item of a row that only fills up the last batch.
PADDING = -1
# Epochs of a sequence that never ends.
_ENDLESS = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Step:
    """The content of one global batch.

    Attributes:
        first: the number in the stream of its first row.
        items: i64[batch] what each row is made of (a record, a speaker), PADDING for nothing.
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
    """

    def __init__(
        self,
        items: Int[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        shuffle: bool = True,
    ):
        stream = grain.MapDataset.source(items).seed(seed)
        self._stream = (stream.shuffle() if shuffle else stream).repeat(epochs)
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._stream) // self._batch_size)

    def __getitem__(self, step: int) -> Step:
        first = step * self._batch_size
        numbers = range(first, min(first + self._batch_size, len(self._stream)))
        items = [int(self._stream[number]) for number in numbers]
        return Step(first, _fill(items, self._batch_size))


class Bucketed:
    """Items of similar length together; batches of all lengths in random order.

    An item goes to the smallest size that holds it, or to the largest. What does not fill a batch
    goes on to the next larger size. At the largest it is left out of that epoch when epochs follow
    without end (the next shuffles others there), else its batch is filled up with PADDING.
    """

    def __init__(
        self,
        items: Int[np.ndarray, " n"],
        n_samples: Int[np.ndarray, " n"],
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        epochs: int | None = None,
        shuffle: bool = True,
    ):
        self._sizes = sorted(sizes)
        self._items = items
        self._bucket = np.minimum(np.searchsorted(self._sizes, n_samples), len(sizes) - 1)
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._epochs = epochs
        self._per_epoch = (len(items) + (0 if epochs is None else batch_size - 1)) // batch_size
        if not self._per_epoch:
            raise UserError(f"{len(items)} recordings do not fill one batch of {batch_size}")
        self._latest = (0, self._batches(0))

    def __len__(self) -> int:
        return self._per_epoch * (_ENDLESS if self._epochs is None else self._epochs)

    def __getitem__(self, step: int) -> Step:
        epoch, place = divmod(step, self._per_epoch)
        latest, batches = self._latest
        if latest != epoch:
            batches = self._batches(epoch)
            self._latest = (epoch, batches)
        items, size = batches[place]
        return Step(step * self._batch_size, _fill(items, self._batch_size), size)

    def _batches(self, epoch: int) -> list[tuple[Int[np.ndarray, " n"], int]]:
        """The items and the size of each batch of an epoch."""
        rng = generator(self._seed, epoch)
        batches, left = [], self._items[:0]
        for bucket, size in enumerate(self._sizes):
            members = self._items[self._bucket == bucket]
            members = rng.permutation(members) if self._shuffle else members
            left = np.concatenate([left, members])
            while len(left) >= self._batch_size:
                batches.append((left[: self._batch_size], size))
                left = left[self._batch_size :]
        if self._shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        if len(left) and self._epochs is not None:
            batches.append((left, self._sizes[-1]))
        return batches


def _fill(items: Sequence[int] | Int[np.ndarray, " n"], size: int) -> Int[np.ndarray, " {size}"]:
    """Appends PADDING."""
    padding = np.full(size - len(items), PADDING, np.int64)
    return np.concatenate([np.asarray(items, np.int64), padding])
