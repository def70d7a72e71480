"""The thread that does a run's work on files, so that nothing else waits for the disk.

A disk that hangs, such as a server that does not answer, holds this thread alone. What cannot be
written meanwhile is kept in memory, up to a bound.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from launcher.numbers import plural

MOST_BYTES = 32 << 20
_BASE_BYTES = 500  # of any piece of work, so that their number is bounded as well
_TOLD_SECONDS = 10.0


class _Work(NamedTuple):
    do: Callable[[], object]
    nbytes: int
    key: str
    is_long: bool


class Writer:
    """A thread that does pieces of work in the order in which they came. Use it from one thread.

    Args:
        most_bytes: bytes of the pieces that may wait; those beyond it are left out.

    Attributes:
        left_out: pieces left out so far.
        left_out_bytes: bytes of these.
        done: pieces done so far.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        # Reentrant: a signal's handler may come here while this thread is here.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[_Work] = deque()
        self._waiting_bytes = 0
        self._running: _Work | None = None
        self._since = 0.0
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None
        self.left_out = self.left_out_bytes = self.done = 0

    def put(
        self, do: Callable[[], object], nbytes: int = 0, *, key: str = "", is_long: bool = False
    ) -> bool:
        """Have a piece of work done; return at once.

        Args:
            do: the work.
            nbytes: bytes that it holds until it is done.
            key: name of what is written as a whole each time, so that of those that wait, only the
                newest counts. Such a piece is never left out. Empty for all others.
            is_long: whether it takes long for other reasons than a disk that hangs.

        Returns:
            False if it was left out, because too much waits.
        """
        work = _Work(do, nbytes + _BASE_BYTES, key, is_long)
        with self._changed:
            if key:
                self._remove(key)
            elif self._waiting_bytes + work.nbytes > self._most_bytes:
                self.left_out += 1
                self.left_out_bytes += nbytes
                return False
            self._waiting.append(work)
            self._waiting_bytes += work.nbytes
            if self._thread is None:
                # The process may end while a disk that hangs holds the thread.
                self._thread = threading.Thread(target=self._run, name="files", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def has(self, key: str) -> bool:
        """Tell whether a piece of work with a key waits or is being done."""
        with self._changed:
            running = self._running is not None and self._running.key == key
            return running or any(work.key == key for work in self._waiting)

    @property
    def left(self) -> int:
        """Number of pieces that are not done."""
        with self._changed:
            return len(self._waiting) + (self._running is not None)

    @property
    def stalled_seconds(self) -> float:
        """Time since the piece that is being done was begun; 0 if it may take long."""
        with self._changed:
            stalls = self._running is not None and not self._running.is_long
            return time.monotonic() - self._since if stalls else 0.0

    def wait(self, seconds: float) -> bool:
        """Wait until everything is done, for a time at most; return whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.left, seconds)

    def check(self) -> None:
        """Raise what a piece of work has raised, once: it is a fault of this program.

        Raises:
            Exception: that fault.
        """
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _remove(self, key: str) -> None:
        for work in [work for work in self._waiting if work.key == key]:
            self._waiting.remove(work)
            self._waiting_bytes -= work.nbytes

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                work = self._running = self._waiting.popleft()
                self._since = time.monotonic()
            try:
                work.do()
            except Exception as error:  # noqa: BLE001 - the loop raises it, and the next are done
                self._fault = self._fault or error
            with self._changed:
                self._waiting_bytes -= work.nbytes
                self._running = None
                self.done += 1
                self._changed.notify_all()


class Stall:
    """The words for a disk that hangs, and for its return. Pure.

    Args:
        name: name of the directory, for a person.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._next = _TOLD_SECONDS
        self._seconds = 0.0
        self._left_out = 0

    def turn(self, stalled_seconds: float, left_out: int) -> str:
        """Return a line if there is news; else an empty one.

        Args:
            stalled_seconds: time for which the disk has not answered.
            left_out: pieces of work that were left out so far.
        """
        told, before, self._seconds = self._next > _TOLD_SECONDS, self._seconds, stalled_seconds
        new = left_out - self._left_out
        if told and stalled_seconds < before:
            self._next, self._left_out = _TOLD_SECONDS, left_out
            line = f"{self._name} answers again, after {before:.0f} s"
            return f"{line}: {plural(new, 'line')} had no room and were left out" if new else line
        if stalled_seconds < self._next:
            return ""
        self._next = 2 * stalled_seconds
        waits = f"{plural(new, 'line')} had no room" if new else "what it writes waits in memory"
        since = f"{self._name} has not answered for {stalled_seconds:.0f} s"
        return f"{since}: the run goes on; {waits}"
