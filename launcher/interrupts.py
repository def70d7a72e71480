"""Signals that end a run: the first one stops it in order, the second one at once."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from types import FrameType

from pdqn import handlers
from pdqn.errors import Interrupted

EXIT_INTERRUPTED_TWICE = 130
_SAME_SECONDS = 1.0


def end_at_once() -> None:
    """Let Ctrl-C end this command at once, unless whoever started it has that ignored."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        handlers.install(signal.SIGINT, _interrupt)
    # An environment must not replace it.
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        handlers.install(signal.SIGTERM, signal.SIG_DFL)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise Interrupted


class Ended(Interrupted):
    """A signal that ends this command, as whoever runs it has decided.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP raise ``Ended``, so that what this command has started ends first.

    A second one, unless it comes within a second as of a whole process group, ends it at once.
    """
    first: list[float] = []

    def end(number: int, _frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Ended(number)
        if time.monotonic() - first[0] >= _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            handlers.install(number, end)


class Interrupts:
    """A counter of SIGINT, SIGTERM and SIGHUP, from the moment it is installed.

    SIGHUP arrives when the terminal is closed; if it was ignored from the start (``nohup``), it
    stays ignored. The shell and the kernel may both send it, and whoever ends the whole process
    group sends SIGTERM as well. Either one within a second of another signal is thus not counted.

    Attributes:
        count: number of signals so far.
        begun: whether something has begun that has to end in order. Until then the first signal
            raises Interrupted in the main thread.
        on_second: called in the main thread when the second signal arrives; must not return. By
            default it raises Interrupted.
    """

    def __init__(self, *, begun: bool = True) -> None:
        self.count, self.begun = 0, begun
        self._last = -math.inf
        self.on_second: Callable[[], None] = self._exit

    def install(self) -> Interrupts:
        """Take over the signals."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                handlers.install(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        before, self._last = self._last, time.monotonic()
        if number != signal.SIGINT and self._last - before < _SAME_SECONDS:
            return
        self.count += 1
        if not self.begun:
            raise Interrupted("interrupted before anything was started")
        if self.count >= 2:
            self.on_second()

    @staticmethod
    def _exit() -> None:
        raise Interrupted
