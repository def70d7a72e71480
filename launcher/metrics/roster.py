"""The members of a run as consoles see them: one by one, and in groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pdqn.checks import as_prose, check_finite, check_whole, refusal

MemberState = Literal["starting", "alive", "late", "restarting", "stopped", "dead"]
_STATES = frozenset(get_args(MemberState))
# A snapshot has to fit a message, and a console draws no more of them.
MOST_LISTED, MOST_HOSTS = 300, 500
_OTHER_HOSTS = "other hosts"
_MAX_TEXT = 10_000


@dataclass(frozen=True)
class MemberView:
    """One role of the run, or one of its hosts where there are several.

    Attributes:
        role: actor, replay, learner, evaluator or host.
        host: name of its host, distinct from those of other hosts.
        state: starting (no report yet), alive, late (reports overdue), restarting, stopped
            (ended as asked), dead (given up).
        activity: what it does or waits for, in a few words ("waits for the learner").
        cpu_percent: of one core, since its last report; of a host, of all its cores.
        memory_bytes: resident set; of a host, what is in use.
    """

    role: str
    index: int
    host: str
    pid: int
    state: MemberState
    activity: str = ""
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    restarts: int = 0

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> MemberView:
        """Check and read a member of a snapshot.

        Raises:
            TypeError, KeyError, WireError: a field is missing, or of another type.
        """
        return cls(
            as_text(values["role"]),
            as_whole(values["index"], least=-1),
            as_text(values["host"]),
            as_whole(values["pid"]),
            _as_state(values["state"]),
            as_text(values["activity"]),
            as_number(values["cpu_percent"]),
            as_whole(values["memory_bytes"]),
            as_whole(values["restarts"]),
        )


@dataclass(frozen=True)
class MemberGroup:
    """All members of one role on one host.

    Attributes:
        states: number of members in each state.
        cpu_percent: sum of theirs.
        memory_bytes: sum of theirs.
    """

    role: str
    host: str
    states: Mapping[str, int]
    cpu_percent: float = 0.0
    memory_bytes: int = 0

    @property
    def count(self) -> int:
        """Number of members."""
        return sum(self.states.values())

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> MemberGroup:
        """Check and read a group of a snapshot.

        Raises:
            TypeError, KeyError, WireError: a field is missing, or of another type.
        """
        return cls(
            as_text(values["role"]),
            as_text(values["host"]),
            {_as_state(state): as_whole(count) for state, count in values["states"].items()},
            as_number(values["cpu_percent"]),
            as_whole(values["memory_bytes"]),
        )


class Roster(NamedTuple):
    """The members of a run at one moment.

    Attributes:
        members: one by one, at most ``MOST_LISTED``; the last actors are left out first.
        groups: all of them, by role and host; hosts beyond ``MOST_HOSTS`` are one.
    """

    members: tuple[MemberView, ...]
    groups: tuple[MemberGroup, ...]

    @classmethod
    def of(cls, views: Iterable[MemberView]) -> Roster:
        """List and group members."""
        views = tuple(views)
        groups = tuple(_grouped(views))
        if len(views) > MOST_LISTED:
            others = [view for view in views if view.role != "actor"]
            actors = [view for view in views if view.role == "actor"]
            views = tuple(sorted([*others, *actors][:MOST_LISTED], key=_place))
        return cls(views, groups)


def _place(view: MemberView) -> tuple[str, int]:
    return view.role, view.index


def _grouped(views: Iterable[MemberView]) -> Iterable[MemberGroup]:
    states: dict[tuple[str, str], Counter[str]] = {}
    loads: dict[tuple[str, str], list[float]] = {}
    hosts: set[str] = set()
    for view in views:
        host = view.host
        if host not in hosts:
            if len(hosts) < MOST_HOSTS:
                hosts.add(host)
            else:
                host = _OTHER_HOSTS
        key = view.role, host
        if key not in states:
            states[key], loads[key] = Counter(), [0.0, 0]
        states[key][view.state] += 1
        load = loads[key]
        load[0] += view.cpu_percent
        load[1] += view.memory_bytes
    for (role, host), counted in states.items():
        cpu_percent, memory_bytes = loads[role, host]
        yield MemberGroup(role, host, dict(counted), cpu_percent, int(memory_bytes))


def states_of(groups: Iterable[MemberGroup]) -> Counter[str]:
    """Count the members of groups by their state."""
    states: Counter[str] = Counter()
    for group in groups:
        states.update(group.states)
    return states


def merged(groups: Iterable[MemberGroup]) -> MemberGroup | None:
    """Add groups up, whatever their roles and hosts; None of none."""
    groups = tuple(groups)
    if not groups:
        return None
    cpu_percent = sum(group.cpu_percent for group in groups)
    memory_bytes = sum(group.memory_bytes for group in groups)
    states = dict(states_of(groups))
    return MemberGroup(groups[0].role, groups[0].host, states, cpu_percent, memory_bytes)


def _as_state(value: Any) -> MemberState:
    if value not in _STATES:
        raise refusal(value, "a state", f"one of {', '.join(get_args(MemberState))}")
    return value


def as_text(value: Any) -> str:
    """Check a text of a snapshot, and escape what a terminal would obey."""
    return as_prose(value, "a text", _MAX_TEXT)


def as_text_or_none(value: Any) -> str | None:
    """Check a text of a snapshot that may be missing."""
    return None if value is None else as_text(value)


def as_number(value: Any) -> float:
    """Check a finite number of a snapshot."""
    check_finite(value, "a number")
    return value


def as_number_or_none(value: Any) -> float | None:
    """Check a number of a snapshot that may be missing."""
    return None if value is None else as_number(value)


def as_whole(value: Any, least: int = 0) -> int:
    """Check a whole number of a snapshot."""
    check_whole(value, "a count", least=least)
    return value
