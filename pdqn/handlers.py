"""The signal handlers that this process relies on, which an environment may replace.

A simulator's library installs handlers when it is made, and some with each step. What it does with
its own signals, such as SIGALRM, is its own business.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

Handler = Callable[[int, FrameType | None], object] | signal.Handlers

_ours: dict[int, Handler] = {}


def install(number: int, handler: Handler) -> None:
    """Install a handler, to which ``install_again`` returns."""
    signal.signal(number, handler)
    _ours[number] = handler


def install_again() -> bool:
    """Install all of them again, and let their signals arrive; return whether one was replaced.

    A handler that C code installed is not visible from Python, so they are installed in any case.
    Only the main thread can do this; any other does nothing.
    """
    if not _ours or threading.current_thread() is not threading.main_thread():
        return False
    replaced = [signal.signal(number, handler) != handler for number, handler in _ours.items()]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ours)
    return any(replaced)


def _leave_to_child() -> None:
    """End a forked process by SIGTERM, as whoever forked it expects.

    A person's Ctrl-C reaches it as well; the run needs it until the environment is closed.
    """
    for number, handler in _ours.items():
        if signal.getsignal(number) == handler:
            ignored = number == signal.SIGINT
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    _ours.clear()


# An environment's own processes: ours would only count the signal that is to end them.
os.register_at_fork(after_in_child=_leave_to_child)
