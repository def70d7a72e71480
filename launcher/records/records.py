"""The files of a run, written beside its loop."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from launcher.metrics.metrics import RunMetrics
from launcher.numbers import plural
from launcher.records.episode_log import EPISODES, append, rows
from launcher.records.scalars import ScalarWriter
from launcher.records.sinks import Sink
from launcher.records.unwritten import Unwritten
from launcher.records.writer import Stall, Writer
from launcher.results import pictures
from launcher.results.rescue import holds_enough, rescued
from launcher.results.saved import unsaved
from launcher.rundir import EVENTS, METRICS, SUMMARY, RunDirectory
from launcher.strict_json import to_json
from pdqn.config import Config
from pdqn.errors import reason_of
from pdqn.model_head import BEST_MODEL

_TEND_SECONDS = 0.1
_WAIT_SECONDS = 0.1
# At the end of a run, a disk that has not answered for this time is given up.
_END_SECONDS = 60.0
_TENDING = "tend"


class Records:
    """A writer of a run's files: it takes what is to be written, and nobody waits for the disk.

    Lines are written in the order in which they came. Of what replaces a whole file, only the
    newest is written. The x axis of TensorBoard is environment_steps.

    Args:
        run_dir: the run's.
        config: the run's.
        sinks: further receivers of the lines of figures.
        writer: does the work.

    Attributes:
        unwritten: records what could not be written.
    """

    def __init__(
        self,
        run_dir: RunDirectory,
        config: Config,
        sinks: Iterable[Sink] = (),
        writer: Writer | None = None,
    ) -> None:
        self._run_dir, self._config = run_dir, config
        self._writer = writer or Writer()
        self._stall = Stall(run_dir.shown)
        self._sinks = tuple(sinks)
        self._said: deque[str] = deque()
        self.unwritten = Unwritten(self._said.append)
        settings = {f"{s}.{k}": v for s, keys in config.to_map().items() for k, v in keys.items()}
        self._scalars = ScalarWriter(run_dir.path / "tensorboard", settings=settings)
        log = run_dir.logs / "pictures.log"
        self._drawer = pictures.PictureDrawer(run_dir.path, config, log)
        self._next_tend = 0.0
        self._told_left_out = 0

    # ---- what is written ----

    def event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl, with the present time."""
        line = self._run_dir.event_line(kind, **details)
        self._writer.put(partial(self._append_event, line), len(line))

    def line(self, line: Mapping[str, Any]) -> None:
        """Append a line of figures to metrics.jsonl, and its numbers to TensorBoard and sinks."""
        for sink in self._sinks:
            sink.write(line)
        text = to_json(line)
        figures = {name: v for name, v in line.items() if isinstance(v, int | float)}
        steps = line["environment_steps"]
        self._writer.put(partial(self._append, text, figures, steps), 2 * len(text))

    def episodes(self, metrics: RunMetrics, seconds: float) -> None:
        """Append the episodes since the last call to episodes.csv.

        Args:
            metrics: the run's.
            seconds: time since the run's start.
        """
        finished, left_out = metrics.new_episodes.take()
        if finished and self._config.system.episodes:
            steps = metrics.counts()["environment_steps"]
            text = rows(finished, seconds, steps, left_out)
            self._writer.put(partial(self._append_episodes, text), 2 * len(text))

    def replace(self, name: str, write: Callable[[], object]) -> None:
        """Replace a file as a whole.

        Args:
            name: its name.
            write: function that writes it. It gets nothing that changes by then.
        """
        self._writer.put(partial(self._attempt, name, write), key=name)

    def replaces(self, name: str) -> bool:
        """Tell whether a file that was to be replaced is not replaced yet."""
        return self._writer.has(name)

    def aside(self, do: Callable[[], object], nbytes: int = 0, *, key: str = "") -> bool:
        """Have other work done that the disk may delay; see ``Writer.put``."""
        return self._writer.put(do, nbytes, key=key)

    def tend(self) -> None:
        """Look after the directory, and draw pictures if that is due."""
        now = time.monotonic()
        if now >= self._next_tend and not self._writer.has(_TENDING):
            self._next_tend = now + _TEND_SECONDS
            self._writer.put(self._tend, key=_TENDING)

    def news(self) -> list[str]:
        """Return lines that a person should see, about what cannot be written.

        Raises:
            Exception: a fault of this program in what was done beside the loop.
        """
        self._writer.check()
        writer = self._writer
        if line := self._stall.turn(writer.stalled_seconds, writer.left_out):
            self._said.append(line)
            self.event("stalled", text=line)
        return [self._said.popleft() for _ in range(len(self._said))]

    # ---- the end ----

    def find_unsaved(
        self, learner_steps: int, reasons: Mapping[str, str], rescue: Callable[[], int | None]
    ) -> list[str]:
        """Find out what the files lack of what was learned.

        Args:
            learner_steps: number of learner steps that the run has taken.
            reasons: the last words of roles about a save that failed, by role.
            rescue: function that saves a model in the learner's place; see ``Session``.

        Returns:
            a list that holds the answer once everything is written: one line, empty for nothing.
        """
        found: list[str] = []
        self._writer.put(lambda: found.append(self._unsaved(learner_steps, dict(reasons), rescue)))
        return found

    def finish(self, summary: Mapping[str, Any], reason: str) -> None:
        """Write the summary, the last picture, and the last event."""
        put = self._writer.put
        put(self._tend)
        self.replace(SUMMARY, partial(self._run_dir.write_summary, dict(summary)))
        put(partial(_quietly, self._scalars.close))
        put(partial(_quietly, self._drawer.close))
        if self._config.system.pictures:
            put(self._draw_last, is_long=True)
        self.event("ended", reason=reason)
        for sink in self._sinks:
            sink.close()

    def close(self) -> None:
        """Close the directory, after all that was to be written."""
        self._writer.put(partial(self._attempt, f"{METRICS} or {EVENTS}", self._run_dir.close))

    def settle(self, turn: Callable[[], object], is_over: Callable[[], bool]) -> bool:
        """Wait until everything is written; give up when nothing gets done for a minute.

        Args:
            turn: called several times a second.
            is_over: tells whether a person does not want to wait.

        Returns:
            whether everything is written.
        """
        done, since = -1, 0.0
        while not self._writer.wait(_WAIT_SECONDS):
            if self._writer.done != done:
                done, since = self._writer.done, time.monotonic()
            if is_over() or time.monotonic() - since > _END_SECONDS:
                return False
            turn()
        turn()
        return True

    def flush(self, seconds: float) -> bool:
        """Wait for a time at most; return whether everything is written."""
        return self._writer.wait(seconds)

    def lines(self) -> list[str]:
        """List what is not written, each with its reason."""
        lines = self.unwritten.lines()
        if left_out := self._writer.left_out:
            what = f"{plural(left_out, 'line')} of {METRICS} or {EVENTS}"
            lines.append(f"{what} had no room while {self._run_dir.shown} did not answer")
        return lines

    def lack(self) -> str:
        """Describe what waits for the disk; empty if nothing does."""
        if not self._writer.left:
            return ""
        seconds = self._writer.stalled_seconds
        return (
            f"{self._run_dir.shown} has not answered for {seconds:.0f} s: not all is written that "
            "was to be"
        )

    # ---- in the other thread ----

    def _unsaved(
        self, learner_steps: int, reasons: Mapping[str, str], rescue: Callable[[], int | None]
    ) -> str:
        path, version = self._run_dir.path, rescue()
        if "evaluator" in reasons and not (path / BEST_MODEL).exists():
            self.unwritten.lose(BEST_MODEL, reasons["evaluator"])
        try:
            lack = unsaved(path, learner_steps, reasons.get("learner", ""))
        except OSError as error:
            return f"nothing tells whether what was learned is saved: {reason_of(error)}"
        period = self._config.learner.publish_period
        enough = version is not None and holds_enough(version, learner_steps, period)
        if lack and version is not None and enough and "learner" not in reasons:
            self.unwritten.tell_at_end(rescued(path, version, learner_steps))
            return ""
        return lack

    def _attempt(self, name: str, write: Callable[[], object]) -> None:
        with self.unwritten.attempt(name):
            write()

    def _append(self, text: str, figures: Mapping[str, float], steps: int) -> None:
        self._attempt(METRICS, partial(self._run_dir.append_metrics, text))
        left_out = self._scalars.left_out
        with self.unwritten.attempt("tensorboard"):
            self._scalars.folder = self._run_dir.path / "tensorboard"
            self._scalars.write(figures, steps)
        if left_out and self._scalars.left_out == left_out != self._told_left_out:
            self._told_left_out = left_out
            self._said.append(f"tensorboard is written again; it lacks {plural(left_out, 'line')}")

    def _append_episodes(self, text: str) -> None:
        self._attempt(EPISODES, partial(append, self._run_dir.path, text))

    def _append_event(self, line: str) -> None:
        self._look()  # otherwise it could go into a file that has just been removed
        self._run_dir.append_event(line)

    def _look(self) -> None:
        """Notice a directory that was removed, which must not cost a day's policy."""
        run_dir = self._run_dir
        with self.unwritten.attempt(str(run_dir.path)):
            if line := run_dir.look():
                run_dir.event("directory", text=line)
                self._said.append(line)
                self.unwritten.tell_at_end(line)

    def _tend(self) -> None:
        self._look()
        run_dir = self._run_dir
        with self.unwritten.attempt(EVENTS):
            if run_dir.event_trouble is not None:
                raise run_dir.event_trouble
        if self._config.system.pictures and not run_dir.taken:
            with self.unwritten.attempt("pictures.log"):
                self._drawer.turn()

    def _draw_last(self) -> None:
        pictures.draw_last(self._run_dir.path, self._config, self._said.append)


def _quietly(close: Callable[[], object]) -> None:
    """Close what is complete: whether that works makes no difference any more."""
    with contextlib.suppress(OSError):
        close()
