"""Counters and gauges of all roles: totals over incarnations, rates, and means. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from launcher.metrics.bounds import Bounds, largest

_WINDOW_SECONDS = 10.0
_MOST_MARKS = 64


@dataclass(frozen=True)
class MemberKey:
    """One incarnation of one role."""

    role: str
    index: int
    incarnation: int


@dataclass(frozen=True)
class _Mark:
    """Totals at one moment, to take rates from."""

    time: float
    totals: Mapping[tuple[str, str], float]


class Counters:
    """Totals over the members of a role and over their incarnations, and how fast they grow."""

    def __init__(self) -> None:
        self._bounds = Bounds()
        self._last: dict[MemberKey, Mapping[str, float]] = {}
        self._totals: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._marks: deque[_Mark] = deque(maxlen=_MOST_MARKS)

    def add(self, key: MemberKey, counters: Mapping[str, float]) -> Mapping[str, float]:
        """Add what has grown since the last report of this incarnation, and return that report.

        Counters that fall add nothing, and those beyond the bounds are dropped and counted.
        """
        before, role, totals = self._last.get(key, {}), key.role, self._totals
        kept, most = self._bounds.kept(role, counters, 0.0), largest(role)
        for name, value in kept.items():
            grown = max(0.0, value - before.get(name, 0.0))
            totals[role, name] = min(most, totals[role, name] + grown)
        self.drop(role, len(counters) - len(kept))
        self._last[key] = kept
        # The incarnation before this one may still report late, but not those before it.
        self._last.pop(replace(key, incarnation=key.incarnation - 2), None)
        return before

    def drop(self, role: str, figures: int) -> None:
        """Count figures of a role that were dropped."""
        if figures:
            self.count(role, "figures_dropped", figures)

    def forget(self, key: MemberKey) -> None:
        """Forget the last report of an incarnation that cannot come back; its totals stay."""
        self._last.pop(key, None)

    def count(self, role: str, name: str, amount: int = 1) -> None:
        """Add to a counter that no report has."""
        if not self._bounds.admits(role, name):
            name = "figures_dropped"
        self._totals[role, name] = min(largest(role), self._totals[role, name] + amount)

    def reject(self, kind: str) -> None:
        """Count a message that the coordinator refused, by its kind."""
        self.count("coordinator", "control_rejected")
        self.count("coordinator", f"control_rejected/{kind}")

    def counted(self, key: MemberKey) -> Mapping[str, float]:
        """Return the counters of one incarnation, as it reported them last."""
        return self._last.get(key, {})

    def total(self, role: str, name: str) -> float:
        """Return a counter over all members of a role, or of all roles for ``all``."""
        if role == "all":
            return sum(total for (_, counted), total in self._totals.items() if counted == name)
        return self._totals.get((role, name), 0.0)

    def starting_with(self, role: str, prefix: str) -> dict[str, int]:
        """Return the totals of a role or of all whose names begin so, by the rest of the name."""
        counted: Counter[str] = Counter()
        for (counting, name), value in self._totals.items():
            if role in (counting, "all") and name.startswith(prefix):
                counted[name.removeprefix(prefix)] += int(value)
        return dict(counted)

    def refused(self) -> dict[str, int]:
        """Return what was refused, by whose it was; only of roles that have anything to refuse."""
        counted: Counter[str] = Counter()
        for role in ("coordinator", "replay", "learner"):
            counted.update(self.starting_with(role, "refused/"))
        return dict(counted)

    def mark(self, now: float) -> None:
        """Mark the present, about once a second: rates are taken between two marks."""
        self._marks.append(_Mark(now, dict(self._totals)))
        # At least one mark beside the newest stays, however old it is.
        while len(self._marks) > 2 and now - self._marks[0].time > _WINDOW_SECONDS:
            self._marks.popleft()

    @property
    def marked(self) -> bool:
        """True once rates are known."""
        return len(self._marks) >= 2

    def rate(self, role: str, name: str) -> float:
        """Return the growth of a counter per second, over the last ten seconds or so."""
        if not self.marked:
            return 0.0
        oldest, newest = self._marks[0], self._marks[-1]
        grown = newest.totals.get((role, name), 0.0) - oldest.totals.get((role, name), 0.0)
        return grown / max(1e-9, newest.time - oldest.time)

    def get_state(self) -> list[list[Any]]:
        """Return the totals as plain data."""
        return [[role, name, value] for (role, name), value in self._totals.items()]

    def set_state(self, totals: Iterable[tuple[str, str, float]]) -> None:
        """Go on from what ``get_state`` returned in an earlier session."""
        for role, name, value in totals:
            self._totals[role, name] = float(value)


class Gauges:
    """The newest gauges of the members that are present, and what they come to.

    A computed value is kept until ``refresh``, or until a member comes or goes. Consoles ask for
    those of ten thousand actors four times a second.
    """

    def __init__(self) -> None:
        self._bounds = Bounds()
        self._members: defaultdict[str, dict[int, Mapping[str, float]]] = defaultdict(dict)
        self._computed: dict[tuple[str, str, str], float | None] = {}

    def put(self, role: str, index: int, gauges: Mapping[str, float]) -> int:
        """Replace all gauges of a member; return the number of those beyond the bounds."""
        members = self._members[role]
        if index not in members:
            self.refresh()
        members[index] = kept = self._bounds.kept(role, gauges, -largest(role))
        return len(gauges) - len(kept)

    def forget(self, role: str, index: int) -> None:
        """Drop the gauges of a member that has gone."""
        self._members[role].pop(index, None)
        self.refresh()

    def refresh(self) -> None:
        """Compute from the newest reports from now on."""
        self._computed.clear()

    def of(self, role: str, index: int) -> Mapping[str, float]:
        """Return all gauges of one member."""
        return self._members[role].get(index, {})

    def mean(self, role: str, name: str) -> float | None:
        """Return the present mean of a gauge over the members of a role; None without any."""
        values = self._values(role, name)
        return sum(values) / len(values) if values else None

    def over_members(self, kind: str, role: str, name: str) -> float | None:
        """Return the mean, sum, min or max of a gauge over a role, as of the last ``refresh``."""
        key = (kind, role, name)
        if key not in self._computed:
            if kind == "mean":
                self._computed[key] = self.mean(role, name)
            else:
                values = self._values(role, name)
                self._computed[key] = _OVER_MEMBERS[kind](values) if values else None
        return self._computed[key]

    def count(self, role: str) -> int:
        """Return the number of members of a role that have reported, and have not gone."""
        return len(self._members[role])

    def _values(self, role: str, name: str) -> list[float]:
        return [gauges[name] for gauges in self._members[role].values() if name in gauges]


_OVER_MEMBERS: dict[str, Callable[[Iterable[float]], float]] = {"sum": sum, "min": min, "max": max}
