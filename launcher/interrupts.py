"""Ctrl-C, or a terminal that is closed: once means stop in order, twice means end now."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

EXIT_INTERRUPTED_TWICE = 130


class Interrupts:
    """Counts SIGINT, SIGTERM and SIGHUP from the moment it is installed.

    SIGHUP comes when the terminal is closed; where it is ignored from the start (``nohup``), it
    stays ignored.

    Attributes:
        count: how many came.
        on_second: called in the main thread when the second comes; does not return.
    """

    def __init__(self) -> None:
        self.count = 0
        self.on_second: Callable[[], None] = self._exit

    def install(self) -> Interrupts:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        return self

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= 2:
            self.on_second()

    @staticmethod
    def _exit() -> None:
        raise SystemExit(EXIT_INTERRUPTED_TWICE)
