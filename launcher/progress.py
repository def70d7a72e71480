"""Progress of a command that has nothing else to show for a while, on standard error."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launcher import streams
from launcher.numbers import duration
from launcher.terminal import echo

_FIRST_SECONDS, _PERIOD_SECONDS = 2.0, 10.0
_END_SECONDS = 1.0


@contextmanager
def progress(describe: Callable[[], str]) -> Iterator[None]:
    """Say on a terminal what goes on, and for how long, once the block has taken a few seconds.

    A file or a program that takes standard error gets errors only.

    Args:
        describe: function that returns what goes on, in a few words. Another thread calls it.
    """
    if not _is_watched():
        yield
        return
    over, began = threading.Event(), time.monotonic()

    def tell() -> None:
        pause = _FIRST_SECONDS
        while not over.wait(pause):
            echo(f"pdqn: {describe()}, {duration(time.monotonic() - began)}", err=True)
            pause = _PERIOD_SECONDS

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join(_END_SECONDS)


def _is_watched() -> bool:
    """Return whether standard error is a terminal."""
    return streams.err().isatty()
