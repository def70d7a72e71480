"""What a person, a log file or another program sees of a run while it goes on.

A console is fed snapshots and messages and draws what it is due: it never slows the run down, and
a terminal or pipe that has gone away, or that nobody reads, neither ends nor stops the run.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import math
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, Protocol, TextIO

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.dashboard import evaluation_score, render
from launcher.human import duration, number, percent, plural, size, uncertainty
from launcher.keyboard import KEYS, Keyboard
from launcher.output import Output, describe_loss
from launcher.snapshot import Snapshot

Kind = Literal["auto", "rich", "plain", "json", "off"]
Clock = Callable[[], float]

_FRAME_SECONDS = 0.25
_DRAWING_SHARE = 0.015  # of a core, at most


class Console(Protocol):
    """Shows a run. Every method may be called again without harm; ``stop`` ends the drawing."""

    def start(self) -> None:
        """Take the stream."""
        ...

    def update(self, snapshot: Snapshot) -> None:
        """Show the run as it is now, or remember it until drawing is due."""
        ...

    def message(self, text: str) -> None:
        """Show an event, such as a restart; none is lost while somebody reads."""
        ...

    def pressed(self) -> str:
        """What a person has pressed since the last call."""
        ...

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Stop, and print how the run went."""
        ...

    def stop(self) -> None:
        """Leave the stream as it was, with all of it written, if somebody reads."""
        ...


def make_console(
    kind: Kind,
    stream: TextIO,
    interval_seconds: float = 5.0,
    clock: Clock = time.monotonic,
    keys: Mapping[str, str] = KEYS,
) -> Console:
    """The console of this kind on this stream.

    Args:
        kind: auto is rich on a terminal that can show it, and plain anywhere else.
        stream: where to draw; with ``off``, errors go to standard error.
        interval_seconds: time between two lines of plain and json.
        clock: monotonic seconds.
        keys: what the help of the rich console says.
    """
    if kind == "auto":
        kind = "rich" if _can_draw(stream) else "plain"
    if kind == "rich":
        return RichConsole(stream, clock, keys)
    if kind == "plain":
        return PlainConsole(stream, interval_seconds, clock)
    if kind == "json":
        return JsonConsole(stream, interval_seconds, clock)
    return SilentConsole()


def _can_draw(stream: TextIO) -> bool:
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    return stream.isatty() and encoding == "utf8" and os.environ.get("TERM", "dumb") != "dumb"


class SilentConsole:
    """Says nothing, except on standard error why a run failed."""

    def start(self) -> None:
        """Nothing to take."""

    def update(self, snapshot: Snapshot) -> None:
        """Nothing to show."""

    def message(self, text: str) -> None:
        """Nothing to show: events stand in ``events.jsonl``."""

    def pressed(self) -> str:
        """None: nobody looks."""
        return ""

    def finish(self, summary: Mapping[str, Any], error: str | None) -> None:
        """Print the error, if there is one."""
        if error is not None:
            sys.stderr.write(f"error: {error}\n")

    def stop(self) -> None:
        """Nothing to leave."""


class _LineConsole:
    """What plain and json share: lines at intervals, on a stream that may go away."""

    def __init__(self, stream: TextIO, interval_seconds: float, clock: Clock) -> None:
        self._output = Output(stream, tell_loss=lambda lines: self._event(describe_loss(lines)))
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._due = -math.inf
        self._stage = ""
        self._unwritten: Snapshot | None = None

    def start(self) -> None:
        """Nothing to take: lines just follow each other."""

    def update(self, snapshot: Snapshot) -> None:
        """Write a line when one is due, or when the run comes to another stage."""
        self._unwritten = snapshot
        if self._clock() >= self._due or snapshot.stage != self._stage:
            self._write_latest()

    def pressed(self) -> str:
        """None: lines are for files and programs."""
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
        return text

    def _progress_line(self, snapshot: Snapshot) -> str:
        return progress_line(snapshot)

    def _last_lines(self, summary: Mapping[str, Any], error: str | None) -> Iterator[str]:
        return (f"{title:<12} {text}" for title, text in summary_rows(summary, error))


class JsonConsole(_LineConsole):
    """One JSON object a line: ``event`` is progress, message or summary."""

    def _event(self, text: str) -> str:
        return _dumps({"event": "message", "text": text})

    def _progress_line(self, snapshot: Snapshot) -> str:
        return _dumps({"event": "progress", **progress_map(snapshot)})

    def _last_lines(self, summary: Mapping[str, Any], error: str | None) -> Iterator[str]:
        yield _dumps({"event": "summary", "error": error, "summary": dict(summary)})


