"""Telling a run that goes nowhere, from its metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

# What to try when a model gives the same answer to everything.
TAMER = (
    "a lower optim.learning_rate with more optim.warmup_steps, optim.clip_norm 1, and precision "
    "f32 to rule that out"
)


@dataclasses.dataclass(frozen=True)
class Watch:
    """A metric that is low where training has collapsed.

    Attributes:
        metric: its name.
        below: what it must not stay under.
        steps: for how long it may be.
        meaning: what that tells.
        advice: what to try.
    """

    metric: str
    below: float
    steps: int
    meaning: str
    advice: str


class Monitor:
    """Follows the metrics of a run, as they are logged."""

    def __init__(self, watches: Sequence[Watch]):
        self._watches = watches
        self._low_since: dict[Watch, int] = {}
        self._told: set[Watch] = set()

    def remember(self, step: int, metrics: Mapping[str, float]) -> None:
        """Follows what an earlier start of the run has logged, and says nothing."""
        for watch in self._watches:
            value = metrics.get(watch.metric)
            if value is None:
                continue
            if value >= watch.below:
                self._low_since.pop(watch, None)
            else:
                self._low_since.setdefault(watch, step)

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """What there is to say after a step: each thing once a start.

        >>> watch = Watch("code_perplexity", 4.0, 20, "few codes are in use", "diversity")
        >>> monitor = Monitor([watch])
        >>> seen = [monitor.see(step, {"code_perplexity": 2.0}) for step in (10, 20, 30, 40)]
        >>> [len(lines) for lines in seen]
        [0, 0, 1, 0]
        >>> print(seen[2][0])
        step 30: code_perplexity is 2, below 4 since step 10: few codes are in use; try diversity
        """
        self.remember(step, metrics)
        lines = []
        for watch, since in self._low_since.items():
            late = watch.metric in metrics and step - since >= watch.steps
            if late and watch not in self._told:
                self._told.add(watch)
                lines.append(
                    f"step {step}: {watch.metric} is {metrics[watch.metric]:.3g}, below "
                    f"{watch.below:g} since step {since}: {watch.meaning}; try {watch.advice}"
                )
        return lines
