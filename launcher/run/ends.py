"""Roles that end, fall silent or vanish while a run goes on, some of which it cannot do without."""

from __future__ import annotations

import time

from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.membership import Event
from launcher.hosts.supervisor import Ended, Supervisor
from launcher.numbers import plural
from launcher.run.session import Session
from pdqn.heartbeat import MAKES_ENVIRONMENTS, longest_making_seconds

_STANDSTILL_SECONDS = 300.0
_MOST_SHOWN = 8
# A busy machine makes a role silent for longer; one that hangs again must not hang for hours.
_LONGEST_SILENCE_SECONDS = 600.0


class Ends:
    """The record of how roles end, which ends the run if it cannot go on without them.

    Args:
        session: the run's.
        coordinator: knows which roles have joined.
        supervisor: of the processes on this host.
    """

    def __init__(self, session: Session, coordinator: Coordinator, supervisor: Supervisor) -> None:
        self._session, self._config = session, session.config
        self._coordinator, self._supervisor = coordinator, supervisor
        self._dead_actors: set[int] = set()
        self._absent, self._said_absent = "", ""
        self._allowed_silence: dict[tuple[str, int], float] = {}  # where it is not the setting's

    def take(self, event: Event) -> None:
        """Record what a role reports, or the coordinator reports about it."""
        self._session.note(event.kind, event.role, event.index, event.text)
        if event.role == "host" and event.kind in ("joined", "left") and not event.error:
            self._session.say(f"host {event.index} has {event.kind}: {event.text}".rstrip(": "))
        if event.error and event.role == "host":
            # Such as a host that refuses the run: a person has to see each of them.
            self._session.say(f"host {event.index}: {event.text}")
        elif event.error:
            log = self._see_log(event.role, event.index)
            self._session.note_error(f"{event.role} {event.index}: {event.text}{log}", event.trace)

    def handle(self, ended: Ended) -> None:
        """Record that a process of this host has ended, and whether it comes back."""
        name = f"{ended.role} {ended.index}"
        session = self._session
        session.note_error(f"{name}: {ended.cause}{self._see_log(ended.role, ended.index)}")
        session.records.event(
            "ended", role=ended.role, index=ended.index, pid=ended.pid, cause=ended.cause
        )
        if ended.restart_seconds is not None:
            wait = f"{ended.restart_seconds:g} s"
            session.say(f"{name} ended ({ended.cause}); starts again in {wait}")
            return
        session.say(f"{name} ended ({ended.cause}) too often and is given up")
        if ended.role == "actor":
            self._dead_actors.add(ended.index)
            self._coordinator.membership.give_up(ended.index)
            if self._has_no_actor():
                session.fail("no actor can be kept alive")
        elif ended.role == "learner" or (ended.role == "replay" and not self._has_replay()):
            session.fail(f"{name} cannot be kept alive")

    def look(self) -> None:
        """Notice hosts and roles that have fallen silent, and a run that stands still."""
        self._lose_hosts()
        self._end_silent()
        self._notice_absence()
        self._notice_standstill()

    def absent(self) -> list[str]:
        """List the roles that the run has none of, and cannot go on without."""
        count = self._coordinator.membership.count
        return [role for role in ("replay", "learner", "actor") if not count(role)]

    def _has_no_actor(self) -> bool:
        """Return whether all actors of this host are given up, and there are none elsewhere."""
        all_dead = len(self._dead_actors) == self._config.actor.count
        return all_dead and not self._coordinator.membership.count("actor")

    def _has_replay(self) -> bool:
        """Return whether a replay is there or will be: one is enough for the run to go on."""
        return self._coordinator.membership.count("replay") > 0 or any(
            role == "replay" and state != "dead"
            for (role, _), state in self._supervisor.slots().items()
        )

    def _see_log(self, role: str, index: int) -> str:
        """Point to the role's log, if it is on this host."""
        if (role, index) not in self._supervisor.slots():
            return ""
        log = self._session.run_dir.log_path(role, index)
        return f" (see {self._session.run_dir.named(log)})"

    def _lose_hosts(self) -> None:
        """Notice hosts that have vanished; they may come back, and their roles with them."""
        limit = self._config.system.host_timeout_seconds
        for host in self._coordinator.membership.silent_hosts(limit):
            name = self._coordinator.host_of(host)
            roles = self._coordinator.lose_host(host.agent)
            self._session.records.event("vanished", role="host", index=host.key.index, roles=roles)
            lost = f"not heard for {limit:g} s, is gone with {plural(roles, 'role')}"
            self._session.say(f"host {name}: {lost}")

    def _end_silent(self) -> None:
        """End the processes of roles that hang; a successor may be silent for twice as long."""
        setting = self._config.system.heartbeat_timeout_seconds
        membership = self._coordinator.membership
        for member in membership.silent(setting):
            key = member.key
            place = key.role, key.index
            limit = self._allowed_silence.get(place, setting)
            if member.activity == MAKES_ENVIRONMENTS:
                limit = max(limit, longest_making_seconds(self._config))
            if membership.silent_seconds(member) <= limit:
                continue
            longer = max(limit, min(2 * limit, _LONGEST_SILENCE_SECONDS))
            self._allowed_silence[place] = longer
            self._session.records.event("silent", role=key.role, index=key.index, pid=member.pid)
            self._session.say(
                f"{key.role} {key.index}: not heard for {limit:g} s "
                f"(system.heartbeat_timeout_seconds), is ended{self._see_log(*place)}; "
                f"its successor has {longer:g} s"
            )
            self._coordinator.lost(key.role, key.index)
            if member.agent:
                self._coordinator.membership.condemn(member)
            else:
                self._supervisor.kill(key.role, key.index, hung_seconds=limit)

    def _notice_absence(self) -> None:
        """Tell that a role is gone without which nothing goes on, unless it is back at once."""
        goes_on = self._session.stage in ("running", "paused")
        before, self._absent = self._absent, " and no ".join(self.absent()) if goes_on else ""
        if self._absent != before or self._absent == self._said_absent:
            return
        self._said_absent = self._absent
        kind, text = ("absent", self._absent) if self._absent else ("complete", "all roles")
        self._session.records.event(kind, text=text)
        self._session.say(
            f"the run stands still: no {self._absent} is in it; it goes on when one joins"
            if self._absent
            else "the run goes on: all roles are there again"
        )

    def _notice_standstill(self) -> None:
        """End a run without an environment step for minutes, and say what each role waits for."""
        still = self._session.metrics.seconds_without_steps(time.monotonic())
        if self._session.stage != "running" or still <= _STANDSTILL_SECONDS:
            return
        doing = sorted(
            f"{m.key.role} {m.key.index}: {m.activity or 'working'}"
            for m in self._coordinator.membership.members()
        )
        self._session.fail(
            f"no environment step for {still:.0f} s ({'; '.join(doing[:_MOST_SHOWN])})"
        )
