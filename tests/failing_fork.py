"""A module for a forkserver to import, after which it cannot fork."""

import errno
import os


def _fail() -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


os.fork = _fail
