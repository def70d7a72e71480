"""Memory that the learner shares with replay: an unnamed file in memory, opened through /proc.

The file never has a name, so nothing is left behind however either side ends. The system frees its
memory when no process has it open or mapped any more. The file is allocated in full when it is
made. Too little room then raises an error at once, and not a signal at some later write.

A message tells replay the file's address (``MemoryAddress``), and may come from anybody. Replay
opens only an unnamed regular file of its own user, of exactly the expected size. It uses the file
only if it begins with the token of the message. A process on another host or in another namespace
has other process ids, and a wrong file fails these checks.
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
# The body comes after the head, aligned as a slab must be.
_HEAD_BYTES = 64
_MAPPINGS = 4
_SILENT_SECONDS = 60.0


class SharedMemoryError(Exception):
    """Memory that cannot be shared; one line gives the reason."""


@dataclass(frozen=True)
class MemoryAddress:
    """The address of a process's shared memory.

    Attributes:
        pid: id of the process that made it.
        fd: its descriptor in that process.
        token: the first ``TOKEN_BYTES`` bytes of the memory, which are random.
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
        directory: directory of a file system in memory; ``DIRECTORY`` by default.

    Attributes:
        address: address for processes that attach the memory.
        body: the memory, writeable; valid as long as it is referenced, even after ``close``.

    Raises:
        SharedMemoryError: this host has no such memory, or too little of it.
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
        """Refuse further processes; those that have attached the memory keep it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def attach(address: MemoryAddress) -> memoryview:
    """Attach memory that another process shares, and return its body.

    Raises:
        SharedMemoryError: it cannot be reached from here, or differs from its address.
    """
    path = Path(f"/proc/{address.pid}/fd/{address.fd}")
    size = _HEAD_BYTES + address.nbytes
    try:
        # Check before opening: opening a device or a pipe could have effects.
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
    """The memories that replay has attached, limited to the few used last."""

    def __init__(self) -> None:
        self._bodies: OrderedDict[MemoryAddress, memoryview] = OrderedDict()
        self._used: dict[MemoryAddress, float] = {}

    @property
    def count(self) -> int:
        """Number of attached memories."""
        return len(self._bodies)

    def get(self, address: MemoryAddress, now: float) -> memoryview:
        """Return the body of a memory, attached if necessary; ``now`` is in seconds.

        Raises:
            SharedMemoryError: see ``attach``.
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
        """Release memories that have not been used for a minute."""
        for address in [a for a, used in self._used.items() if now - used > _SILENT_SECONDS]:
            self._drop(address)

    def _drop(self, address: MemoryAddress) -> None:
        del self._bodies[address]
        del self._used[address]


def _map(fd: int, size: int) -> mmap.mmap:
    # All pages at once: page faults at first use would cost more than the copying.
    return mmap.mmap(fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _check(found: os.stat_result, size: int) -> None:
    """Check that a file is as ``SharedMemory`` makes it, with all its blocks: no write may fail."""
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 0:
        raise SharedMemoryError("is not an unnamed file")
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
