"""Single key presses on the terminal in which a run was started."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import termios
import tty
from typing import TextIO

# The keys that a person can press while a run is shown, as the help explains them.
KEYS = {
    "q": "stop, and save everything (like Ctrl-C)",
    "p": "pause the actors, and let them go on",
    "s": "save a checkpoint now",
    "+": "more samples per insert (a quarter)",
    "-": "fewer samples per insert (a fifth)",
    "?": "show or hide this help",
}
# The factor by which a key press multiplies or divides samples_per_insert.
MORE = 1.25
# Arrows and function keys send several characters, which mean nothing one by one.
_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?")
_MOST_BYTES = 256


class Keyboard:
    """Key presses without waiting and without echo, on a terminal in the foreground.

    Ctrl-C stays a signal. ``stop`` restores the terminal's settings.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        # Python has no standard input where a shell has closed it (<&-).
        self._stream: TextIO | None = sys.stdin if stream is None else stream
        self._fd = -1
        self._before: list[object] | None = None

    def start(self) -> None:
        """Take keys from now on, if this process has the terminal."""
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
        """Return the keys pressed since the last call."""
        # In the background, reading or setting the terminal would stop the whole run.
        if self._before is None or not self._in_foreground():
            return ""
        with contextlib.suppress(termios.error):  # it has been hung up
            if termios.tcgetattr(self._fd)[tty.LFLAG] & termios.ICANON:
                self._take()  # a shell had it meanwhile, and changed its settings
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
            return  # a shell that has the terminal has set it already
        with contextlib.suppress(termios.error):  # it has been hung up
            termios.tcsetattr(self._fd, termios.TCSANOW, before)  # pyright: ignore[reportArgumentType]

    def _take(self) -> None:
        """Let keys arrive one by one and unseen, Ctrl-S among them, which then freezes nothing."""
        mode = termios.tcgetattr(self._fd)
        mode[tty.IFLAG] &= ~termios.IXON
        mode[tty.LFLAG] &= ~(termios.ECHO | termios.ICANON)
        mode[tty.CC][termios.VMIN], mode[tty.CC][termios.VTIME] = 1, 0
        # Now, and not after the terminal has taken all output: that may never happen.
        termios.tcsetattr(self._fd, termios.TCSANOW, mode)
        termios.tcflush(self._fd, termios.TCIFLUSH)

    def _in_foreground(self) -> bool:
        try:
            return os.isatty(self._fd) and os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False
