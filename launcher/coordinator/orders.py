"""The orders to the members of a run, which pulses carry. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set

from launcher.coordinator.budget import Budgets
from launcher.coordinator.places import Member, Places
from launcher.metrics.limits import progress
from launcher.metrics.metrics import MemberKey, RunMetrics
from pdqn.clients import Clients
from pdqn.config import Config
from pdqn.messages import ROLES, Pulse
from pdqn.schedules import falls_with_run

_BINDING = ("replay", "learner")


class Orders:
    """The present orders, and the pulses that carry them.

    Args:
        config: the run's.
        places: its members.
        metrics: knows what actors have done towards the run's limits.

    Attributes:
        revoked: public keys that were let in, and are no longer.
        clients: those that are let in, by public key.
        samples_per_insert: what every replay is to aim at; None for what is configured.
    """

    def __init__(self, config: Config, places: Places, metrics: RunMetrics) -> None:
        self._places, self._metrics = places, metrics
        self._commands: dict[str, str] = dict.fromkeys(ROLES, "run")
        self._commands |= {"actor": "hold", "evaluator": "hold"}
        self.clients: Clients = {}
        self.revoked: Set[str] = frozenset()
        self._condemned: defaultdict[str, set[int]] = defaultdict(set)
        self._counts: dict[str, int] = {}
        self._final_version, self._saves = 0, 0
        self.samples_per_insert: float | None = None
        limits = {"episodes": config.run.episodes, "environment_steps": config.run.steps}
        self._limited = tuple(name for name, limit in limits.items() if limit is not None)
        self._run = config.run
        self._follows_progress = falls_with_run(config.learner)
        self._budgets = Budgets(limits, config.actor.envs_per_actor or 1)
        # The number of changes: a member's pulse is made again only after one.
        self._state = 0

    def change(self) -> None:
        """Note that pulses say something else from now on."""
        self._state += 1

    def command_of(self, role: str) -> str:
        """Return what a role is to do."""
        return self._commands[role]

    def command(self, roles: Iterable[str], command: str) -> None:
        """Set what roles are to do."""
        for role in roles:
            self._commands[role] = command
        self.change()

    def finish(self, final_version: int) -> None:
        """Set the version of the parameters that the evaluator evaluates last."""
        self._final_version = final_version
        self.command(["evaluator"], "finish")

    def save(self) -> None:
        """Ask the learner to save at once."""
        self._saves += 1
        self.change()

    def aim_at(self, samples_per_insert: float) -> None:
        """Set what every replay aims at."""
        self.samples_per_insert = samples_per_insert
        self.change()

    def allow(self, clients: Clients) -> bool:
        """Set who is admitted, by public key; return whether that is a change."""
        if clients == self.clients:
            return False
        self.revoked = (self.revoked | set(self.clients)) - set(clients)
        self.clients = dict(clients)
        self.change()
        return True

    def unauthorized(self, role: str, user: str) -> str:
        """Find why a key may not take a role; empty if it may, or if nothing is encrypted."""
        if not self.clients:
            return ""
        client = self.clients.get(user)
        if client is None:
            return "its key was revoked"
        if client.may_join_as(role):
            return ""
        if role == "host":
            return (
                f"its key, {client.name}, may only watch; 'pdqn keys DIR {client.name}:actor' helps"
            )
        return f"its key, {client.described}, is not for the role {role}"

    def resize(self, agent: str, count: int) -> bool:
        """Set how many actors a host has, at least one; return whether that is a change."""
        if self._counts.get(agent) == count:
            return False
        self._counts[agent] = count
        self.change()
        return True

    def condemn(self, agent: str, pid: int) -> None:
        """Have a host end one of its processes, which hangs."""
        self._condemned[agent].add(pid)
        self.change()

    def acquit(self, agent: str, pids: Set[int] | None = None) -> None:
        """Forget processes that have ended, or all of a host's; change nothing without any."""
        condemned = self._condemned.pop(agent, set())
        left = set() if pids is None else condemned - pids
        if left:
            self._condemned[agent] = left
        if left != condemned:
            self.change()

    def forget(self, key: MemberKey) -> None:
        """Leave to the others what a member that is gone has not done."""
        self._budgets.forget(key)

    def pulse(self, member: Member, now: float) -> Pulse:
        """Make the pulse of a member, or give its last one again if nothing has changed.

        Args:
            member: the member.
            now: the present time of the metrics' clock, in seconds.
        """
        key = member.key
        limited = bool(self._limited) and key.role == "actor"
        follows = self._follows_progress and key.role == "learner"
        if member.pulse is None or member.pulse_state != self._state or limited or follows:
            member.pulse_state = self._state
            allowed = self._allowed(key) if limited else {}
            member.pulse = self._make(member, allowed, self._progress(now) if follows else 0.0)
        return member.pulse

    def _progress(self, now: float) -> float:
        metrics = self._metrics
        share, _ = progress(self._run, metrics.counts(), metrics.seconds_since_first_step(now))
        return share or 0.0

    def _make(self, member: Member, allowed: dict[str, int], progress: float) -> Pulse:
        role, agent = member.key.role, member.agent
        host = role == "host"
        return Pulse(
            command=self._commands[role],
            endpoints=self._places.served(),
            actor_slot=self._places.slot(member.key.index) if role == "actor" else 0,
            actor_slots=max(1, self._places.slots),
            final_version=self._final_version,
            samples_per_insert=self.samples_per_insert,
            saves=self._saves,
            allowed=allowed,
            clients=dict(self.clients) if role in _BINDING else {},
            revoked=frozenset(self.revoked),
            count=self._counts.get(agent, 0) if host else 0,
            condemned=tuple(sorted(self._condemned.get(agent, ()))) if host else (),
            progress=progress,
        )

    def _allowed(self, key: MemberKey) -> dict[str, int]:
        """Return how far an actor may go towards each limit of the run."""
        counted = self._metrics.counted(key)
        done = {name: int(counted.get(name, 0)) for name in self._limited}
        if self._commands["actor"] == "hold":
            # No actor gets a part before all are there to share the rest.
            return self._budgets.note(key, done)
        totals = {name: int(self._metrics.total("actor", name)) for name in self._limited}
        return self._budgets.allow(key, done, totals)
