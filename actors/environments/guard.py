"""A guard that rebuilds an environment that raises, and marks its broken episode.

gymnasium's vector environments know only ended episodes. A guarded environment therefore ends a
broken one as truncated, with a mark in its info. ``VectorEnvironment`` removes the mark again.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from actors.environments.infos import (
    FAILED,
    METRICS,
    METRICS_DROPPED,
    SUGGESTED,
    no_number,
    own_metrics,
)
from actors.environments.interface import is_number, number, shown
from actors.environments.states import set_state, state_of
from pdqn import seeds
from pdqn.errors import Interrupted, RunError

_FIRST_BACKOFF_SECONDS, _LARGEST_BACKOFF_SECONDS = 0.1, 2.0
_MOST_TRACEBACK_CHARACTERS = 4000
_log = logging.getLogger("environment")
# Environments may raise anything. Games end the process when their window is closed, and some
# libraries' timeouts are not an Exception. Only a person's interrupt is never an environment's.
RAISED = BaseException
_CLOSE_SECONDS = 10.0
_LATE = signal.SIGUSR2


class EnvironmentFailedError(RunError):
    """The end of an environment that raised again and again; the first traceback follows."""


class FailureRecord:
    """Failures of an environment, with a limit. Pure.

    Attributes:
        total: number of failures ever.
    """

    def __init__(self, allowed: int) -> None:
        """Allow ``allowed`` failures in a row; a finished episode begins a new row."""
        self._allowed = allowed
        self._in_a_row = 0
        self._first = ""
        self.total = 0

    def failed(self, trace: str) -> float:
        """Count a failure; return the seconds to wait before the environment is rebuilt.

        Raises:
            EnvironmentFailedError: this failure exceeds the limit.
        """
        self._first = self._first if self._in_a_row else trace
        self._in_a_row += 1
        self.total += 1
        if self._in_a_row > self._allowed:
            times = f"{self._in_a_row} times in a row" if self._in_a_row > 1 else "once"
            first = self._first[-_MOST_TRACEBACK_CHARACTERS:]
            cause = first.strip().rpartition("\n")[2]
            raise EnvironmentFailedError(f"an environment failed {times}: {cause}\n{first}")
        wait = _FIRST_BACKOFF_SECONDS * 2 ** (self._in_a_row - 1)
        return min(_LARGEST_BACKOFF_SECONDS, wait)

    def finished(self) -> None:
        """Begin a new row, because an episode has ended properly."""
        self._in_a_row = 0

    def get_state(self) -> dict[str, Any]:
        """Return the failures so far as plain data."""
        return {"in_a_row": self._in_a_row, "first": self._first, "total": self.total}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state``."""
        self._in_a_row, self._first = int(state["in_a_row"]), str(state["first"])
        self.total = int(state["total"])


class Backoff:
    """Waits before environments of a batch are rebuilt; those that fail together wait together.

    Args:
        pause: function that waits for a number of seconds; by default it sleeps.
    """

    def __init__(self, pause: Callable[[float], None] | None = None) -> None:
        self._pause = pause
        self._failures: Counter[FailureRecord] = Counter()
        self._waited_seconds: list[float] = []

    def begin_step(self) -> None:
        """Forget earlier waits: a new step, or reset, of all environments begins."""
        self._failures.clear()
        self._waited_seconds.clear()

    def wait(self, record: FailureRecord, trace: str) -> None:
        """Count a failure, and wait before the environment is rebuilt.

        The wait is shorter by the time that others of the batch with as many failures in this step
        have already waited.

        Raises:
            EnvironmentFailedError: this failure exceeds the limit.
        """
        seconds = record.failed(trace)
        turn = self._failures[record]
        self._failures[record] += 1
        if turn == len(self._waited_seconds):
            self._waited_seconds.append(0.0)
        left = seconds - self._waited_seconds[turn]
        if left > 0:
            (self._pause or time.sleep)(left)
            self._waited_seconds[turn] = seconds


class CloseTimeout(BaseException):
    """The end of a call of ``close`` that took too long."""


def close_quietly(env: Any, seconds: float = _CLOSE_SECONDS) -> None:
    """Close an environment: it may hold a port or a process that its successor needs.

    An error goes to the log. So does a call that takes too long, as far as Python can end it.
    """
    try:
        _call_within(seconds, env.close)
    except Interrupted:
        raise
    except RAISED:
        _log.exception("an environment could not be closed")


def _call_within(seconds: float, call: Callable[[], object]) -> None:
    """Call a function, and raise ``CloseTimeout`` in it after a time, if this is the main thread.

    Another thread could not call it: some libraries close only in the thread that opened.
    """
    if threading.current_thread() is not threading.main_thread():
        call()
        return
    is_over = False

    def late(_number: int, _frame: object) -> None:
        if not is_over:
            raise CloseTimeout(f"not closed within {seconds:g} s")

    before = signal.signal(_LATE, late)
    timer = threading.Timer(seconds, signal.pthread_kill, (threading.get_ident(), _LATE))
    timer.daemon = True
    timer.start()
    try:
        call()
    finally:
        is_over = True
        timer.cancel()
        timer.join()
        signal.signal(_LATE, signal.SIG_DFL if before is None else before)


class GuardedEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment that catches the errors of another, and rebuilds it before its next episode.

    Args:
        make: function that makes the environment.
        allowed: largest number of failures in a row.
        backoff: waits, shared by a batch.
        check: function of an observation and of whether it is an episode's last. It raises if no
            policy could act on the observation or learn from it.
        headline: key of the info that must hold a number, if it holds anything; None for no key.
            Of all other keys only the suggestion is kept, and the metrics of an episode's end. A
            batch cannot hold values whose shape or type differs between environments.
        rests: whether it rests after an episode. It then shows the episode's first observation
            until it is reset with a seed.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        allowed: int,
        backoff: Backoff,
        check: Callable[[Any, bool], None],
        headline: str | None,
        *,
        rests: bool,
    ) -> None:
        super().__init__(make())
        self._make = make
        self._backoff = backoff
        self._check = check
        self._headline = headline
        self._keys = (SUGGESTED,) if headline is None else (SUGGESTED, headline)
        self.odd_suggestion = ""  # the first that is not a number
        self.metadata = {}  # a batch copies it, and an environment may have anything in its place
        self._rests = rests
        self._resting = False
        self.record = FailureRecord(allowed)
        self._broken = self._closed = False
        self._seed: int | None = None
        self._first: Any = None
        self._last: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, with a new environment if the last one is broken."""
        self._resting = self._rests and seed is None
        if self._resting:
            return self._first, {}
        self._seed = self._seed if seed is None else seed
        goes_on = seed is None  # with an environment whose seed would fail again
        while True:
            try:
                if self._broken:
                    close_quietly(self.env)
                    self.env, self._broken = self._make(), False
                    if goes_on:
                        seed = None if self._seed is None else self._next_seed(self._seed)
                    _log.info("an environment was built anew; its seed is %s", seed)
                self._last, info = self.env.reset(seed=seed, options=options)
                self._check(self._last, False)
                told = self._read(info)
            except Interrupted:
                raise
            except RAISED:
                _log.exception("an environment failed in reset")
                goes_on = True
                self._note_failure()
            else:
                self._first = self._last
                return self._last, told

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; if that raises, truncate the episode and mark its info with ``FAILED``."""
        if self._resting:
            return self._first, 0.0, False, False, {}
        try:
            self._last, reward, terminated, truncated, info = self.env.step(action)
            if not terminated:
                self._check(self._last, truncated)
            told: dict[str, Any] = self._read(info)
            if (terminated or truncated) and (given := info.get(METRICS)) is not None:
                told[METRICS], told[METRICS_DROPPED] = own_metrics(given)
        except Interrupted:
            raise
        except RAISED:
            _log.exception("an environment failed in step")
            self._note_failure()
            return self._last, 0.0, False, True, {FAILED: True}
        if terminated or truncated:
            self.record.finished()
        return self._last, reward, terminated, truncated, told

    @property
    def last(self) -> Any:
        """The newest observation."""
        return self._last

    def get_state(self) -> dict[str, Any]:
        """Return the environment's state and what decides how it is rebuilt, as plain data.

        Raises:
            StateError: the environment cannot be saved.
        """
        inner, record = state_of(self.env), self.record.get_state()
        return {"inner": inner, "last": self._last, "seed": self._seed, "record": record}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from ``get_state``, after a reset.

        Raises:
            StateError: the environment cannot.
        """
        set_state(self.env, state["inner"])
        self._last, self._seed = state["last"], state["seed"]
        self.record.set_state(state["record"])

    def give_up(self, reason: str) -> None:
        """Count a failure that shows only over many steps; the next reset rebuilds.

        Raises:
            EnvironmentFailedError: this failure exceeds the limit.
        """
        _log.warning("an environment failed: %s", reason)
        self._broken = True
        self._backoff.wait(self.record, reason)

    @property
    def render_mode(self) -> None:
        """Return None: nobody looks at a batch, and an environment may have anything here."""
        return

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Close the environment once, within these seconds; errors go to the log."""
        if not self._closed:
            self._closed = True
            close_quietly(self.env, seconds)

    def _read(self, info: Mapping[str, Any]) -> dict[str, float]:
        """Convert the values read to one type: a batch would round all to the type of the first."""
        told = {}
        for key in self._keys:
            value = info.get(key)
            if value is None:
                continue
            if is_number(value):
                told[key] = number(value)
            elif key == self._headline:
                raise no_number(key, shown(value))
            else:  # nobody may have asked for suggestions
                self.odd_suggestion = self.odd_suggestion or shown(value)
        return told

    def _note_failure(self) -> None:
        self._broken = True
        self._backoff.wait(self.record, traceback.format_exc())

    def _next_seed(self, seed: int) -> int:
        """Derive another seed: the same episode would fail in the same way."""
        return seeds.rebuilt_seed(seed, self.record.total)
