"""Folders that a run needs while it goes on, and that people and cleaners remove or move."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Iterable
from pathlib import Path

_RENEW_SECONDS = 3600.0
_MARK = ".temporary"
_PREFIX = "pdqn-"


class Folder:
    """A folder that should stay in its place; it is known by its device and its inode.

    While it is open here, systemd-tmpfiles leaves it alone: that respects locks on folders, see
    tmpfiles.d(5). Other cleaners go by the times of files, which ``renew`` sets.

    Args:
        path: the folder, which exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next_renewal = 0.0
        self._open()

    def is_in_place(self) -> bool:
        """Return whether the path still leads to this folder."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # such as a server that does not answer: nothing tells that it is gone

    def now_at(self) -> Path | None:
        """Return where the folder was moved to; None if it was removed, or nothing tells."""
        try:
            found = Path(f"/proc/self/fd/{self._descriptor}").readlink()
            same = os.path.samestat(found.stat(), os.fstat(self._descriptor))
        except OSError:
            return None
        return found if same else None

    def take(self, path: Path) -> None:
        """Take the folder at a path for the right one from now on.

        Raises:
            OSError: there is none.
        """
        self.path, before = path, self._descriptor
        self._open()
        os.close(before)

    def renew(self) -> None:
        """Once an hour, let the folder and what is in it look as if it had just been used."""
        now = time.monotonic()
        if now < self._next_renewal:
            return
        self._next_renewal = now + _RENEW_SECONDS
        with contextlib.suppress(OSError):
            for path in (self.path, *self.path.iterdir()):
                os.utime(path, follow_symlinks=False)

    def mark(self) -> None:
        """Mark the folder as one to be removed once no process has it open; see ``sweep``."""
        with contextlib.suppress(OSError):  # then it stays after a kill
            (self.path / _MARK).touch(mode=0o600)

    def close(self) -> None:
        """Close the folder, which is then left to cleaners; closing it again does nothing."""
        before, self._descriptor = self._descriptor, -1
        if before >= 0:
            os.close(before)

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # A shared lock: nothing else waits for it. Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


def sweep(parents: Iterable[str]) -> list[Path]:
    """Remove folders that a killed process of this user has left, and return their paths.

    These are the marked ones that no process has open. Folders of other users stay, and those that
    others can enter, and all on a file system without locks. Links are not followed.

    Args:
        parents: directories of such folders.
    """
    removed: list[Path] = []
    for parent in parents:
        with contextlib.suppress(OSError):
            found = [entry.path for entry in os.scandir(parent) if entry.name.startswith(_PREFIX)]
            removed += [Path(path) for path in found if _remove_left(Path(path))]
    return removed


def _remove_left(path: Path) -> bool:
    """Remove a folder if its owner has ended; return whether that was so."""
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        # Its owner marks it only after it has locked it, so a marked one without a lock is left.
        if not _is_marked(descriptor):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.lstat(), os.fstat(descriptor)):
            return False
        shutil.rmtree(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_marked(descriptor: int) -> bool:
    """Return whether an open folder is this user's alone, and marked by this user."""
    folder = os.fstat(descriptor)
    try:
        mark = os.stat(_MARK, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (
        folder.st_uid == mark.st_uid == os.geteuid()
        and not folder.st_mode & 0o077
        and stat.S_ISREG(mark.st_mode)
    )
