"""Locks on files that one process at a time may use."""

from __future__ import annotations

import fcntl
import time
from typing import TextIO


def take_lock(file: int | TextIO, tries: int, pause_seconds: float) -> bool:
    """Lock an open file for as long as it stays open.

    A file system without locks counts as success: keeping two processes apart is then up to the
    person who starts them.

    Args:
        file: an open file, or its descriptor.
        tries: number of attempts; the first is made at once.
        pause_seconds: pause after each attempt that finds the file locked.

    Returns:
        False if another process keeps the lock.
    """
    for _ in range(tries):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause_seconds)
        except OSError:
            return True
        else:
            return True
    return False
