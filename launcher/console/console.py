"""Consoles, which show a run to a person, a log file or another program while it goes on.

A console receives snapshots and messages, and draws them when drawing is due. It never slows the
run down. A terminal or pipe that has gone away, or that nobody reads, neither ends nor stops it.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TextIO

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher import streams
from launcher.console.dashboard import render
from launcher.console.keyboard import KEYS, Keyboard
from launcher.console.lines import dumps, progress_line, progress_map, summary_rows
from launcher.console.output import Output, describe_loss
from launcher.metrics.snapshot import Snapshot
from launcher.numbers import duration, plural
from launcher.terminal import Printable, echo, terminal
from pdqn.text import printable

Kind = Literal["auto", "rich", "plain", "json", "off", "driven"]
Clock = Callable[[], float]

_FRAME_SECONDS = 0.25
# What a run says in a month fits; what a member that floods it says does not take the memory.
_MOST_MESSAGES, _MOST_SHOWN = 10_000, 200
_DRAWING_SHARE = 0.015  # of a core, at most


class Console(Protocol):
    """A view of a run. Every method may be called again without harm; ``stop`` ends the drawing."""

    def start(self) -> None:
        """Take over the stream."""
        ...

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now, or remember it until drawing is due."""
        ...

    def message(self, text: str) -> None:
        """Show an event, such as a restart; none is lost while somebody reads."""
        ...

    def pressed(self) -> Sequence[str]:
        """Return the keys that a person has pressed since the last call."""
        ...

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Stop, and print how the run went."""
        ...

    def stop(self) -> None:
        """Leave the stream as it was, with everything written if somebody reads it."""
        ...


def make_console(
    kind: Kind,
    stream: TextIO,
    interval_seconds: float = 5.0,
    clock: Clock = time.monotonic,
    keys: Mapping[str, str] = KEYS,
) -> Console:
    """Make the console of this kind on this stream.

    Args:
        kind: auto is rich on a terminal that can show it, and plain anywhere else; driven takes
            orders from standard input.
        stream: where to draw; with ``off``, errors go to standard error.
        interval_seconds: time between two lines of plain and json.
        clock: monotonic seconds.
        keys: what each key does, for the help of the rich console.
    """
    if kind == "auto":
        kind = "rich" if _can_draw(stream) else "plain"
    if kind == "rich":
        return RichConsole(stream, clock, keys)
    if kind == "plain":
        return PlainConsole(stream, interval_seconds, clock)
    if kind == "json":
        return JsonConsole(stream, interval_seconds, clock)
    if kind == "driven":
        from launcher.console.driven import make_driven  # it is made of the console of lines here

        return make_driven(stream, clock)
    return SilentConsole()


def _can_draw(stream: TextIO) -> bool:
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return stream.isatty() and encoding == "utf8" and os.environ.get("TERM", "dumb") != "dumb"


class SilentConsole:
    """A console that shows nothing, except on standard error why a run failed."""

    def start(self) -> None:
        """Do nothing."""

    def update(self, snapshot: Snapshot) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing: events are in ``events.jsonl``."""

    def pressed(self) -> str:
        """Return nothing: nobody looks."""
        return ""

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Print the error, if there is one."""
        if error is not None:
            echo(f"error: {error}", err=True)

    def stop(self) -> None:
        """Do nothing."""


class _LineConsole:
    """The common part of plain and json: lines at intervals, on a stream that may go away."""

    def __init__(self, stream: TextIO, interval_seconds: float, clock: Clock) -> None:
        self._output = Output(stream, tell_loss=lambda lines: self._event(describe_loss(lines)))
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._due = -math.inf
        self._stage = ""
        self._unwritten: Snapshot | None = None

    def start(self) -> None:
        """Do nothing: lines just follow each other."""

    def update(self, snapshot: Snapshot) -> None:
        """Write a line when one is due, or when the run enters another stage."""
        self._unwritten = snapshot
        if self._clock() >= self._due or snapshot.stage != self._stage:
            self._write_latest()

    def pressed(self) -> Sequence[str]:
        """Return nothing: lines are for files and programs."""
        return ""

    def message(self, text: str) -> None:
        """Write the event at once."""
        self._write(self._event(text))

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Write the last state and the summary."""
        self._write_latest()
        for line in self._last_lines(summary, error):
            self._write(line)
        self._output.drain()

    def stop(self) -> None:
        """Write the last state, if it has not been written."""
        self._write_latest()
        self._output.drain()

    def _write_latest(self) -> None:
        if self._unwritten is None:
            return
        self._write(self._progress_line(self._unwritten))
        self._stage = self._unwritten.stage
        self._due = self._clock() + self._interval_seconds
        self._unwritten = None

    def _write(self, line: str) -> None:
        self._output.write(line + "\n")

    def _event(self, text: str) -> str:
        raise NotImplementedError

    def _progress_line(self, snapshot: Snapshot) -> str:
        raise NotImplementedError

    def _last_lines(self, summary: Mapping[str, Any], error: str | None) -> Iterator[str]:
        raise NotImplementedError


class PlainConsole(_LineConsole):
    """One line of text every few seconds, for log files and simple terminals."""

    def _event(self, text: str) -> str:
        return printable(text)

    def _progress_line(self, snapshot: Snapshot) -> str:
        return progress_line(snapshot)

    def _last_lines(self, summary: Mapping[str, Any], error: str | None) -> Iterator[str]:
        return (f"{title:<12} {printable(text)}" for title, text in summary_rows(summary, error))


class JsonConsole(_LineConsole):
    """One JSON object per line: ``event`` is progress, message or summary."""

    def _event(self, text: str) -> str:
        return dumps({"event": "message", "text": text})

    def _progress_line(self, snapshot: Snapshot) -> str:
        return dumps({"event": "progress", **progress_map(snapshot)})

    def _last_lines(self, summary: Mapping[str, Any], error: str | None) -> Iterator[str]:
        yield dumps({"event": "summary", "error": error, "summary": dict(summary)})


