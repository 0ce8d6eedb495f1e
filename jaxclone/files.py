"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jaxclone.types import UserError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into, which takes its name, and its predecessor's place, at the end.

    Its bytes are on the disk before it has the name, so that no loss of power leaves a part of
    them; after an exception there is no new file, and what was there stays. A missing folder is
    made.

    Raises:
        UserError: the file cannot be written.
    """
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        if not path.parent.exists():  # where a file is in the way, opening tells it better
            path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes its name, and its predecessor's place, at the end.

    What was there before stays until the new one is whole, and is put back when that cannot take
    its place; after an exception nothing new is left.

    Raises:
        UserError: the folder, or something in it, cannot be written.
    """
    place = folder.resolve()
    mark = secrets.token_hex(4)
    new, old = (place.with_name(f".{place.name}.{kind}.{mark}") for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        if place.exists():
            place.rename(old)
        new.rename(place)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        if old.is_dir() and not place.exists():
            old.rename(place)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
