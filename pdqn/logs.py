"""Files that grow while a run goes on, kept within a bound: their first part and their last.

People need both: the first error, and the end. The middle is cut out in place, since other
processes have the file open. They append to it, so they go on at its new end.
"""

from __future__ import annotations

import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PIECE_BYTES = 1 << 20
_MOST_PIECES = 64
_MOST_MARK_BYTES = 200
_OPEN_SECONDS = 5.0


@dataclass(frozen=True)
class Bound:
    """A bound on a file of lines.

    Attributes:
        most_bytes: size at which the file is cut.
        first_bytes: size of the first part, which is kept.
        last_bytes: size of the last part, which is kept.
        mark: line in place of what was cut, with ``{}`` for the number of bytes.
    """

    most_bytes: int
    first_bytes: int
    last_bytes: int
    mark: str


# An environment that prints at every step would fill 13 GB a day.
LOG = Bound(8 << 20, 2 << 20, 2 << 20, "[pdqn: {} bytes of this log were left out here]\n")


class OutputLog:
    """The log of this process: its standard output and error, also of code that is not Python's.

    Args:
        path: the file; its folder is made if necessary.
        bound: bound on the file, in which ``tend`` keeps it.

    Attributes:
        trouble: why there is no log at first, in one line; empty if there is one. The disk may be
            full, or not answer. Until the log can be opened, all output is lost.
    """

    def __init__(self, path: Path, bound: Bound = LOG) -> None:
        self._path, self._bound = path, bound
        self._descriptors = [1, 2]
        self.trouble = f"{path}: it cannot be opened within {_OPEN_SECONDS:g} s"
        self._write_to(os.open(os.devnull, os.O_WRONLY))
        # A disk may not answer for a while, and the role is needed meanwhile.
        opening = threading.Thread(target=self._begin, name="log", daemon=True)
        opening.start()
        opening.join(_OPEN_SECONDS)

    def copy(self) -> int:
        """Return one more descriptor of the log, for lines of our own: others may close 1 and 2."""
        self._descriptors.append(os.dup(2))
        return self._descriptors[-1]

    def tend(self) -> None:
        """Cut a file that has grown beyond the bound, and begin another if it was removed.

        Call this about once a second, from any thread. What cannot be done now is tried again.
        """
        with suppress(OSError):
            if not self._is_in_place():
                self._open()
            keep_within(self._path, self._bound)

    def _begin(self) -> None:
        try:
            self._open()
            self.trouble = ""
        except OSError as error:
            self.trouble = f"{self._path}: {error.strerror}"
        # Of a role that starts again and again, each process may end before it is tended.
        with suppress(OSError):
            keep_within(self._path, self._bound)

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Without waiting: a named pipe would have it wait for a reader.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        log = os.open(self._path, flags, 0o644)
        os.set_blocking(log, True)
        self._write_to(log)

    def _write_to(self, log: int) -> None:
        self._opened = os.fstat(log)
        for descriptor in self._descriptors:
            os.dup2(log, descriptor)
        os.close(log)

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(self._path.stat(), self._opened)
        except FileNotFoundError:
            return False


def keep_within(path: Path, bound: Bound) -> None:
    """Cut the middle out of a file that is larger than its bound.

    Lines that another process appends within the microseconds of the cut's end may be lost.

    Raises:
        OSError: the file cannot be read or written.
    """
    if not path.exists() or path.stat().st_size <= bound.most_bytes:
        return
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _cut(file, bound)
    finally:
        os.close(file)


def _cut(file: int, bound: Bound) -> None:
    """Move the last part of an open file to the end of its first, with the mark between."""
    size = os.fstat(file).st_size
    first_end, middle, cut_before = _first_part(file, bound)
    last = os.pread(file, bound.last_bytes, size - bound.last_bytes)
    last = last[last.find(b"\n") + 1 :] or last
    cut_bytes = cut_before + size - len(last) - middle
    end = first_end + _write(file, _marked(bound, cut_bytes) + last, first_end)
    for _ in range(_MOST_PIECES):  # what came meanwhile
        late = os.pread(file, _PIECE_BYTES, size)
        if not late:
            break
        size += len(late)
        end += _write(file, late, end)
    os.ftruncate(file, end)


def _first_part(file: int, bound: Bound) -> tuple[int, int, int]:
    """Return where the first part ends and the middle begins, and the bytes cut in earlier cuts."""
    first = os.pread(file, bound.first_bytes + _MOST_MARK_BYTES, 0)
    mark = re.escape(bound.mark.encode()).replace(rb"\{\}", rb"([0-9]{1,18})")
    if found := re.search(mark, first):
        return found.start(), found.end(), int(found[1])
    end = first.rfind(b"\n", 0, bound.first_bytes) + 1 or bound.first_bytes
    return end, end, 0


def _marked(bound: Bound, cut_bytes: int) -> bytes:
    return bound.mark.replace("{}", str(cut_bytes)).encode()


def _write(file: int, data: bytes, offset: int) -> int:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)
    return written
