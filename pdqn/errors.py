"""Errors meant for people: one clear line, no traceback."""

from __future__ import annotations

import traceback


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


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its type if the text is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its text, if there is one."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def with_place(error: BaseException) -> str:
    """Return the type, the first line, and the place where the error was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type_and_first_line(error)} ({at.filename}:{at.lineno})"


def reason_of(error: Exception) -> str:
    """Phrase an error in one line: of the system's, the file, if it is known, and the reason."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
