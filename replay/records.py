"""Files of records: each is appended whole, and found again after any kill of the process.

A record is a head of 16 bytes and a payload. The head holds a mark, the kind of the record, the
size of the payload, and a CRC-32 of kind, size and payload. A process that is killed while it
appends leaves a torn record at the end, which is not read. Damage in the middle, as from a bad
disk, costs the records that it hits: reading goes on at the next whole record.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

Piece = bytes | memoryview

MAX_PAYLOAD_BYTES = 1 << 30
_MARK = b"pdqr"
_HEAD = struct.Struct("<4sIII")  # mark, kind, payload bytes, checksum
_CHECKED = struct.Struct("<II")
# More pieces than this in one call are an error to the kernel (IOV_MAX).
_MOST_PIECES = 1024


@dataclass(frozen=True)
class Record:
    """A record as it was read.

    Attributes:
        kind: number that says how to read the payload.
        payload: bytes, read-only.
    """

    kind: int
    payload: memoryview


@dataclass(frozen=True)
class Contents:
    """The records of a file.

    Attributes:
        records: the whole records, in order.
        damaged: number of stretches in the middle that hold no whole record.
        torn_bytes: bytes after the last whole record.
    """

    records: list[Record]
    damaged: int
    torn_bytes: int


class RecordWriter:
    """A file to which records are appended.

    ``add`` collects records, and ``write`` appends them in as few system calls as possible. From
    then on they survive a kill of this process, and after ``sync`` a loss of power.

    Args:
        path: the file; it is made if it does not exist.

    Attributes:
        path: the file.
        size_bytes: bytes appended or collected, and those that were there before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        self.size_bytes = self._written_bytes = os.fstat(self._descriptor).st_size
        self._added: list[tuple[int, int, tuple[Piece, ...]]] = []
        self._pieces: list[Piece] = []

    def add(self, kind: int, *payload: Piece) -> None:
        """Collect a record whose payload is these pieces, one after the other.

        The pieces are single bytes, and must not change before ``write``.
        """
        size = sum(map(len, payload))
        self._added.append((kind, size, payload))
        self.size_bytes += _HEAD.size + size

    def write(self) -> bool:
        """Append what was collected; return whether that was anything.

        Raises:
            OSError: the disk is full, or fails. What was collected is kept, for another attempt. A
                part of it may have been written; it is cut off again.
        """
        left = self.size_bytes - self._written_bytes
        if not left:
            return False
        self._frame()
        pieces = self._pieces
        try:
            while left:
                # Nearly always all at once.
                written = os.writev(self._descriptor, pieces[:_MOST_PIECES])
                left -= written
                if left:
                    pieces = _after(pieces, written)
        except OSError:
            os.ftruncate(self._descriptor, self._written_bytes)
            raise
        self._pieces.clear()
        self._written_bytes = self.size_bytes
        return True

    @property
    def has_name(self) -> bool:
        """Return whether the file is in any folder, so that it can be read again."""
        return os.fstat(self._descriptor).st_nlink > 0

    def discard(self) -> None:
        """Forget what was collected and not written."""
        self._added.clear()
        self._pieces.clear()
        self.size_bytes = self._written_bytes

    def sync(self) -> None:
        """Wait until the disk holds what was appended."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file, without what was not written."""
        os.close(self._descriptor)

    def _frame(self) -> None:
        """Put a head before each record that was added; for many at once this takes half the time.

        What waits for another attempt has its heads already.
        """
        for kind, size, payload in self._added:
            checksum = zlib.crc32(_CHECKED.pack(kind, size))
            for piece in payload:
                checksum = zlib.crc32(piece, checksum)
            self._pieces.append(_HEAD.pack(_MARK, kind, size, checksum))
            self._pieces += payload
        self._added.clear()


def _after(pieces: list[Piece], written: int) -> list[Piece]:
    """Return what is left of the pieces after the first bytes."""
    rest: list[Piece] = []
    for piece in pieces:
        view = memoryview(piece)
        if written < len(view):
            rest.append(view[written:])
        written = max(0, written - len(view))
    return rest


def read_records(path: Path) -> Contents:
    """Read the whole records of a file.

    Raises:
        OSError: the file cannot be read.
    """
    return parse_records(path.read_bytes())


def parse_records(data: bytes) -> Contents:
    """Find the whole records in the bytes of a file."""
    records: list[Record] = []
    view, offset, end, damaged = memoryview(data), 0, 0, 0
    while offset < len(data):
        found = _record_at(view, offset)
        if found is None:
            offset = _next_record(data, view, offset + 1)
            if offset < len(data):
                damaged += 1
            continue
        records.append(found)
        offset = end = offset + _HEAD.size + len(found.payload)
    return Contents(records, damaged, len(data) - end)


def _record_at(view: memoryview, offset: int) -> Record | None:
    if offset + _HEAD.size > len(view):
        return None
    mark, kind, size, checksum = _HEAD.unpack_from(view, offset)
    start = offset + _HEAD.size
    if mark != _MARK or size > min(MAX_PAYLOAD_BYTES, len(view) - start):
        return None
    payload = view[start : start + size]
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(kind, size))) != checksum:
        return None
    return Record(kind, payload)


def _next_record(data: bytes, view: memoryview, offset: int) -> int:
    """Return the offset of the first whole record from here on; the end if there is none."""
    while (offset := data.find(_MARK, offset)) >= 0:
        if _record_at(view, offset) is not None:
            return offset
        offset += 1
    return len(data)
