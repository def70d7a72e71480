"""A run in either mode: its figures, records, console, limits, and its end."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from launcher.console.console import Console
from launcher.console.controls import Controls, keys_of
from launcher.interrupts import Interrupts
from launcher.metrics.goal import Goal
from launcher.metrics.limits import limit_reached, progress
from launcher.metrics.metrics import RunMetrics
from launcher.metrics.roster import Roster
from launcher.metrics.snapshot import Seen, Snapshot
from launcher.metrics.waiting import bottleneck, replay_waits
from launcher.prediction.expectation import time_left
from launcher.records.records import Records
from launcher.records.sinks import make_sinks
from launcher.results.saved import shortcoming
from launcher.run.firsts import FirstSteps
from launcher.run.state import RunState
from launcher.rundir import SNAPSHOT, STATE_FILE, SUMMARY, RunDirectory
from pdqn.config import Config, resolved
from pdqn.model_head import NOT_SAVED
from pdqn.specs import EnvironmentSpec

_TICK_SECONDS = 1.0
_CONSOLE_SECONDS = 0.25
_MOST_MESSAGES, _MOST_CHARACTERS = 100, 10_000
_ROLES = ("actor", "replay", "learner", "evaluator", "forkserver")
_MOST_SHOWN = 500  # characters of a note
_SHOWN_NOTES = {
    "out_of_memory", "memory", "checkpoint", "saved", "unheard", "left_out", "revoked", "journal",
}  # fmt: skip
# These may come again and again: the console shows the first of each, events have them all.
_SHOWN_ONCE = {"evaluation", "baselines", "rejected", "log", "not_finite"}


class Session:
    """One run as a person sees it.

    Attributes:
        controls: what each key does, beside those for the end and for help.
        stage: starting, running, paused, stopping or done. ``enter`` and ``pause`` set it.
        waiting_for: what the run cannot start without, in words; ``wait_for`` sets it.
        insecure: other processes join neither encrypted nor authenticated.
        failure: why the run cannot go on; None while it can. ``fail`` sets it.
        restarts: restarts by role, those of earlier sessions included.
        records: the run's files, which are written beside the loop.
        rescue: function that saves a model in the learner's place, if that is needed, and returns
            its learner steps; None if it saved nothing.
        seen: what watchers are shown; None before there is anything.
        state: what this session resumes from; its counts are updated whenever it is written.
    """

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        run_dir: RunDirectory,
        console: Console,
        interrupts: Interrupts,
        state: RunState | None = None,
        *,
        insecure: bool = False,
    ) -> None:
        self.config = config
        self.spec, self.run_dir = spec, run_dir
        self.interrupts = interrupts
        self.seen: Seen | None = None
        self.rescue: Callable[[], int | None] = lambda: None
        self.state = RunState() if state is None else state
        self.state.circle_placement = spec.circle_placement
        self.metrics = RunMetrics(spec.headline_metric)
        self._goal = Goal(config.run.stop_at, spec.headline_metric)
        if self.state.metrics:
            self.metrics.set_state(self.state.metrics)
        self._steps_before = self.metrics.learner_steps()
        self.console = console
        self.controls: Mapping[str, Callable[[], object]] = {}
        self.stage, self.waiting_for, self.insecure = "starting", "", insecure
        self.failure: str | None = None
        self.restarts = self.state.restarts
        self._first_error: str | None = None
        self._shown_once, self._traced = set(_SHOWN_ONCE), False
        self._not_saved: dict[str, str] = {}  # the last such note of each role
        self.records = Records(run_dir, config, make_sinks(config, run_dir.path, self.say))
        self.state.sessions += 1
        self._session_started = self._waits = time.monotonic()
        self._started = self._session_started - self.state.elapsed_seconds
        event = self.records.event
        self._first_steps = FirstSteps(
            self.metrics,
            lambda name: event("first_step", text=name, seconds=round(self.session_seconds, 3)),
        )
        self._next_tick = self._next_line = self._next_console = self._next_watched = 0.0
        self._messages: deque[tuple[float, str]] = deque(maxlen=_MOST_MESSAGES)
        self._said, self._evaluation_note = 0, ""

    @property
    def elapsed_seconds(self) -> float:
        """The time since the run was started, without the time between its sessions."""
        return time.monotonic() - self._started

    @property
    def session_seconds(self) -> float:
        """The time since this session was started."""
        return time.monotonic() - self._session_started

    def say(self, text: str) -> None:
        """Show a line to the person, and to watchers."""
        self.console.message(text)
        self._said += 1
        self._messages.append((self.elapsed_seconds, text[:_MOST_CHARACTERS]))

    def note_error(self, text: str, trace: str = "") -> None:
        """Remember and show the first error, and the first that has a traceback.

        Later ones are in events and logs.

        Args:
            text: one line.
            trace: the traceback, if it is known.
        """
        if self._first_error is not None and (not trace or self._traced):
            return
        self._first_error = self._first_error or text
        self._traced = self._traced or bool(trace)
        for line in (*trace.splitlines(), text):
            self.say(line)

    def note(self, kind: str, role: str, index: int, text: str) -> None:
        """Record a role's note, and show it if a person should see it."""
        self.records.event(kind, role=role, index=index, text=text)
        if kind == "evaluation":
            self._evaluation_note = text
        if NOT_SAVED in text:
            self._not_saved[role] = text
        if kind in _SHOWN_NOTES or kind in self._shown_once:
            self._shown_once.discard(kind)
            more = "" if len(text) <= _MOST_SHOWN else "... (events.jsonl has the rest)"
            self.say(f"{role} {index}: {text[:_MOST_SHOWN]}{more}")

    def obey_keys(self) -> None:
        """Do what a person asks for by pressing keys."""
        for key in self.console.pressed():
            if key == "q":
                self.interrupts.count = max(1, self.interrupts.count)
            elif key in self.controls and self.stage in ("running", "paused"):
                self.controls[key]()

    def take(self, controls: Controls) -> None:
        """Let a person's keys change the run through these controls."""
        self.controls = keys_of(controls, self.pause, self.say) | {"finish": self._goal.finish}

    def start(self, end_now: Callable[[], None]) -> None:
        """Begin to show the run.

        Args:
            end_now: called when a person does not want to wait for the end in order.
        """
        self.records.event("started", mode=self.config.run.mode, pid=os.getpid())
        self.console.start()
        self.interrupts.on_second = end_now

    def enter(self, stage: str) -> None:
        """Enter the next stage, in which the run waits for nothing."""
        self.stage, self.waiting_for = stage, ""
        if stage == "running":
            self.metrics.expect_steps(time.monotonic())

    def wait_for(self, text: str) -> None:
        """Show what the run waits for; empty when all is there."""
        if not self.waiting_for:
            self._waits = time.monotonic()
        self.waiting_for = text

    def fail(self, text: str) -> None:
        """End the run, which cannot go on; only the first reason is kept."""
        self.failure = self.failure or text

    @property
    def is_hurried(self) -> bool:
        """Return whether a person has asked for the end."""
        return self.interrupts.count > 0

    def pause(self) -> bool:
        """Pause, or go on; return whether the run is paused now."""
        self.enter("running" if self.stage == "paused" else "paused")
        self.records.event(self.stage)
        self.say("actors are paused; the time goes on" if self.stage == "paused" else "goes on")
        return self.stage == "paused"

    def end_reason(self) -> str:
        """Return why the run is to end now; empty while it is not."""
        if self.is_hurried:
            return "interrupted"
        if self.failure:
            return "failed"
        trained = self._trained_seconds()
        return limit_reached(self.config.run, self.metrics.counts(), trained) or self._goal.reason

    def tick(self) -> bool:
        """Mark the present in the figures, once a second; return whether it was time to."""
        now = time.monotonic()
        if now < self._next_tick:
            return False
        self._next_tick = now + _TICK_SECONDS
        self.metrics.tick(now)
        self._goal.look(self.metrics)
        return True

    def record(self) -> None:
        """Write whatever is due: lines, state and pictures."""
        self.records.tend()
        self._hear_records()
        self._write_evaluations()
        self._first_steps.look()
        now = time.monotonic()
        if now >= self._next_line and self.metrics.moves:
            self._next_line = now + self.config.system.metrics_seconds
            self._write_line()
            self.save_state()

    def _hear_records(self) -> None:
        """Show what cannot be written, and end a run that another has replaced."""
        for line in self.records.news():
            self.say(line)
        if self.run_dir.taken:
            self.fail(self.run_dir.taken)

    def _write_evaluations(self) -> None:
        for evaluation in self.metrics.take_evaluations():
            self.records.line(self.metrics.evaluation_line(evaluation, self.elapsed_seconds))
        self.records.episodes(self.metrics, self.elapsed_seconds)

    def save_state(self) -> None:
        """Write the state from which a later session resumes, beside the loop."""
        state = self.state
        state.elapsed_seconds = self.elapsed_seconds
        state.first_error = state.first_error or self._first_error
        state.metrics = self.metrics.get_state()
        write = state.writing()
        self.records.replace(STATE_FILE, lambda: write(self.run_dir.path))

    def show(self, members: Callable[[], Roster]) -> None:
        """Show the run as it is, when that is due: here, and to those who watch.

        Args:
            members: asked only when something is shown.
        """
        now = time.monotonic()
        if now < self._next_console:
            return
        self._next_console = now + _CONSOLE_SECONDS
        snapshot = self.snapshot(members())
        self.console.update(snapshot)
        if now >= self._next_watched:
            self._next_watched = now + _TICK_SECONDS
            self._publish(snapshot)

    def _publish(self, snapshot: Snapshot) -> None:
        """Give watchers the snapshot, the newest messages, and how many there have been."""
        seen = self.seen = Seen(snapshot, self._said, tuple(self._messages))
        self.records.replace(SNAPSHOT, lambda: self.run_dir.write_snapshot(seen.to_map()))

    def conclude(self, reason: str, members: Roster) -> int:
        """Write the last figures, the summary and the picture; the exit code."""
        self._write_evaluations()
        self._write_line()
        # A run may stop at once, and then wait for its disk.
        self.console.update(self.snapshot(members))
        if reason != "interrupted" and not any(self.metrics.counts().values()):
            self.fail("nothing was learned: no environment took a step")
        answers = self._settle(reason)
        self.enter("done")
        last = self.snapshot(members)
        self.console.update(last)
        self.save_state()
        summary = self._summary(reason)
        self.records.finish(summary, reason)
        self._publish(last)
        self.records.close()
        if answers and not self._await_records():
            self.fail(self.records.lack())
        self.console.stop()
        if why := self.records.unwritten.reason(SUMMARY):
            self.fail(f"{SUMMARY} is not written: {why}")
        # As written, and what could not be written since.
        summary |= {"error": self._error(), "unwritten": self.records.lines()}
        self.console.finish(summary, self._error())
        return 1 if self.failure else 0

    def _settle(self, reason: str) -> bool:
        """Wait for the disk, and fail a run whose files lack what it learned.

        Returns:
            whether the disk answers.
        """
        steps = self.metrics.learner_steps()
        learned = reason not in ("interrupted", "failed") or steps != self._steps_before
        lacks = self.records.find_unsaved(steps, self._not_saved, self.rescue) if learned else []
        answers = self._await_records()
        lack = "".join(lacks)
        if not answers:
            lack = self.records.lack()
            if learned:
                lack += "; nothing tells whether what was learned is saved"
        if lack:
            self.failure = f"{self.failure}; {lack}" if self.failure else lack
        return answers

    def _await_records(self) -> bool:
        """Wait until everything is written; return False if the disk does not answer."""
        before = self.interrupts.count

        def turn() -> None:
            self._hear_records()
            self.obey_keys()

        return self.records.settle(turn, lambda: self.interrupts.count > before)

    def snapshot(self, members: Roster) -> Snapshot:
        """Return the run at this moment."""
        metrics, run, replay = self.metrics, self.config.run, self.config.replay
        figures = metrics.current() | {"replay/capacity": resolved(replay.capacity)}
        # What the limiter aims at is known before replay has reported it.
        target = figures["replay/samples_per_insert_target"] or resolved(replay.samples_per_insert)
        figures["replay/samples_per_insert_target"] = target
        done, remaining = progress(run, metrics.counts(), self._trained_seconds())
        waiting = self.waiting_for and f"{self.waiting_for}, {time.monotonic() - self._waits:.0f} s"
        return Snapshot(
            run_dir=self.run_dir.shown,
            env=self.spec.id,
            mode=run.mode,
            seed=run.seed,
            stage=self.stage,
            waiting_for=waiting,
            insecure=self.insecure,
            elapsed_seconds=self.elapsed_seconds,
            progress=done,
            remaining_seconds=remaining,
            headline=self.spec.headline_metric,
            figures=figures,
            replay_waits=replay_waits(figures, resolved(replay.min_size)),
            bottleneck="" if waiting else bottleneck(figures),
            evaluation=metrics.evaluation_view(),
            members=members.members,
            groups=members.groups,
            restarts=sum(self.restarts.values()),
            rejected=metrics.rejected(),
            first_error=self._first_error and self._first_error[:_MOST_CHARACTERS],
            history=metrics.history(),
            expectation=time_left(self.config, self.spec, figures, metrics.evaluation)
            if self.stage == "running"
            else "",
        )

    def _trained_seconds(self) -> float:
        return self.metrics.seconds_since_first_step(time.monotonic())

    def _write_line(self) -> None:
        capacity = resolved(self.config.replay.capacity)
        self.records.line(self.metrics.line(self.elapsed_seconds, capacity))

    def _summary(self, reason: str) -> dict[str, Any]:
        measured = self.metrics.summary()
        measured["environment"] = {"id": self.spec.id, **measured["environment"]}
        return {
            "exit_reason": reason,
            "wall_seconds": self.elapsed_seconds,
            **measured,
            "actors": resolved(self.config.actor.count),
            "mode": self.config.run.mode,
            "preset": self.state.preset,
            "insecure": self.insecure,
            "seed": self.config.run.seed,
            "restarts": {role: self.restarts.get(role, 0) for role in _ROLES},
            "sessions": self.state.sessions,
            "error": self._error(),
            "warning": shortcoming(self.config, self.metrics, reason, self._evaluation_note),
            "unwritten": self.records.lines(),
            "first_error": self.state.first_error or self._first_error,
            "run_dir": self.run_dir.shown,
        }

    def _error(self) -> str | None:
        return with_first(self.failure, self._first_error)


def with_first(failure: str | None, first_error: str | None) -> str | None:
    """Add the first error to the reason why a run failed, unless it is in it."""
    if failure is None or first_error is None or first_error in failure:
        return failure
    return f"{failure}; first error: {first_error}"
