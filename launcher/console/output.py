"""Output that never makes its writer wait, whether anybody reads it or not.

A terminal that is stopped (Ctrl-S, an ssh client that sleeps) and a pipe that nobody reads take
nothing more, and who writes to them waits. A launcher that waits hears none of its roles.
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
    """What stands in place of lines that were dropped."""
    return f"{plural(lines, 'line')} dropped here: nobody was reading"


class Output(io.TextIOBase):
    """A text stream that a thread of its own writes to, from a queue that is bounded in bytes.

    What does not fit is dropped, and counted; a line says so once it flows again. A reader that has
    gone does no harm: what is written from then on goes nowhere. A stream without a descriptor is
    text in memory, which takes everything at once.

    Args:
        stream: where it goes; nobody else should write to it.
        most_bytes: that may wait.
        tell_loss: the line, without its end, that says how many were dropped.
    """

    def __init__(
        self,
        stream: TextIO,
        most_bytes: int = _MOST_BYTES,
        tell_loss: Callable[[int], str] = describe_loss,
    ) -> None:
        self._stream, self._most_bytes, self._tell_loss = stream, most_bytes, tell_loss
        # No locks: a signal's handler writes, too, in the midst of anything. Of the two counts one
        # is changed by those who write, and the other by the thread.
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._given = self._taken = 0
        self._lost = 0
        self._gone = False
        self._given_up_at = -1
        self._descriptor = _descriptor_of(stream)
        if self._descriptor is not None:
            threading.Thread(target=self._run, name="output", daemon=True).start()
            # However this process ends, what it has said is to be read.
            atexit.register(self.drain)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def waiting(self) -> int:
        """Bytes that have not been taken yet."""
        return self._given - self._taken

    def isatty(self) -> bool:
        """Whether it goes to a terminal."""
        return self._stream.isatty()

    def write(self, text: str, /) -> int:
        """Take whole lines, and write them as soon as somebody reads; at once, in any case."""
        data = text.encode(self.encoding, "backslashreplace")
        if self._descriptor is None:
            self._write_through(data)
            return len(text)
        # Once lines are lost, not one by one as there is room for one: a gap is to be one gap.
        if self._lost and self.waiting <= self._most_bytes // 2:
            line, self._lost = self._tell_loss(self._lost) + "\n", 0
            self._put(line.encode(self.encoding, "backslashreplace"))
        if not self._lost and (not self.waiting or self.waiting + len(data) <= self._most_bytes):
            self._put(data)
        else:
            self._lost += max(1, text.count("\n"))
        return len(text)

    def drain(self) -> bool:
        """Wait until all is written, for as long as somebody reads; whether it is."""
        taken, since = self._taken, time.monotonic()
        while self.waiting:
            # Who did not read a moment ago is not waited for again.
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
        """Wait until some of it is taken; how much. A reader that has gone takes all of it."""
        assert self._descriptor is not None
        try:
            if not self._gone:
                return os.write(self._descriptor, data[:_PIECE_BYTES])
        except BlockingIOError:
            # Whoever shares the terminal has set it so.
            select.select((), (self._descriptor,), (), _PATIENCE_SECONDS)
            return 0
        except OSError:
            self._gone = True
        return len(data)


def reader_has_gone(stream: TextIO) -> bool:
    """Whether nobody can read what is written to a stream, known without writing to it."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return False  # text in memory
    poll = select.poll()
    poll.register(descriptor, 0)  # what is wrong with it is told in any case
    return bool(poll.poll(0))


def _descriptor_of(stream: TextIO) -> int | None:
    """Where a stream goes, with what it held back written; None where it goes nowhere."""
    try:
        stream.flush()
        return stream.fileno()
    except (OSError, ValueError):
        return None
