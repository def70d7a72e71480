"""The end of a process that has had an environment as a guest."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process, whatever threads, streams and processes an environment has left."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be closed, or something else
            stream.flush()
    with contextlib.suppress(Exception):  # one ends meanwhile
        for process in multiprocessing.active_children():
            process.kill()
    os._exit(code)
