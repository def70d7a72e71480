"""Errors meant for people: one clear line, no traceback."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path

from pdqn.own_modules import PACKAGES

_OTHERS = ("gymnasium", "numpy")
_PYTHON, _HERE = Path(sysconfig.get_path("stdlib")), Path(__file__).parents[1]


class UsageError(ValueError):
    """Bad input, found before anything started; the command line exits with status 2."""


class NotTrustedError(UsageError):
    """Refusal to run code that a file, or the head of a run, names and nobody here has named."""


class RunError(RuntimeError):
    """Failure that ends the run; the command line exits with status 1."""


class JoinRefusedError(RunError):
    """Refusal of this role by the coordinator; trying again would not help."""


class HostRefusalError(NotTrustedError, JoinRefusedError):
    """Refusal of a wish of the run's head, which has received the reason."""


class PlaceTakenError(JoinRefusedError):
    """Refusal because another process has the place: it helps to try again once that is gone."""


class Interrupted(KeyboardInterrupt):
    """A person's wish to end this command, as opposed to what an environment raises."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its text, if there is one."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def with_place(error: BaseException) -> str:
    """Return the type, the first line, and the person's place where the error was raised."""
    place = own_place(frames_of(error))
    return f"{type_and_first_line(error)} ({place})" if place else type_and_first_line(error)


def frames_of(error: BaseException) -> list[tuple[str, int]]:
    """List file and line of each frame of an error's traceback, innermost first."""
    frames = traceback.walk_tb(error.__traceback__)
    found = [(frame.f_code.co_filename, line) for frame, line in frames]
    if isinstance(error, SyntaxError) and error.filename:
        found.append((error.filename, error.lineno or 0))
    return found[::-1]


def own_place(frames: Sequence[tuple[str, int]], *, or_any: bool = True) -> str:
    """Return the place that a person would look at, as ``file:line``; empty without any.

    Args:
        frames: file and line of each, innermost first. The first that is in a file of neither
            Python, nor gymnasium or numpy, nor pdqn counts.
        or_any: whether the innermost counts if no such file is among them.
    """
    for name, line in frames:
        if not name.startswith("<") and not _is_others(Path(name)):
            return f"{name}:{line}"
    return "{}:{}".format(*frames[0]) if frames and or_any else ""


def _is_others(path: Path) -> bool:
    """Return whether a file is of Python, of gymnasium or numpy, or of pdqn."""
    for folder in ("site-packages", "dist-packages"):
        if folder in path.parts:
            after = path.parts[path.parts.index(folder) + 1 :]
            return after[0] in (*_OTHERS, *PACKAGES)
    if path.is_relative_to(_PYTHON):
        return True
    return path.is_relative_to(_HERE) and path.relative_to(_HERE).parts[0] in PACKAGES


def reason_of(error: Exception) -> str:
    """Phrase an error in one line: of the system's, the file, if it is known, and the reason."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
