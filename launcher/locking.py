"""Files that one process at a time has for itself."""

from __future__ import annotations

import fcntl
import time
from typing import TextIO


def take_lock(file: int | TextIO, tries: int, pause_seconds: float) -> bool:
    """Lock an open file for as long as it is open; False if somebody else keeps it.

    On a file system without locks it is taken for locked: two processes are then the person's
    affair.

    Args:
        file: or its descriptor.
        tries: of them, the first at once.
        pause_seconds: after each that finds it locked.
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
