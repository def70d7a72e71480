"""The members of a run and their places, found by connection, role, host or supervisor. Pure."""

from __future__ import annotations

import bisect
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from launcher.metrics.metrics import MemberKey
from pdqn.messages import MAX_INDEX, ROLES, Pulse

_NUMBER = re.compile(r" \(\d+\)$")


@dataclass(eq=False)
class Member:
    """A role or a host that has joined.

    Attributes:
        identity: of its connection.
        host: name of its host, as the host calls itself.
        heard: time of its last message, by the coordinator's time of listening.
        agent: name of the host's supervisor that started it; empty for the launcher's own roles.
        user: public key with which it was admitted; empty if nothing is encrypted.
        endpoints: addresses of what it serves, by name.
        reported: True once it has reported since joining.
        pulse: the last that it was sent.
        pulse_state: state of the orders from which this pulse was made.
    """

    identity: bytes
    key: MemberKey
    host: str
    pid: int
    heard: float
    agent: str = ""
    user: str = ""
    activity: str = ""
    endpoints: dict[str, str] = field(default_factory=dict)
    reported: bool = False
    pulse: Pulse | None = None
    pulse_state: int = -1


class Places:
    """All members, and the ladder of actors. No operation takes longer with more members.

    The ladder has a place for each actor that is there, and for each of the launcher's own that
    will be there again. Its order is that of their indices, without gaps.

    Args:
        own_actors: number that the launcher starts itself.
        shards: number of replays in the run.
        incarnations: number of times that each (role, index) has joined in earlier sessions.
    """

    def __init__(
        self, own_actors: int, shards: int, incarnations: Mapping[tuple[str, int], int]
    ) -> None:
        self._own_actors, self._shards = own_actors, shards
        self._members: dict[bytes, Member] = {}
        self._of_role: dict[str, dict[int, Member]] = {role: {} for role in ROLES}
        self._of_agent: defaultdict[str, dict[bytes, Member]] = defaultdict(dict)
        self._of_user: Counter[str] = Counter()
        self._agents_named: defaultdict[str, set[str]] = defaultdict(set)
        # No index below is free: actors that join from elsewhere come after the launcher's own.
        self._first_free = Counter({"actor": own_actors})
        self._hosts_seen = sum(role == "host" for role, _ in incarnations)
        self._ladder = list(range(own_actors))
        self._given_up: set[int] = set()
        self._served: dict[str, str] | None = None

    def find(self, identity: bytes) -> Member | None:
        """Find the member with a connection."""
        return self._members.get(identity)

    def at(self, role: str, index: int) -> Member | None:
        """Find the member at a place."""
        return self._of_role.get(role, {}).get(index)

    def all(self, role: str | None = None) -> Collection[Member]:
        """List the members, of one role or of all."""
        return self._members.values() if role is None else self._of_role[role].values()

    def of_agent(self, agent: str) -> list[Member]:
        """List what a host's supervisor has started, and the host itself."""
        return list(self._of_agent[agent].values()) if agent in self._of_agent else []

    def count_of(self, user: str) -> int:
        """Count the members that were admitted with a public key."""
        return self._of_user[user]

    def host_of(self, member: Member, launcher_host: str) -> str:
        """Name a member's host, with a number if several hosts have the same name.

        Args:
            member: any.
            launcher_host: name of the launcher's own host.
        """
        named = self._agents_named.get(member.host, set())
        if member.agent not in named or (len(named) == 1 and member.host != launcher_host):
            return member.host
        host = next(m for m in self._of_agent[member.agent].values() if m.key.role == "host")
        return _numbered(member.host, host.key.index + 1)

    def served(self) -> dict[str, str]:
        """Map the name of everything that is served to its address."""
        if self._served is None:
            self._served = {}
            for member in self._members.values():
                self._served |= member.endpoints
        return self._served

    def serve(self, member: Member, endpoints: dict[str, str]) -> None:
        """Note where a member serves from now on."""
        member.endpoints, self._served = endpoints, None

    def slot(self, actor: int) -> int:
        """Find an actor's place on the ladder, from 0."""
        return bisect.bisect_left(self._ladder, actor)

    @property
    def slots(self) -> int:
        """The number of actors that share the ladder."""
        return len(self._ladder)

    def free_index(self, role: str, wanted: int | None) -> int:
        """Choose the index of a role that joins: the one it wants, if that is free."""
        taken = self._of_role[role]
        # A replay's index is its shard, which decides what it stores.
        below = self._shards if role == "replay" else MAX_INDEX
        if wanted is not None and wanted < below and wanted not in taken:
            return wanted
        if role == "host":
            return self._hosts_seen
        index = self._first_free[role]
        while index in taken:
            index += 1
        self._first_free[role] = index
        return index

    def add(self, member: Member) -> None:
        """Add a member whose place and connection are free."""
        key = member.key
        self._members[member.identity] = member
        self._of_role[key.role][key.index] = member
        self._of_user[member.user] += 1
        if member.agent:
            self._of_agent[member.agent][member.identity] = member
        if key.role == "host":
            self._agents_named[member.host].add(member.agent)
            self._hosts_seen += key.incarnation == 0
        if key.role == "actor" and not self._has_slot(key.index):
            self._ladder.insert(self.slot(key.index), key.index)
        if member.endpoints:
            self._served = None

    def remove(self, member: Member) -> None:
        """Remove a member."""
        key = member.key
        del self._members[member.identity]
        del self._of_role[key.role][key.index]
        self._of_user[member.user] -= 1
        if member.agent:
            del self._of_agent[member.agent][member.identity]
            if not self._of_agent[member.agent]:
                del self._of_agent[member.agent]
        if key.role == "host":
            self._agents_named[member.host].discard(member.agent)
        own = key.role == "actor" and key.index < self._own_actors
        if not own:
            self._first_free[key.role] = min(self._first_free[key.role], key.index)
        if key.role == "actor" and (not own or key.index in self._given_up):
            self._drop_slot(key.index)
        if member.endpoints:
            self._served = None

    def give_up(self, actor: int) -> None:
        """Note that one of the launcher's own actors will not come back."""
        self._given_up.add(actor)
        if actor not in self._of_role["actor"]:
            self._drop_slot(actor)

    def _has_slot(self, actor: int) -> bool:
        slot = self.slot(actor)
        return slot < len(self._ladder) and self._ladder[slot] == actor

    def _drop_slot(self, actor: int) -> None:
        if self._has_slot(actor):
            del self._ladder[self.slot(actor)]


def _numbered(host: str, number: int) -> str:
    return f"{host} ({number})"


def unnumbered(host: str) -> str:
    """Return a host's own name, without the number by which ``Places`` tells it from others."""
    return _NUMBER.sub("", host)