class RichConsole:
    """The live picture, full screen while the run goes on; the last one stays on the terminal.

    The alternate screen is what makes resizing clean: every frame starts at its top left corner.
    Messages are shown there as events, and are printed for good when the screen is left. Whatever
    else this process writes to standard output or error meanwhile becomes a message too.
    """

    def __init__(self, stream: TextIO, clock: Clock, keys: Mapping[str, str] = KEYS) -> None:
        self._keys = keys
        self._output = Output(stream)
        self._terminal = Terminal(
            file=self._output,  # pyright: ignore[reportArgumentType]
            highlight=False,
            soft_wrap=False,
        )
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
        self._messages: list[tuple[float, str]] = []
        self._redirected = contextlib.ExitStack()
        self._drawing = False
        self._screen = self._terminal.size
        self._keyboard = Keyboard()
        self._help = False

    def start(self) -> None:
        """Go full screen."""
        if self._drawing:
            return
        self._keyboard.start()
        self._live.start()
        self._drawing = True
        # However this process ends, the terminal is to be as it was.
        atexit.register(self.stop)
        self._redirected.enter_context(contextlib.redirect_stdout(_Lines(self.message)))
        self._redirected.enter_context(contextlib.redirect_stderr(_Lines(self.message)))

    def update(self, snapshot: Snapshot) -> None:
        """Draw, unless the last frame is younger than a quarter of a second."""
        self._latest = snapshot
        self._draw_if_due()

    def message(self, text: str) -> None:
        """Add an event to the picture, or print it when there is none."""
        elapsed = self._latest.elapsed_seconds if self._latest else 0.0
        self._messages.append((elapsed, text))
        if self._drawing:
            self._draw_if_due()
        else:
            self._print_messages()

    def pressed(self) -> str:
        """The keys that were pressed; the one for help is seen to here."""
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
            table.add_row(Text(title, f"bold {style}"), Text(text, style))
        self._terminal.print(table)
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
            # One line less than the terminal: the cursor stands below the picture. The messages
            # follow it, every one.
            self._terminal.print(_picture(self._latest, width, height - 1, None))
        # All messages follow in one piece, which fits whatever its size once nothing else waits.
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
            # A terminal that was resized has moved and wrapped what stood there.
            self._terminal.clear()
            self._screen = screen
        begun = time.thread_time()
        keys = self._keys if self._help else {}
        picture = _picture(self._latest, *screen, self._messages, keys)
        self._live.update(picture, refresh=True)
        # A large picture of many actors is drawn less often than a small one.
        drawing = time.thread_time() - begun
        self._due = self._clock() + max(_FRAME_SECONDS, drawing / _DRAWING_SHARE)

    def _print_messages(self) -> None:
        if self._messages:
            lines = (f"{duration(elapsed):>7}  {text}" for elapsed, text in self._messages)
            self._terminal.print(Text("\n".join(lines)))
        self._messages.clear()


class _Lines(io.TextIOBase):
    """A stream whose lines are handed to a function."""

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
    """What ``render`` makes of it; a picture that cannot be drawn ends no run."""
    try:
        return render(snapshot, *arguments)
    except Exception as error:  # noqa: BLE001 - of this program's own making, and only a picture
        what = f"{type(error).__name__}: {error}"
        return Text(f"this picture cannot be drawn ({what}); the run goes on")


def progress_line(snapshot: Snapshot) -> str:
    """Everything that matters of a snapshot in one line of plain text."""
    return "  ".join(part for part in _parts(snapshot) if part)


def _parts(snapshot: Snapshot) -> Iterator[str]:
    yield f"[{duration(snapshot.elapsed_seconds)}]"
    yield "" if snapshot.stage == "running" else snapshot.stage
    yield "NOT ENCRYPTED" if snapshot.insecure else ""
    yield f"waits for {snapshot.waiting_for}" if snapshot.waiting_for else ""
    if snapshot.progress is not None:
        yield f"{percent(snapshot.progress)}, {duration(snapshot.remaining_seconds)} left"
    yield f"episodes {number(snapshot.episodes)} ({number(snapshot.episodes_per_second)}/s)"
    yield _counted("env steps", snapshot.environment_steps, snapshot.environment_steps_per_second)
    yield _counted("learner steps", snapshot.learner_steps, snapshot.learner_steps_per_second)
    yield f"wire {size(snapshot.bytes_per_second)}/s"
    ratio, target = snapshot.samples_per_insert, snapshot.samples_per_insert_target
    yield f"samples/insert {number(ratio)} of {number(target)}"
    yield f"lag {number(snapshot.policy_lag)}"
    yield from _learning_parts(snapshot)
    fill = f"{number(snapshot.buffer_size)} of {number(snapshot.buffer_capacity)}"
    yield f"buffer {fill}, {size(snapshot.buffer_bytes)}"
    yield _evaluation_part(snapshot)
    yield "; ".join(_members_part(role, states) for role, states in _states(snapshot).items())
    yield snapshot.bottleneck
    yield snapshot.replay_waits
    rejected = sum(snapshot.rejected.values())
    yield f"restarts {snapshot.restarts}, lost {snapshot.lost}, rejected {rejected}"
    yield f"first error: {snapshot.first_error}" if snapshot.first_error else ""


