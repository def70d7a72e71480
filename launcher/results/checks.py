"""Checks of the files that a person names for a command's output."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pdqn.errors import UsageError


def check_output(option: str, path: Path, endings: Sequence[str]) -> None:
    """Refuse a file that could not be written, before the work that takes time.

    Args:
        option: the option that names the file.
        path: the file.
        endings: of which its name must have one.

    Raises:
        UsageError: its name has another ending, or it cannot be written in its folder.
    """
    if path.suffix.lower() not in endings:
        raise UsageError(f"{option} {path}: expected a name that ends in {', '.join(endings)}")
    try:
        if not path.parent.is_dir():
            raise UsageError(f"{option} {path}: there is no folder {path.parent}")
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"{option} {path} cannot be written")
        if path.is_file():
            path.open("ab").close()  # the file itself may be read-only; this does not change it
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error
