"""The end of a run of many processes: in order, and in a bounded time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher.coordinator.coordinator import Coordinator
from launcher.hosts.supervisor import Supervisor
from launcher.run.session import Session
from pdqn.heartbeat import WAITS_FOR_DISK


@dataclass(frozen=True)
class StopBudget:
    """The longest times that each part of stopping may take, in seconds."""

    actors: float
    drain: float
    learner: float
    evaluator: float
    last: float


PATIENT = StopBudget(actors=10.0, drain=5.0, learner=15.0, evaluator=60.0, last=2.0)
# After Ctrl-C, all of it and the plot after it must take less than ten seconds. Only a file that a
# learner is writing, or sending from another host, may take longer.
HURRIED = StopBudget(actors=2.5, drain=1.0, learner=2.5, evaluator=0.0, last=0.5)
_FILES_SECONDS = 300.0
# For a replay that is started again, and reads its journal.
_REPLAY_SECONDS = 10.0
_HURRY_SECONDS = 1.0
_TURN_SECONDS = 0.02


class Deadline:
    """The time at which a wait ends, and a later one for what is worth waiting for. Pure.

    Args:
        now: a clock's time, in seconds.
        seconds: to wait.
        is_hurried: a person has already asked to hurry.
    """

    def __init__(self, now: float, seconds: float, *, is_hurried: bool) -> None:
        self._end = now + seconds
        self._last = self._end + _FILES_SECONDS
        self._is_hurried = is_hurried

    def is_over(self, now: float, goes_on: Callable[[], bool]) -> bool:
        """Return whether it is time to give up waiting.

        Args:
            now: the same clock's time.
            goes_on: tells whether something is worth waiting for; called only when that counts.
        """
        return now >= self._end and not (now < self._last and goes_on())

    def hurry(self, now: float) -> None:
        """Shorten the wait: the person does not want to wait for the rest."""
        if not self._is_hurried:
            self._is_hurried = True
            self._end = min(self._end, now + _HURRY_SECONDS)


class Stopping:
    """The end of a run's roles, one after another.

    Args:
        session: the run's.
        coordinator: tells the roles to end.
        supervisor: of the roles' processes on this host.
        turn: does a run's constant work for the given number of seconds.
    """

    def __init__(
        self,
        session: Session,
        coordinator: Coordinator,
        supervisor: Supervisor,
        turn: Callable[[float], None],
    ) -> None:
        self._session, self._coordinator = session, coordinator
        self._supervisor, self._turn = supervisor, turn
        self._began = 0.0

    def stop(self) -> None:
        """Let actors flush, replay take what is under way, the learner save, and all leave."""
        session, coordinator = self._session, self._coordinator
        budget = HURRIED if session.is_hurried or session.failure else PATIENT
        # A replay that is lost now still holds what only its journal knows of.
        self._supervisor.stop_restarting(but="replay")
        self._began = time.monotonic()
        coordinator.command(["host"], "drain")
        coordinator.command(["actor"], "stop")
        coordinator.command(["replay"], "drain")
        self._wait(
            lambda: not coordinator.membership.count("actor"), budget.actors, self._waits_for_replay
        )
        self._wait(lambda: not session.metrics.in_flight(), budget.drain, self._waits_for_replay)
        self._supervisor.stop_restarting()
        coordinator.command(["learner"], "stop")
        self._wait(
            lambda: not coordinator.membership.count("learner"), budget.learner, self._is_saving
        )
        if coordinator.membership.count("learner"):
            session.say("learner 0 has not left in time, and is ended")
        coordinator.command(["replay"], "stop")
        coordinator.finish(session.metrics.learner_steps())
        seconds = 0.0 if session.is_hurried else budget.evaluator
        self._wait(lambda: not coordinator.membership.count("evaluator"), seconds)
        coordinator.command(["evaluator"], "stop")
        coordinator.command(["host"], "stop")
        self._wait(
            lambda: not self._supervisor.alive() and not coordinator.membership.count("host"),
            budget.last,
        )
        session.metrics.ledger.close()

    def _waits_for_replay(self) -> bool:
        """Return whether a replay starts, for some seconds, or its disk hangs."""
        late = time.monotonic() - self._began > _REPLAY_SECONDS
        if self._supervisor.awaits("replay") and not late:
            return True
        replays = self._coordinator.membership.members("replay")
        return any(replay.activity == WAITS_FOR_DISK for replay in replays)

    def _is_saving(self) -> bool:
        """Return whether the learner writes its last checkpoint, or sends it from another host."""
        return self._coordinator.membership.is_saving() or self._coordinator.receives_file(
            "learner"
        )

    def _wait(
        self,
        done: Callable[[], bool],
        seconds: float,
        goes_on: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until it is done or the time is up; ``goes_on`` prolongs that, up to a bound."""
        deadline = Deadline(time.monotonic(), seconds, is_hurried=self._session.is_hurried)
        while not done() and not deadline.is_over(time.monotonic(), goes_on):
            self._turn(_TURN_SECONDS)
            if self._session.is_hurried:
                deadline.hurry(time.monotonic())
