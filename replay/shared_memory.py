"""Memory that the learner shares with replay: an unnamed file in memory, opened through /proc.

The file never has a name, so that nothing is left behind however either side ends: its memory is
freed with the last process that has it open or mapped. It is allocated in full when it is made;
too little room is then an error, and not a signal at some later write.

Replay is told where the file is (``MemoryAddress``) by a message, which may come from anybody. It
opens only an unnamed regular file of its own user, of exactly the size that it expects, and uses
only one that begins with the token of the message. A process on another host or in another
namespace has other process ids, and a wrong file fails these checks.
"""

from __future__ import annotations

import mmap
import os
import secrets
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = "/dev/shm"
TOKEN_BYTES = 16
# Before the body, so that the body is aligned as a slab must be.
_HEAD_BYTES = 64
_MAPPINGS = 4
_SILENT_SECONDS = 60.0


class SharedMemoryError(Exception):
    """Memory that cannot be shared; one line says why."""


@dataclass(frozen=True)
class MemoryAddress:
    """Where a process has its shared memory.

    Attributes:
        pid: of the process that made it.
        fd: its descriptor there.
        token: what the memory begins with, ``TOKEN_BYTES`` random bytes.
        nbytes: size of the body.
    """

    pid: int
    fd: int
    token: bytes
    nbytes: int


class SharedMemory:
    """Memory that other processes can attach.

    Args:
        nbytes: size of the body.
        directory: of a file system in memory; ``DIRECTORY`` by default.

    Attributes:
        address: tell it to whom the memory is to be shared with.
        body: the memory, writeable; valid as long as it is referred to, even after ``close``.

    Raises:
        SharedMemoryError: there is no such memory here, or too little of it.
    """

    def __init__(self, nbytes: int, directory: str | None = None) -> None:
        size, directory = _HEAD_BYTES + nbytes, directory or DIRECTORY
        if not hasattr(os, "O_TMPFILE"):
            raise SharedMemoryError("this system has no unnamed files in memory")
        try:
            self._fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SharedMemoryError(f"no memory file in {directory}: {error.strerror}") from None
        try:
            os.posix_fallocate(self._fd, 0, size)
            memory = _map(self._fd, size)
        except OSError as error:
            os.close(self._fd)
            raise SharedMemoryError(_too_small(directory, size, error)) from None
        token = secrets.token_bytes(TOKEN_BYTES)
        memory[:TOKEN_BYTES] = token
        self.body = memoryview(memory)[_HEAD_BYTES:]
        self.address = MemoryAddress(os.getpid(), self._fd, token, nbytes)

    def close(self) -> None:
        """Let nobody attach it any more; whoever has it keeps it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def attach(address: MemoryAddress) -> memoryview:
    """The body of memory that another process shares.

    Raises:
        SharedMemoryError: it cannot be reached from here, or is not what the address says.
    """
    path = Path(f"/proc/{address.pid}/fd/{address.fd}")
    size = _HEAD_BYTES + address.nbytes
    try:
        # Before it is opened: opening a device or a pipe could do something.
        _check(path.stat(), size)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            _check(os.fstat(fd), size)
            memory = _map(fd, size)
        finally:
            os.close(fd)
    except OSError as error:
        raise SharedMemoryError(f"cannot be opened: {error.strerror}") from None
    if memory[:TOKEN_BYTES] != address.token:
        raise SharedMemoryError("is another process's")
    return memoryview(memory)[_HEAD_BYTES:]


class Attachments:
    """The memories that replay has attached, the few that were used last."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[MemoryAddress, memoryview] = OrderedDict()
        self._used: dict[MemoryAddress, float] = {}

    @property
    def count(self) -> int:
        """How many are attached."""
        return len(self._bodies)

    def get(self, address: MemoryAddress, now: float) -> memoryview:
        """The body of a memory, attached if it is not yet; ``now`` is in seconds.

        Raises:
            SharedMemoryError: as ``attach``.
        """
        body = self._bodies.get(address)
        if body is None:
            body = self._bodies[address] = attach(address)
        self._bodies.move_to_end(address)
        self._used[address] = now
        if len(self._bodies) > _MAPPINGS:
            self._drop(next(iter(self._bodies)))
        return body

    def drop_silent(self, now: float) -> None:
        """Give back what nobody has used for a minute."""
        for address in [a for a, used in self._used.items() if now - used > _SILENT_SECONDS]:
            self._drop(address)

    def _drop(self, address: MemoryAddress) -> None:
        del self._bodies[address]
        del self._used[address]


def _map(fd: int, size: int) -> mmap.mmap:
    # All pages at once: a fault for each at its first use would cost more than the copying.
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _check(found: os.stat_result, size: int) -> None:
    """That a file is what ``SharedMemory`` makes; with all its blocks, so that no write fails."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 0:
        raise SharedMemoryError("is no unnamed file")
    if found.st_uid != os.getuid():
        raise SharedMemoryError("is another user's")
    if found.st_size != size or found.st_blocks * 512 < size:
        raise SharedMemoryError(f"has {found.st_size} bytes, not {size}")


def _too_small(directory: str, size: int, error: OSError) -> str:
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free >= size:
        return f"no memory file in {directory}: {error.strerror}"
    return f"{directory} has {_megabytes(free)} free, {_megabytes(size)} are needed"


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