def _counted(name: str, total: int, rate: float) -> str:
    return f"{name} {number(total)} ({number(rate)}/s)"


def _learning_parts(snapshot: Snapshot) -> Iterator[str]:
    figures = [
        snapshot.headline or ("", None),
        ("return", snapshot.return_mean),
        ("length", snapshot.episode_length),
        ("loss", snapshot.loss),
        ("q", snapshot.q_mean),
        ("epsilon", snapshot.epsilon),
    ]
    yield from (f"{name} {number(value)}" for name, value in figures if value is not None)


def _evaluation_part(snapshot: Snapshot) -> str:
    if snapshot.evaluation is None:
        return ""
    name, score, error = evaluation_score(snapshot.evaluation)
    spread = "" if error is None else f" +-{uncertainty(error)}"
    baselines = ", ".join(f"{k} {number(v)}" for k, v in snapshot.evaluation.baselines.items())
    return f"eval {name} {number(score)}{spread}" + (f" ({baselines})" if baselines else "")


def _states(snapshot: Snapshot) -> dict[str, Counter[str]]:
    """How many members of each role are in each state."""
    states: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for member in snapshot.members:
        states[member.role][member.state] += 1
    return dict(states)


def _members_part(role: str, states: Counter[str]) -> str:
    if len(states) == 1 and states.total() == 1:
        return f"{role} {next(iter(states))}"
    return f"{role}s " + ", ".join(f"{count} {state}" for state, count in states.items())


def progress_map(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as plain data, with members counted by role and state and without history."""
    left_out = ("members", "history")
    values = {f.name: getattr(snapshot, f.name) for f in fields(snapshot) if f.name not in left_out}
    evaluation = snapshot.evaluation
    values["evaluation"] = None if evaluation is None else dict(vars(evaluation))
    values["members"] = _states(snapshot)
    return values


def _dumps(values: Mapping[str, Any]) -> str:
    return json.dumps(_strict(values), separators=(",", ":"), allow_nan=False, default=str)


def _strict(value: Any) -> Any:
    """The value without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restarts(summary: Mapping[str, Any]) -> str:
    failures = summary.get("environment_failures")
    text = _counts(summary.get("restarts"))
    return f"{text}; {plural(failures, 'environment failure')}" if failures else text


def summary_rows(summary: Mapping[str, Any], error: str | None) -> list[tuple[str, str]]:
    """How the run went, for people: what was done, how fast, how well, and what went wrong."""
    rows = [
        ("done" if error is None else "failed", _done(summary)),
        ("rates", _rates(summary)),
        ("training", _scores(summary.get("environment"))),
        ("evaluation", _scores(summary.get("eval"))),
        ("transitions", _counts(summary.get("transitions"))),
        ("restarts", _restarts(summary)),
        ("results", str(summary.get("run_dir") or "")),
        ("error", error or ""),
    ]
    return [(title, text) for title, text in rows if text]


def _done(summary: Mapping[str, Any]) -> str:
    names = {"episodes": "episode", "environment_steps": "environment step"}
    names["learner_steps"] = "learner step"
    parts = [plural(summary[key], noun) for key, noun in names.items() if key in summary]
    text = ", ".join(parts)
    if "wall_seconds" in summary:
        text += f" in {duration(summary['wall_seconds'])}"
    return text + (f" ({summary['exit_reason']})" if summary.get("exit_reason") else "")


def _rates(summary: Mapping[str, Any]) -> str:
    names = {
        "episodes_per_second": "episodes/s",
        "environment_steps_per_second": "environment steps/s",
        "learner_steps_per_second": "learner steps/s",
        "samples_per_insert": "samples/insert",
        "policy_lag_mean": "learner steps of policy lag",
    }
    return ", ".join(
        f"{number(summary[key])} {noun}" for key, noun in names.items() if key in summary
    )


def _scores(values: Mapping[str, Any] | None) -> str:
    if not values or values.get("return_mean") is None:
        return ""
    scores = {**values.get("metrics", {}), "return": values["return_mean"]}
    text = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
    baselines = ", ".join(f"{k} {number(v)}" for k, v in values.get("baselines", {}).items())
    text += f" over {plural(values['episodes'], 'episode')}" if "episodes" in values else ""
    return text + (f"; baselines: {baselines}" if baselines else "")


def _counts(values: Mapping[str, int] | None) -> str:
    return ", ".join(f"{number(count)} {name}" for name, count in (values or {}).items())
