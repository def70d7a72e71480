"""The view of a run in a notebook, on a terminal, or nowhere."""

from __future__ import annotations

import html
import sys
from collections import deque
from typing import Any, Protocol

from pdqn.driver.snapshot import Snapshot
from pdqn.driver.terminal import TerminalLine
from pdqn.text import printable

_MOST_MESSAGES = 5


class Display(Protocol):
    """A place where a person sees a run."""

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now."""
        ...

    def message(self, text: str) -> None:
        """Show a line that the run says."""
        ...

    def close(self) -> None:
        """Leave the last view where it is."""
        ...


class Nowhere:
    """A display for programs that nobody looks at."""

    def update(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing: the run's events.jsonl has it."""

    def close(self) -> None:
        """Do nothing."""


class NotebookCell:
    """A bar and a line in a notebook's cell, with the last messages below them."""

    def __init__(self) -> None:
        self._messages: deque[str] = deque(maxlen=_MOST_MESSAGES)
        self._handle: Any = None
        self._snapshot: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        """Draw the run in place of its last picture."""
        self._snapshot = snapshot
        self._draw()

    def message(self, text: str) -> None:
        """Add a message."""
        self._messages.append(printable(text))
        self._draw()

    def close(self) -> None:
        """Leave the picture."""

    def _draw(self) -> None:
        from IPython.display import display  # pyright: ignore[reportMissingImports]

        line = "" if self._snapshot is None else self._snapshot.line
        share = None if self._snapshot is None else self._snapshot.progress
        text = "\n".join([line, *self._messages])
        bar = "" if share is None else f'<progress max="1" value="{share:.4f}"></progress>'
        views = {"text/plain": text, "text/html": f"{bar}<pre>{html.escape(text)}</pre>"}
        if self._handle is None:
            self._handle = display(views, raw=True, display_id=True)
        else:
            self._handle.update(views, raw=True)


def make_display(show: bool | None) -> Display:
    """Make the display for where this program runs.

    Args:
        show: False for none. By default there is one in a notebook or on a terminal.
    """
    if show is False:
        return Nowhere()
    if in_notebook():
        return NotebookCell()
    return TerminalLine() if show or _is_terminal() else Nowhere()


def in_notebook() -> bool:
    """Tell whether a notebook's kernel runs this program."""
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python is not None else None
    return shell is not None and hasattr(shell, "kernel")


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()
