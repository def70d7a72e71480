"""The right of one process to keep a shard's journal.

A lock keeps two processes of one host apart. For a folder that several hosts share it is not
enough: locks may not work there, or may stay with a host that is gone. There, each process also
writes its incarnation into a file, the *owner*. The coordinator gives a place to a later
incarnation only after it has given up the earlier one.

An earlier process that goes on nevertheless looks into that file after each write, and before it
acknowledges what it wrote. Either it finds its own number, and the later process, which reads the
journal afterwards, finds what was written. Or it finds another one, acknowledges nothing, and ends.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pdqn.errors import RunError
from pdqn.locking import take_lock
from pdqn.process import own_host

_LOCK_SECONDS = 10.0
# A host that is gone may keep a lock for minutes.
_FOREIGN_LOCK_SECONDS = 2.0


class TakenOverError(RunError):
    """A journal that a later process keeps now."""


class Owner:
    """The file that names the process that keeps a journal in a shared folder.

    Args:
        path: the file.
        run: id of the run.
        incarnation: this process's, of its shard.
    """

    def __init__(self, path: Path, run: str, incarnation: int) -> None:
        self._path = path
        self._own = json.dumps([run, incarnation]).encode()
        self._run, self._incarnation = run, incarnation

    def claim(self) -> None:
        """Become the owner.

        Raises:
            TakenOverError: a later process of the same run is.
            OSError: the file cannot be written.
        """
        if self._path.exists():
            run, incarnation = json.loads(self._path.read_bytes())
            if run == self._run and incarnation > self._incarnation:
                raise self._error(incarnation)
        temporary = self._path.with_suffix(f".owner-{self._incarnation}")
        with temporary.open("wb") as file:
            file.write(self._own)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def check(self) -> None:
        """Return if this process is the owner.

        Raises:
            TakenOverError: it is not.
            OSError: the file cannot be read.
        """
        found = self._path.read_bytes()
        if found != self._own:
            raise self._error(json.loads(found)[1])

    def _error(self, incarnation: int) -> TakenOverError:
        return TakenOverError(f"{self._path.parent}: incarnation {incarnation} keeps this journal")


def lock(
    path: Path,
    heartbeat: AbstractContextManager[object],
    *,
    shared: bool,
    wait: Callable[[], object],
) -> int:
    """Keep other processes from a journal while the returned descriptor is open.

    Args:
        path: file of the lock; it is made if it does not exist.
        heartbeat: heartbeat for what waits for the disk.
        shared: whether an owner is told apart by ``Owner``, so that the lock of another host may
            be passed over after a moment.
        wait: function that waits a moment; its errors end the attempt.

    Raises:
        RunError: another process keeps it.
        OSError: the file cannot be made.
    """
    with heartbeat:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    started = time.monotonic()
    try:
        while not take_lock(descriptor, 1, 0.0):
            waited = time.monotonic() - started
            holder = path.read_text(encoding="utf-8", errors="replace")
            if shared and holder not in ("", own_host()) and waited > _FOREIGN_LOCK_SECONDS:
                return descriptor
            if waited > _LOCK_SECONDS:
                raise RunError(f"{path}: another process keeps this journal")
            wait()
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, own_host().encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
