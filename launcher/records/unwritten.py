"""The files that a run could not write, told once while it goes on, and again at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from pdqn.errors import reason_of


class Unwritten:
    """The record of what could not be written, by name; a later success removes the name.

    Args:
        say: takes a line for the person. It gets only the first failure of each name.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._reasons: dict[str, str] = {}
        self._told: set[str] = set()
        self._lines: list[str] = []

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Record a failure to write: it must not end a run, and the next time may be better."""
        try:
            yield
        except OSError as error:
            self._reasons[name] = reason_of(error)
            if name not in self._told:
                self._told.add(name)
                self._say(f"{name} is not written: {self._reasons[name]}; the run goes on")
        else:
            self._reasons.pop(name, None)

    def lose(self, name: str, reason: str) -> None:
        """Record a file that another process could not write."""
        self._reasons[name] = reason

    def tell_at_end(self, line: str) -> None:
        """Repeat a line at the end."""
        self._lines.append(line)

    def reason(self, name: str) -> str:
        """Return why the newest content is not in a file; empty if it is."""
        return self._reasons.get(name, "")

    def lines(self) -> list[str]:
        """List what is not written now, each with its reason, after the lines to be repeated."""
        reasons = dict(self._reasons)  # a thread that the disk holds may add to them
        unwritten = (f"{name} is not written: {why}" for name, why in reasons.items())
        return [*self._lines, *unwritten]
