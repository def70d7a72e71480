"""Errors that a person is meant to read: one clear line, no traceback."""

from __future__ import annotations

import traceback


class UsageError(ValueError):
    """Bad input, found before anything started; the command line exits with 2."""


class RunError(RuntimeError):
    """The run cannot go on; the command line exits with 1."""


class JoinRefusedError(RunError):
    """The coordinator does not want this role; trying again would not help."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def type_and_first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says, if it says anything."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def with_place(error: BaseException) -> str:
    """The same and where it was raised."""
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type_and_first_line(error)} ({at.filename}:{at.lineno})"
