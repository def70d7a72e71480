"""The terminal of a program that trains, which obeys nothing that the run says."""

from __future__ import annotations

import shutil
import sys

from pdqn.driver.snapshot import Snapshot
from pdqn.text import printable


class TerminalLine:
    """One line on standard error that is written over, below the messages."""

    def __init__(self) -> None:
        self._shown = ""

    def update(self, snapshot: Snapshot) -> None:
        """Write the line over the last one."""
        width = shutil.get_terminal_size().columns - 1
        self._shown = printable(snapshot.line)[:width]
        self._write(f"\r\x1b[K{self._shown}")

    def message(self, text: str) -> None:
        """Write a message above the line."""
        self._write(f"\r\x1b[K{printable(text)}\n{self._shown}")

    def close(self) -> None:
        """Go to the next line."""
        if self._shown:
            self._write("\n")
        self._shown = ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