class RichConsole:
    """The live picture, full screen while the run goes on; the last one stays on the terminal.

    The alternate screen makes resizing clean: every frame starts at its top left corner. Messages
    are shown there as events, and printed for good when the console leaves the screen. Whatever
    else this process writes to standard output or error meanwhile also becomes a message, unless an
    environment has them.
    """

    def __init__(self, stream: TextIO, clock: Clock, keys: Mapping[str, str] = KEYS) -> None:
        self._keys = keys
        self._output = Output(stream)
        self._terminal = terminal(file=self._output, soft_wrap=False)
        self._live = Live(
            console=self._terminal,
            auto_refresh=False,
            screen=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._clock = clock
        self._due = -math.inf
        self._latest: Snapshot | None = None
        self._messages: deque[tuple[float, str]] = deque()
        self._left_out = 0
        self._redirected = contextlib.ExitStack()
        self._drawing = False
        self._screen = self._terminal.size
        self._keyboard = Keyboard(streams.keys())
        self._help = False

    def start(self) -> None:
        """Go full screen."""
        if self._drawing:
            return
        self._keyboard.start()
        self._live.start()
        self._drawing = True
        # However this process ends, the terminal must be as it was.
        atexit.register(self.stop)
        if not streams.are_apart():
            self._redirected.enter_context(contextlib.redirect_stdout(_Lines(self.message)))
            self._redirected.enter_context(contextlib.redirect_stderr(_Lines(self.message)))

    def update(self, snapshot: Snapshot) -> None:
        """Draw, unless the last frame is younger than a quarter of a second."""
        self._latest = snapshot
        self._draw_if_due()

    def message(self, text: str) -> None:
        """Add an event to the picture, or print it when there is none."""
        elapsed = self._latest.elapsed_seconds if self._latest else 0.0
        self._messages.append((elapsed, printable(text)))
        if len(self._messages) > _MOST_MESSAGES:
            self._messages.popleft()
            self._left_out += 1
        if self._drawing:
            self._draw_if_due()
        else:
            self._print_messages()

    def pressed(self) -> str:
        """Return the keys that were pressed, without the one for help, which is handled here."""
        pressed = self._keyboard.read()
        if pressed.count("?") % 2:
            self._help = not self._help
            self._due = -math.inf
            self._draw_if_due()
        return pressed.replace("?", "")

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Leave the screen and print the summary below the last picture."""
        self.stop()
        table = Table.grid(padding=(0, 2))
        for title, text in summary_rows(summary, error):
            style = "red" if title in ("error", "failed") else ""
            table.add_row(Text(title, f"bold {style}"), Text(printable(text), style))
        self._terminal.print(Printable(table))
        self._output.drain()

    def stop(self) -> None:
        """Leave the screen, and print the last picture and every message where they stay."""
        if not self._drawing:
            return
        self._drawing = False
        atexit.unregister(self.stop)
        self._keyboard.stop()
        self._redirected.close()
        self._terminal.clear()
        self._live.stop()
        if self._latest is not None:
            width, height = self._terminal.size
            # One line less than the terminal, for the cursor below the picture. Every message
            # follows it.
            self._terminal.print(_picture(self._latest, width, height - 1, None))
        # The messages go in one piece, which fits at any size once nothing else waits.
        self._output.drain()
        self._print_messages()
        self._output.drain()

    def _draw_if_due(self) -> None:
        if not self._drawing or self._latest is None or self._clock() < self._due:
            return
        if self._output.waiting:
            return  # a slow terminal gets fewer frames, and one that is stopped gets none
        screen = self._terminal.size
        if screen != self._screen:
            # A terminal that was resized has moved and wrapped its content.
            self._terminal.clear()
            self._screen = screen
        begun = time.thread_time()
        keys = self._keys if self._help else {}
        picture = _picture(self._latest, *screen, self._newest(), keys)
        self._live.update(picture, refresh=True)
        # A large picture of many actors is drawn less often than a small one.
        drawing = time.thread_time() - begun
        self._due = self._clock() + max(_FRAME_SECONDS, drawing / _DRAWING_SHARE)

    def _newest(self) -> list[tuple[float, str]]:
        """Return the newest messages, more than a screen has lines for."""
        return [*itertools.islice(reversed(self._messages), _MOST_SHOWN)][::-1]

    def _print_messages(self) -> None:
        if self._left_out:
            note = f"{plural(self._left_out, 'earlier message')} left out here, see events.jsonl"
            self._terminal.print(Text(note))
            self._left_out = 0
        if self._messages:
            lines = (f"{duration(elapsed):>7}  {text}" for elapsed, text in self._messages)
            self._terminal.print(Printable(Text("\n".join(lines))))
        self._messages.clear()


class _Lines(io.TextIOBase):
    """A stream that hands its lines to a function."""

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take = take
        self._rest = ""

    def write(self, text: str, /) -> int:
        """Keep the last, unfinished line; hand on the others."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self._take(line)
        return len(text)

    def close(self) -> None:
        """Hand on what is left."""
        if self._rest.strip():
            self._take(self._rest)
        self._rest = ""
        super().close()


def _picture(snapshot: Snapshot, *arguments: Any) -> RenderableType:
    """Render a snapshot; a picture that cannot be drawn does not end the run."""
    try:
        return Printable(render(snapshot, *arguments))
    except Exception as error:  # noqa: BLE001 - of this program's own making, and only a picture
        what = printable(f"{type(error).__name__}: {error}")
        return Text(f"this picture cannot be drawn ({what}); the run goes on")
