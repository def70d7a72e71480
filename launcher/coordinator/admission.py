"""Admission to the places of a run: who gets one, and who gets an earlier one back. Pure.

The name of a host's supervisor belongs to the key that used it first. A place belongs to the
process that held it last, and no other gets it back. That one gets it while the place is free, or
its old connection is silent. Otherwise a stranger could take the place of any member.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pdqn
from launcher.coordinator.orders import Orders
from launcher.coordinator.places import Member, Places
from launcher.metrics.allowance import Allowance
from pdqn.clients import name_of
from pdqn.config import Config
from pdqn.messages import ROLES, Join, Refuse, Rejoin

_SINGLE = ("learner", "evaluator")
# A connection counts as silent after this number of reports that did not come: one may be late.
_QUIET_REPORTS = 3
# Reports of a connection that broke may still arrive for a while, mixed with those of the new one.
# Only after this number of reports are they proof that its process is not the one that asks.
_PROOF_REPORTS = 10
# Members of one key: more than the actors of the largest machines.
_MOST_MEMBERS = 4096
# A key may fill all its places twice at once, and later join once in a second. Nothing is ever
# forgotten about a host. Hosts therefore join less often; but every actor may be alone on its own.
_JOINS_PER_SECOND, _HOSTS_PER_SECOND = 1.0, 1 / 20
_LEAST_HOSTS = 200
_MOST_AGENTS = 10_000

Place = tuple[str, int]
Answer = Literal["granted", "waits", "refused"]


@dataclass(frozen=True)
class _Holder:
    """The process that held a place last."""

    user: str
    agent: str
    host: str
    pid: int


class Admission:
    """The decisions on joins and rejoins.

    Args:
        run: id of the run.
        config: the run's.
        places: its members.
        orders: know which keys are admitted, and what roles are to do.
        incarnations: number of times that each (role, index) has joined, in all sessions.
        head: public key of the launcher; empty if nothing is encrypted. Its holder may do anything.
    """

    def __init__(
        self,
        run: str,
        config: Config,
        places: Places,
        orders: Orders,
        incarnations: Mapping[Place, int],
        head: str,
    ) -> None:
        self._run, self._head = run, head
        self._places, self._orders, self._incarnations = places, orders, incarnations
        self._shards = config.replay.shards
        self._period_seconds = config.system.telemetry_seconds
        actors = config.actor.count or 0
        # Of replays, a learner and an evaluator there are few.
        self._most_members = _MOST_MEMBERS + 2 * actors
        self._most_hosts = _LEAST_HOSTS + actors
        self._gone: set[str] = set()
        self._agents: defaultdict[str, dict[str, None]] = defaultdict(dict)  # by key, oldest first
        self._owners: dict[str, str] = {}  # keys, by agent
        self._joins: dict[tuple[str, bool], Allowance] = {}  # by key, apart for hosts
        self._holders: dict[Place, _Holder] = {}
        self._claims: dict[Place, tuple[bytes, float]] = {}  # connection, and time of its first

    # ---- joins ----

    def refusal(self, join: Join, user: str, now: float) -> Refuse | None:
        """Find why a process cannot join, in a sentence; None if it can.

        Args:
            join: its request.
            user: its public key; empty if nothing is encrypted.
            now: the present time.
        """
        role = join.role
        if role not in ROLES:
            return Refuse(f"there is no role {role!r:.40}; there are {', '.join(ROLES)}")
        if unauthorized := self._orders.unauthorized(role, user):
            return Refuse(unauthorized)
        if join.package != pdqn.__version__:
            return Refuse(f"it runs pdqn {join.package!r:.20}, the run {pdqn.__version__}")
        if self._orders.command_of(role) == "stop":
            return Refuse("the run is stopping")
        if foreign := self._of_agent(join, user):
            return Refuse(foreign)
        if full := self._full(role):
            return Refuse(full, taken=True)
        many = self._too_many(role, user, now)
        return Refuse(many) if many else None

    def _of_agent(self, join: Join, user: str) -> str:
        """Find why a process cannot join with the name of its host's supervisor."""
        if join.role == "host" and not join.agent:
            return "a host must say who it is"
        if not join.agent and user != self._head:
            return "only the launcher's own processes join without a host's supervisor"
        if self._owners.get(join.agent, user) != user:
            return "its host's name belongs to another key"
        if join.agent in self._gone:
            return "its host was given up, and others have taken its place"
        return ""

    def _full(self, role: str) -> str:
        """Find why a role that the run has only a few of cannot join."""
        there = len(self._places.all(role))
        if role in _SINGLE and there:
            return f"the run has {'an' if role == 'evaluator' else 'a'} {role} already"
        if role == "replay" and there >= self._shards:
            several = f"its {self._shards} replays" if self._shards > 1 else "a replay"
            return f"the run has {several} already"
        return ""

    def _too_many(self, role: str, user: str, now: float) -> str:
        """Find why a key cannot have one more member, or not now; count the join if it can."""
        if user == self._head:
            return ""
        name = name_of(self._orders.clients, user)
        if self._places.count_of(user) >= self._most_members:
            return f"its key, {name}, has {self._most_members} members already"
        is_host = role == "host"
        most = self._most_hosts if is_host else self._most_members
        rate = _HOSTS_PER_SECOND if is_host else _JOINS_PER_SECOND
        joins = self._joins.setdefault((user, is_host), Allowance(2 * most, rate))
        if (left := joins.left(now)) < 1:
            wait = (1 - left) / rate
            return f"its key, {name}, has joined too often; it may do so again in {wait:.0f} s"
        joins.use(1, now)
        return ""

    def wanted_index(self, join: Join) -> int | None:
        """Return the index that a process may choose for itself: only the launcher's own may."""
        return None if join.agent else join.index

    def note(self, member: Member) -> None:
        """Remember who holds a place from now on."""
        place = (member.key.role, member.key.index)
        self._claims.pop(place, None)
        self._holders[place] = _Holder(member.user, member.agent, member.host, member.pid)
        agents = self._agents[member.user]
        if not member.agent or member.agent in agents:
            return
        agents[member.agent] = None
        self._owners[member.agent] = member.user
        if member.user != self._head and len(agents) > _MOST_AGENTS:
            oldest = next(iter(agents))
            del agents[oldest], self._owners[oldest]

    def give_up(self, agent: str) -> None:
        """Admit none of a host's processes any more."""
        self._gone.add(agent)

    # ---- rejoins ----

    def answer(self, identity: bytes, rejoin: Rejoin, user: str, listened_seconds: float) -> Answer:
        """Decide whether a process gets its place back now, never, or perhaps when it asks again.

        Args:
            identity: of its connection.
            rejoin: its request.
            user: its public key; empty if nothing is encrypted.
            listened_seconds: the present time, by the coordinator's time of listening.
        """
        place = (rejoin.role, rejoin.index)
        if not self._held(rejoin, user) or self._orders.unauthorized(rejoin.role, user):
            return "refused"
        member = self._places.at(*place)
        quiet_seconds = _QUIET_REPORTS * self._period_seconds
        if (
            member is None
            or member.identity == identity
            or listened_seconds - member.heard > quiet_seconds
        ):
            return "granted"
        asking, since = self._claims.get(place, (b"", 0.0))
        if asking != identity:
            self._claims[place] = (identity, listened_seconds)
        elif member.heard > since + _PROOF_REPORTS * self._period_seconds:
            del self._claims[place]
            return "refused"
        return "waits"

    def _held(self, rejoin: Rejoin, user: str) -> bool:
        """Return whether a process was the last to hold the place that it asks for."""
        place = (rejoin.role, rejoin.index)
        asking = _Holder(user, rejoin.agent, rejoin.host, rejoin.pid)
        return (
            rejoin.run == self._run
            and rejoin.agent not in self._gone
            and self._incarnations.get(place, 0) - 1 == rejoin.incarnation
            and self._holders.get(place) == asking
        )
