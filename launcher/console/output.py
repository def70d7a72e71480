"""Output that never makes its writer wait, whether anybody reads it or not.

A stopped terminal (Ctrl-S, an ssh client that sleeps) and a pipe that nobody reads take nothing
more, so that writing to them blocks. A launcher that is blocked hears none of its roles.
"""

from __future__ import annotations

import atexit
import io
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from typing import TextIO

from launcher.numbers import plural

_MOST_BYTES = 1 << 20
_PIECE_BYTES = 4096
_PATIENCE_SECONDS = 2.0
_LOOK_SECONDS = 0.01


def describe_loss(lines: int) -> str:
    """Make the line that replaces lines that were dropped."""
    return f"{plural(lines, 'line')} dropped here: nobody was reading"


class Output(io.TextIOBase):
    """A text stream that a separate thread writes, from a queue that is bounded in bytes.

    Lines that do not fit are dropped and counted; a line reports that once text flows again. A
    reader that has gone does no harm: further text goes nowhere. A stream without a descriptor is
    text in memory, which takes everything at once.

    Args:
        stream: where the text goes; nothing else should write to it.
        most_bytes: limit for the bytes that wait.
        tell_loss: makes the line, without its end, that reports how many lines were dropped.
    """

    def __init__(
        self,
        stream: TextIO,
        most_bytes: int = _MOST_BYTES,
        tell_loss: Callable[[int], str] = describe_loss,
    ) -> None:
        self._stream, self._most_bytes, self._tell_loss = stream, most_bytes, tell_loss
        # No locks: a signal's handler also writes, in the middle of anything. Only writers change
        # the first of these counts, and only the thread changes the second.
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._given = self._taken = 0
        self._lost = 0
        self._gone = False
        self._given_up_at = -1
        self._descriptor = _descriptor_of(stream)
        if self._descriptor is not None:
            threading.Thread(target=self._run, name="output", daemon=True).start()
            # However this process ends, its last lines must be written.
            atexit.register(self.drain)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def waiting(self) -> int:
        """The number of bytes that have not been taken yet."""
        return self._given - self._taken

    def isatty(self) -> bool:
        """Tell whether the stream goes to a terminal."""
        return self._stream.isatty()

    def write(self, text: str, /) -> int:
        """Take whole lines and return at once; they are written as soon as somebody reads."""
        data = text.encode(self.encoding, "backslashreplace")
        if self._descriptor is None:
            self._write_through(data)
            return len(text)
        # After a loss, wait until there is much room: the gap should be one, and not many.
        if self._lost and self.waiting <= self._most_bytes // 2:
            line, self._lost = self._tell_loss(self._lost) + "\n", 0
            self._put(line.encode(self.encoding, "backslashreplace"))
        if not self._lost and (not self.waiting or self.waiting + len(data) <= self._most_bytes):
            self._put(data)
        else:
            self._lost += max(1, text.count("\n"))
        return len(text)

    def drain(self) -> bool:
        """Wait until all is written, for as long as somebody reads; return whether it is."""
        taken, since = self._taken, time.monotonic()
        while self.waiting:
            # Do not wait again for a reader that did not read a moment ago.
            late = time.monotonic() - since > _PATIENCE_SECONDS
            if late or self._taken == self._given_up_at:
                self._given_up_at = self._taken
                return False
            time.sleep(_LOOK_SECONDS)
            if self._taken != taken:
                taken, since = self._taken, time.monotonic()
        return True

    def _put(self, data: bytes) -> None:
        self._given += len(data)
        self._queue.put(data)

    def _write_through(self, data: bytes) -> None:
        if self._gone:
            return
        try:
            self._stream.write(data.decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self._gone = True

    def _run(self) -> None:
        while True:
            rest = memoryview(self._queue.get())
            while rest:
                written = self._write_some(rest)
                self._taken += written
                rest = rest[written:]

    def _write_some(self, data: memoryview) -> int:
        """Wait until a part is taken; return its size. A reader that has gone takes everything."""
        assert self._descriptor is not None
        try:
            if not self._gone:
                return os.write(self._descriptor, data[:_PIECE_BYTES])
        except BlockingIOError:
            # A process that shares the terminal has made it non-blocking.
            select.select((), (self._descriptor,), (), _PATIENCE_SECONDS)
            return 0
        except OSError:
            self._gone = True
        return len(data)


def reader_has_gone(stream: TextIO) -> bool:
    """Tell whether nobody can read a stream any more, without writing to it."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False  # text in memory
    poll = select.poll()
    poll.register(descriptor, 0)  # poll reports errors in any case
    return bool(poll.poll(0))


def _descriptor_of(stream: TextIO) -> int | None:
    """Flush a stream, and return its descriptor; None if it has none."""
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):
        return None
