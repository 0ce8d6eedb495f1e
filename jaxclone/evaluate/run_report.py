"""The report of a run: one HTML file with a chart of all that was logged, and its last samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from jaxclone.evaluate.page import charts, data_url, page
from jaxclone.train.tracking import read_metrics
from jaxclone.types import UserError

_VALID = "valid/"


def write_run_report(run: str | Path, path: str | Path) -> Path:
    """Writes the report of a run, which may still go on.

    Args:
        run: the folder of the run.
        path: of the HTML file; its folder is made.

    Raises:
        UserError: there are no metrics in the folder, or the file cannot be written.
    """
    run, path = Path(run), Path(path)
    lines = read_run(run)
    curves = curves_of(lines)
    learnt = {name: curve for name, curve in curves.items() if not name.startswith(_VALID)}
    valid = {
        name.removeprefix(_VALID): curve
        for name, curve in curves.items()
        if name.startswith(_VALID)
    }
    config = (run / "config.json").read_text("utf-8")
    sections = [
        ("Validation", charts(valid)),
        ("Samples", _samples(run / "media")),
        ("Training", charts(learnt)),
        (
            "Configuration",
            f"<details><summary>All settings</summary><pre>{escape(config)}</pre></details>",
        ),
    ]
    notes = f"{lines[-1]['step']} steps, {lines[-1]['seconds'] / 60:.1f} minutes"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page(run.resolve().name, notes, sections), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return path


def read_run(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder, line by line.

    Raises:
        UserError: it has none.
    """
    lines = read_metrics(run)
    if not (lines and (run / "config.json").is_file()):
        raise UserError(f"{run} is not the folder of a run: it has no metrics")
    return lines


def curves_of(
    lines: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each metric, by the name that it is logged under.

    Args:
        lines: of `read_metrics`.
        names: which, in this order; None for all but the time, by the alphabet.

    >>> curves_of([{"step": 1, "seconds": 2.0, "loss": 3.0}])
    {'loss': [(1, 3.0)]}
    """
    if names is None:
        names = sorted({name for line in lines for name in line} - {"step", "seconds", "weight"})
    curves = {
        name: [
            (line["step"], line[name])
            for line in lines
            if isinstance(line.get(name), int | float)  # and not what a damaged line holds
        ]
        for name in names
    }
    return {name: curve for name, curve in curves.items() if curve}


def _samples(media: Path) -> str:
    """The sounds and pictures of the last step that has some."""
    steps = sorted(int(folder.name) for folder in media.glob("*") if folder.name.isdecimal())
    if not steps:
        return ""
    figures = []
    for file in sorted((media / str(steps[-1])).iterdir()):
        name = escape(file.stem.replace("_", " "), quote=True)
        if file.suffix == ".wav":
            sound = data_url("audio/wav", file.read_bytes())
            shown = f'<audio controls preload=metadata aria-label="{name}" src="{sound}"></audio>'
        elif file.suffix == ".png":
            shown = f'<img alt="{name}" src="{data_url("image/png", file.read_bytes())}">'
        else:
            continue
        figures.append(f"<figure><figcaption>{name}</figcaption>{shown}</figure>")
    return f"<p>After {steps[-1]} steps.</p><div class=figures>{''.join(figures)}</div>"
