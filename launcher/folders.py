"""Folders that a run needs while it goes on, and that people and cleaners remove or move."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

_RENEW_SECONDS = 3600.0


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
