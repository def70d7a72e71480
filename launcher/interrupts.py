"""Ctrl-C, or a terminal that is closed: once means stop in order, twice means end now."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from types import FrameType

EXIT_INTERRUPTED_TWICE = 130
_SAME_SECONDS = 1.0


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP from the moment it is installed.

    SIGHUP comes when the terminal is closed; where it is ignored from the start (``nohup``), it
    stays ignored. It may come twice then, from the shell and from the kernel, and SIGTERM from
    who ends a whole group, too: what follows another signal at once is the same one.

    Attributes:
        count: how many came.
        on_second: called in the main thread when the second comes; does not return. By default
            it raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last = -math.inf
        self.on_second: Callable[[], None] = self._exit

    def install(self) -> Interrupts:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if number != signal.SIGINT and self._last - before < _SAME_SECONDS:
            return
        self.count += 1
        if self.count >= 2:
            self.on_second()

    @staticmethod
    def _exit() -> None:
        raise KeyboardInterrupt
