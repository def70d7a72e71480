"""A checksum at the end of a file that torch has saved, with which a reader compares the rest.

Torch writes zip archives, and does not compare their checksums when it reads one. The comment of
the archive therefore holds a SHA-256 of the archive without a comment. Other programs that read
archives ignore it.
"""

from __future__ import annotations

import hashlib
import os
from typing import BinaryIO

_MARK = b"pdqn sha256 "
_COMMENT_BYTES = len(_MARK) + 2 * hashlib.sha256().digest_size  # in hexadecimal digits
# The end of an archive's directory, without a comment: its last two bytes are the comment's length.
_END, _END_BYTES = b"PK\x05\x06", 22
_NO_COMMENT = bytes(2)
_CHUNK_BYTES = 1 << 20


class DamagedError(ValueError):
    """A file that does not hold what was saved."""


class ChecksumWriter:
    """An open file that an archive is written to, with the checksum of what was written so far.

    Args:
        file: the file, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes; return their number."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

    def finish(self) -> None:
        """Append the checksum to the archive, which is complete and has no comment."""
        self._file.seek(-len(_NO_COMMENT), os.SEEK_END)
        self._file.write(_COMMENT_BYTES.to_bytes(len(_NO_COMMENT), "little"))
        self._file.write(_MARK + self._digest.hexdigest().encode())


def check(file: BinaryIO) -> None:
    """Compare a file with its checksum, and leave it at its beginning.

    Archives of earlier versions have no checksum, and pass.

    Raises:
        DamagedError: the file differs from its checksum, or is not such an archive.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _COMMENT_BYTES))
    tail = file.read()
    file.seek(0)
    if tail.startswith(_MARK):
        if _digest(file, size - _COMMENT_BYTES - len(_NO_COMMENT)) != tail[len(_MARK) :]:
            raise DamagedError("damaged: it differs from its checksum")
        file.seek(0)
    elif not (tail[-_END_BYTES:].startswith(_END) and tail.endswith(_NO_COMMENT)):
        raise DamagedError("damaged, or another kind of file")


def _digest(file: BinaryIO, size: int) -> bytes:
    """Compute the checksum of an archive that had ``size`` bytes before the comment's length."""
    digest = hashlib.sha256()
    while size > 0 and (data := file.read(min(size, _CHUNK_BYTES))):
        digest.update(data)
        size -= len(data)
    digest.update(_NO_COMMENT)
    return digest.hexdigest().encode()
