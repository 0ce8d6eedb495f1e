"""Where numbers, pictures and sounds of a run go: its folder, and Weights & Biases if wanted."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from jaxclone import config as configs
from jaxclone.train.errors import RunError
from jaxclone.train.task import Media, RunConfig
from jaxclone.types import UserError

METRICS = "metrics.jsonl"
COLOUR_MAP = "magma"


class Tracker:
    """Writes the run folder's config.json, metrics.jsonl and media, and to Weights & Biases.

    A run that continues forgets what was written after the step it continues from, so that its
    files end as those of an uninterrupted run. Only the first process of a run makes one.

    Attributes:
        seconds: that the run had taken when it was last interrupted.
        last: the last value of each metric by then.
    """

    def __init__(self, folder: Path, config: RunConfig, start: int):
        """Opens the files.

        Args:
            folder: the run folder; exists.
            config: of the run.
            start: the step that the run continues from; 0 for a new one.

        Raises:
            RunError: the folder cannot be written.
            UserError: Weights & Biases is asked for and not installed.
        """
        self.folder = Path(folder)
        self._rate = config.audio.sample_rate
        kept = read_metrics(self.folder, up_to=start)
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self.last = {k: v for line in kept for k, v in line.items() if k not in ("step", "seconds")}
        try:
            _replace(self.folder / "config.json", configs.to_json(config))
            _replace(self.folder / METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise self._unwritten(error) from error
        self._wandb = _start_wandb(self.folder, config, resume=start > 0)

    def scalars(self, step: int, seconds: float, metrics: Mapping[str, float]) -> None:
        """One line of metrics.

        Raises:
            RunError: the folder cannot be written.
        """
        line = {"step": step, "seconds": round(seconds, 3), **metrics}
        try:
            with (self.folder / METRICS).open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise self._unwritten(error) from error
        if self._wandb:
            self._wandb.log(line)

    def media(self, step: int, media: Mapping[str, Media]) -> None:
        """Pictures as PNG and sounds as 16-bit WAV; in Weights & Biases, the sounds as a table.

        Raises:
            RunError: the folder cannot be written.
        """
        files = {}
        try:
            for name, item in media.items():
                suffix = "wav" if item.kind == "audio" else "png"
                files[name] = self.folder / "media" / str(step) / f"{name}.{suffix}"
                files[name].parent.mkdir(parents=True, exist_ok=True)
                write_media(files[name], item, self._rate)
        except (OSError, soundfile.LibsndfileError) as error:
            raise self._unwritten(error) from error
        if self._wandb:
            self._log_media(step, media, files)

    def _log_media(self, step: int, media: Mapping[str, Media], files: Mapping[str, Path]) -> None:
        import wandb

        shown: dict[str, Any] = {}
        sounds = {}
        for name, item in media.items():
            if item.kind == "audio":
                sounds[name] = wandb.Audio(str(files[name]), sample_rate=self._rate)
            else:
                shown[name] = wandb.Image(str(files[name]))
        if sounds:
            # Beside one another in a table, and each by itself: what a table holds is staged
            # outside of the run folder, and lost when an offline run is moved before its upload.
            shown |= sounds
            shown["sounds"] = wandb.Table(
                columns=["step", *sounds], data=[[step, *sounds.values()]]
            )
        self._wandb.log({"step": step, **shown})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Weights & Biases marks a run that an exception ended as failed."""
        if self._wandb:
            self._wandb.finish(exit_code=int(kind is not None))

    def _unwritten(self, error: Exception) -> RunError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return RunError(f"the run folder {self.folder} cannot be written: {reason}")


def read_metrics(folder: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run folder's metrics.jsonl.

    Args:
        folder: the run folder.
        up_to: the last step that is wanted; None for all.

    Returns:
        a dict a line, each with "step" and "seconds"; a line that is damaged is left out.
    """
    lines: list[dict[str, Any]] = []
    path = folder / METRICS
    if not path.exists():
        return lines
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            continue
        if not isinstance(line.get("seconds"), int | float):
            continue
        if up_to is None or line["step"] <= up_to:
            lines.append(line)
    return lines


def write_media(path: Path, item: Media, sample_rate: int) -> None:
    """One sound as 16-bit WAV, or one picture as PNG in a colour map, row 0 at the bottom."""
    if item.kind == "audio":
        soundfile.write(path, np.clip(item.data, -1, 1), sample_rate, subtype="PCM_16")
        return
    from matplotlib import image

    image.imsave(path, np.asarray(item.data, np.float64), cmap=COLOUR_MAP, origin="lower")


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


def _start_wandb(folder: Path, config: RunConfig, resume: bool) -> Any:
    """The Weights & Biases run of a folder, the same one when the run continues; None when off."""
    if config.tracking.wandb == "off":
        return None
    try:
        import wandb
    except ImportError:
        raise UserError("tracking.wandb needs wandb: pip install wandb") from None
    name = folder / "wandb" / "run_id"
    name.parent.mkdir(exist_ok=True)
    if not (resume and name.exists()):
        name.write_text(secrets.token_hex(8))
    run = wandb.init(
        project=config.tracking.project,
        name=config.name,
        id=name.read_text(),
        resume="allow",
        dir=folder,
        mode=config.tracking.wandb,
        config=configs.to_data(config),
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("*", step_metric="step")
    return run
