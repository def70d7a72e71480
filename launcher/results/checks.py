"""Files that a person names for what a command writes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pdqn.errors import UsageError


def check_output(option: str, path: Path, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before what takes the time is done.

    Args:
        option: that names the file.
        path: of the file.
        endings: of its name, of which one is wanted.

    Raises:
        UsageError: its ending is another, or it cannot be written where it is to lie.
    """
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option} {path}: expected a name that ends in {', '.join(endings)}")
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written")
        if path.is_file():
            path.open("ab").close()  # asked of the file itself, it may be read-only; it stays as is
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error
