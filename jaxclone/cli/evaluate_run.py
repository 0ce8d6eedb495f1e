"""`jaxclone evaluate run`: the curves and samples of a training run on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxclone.cli.console import say
from jaxclone.cli.options import parse
from jaxclone.evaluate.run_report import write_run_report


@dataclasses.dataclass(frozen=True)
class RunReportOptions:
    """Writes one HTML page with a chart of all that a run logged, and its last samples.

    Attributes:
        run: the folder of the run, which may still go on.
        out: the page; `report.html` in that folder when not given.
    """

    run: Path
    out: Path | None = None


def main(args: Sequence[str]) -> dict[str, Any]:
    """Runs `jaxclone evaluate run`."""
    options = parse(RunReportOptions, args, "jaxclone evaluate run")
    path = write_run_report(options.run, options.out or options.run / "report.html")
    say(f"the report is {path}")
    return {"report": str(path)}
