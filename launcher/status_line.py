"""A line on a terminal that says what a command does before it has anything to show."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from launcher import streams
from pdqn.text import printable

_PERIOD_SECONDS, _END_SECONDS = 0.25, 1.0
_CLEAR = "\r\x1b[K"


class _Line:
    """The line, which a thread draws again and again, with the seconds so far.

    Args:
        stream: a terminal.
        text: what is being done.
    """

    def __init__(self, stream: TextIO, text: str) -> None:
        self._stream, self._began = stream, time.monotonic()
        # A signal's handler may write a line in the middle of a drawing.
        self._turn, self._over = threading.RLock(), threading.Event()
        self.text = text
        self.draw()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._thread.start()

    def draw(self) -> None:
        """Draw the line as it is now."""
        seconds = time.monotonic() - self._began
        since = f", {seconds:.0f} s" if seconds >= 1.0 else ""
        self._write(f"{_CLEAR}pdqn: {printable(self.text)}{since}")

    def clear(self) -> None:
        """Make room for another line; the next drawing comes below it."""
        self._write(_CLEAR)

    def end(self) -> None:
        """Remove the line for good."""
        self._over.set()
        self._thread.join(_END_SECONDS)
        self.clear()

    def _write(self, text: str) -> None:
        # Nobody may be there to read it any more.
        with self._turn, contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()

    def _run(self) -> None:
        while not self._over.wait(_PERIOD_SECONDS):
            self.draw()


class _Shown:
    """The line of this command, if it has one at the moment."""

    line: _Line | None = None


@contextlib.contextmanager
def showing(text: str) -> Iterator[None]:
    """Show on a terminal what is being done, from now until ``end`` or the end of the block.

    Args:
        text: what is being done at first.
    """
    stream = streams.err()
    if stream.isatty():
        _Shown.line = _Line(stream, text)
    try:
        yield
    finally:
        end()


def doing(text: str) -> None:
    """Say what is being done now, if a line is shown."""
    if _Shown.line is not None:
        _Shown.line.text = text
        _Shown.line.draw()


def make_room() -> None:
    """Remove the line for a moment, in which something else is printed."""
    if _Shown.line is not None:
        _Shown.line.clear()


def end() -> None:
    """Show the line no longer."""
    line, _Shown.line = _Shown.line, None
    if line is not None:
        line.end()
