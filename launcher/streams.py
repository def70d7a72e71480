"""The standard streams of this command, and those of an environment in its process.

An environment prints, from Python or from C. That must not come between the lines of this command,
which may be JSON or a live picture. An environment also gets no keys that a person presses.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pdqn import logs


@dataclass
class _Own:
    """The streams of this command while its standard streams are an environment's."""

    keys: TextIO | None
    out: TextIO
    err: TextIO
    log: Path | None


class _State:
    """The state of this process's streams.

    Attributes:
        own: the streams of this command, while they are not the standard ones.
        shared: whether an environment has been in this process.
    """

    own: _Own | None = None
    shared = False


def keys() -> TextIO | None:
    """Return the stream with the keys that a person presses; None if there is none."""
    return sys.stdin if _State.own is None else _State.own.keys


def out() -> TextIO:
    """Return the stream for results."""
    return sys.stdout if _State.own is None else _State.own.out


def err() -> TextIO:
    """Return the stream for errors and remarks."""
    return sys.stderr if _State.own is None else _State.own.err


def are_apart() -> bool:
    """Tell whether the standard streams are an environment's now."""
    return _State.own is not None


def were_shared() -> bool:
    """Tell whether an environment has been in this process: it may print until the very end."""
    return _State.shared


@contextlib.contextmanager
def apart(log: Path | None = None) -> Iterator[None]:
    """Give the standard streams to an environment, without input and with its output elsewhere.

    Args:
        log: file for the output; by default it goes to standard error.
    """
    if _State.own is not None:
        yield
        return
    standard = sys.stdin, sys.stdout, sys.stderr
    before = [os.dup(descriptor) for descriptor in (0, 1, 2)]
    target = os.dup(2) if log is None else _opened(log)
    _State.own = _Own(
        _private(sys.stdin, before[0], "r"),
        _private(sys.stdout, before[1], "w"),
        _private(sys.stderr, before[2], "w"),
        log,
    )
    _State.shared = True
    try:
        _flush()
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdin = _reader(0)
        sys.stdout = sys.stderr = _text(1, "utf-8", "backslashreplace")
        yield
    finally:
        _flush()
        sys.stdin, sys.stdout, sys.stderr = standard
        for descriptor, kept in enumerate(before):
            os.dup2(kept, descriptor)
        # Those in ``before`` stay open: the thread that writes a console's last lines may still
        # use them, and no other file must get their numbers.
        os.close(target)
        _State.own = None


def bound_log() -> None:
    """Keep the environment's log within its bound."""
    own = _State.own
    if own is not None and own.log is not None:
        with contextlib.suppress(OSError):
            logs.keep_within(own.log, logs.LOG)


def end_with_errors() -> None:
    """Let everything that is printed from now on go to standard error."""
    _flush()
    with contextlib.suppress(OSError):
        os.dup2(2, 1)


def _opened(log: Path) -> int:
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _private(stream: TextIO, descriptor: int, mode: str) -> TextIO:
    """Make a stream that goes where this one goes; one in memory stays as it is."""
    try:
        stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    if mode == "r":
        return _reader(descriptor)
    return _text(descriptor, stream.encoding, stream.errors or "backslashreplace")


def _reader(descriptor: int) -> TextIO:
    return open(descriptor, encoding="utf-8", errors="replace", closefd=False)


def _text(descriptor: int, encoding: str, errors: str) -> TextIO:
    """Make a stream that writes every line at once, and never closes its descriptor."""
    settings: dict[str, Any] = {"encoding": encoding, "errors": errors, "closefd": False}
    return open(descriptor, "w", buffering=1, **settings)


def _flush() -> None:
    """Write what Python's and C's own streams still hold."""
    for stream in (sys.stdout, sys.stderr):
        # It may be closed, or be something else.
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)
