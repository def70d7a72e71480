"""The membership of a run: who is there, who is gone, and who must hear what. Pure.

Messages and losses are its events. It answers with instructions, which the coordinator carries out
in order. Like ``distributed``'s worker state machine, it can be tested without sockets and clocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from launcher.coordinator.admission import Admission
from launcher.coordinator.authority import offence, offence_in_endpoints
from launcher.coordinator.orders import Orders
from launcher.coordinator.places import Member, Places
from launcher.coordinator.readmission import Readmissions
from launcher.metrics.metrics import MemberKey, RunMetrics
from pdqn.clients import Clients, name_of
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.messages import (
    LAST_SAVE,
    Join,
    Leave,
    Message,
    Refuse,
    Rejoin,
    Report,
    Unknown,
)

_READMISSION_BYTES = 4 << 20


@dataclass(frozen=True)
class Event:
    """An event to be written down; ``error`` marks an error, and ``trace`` is its traceback."""

    kind: str
    role: str
    index: int
    text: str
    error: bool = False
    trace: str = ""


@dataclass(frozen=True)
class Send:
    """The instruction to send a message to one connection."""

    identity: bytes
    message: Message


@dataclass(frozen=True)
class Admit:
    """The instruction to welcome a member that has joined."""

    member: Member


@dataclass(frozen=True)
class SendPulse:
    """The instruction to send a member its pulse, as it will be by then."""

    member: Member


@dataclass(frozen=True)
class SendPulses:
    """The instruction to send every member its pulse."""


Instruction = Send | Admit | SendPulse | SendPulses | Event
Instructions = list[Instruction]


class Membership:
    """The members of a run: joins, rejoins, refusals, reports, silence, and losses.

    The work for a message does not grow with the number of members, unless all of them must hear
    of it.

    Args:
        run: id of the run.
        config: the run's.
        metrics: takes in the reports.
        own_actors: number that the launcher starts itself; by default all that are configured.
        incarnations: as below, of earlier sessions.
        head: public key of the launcher; empty if nothing is encrypted.

    Attributes:
        places: the members' places.
        orders: what their pulses carry.
        admission: decides who becomes one.
        incarnations: number of times that each (role, index) has joined, in all sessions.
        listened_seconds: time for which the coordinator has listened; silence is measured by it.
    """

    def __init__(
        self,
        run: str,
        config: Config,
        metrics: RunMetrics,
        own_actors: int | None = None,
        incarnations: Mapping[tuple[str, int], int] | None = None,
        head: str = "",
    ) -> None:
        self._metrics = metrics
        self._actors, self._shards = config.actor.count or 0, config.replay.shards
        own_actors = self._actors if own_actors is None else own_actors
        self.incarnations = Counter(incarnations)
        self.listened_seconds = 0.0
        self.places = Places(own_actors, self._shards, self.incarnations)
        self.orders = Orders(config, self.places, metrics)
        self.admission = Admission(run, config, self.places, self.orders, self.incarnations, head)
        self._readmissions = Readmissions(_READMISSION_BYTES)

    # ---- questions ----

    def members(self, role: str | None = None) -> Iterator[Member]:
        """Iterate over the members that have joined and not left."""
        return iter(self.places.all(role))

    def count(self, role: str) -> int:
        """Count the members of a role."""
        return len(self.places.all(role))

    def missing(self) -> str:
        """Describe in words what the run waits for; empty when it is complete."""
        wanted = {"replay": self._shards, "learner": 1, "actor": max(1, self._actors)}
        return ", ".join(
            f"{role} ({self.count(role)} of {number})"
            for role, number in wanted.items()
            if self.count(role) < number
        )

    def silent_seconds(self, member: Member) -> float:
        """Return how long a member has been silent."""
        return self.listened_seconds - member.heard

    def silent(self, seconds: float) -> list[Member]:
        """List the roles that have been silent for longer than this."""
        before = self.listened_seconds - seconds
        return [m for m in self.members() if m.heard < before and m.key.role != "host"]

    def silent_hosts(self, seconds: float) -> list[Member]:
        """List the hosts that have been silent for longer than this."""
        before = self.listened_seconds - seconds
        return [host for host in self.members("host") if host.heard < before]

    def is_saving(self) -> bool:
        """Tell whether the learner has said that it saves for the last time."""
        return any(member.activity == LAST_SAVE for member in self.members("learner"))

    # ---- messages ----

    def receive(
        self, identity: bytes, message: Message, now: float, user: str = "", size_bytes: int = 0
    ) -> Instructions:
        """Take in a message about places, or with figures.

        Args:
            identity: of the connection.
            message: from that connection.
            now: the present time, for the figures.
            user: public key of the connection.
            size_bytes: of the message.
        """
        if isinstance(message, Join):
            return self._join(identity, message, user, now)
        if isinstance(message, Rejoin):
            return self._rejoin(identity, message, user, now)
        member = self.places.find(identity)
        if member is None:
            return self._stranger(identity, message, user, size_bytes)
        member.heard = self.listened_seconds
        if wrong := offence(member.key, user, message):
            return self.refuse(member.key, user, wrong)
        if isinstance(message, Report):
            return self._report(member, message, now)
        return self._leave(member, message, now) if isinstance(message, Leave) else []

    def _stranger(
        self, identity: bytes, message: Message, user: str, size_bytes: int
    ) -> Instructions:
        """Tell a process that it has no place; keep news that it will not repeat."""
        if isinstance(message, Leave):
            return []  # it does not wait for an answer
        if isinstance(message, Report) and message.has_news:
            self._readmissions.put(identity, message, size_bytes, user)
        return [Send(identity, Unknown())]

    def _join(self, identity: bytes, join: Join, user: str, now: float) -> Instructions:
        if refusal := self.admission.refusal(join, user, now):
            name = name_of(self.orders.clients, user)
            self._metrics.count(f"refused/{name}: a request to join")
            return [Send(identity, refusal), Event("refused", join.role, -1, refusal.reason)]
        former = self.places.find(identity)
        told = [] if former is None else self._remove(former)
        index = self.places.free_index(join.role, self.admission.wanted_index(join))
        incarnation = self.incarnations[join.role, index]
        self.incarnations[join.role, index] += 1
        key = MemberKey(join.role, index, incarnation)
        heard = self.listened_seconds
        member = Member(identity, key, join.host, join.pid, heard, join.agent, user)
        self._add(member)
        where = f"{join.role} {index} on {join.host}, pid {join.pid}, incarnation {incarnation}"
        return [*told, Admit(member), Event("joined", join.role, index, where)]

    def refuse(self, key: MemberKey, user: str, what: str) -> Instructions:
        """Count what a process may not say, and have it written down with the name of its key."""
        name = name_of(self.orders.clients, user)
        self._metrics.count(f"refused/{name}: {what}")
        return [Event("refused", key.role, key.index, f"{name}: {what}")]

    def _rejoin(self, identity: bytes, rejoin: Rejoin, user: str, now: float) -> Instructions:
        """Give a role that was silent for a while its place back, if that is still its own."""
        key = MemberKey(rejoin.role, rejoin.index, rejoin.incarnation)
        wrong = offence_in_endpoints(key, user, rejoin.endpoints)
        answer = self.admission.answer(identity, rejoin, user, self.listened_seconds)
        if answer == "waits" and not wrong:
            return []  # it asks again, and its reports are kept meanwhile
        kept = self._readmissions.take(identity, user)
        if wrong or answer == "refused":
            reason = wrong or "somebody else has taken it"
            refused = self.refuse(key, user, wrong or "a request for another's place")
            return [Send(identity, Refuse(reason)), *refused]
        # Over a new connection it has another identity.
        former = self.places.find(identity), self.places.at(key.role, key.index)
        for member in {member for member in former if member is not None}:
            self.places.remove(member)
        heard = self.listened_seconds
        member = Member(identity, key, rejoin.host, rejoin.pid, heard, rejoin.agent, user)
        member.endpoints = rejoin.endpoints
        self._add(member)
        told: Instructions = [Event("rejoined", key.role, key.index, f"on {rejoin.host}")]
        told.append(SendPulses() if member.endpoints else SendPulse(member))
        for report in kept:
            wrong = offence(key, user, report)
            told += self.refuse(key, user, wrong) if wrong else self._take_in(member, report, now)
        return told

    def _report(self, member: Member, report: Report, now: float) -> Instructions:
        member.reported = True
        member.activity = report.activity
        told = self._take_in(member, report, now)
        if report.ended:
            told += self._ended(member, report.ended)
        if report.endpoints == member.endpoints:
            return [*told, SendPulse(member)]
        self.places.serve(member, report.endpoints)
        self.orders.change()
        return [*told, SendPulses()]

    def _take_in(self, member: Member, report: Report, now: float) -> Instructions:
        """Count what a member reports, and have its notes written down."""
        key = member.key
        self._metrics.ingest(key, report, now)
        return [Event(kind, key.role, key.index, text) for kind, text in report.notes]

    def _leave(self, member: Member, leave: Leave, now: float) -> Instructions:
        told = self._take_in(member, leave.report, now)
        key, reason = member.key, leave.reason
        kind = "failed" if reason else "left"
        told.append(Event(kind, key.role, key.index, reason, bool(reason), leave.trace))
        if key.role == "actor" and not reason:
            self._metrics.ledger.end((key.index, key.incarnation), "left")
        told += self._remove(member)
        self._metrics.counters.forget(key)
        return told

    def _ended(self, host: Member, pids: Iterable[int]) -> Instructions:
        """Free the places of a host's own processes that have ended; a repetition does nothing."""
        ended = frozenset(pids)
        self.orders.acquit(host.agent, ended)
        there = self.places.of_agent(host.agent)
        return self._remove_all([m for m in there if m.pid in ended and m is not host])

    # ---- losses ----

    def lost(self, role: str, index: int, pid: int | None = None) -> Instructions:
        """Remove a role whose process has ended without saying goodbye.

        Args:
            role: the role.
            index: its index.
            pid: of a process on this host; a member elsewhere that has taken its place stays.
        """
        member = self.places.at(role, index)
        if member is None or not (pid is None or (member.pid == pid and not member.agent)):
            return []
        return self._remove(member)

    def lose_host(self, agent: str, *, for_good: bool = False) -> tuple[int, Instructions]:
        """Remove a host that has fallen silent, and all its roles.

        Args:
            agent: its supervisor's name.
            for_good: none of its processes may have its place back.

        Returns:
            The number of roles that it had, and what is to be done.
        """
        if for_good:
            self.admission.give_up(agent)
        gone = self.places.of_agent(agent)
        self.orders.acquit(agent)
        return len(gone) - 1, self._remove_all(gone)

    def condemn(self, member: Member) -> None:
        """Have the host of a role that hangs end its process."""
        if member.agent:
            self.orders.condemn(member.agent, member.pid)

    def give_up(self, actor: int) -> None:
        """Note that one of the launcher's own actors will not come back."""
        self.places.give_up(actor)
        self.orders.change()

    # ---- wishes of a person, or of the run ----

    def allow(self, clients: Clients) -> Instructions:
        """Admit these clients only, by public key, and remove members that they do not cover."""
        if not self.orders.allow(clients):
            return []
        told: Instructions = []
        for member in list(self.members()):
            key = member.key
            if not (why := self.orders.unauthorized(key.role, member.user)):
                continue
            told.append(Event("revoked", key.role, key.index, f"on {member.host}: {why}"))
            told.append(Send(member.identity, Refuse(why)))
            self._remove(member)
        return [*told, SendPulses()]

    def command(self, roles: Iterable[str], command: str) -> Instructions:
        """Tell roles what to do from now on."""
        self.orders.command(roles, command)
        return [SendPulses()]

    def finish(self, final_version: int) -> Instructions:
        """Tell the evaluator to evaluate these parameters last."""
        self.orders.finish(final_version)
        return [SendPulses()]

    def save(self) -> Instructions:
        """Let the learner save at once."""
        self.orders.save()
        return [SendPulses()]

    def aim_at(self, samples_per_insert: float) -> Instructions:
        """Let every replay aim at this ratio from now on.

        Raises:
            UsageError: not a positive finite number.
        """
        if not (math.isfinite(samples_per_insert) and samples_per_insert > 0):
            raise UsageError(
                f"samples_per_insert = {samples_per_insert}; expected a finite number above 0"
            )
        self.orders.aim_at(float(samples_per_insert))
        text = f"{samples_per_insert:g} from now on"
        return [Event("samples_per_insert", "replay", -1, text), SendPulses()]

    def resize(self, agent: str, count: int) -> Instructions:
        """Have a host run a number of actors from now on, at least one."""
        if not self.orders.resize(agent, count):
            return []
        there = self.places.of_agent(agent)
        return [SendPulse(member) for member in there if member.key.role == "host"]

    # ---- places ----

    def _add(self, member: Member) -> None:
        self.places.add(member)
        self.admission.note(member)
        self.orders.change()

    def _remove(self, member: Member) -> Instructions:
        """Remove a member that will not come back, or not soon."""
        key = member.key
        if key.role == "actor":
            self._metrics.ledger.end((key.index, key.incarnation), "died")
        self.places.remove(member)
        self.orders.change()
        self.orders.forget(key)
        if self.orders.command_of(key.role) in ("hold", "run"):
            self._metrics.forget(key.role, key.index)
        return [SendPulses()] if member.endpoints else []

    def _remove_all(self, members: Iterable[Member]) -> Instructions:
        told = [instruction for member in members for instruction in self._remove(member)]
        return [SendPulses()] if told else []
