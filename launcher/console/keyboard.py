"""Single key presses of the terminal that a run is started in."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import tty
from typing import TextIO

# What a person can press while a run is shown; said in the help.
KEYS = {
    "q": "stop, with everything saved (as Ctrl-C)",
    "p": "pause the actors, and let them go on",
    "s": "save a checkpoint now",
    "+": "more samples per insert (a quarter)",
    "-": "fewer samples per insert (a fifth)",
    "?": "show or hide this help",
}
# What a key press multiplies samples_per_insert by, or divides it.
MORE = 1.25
# Arrows and function keys send several characters, which mean nothing one by one.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?")
_MOST_BYTES = 256


class Keyboard:
    """Keys without waiting and without echo, where there is a terminal in the foreground.

    Ctrl-C stays a signal. What the terminal was set to is restored by ``stop``.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # Python has no standard input where a shell has closed it (<&-).
        self._stream: TextIO | None = sys.stdin if stream is None else stream
        self._fd = -1
        self._before: list[object] | None = None

    def start(self) -> None:
        """Take keys from now on; without a terminal of its own it has none to take."""
        if self._stream is None:
            return
        try:
            self._fd = self._stream.fileno()
        except (OSError, ValueError):
            return
        if self._before is None and self._in_foreground():
            self._before = termios.tcgetattr(self._fd)
            self._take()

    def read(self) -> str:
        """The keys pressed since the last call."""
        # In the background, reading or setting the terminal would stop the whole run.
        if self._before is None or not self._in_foreground():
            return ""
        with contextlib.suppress(termios.error):  # it has been hung up
            if termios.tcgetattr(self._fd)[tty.LFLAG] & termios.ICANON:
                self._take()  # a shell has had it meanwhile, and has set it as it likes it
        if not select.select([self._fd], [], [], 0.0)[0]:
            return ""
        try:
            pressed = os.read(self._fd, _MOST_BYTES)
        except OSError:
            pressed = b""
        if not pressed:  # the terminal has gone away
            self._before = None
        return _SEQUENCE.sub("", pressed.decode("utf-8", "ignore"))

    def stop(self) -> None:
        """Give the terminal back as it was."""
        before, self._before = self._before, None
        if before is None or not self._in_foreground():
            return  # or the shell has it, and has set it already
        with contextlib.suppress(termios.error):  # it has been hung up
            termios.tcsetattr(self._fd, termios.TCSANOW, before)  # pyright: ignore[reportArgumentType]

    def _take(self) -> None:
        """Have keys come one by one and unseen, and Ctrl-S be one of them: it freezes nothing."""
        mode = termios.tcgetattr(self._fd)
        mode[tty.IFLAG] &= ~termios.IXON
        mode[tty.LFLAG] &= ~(termios.ECHO | termios.ICANON)
        mode[tty.CC][termios.VMIN], mode[tty.CC][termios.VTIME] = 1, 0
        # Now, and not once the terminal has taken what was written to it: that may be never.
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        termios.tcflush(self._fd, termios.TCIFLUSH)

    def _in_foreground(self) -> bool:
        try:
            return os.isatty(self._fd) and os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False
