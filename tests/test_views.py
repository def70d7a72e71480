"""Views of a run's members: of few with every frame, of thousands less often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from launcher.coordinator.metrics import MemberKey, RunMetrics
from launcher.coordinator.places import Member
from launcher.run.views import MemberViews


class Coordinator:
    """A coordinator with members, which counts the requests for them."""

    def __init__(self, actors: int) -> None:
        self.asked = 0
        self.membership = self
        self._members = [
            Member(b"", MemberKey("actor", index, 0), "here", 100 + index, 0.0, reported=True)
            for index in reversed(range(actors))
        ]

    def members(self) -> Iterator[Member]:
        self.asked += 1
        return iter(self._members)

    def host_of(self, member: Member) -> str:
        return member.host

    def silent_seconds(self, member: Member) -> float:
        return 9.0 if member.key.index == 1 else 0.0

    def count(self, role: str) -> int:
        return 0


class Supervisor:
    """A supervisor that has started an evaluator, which has not joined."""

    def slots(self) -> dict[tuple[str, int], Any]:
        return {("evaluator", 0): "restarting", ("actor", 0): "starting"}


def views_of(actors: int) -> tuple[Coordinator, MemberViews]:
    coordinator, supervisor = Coordinator(actors), Supervisor()
    stand_ins: list[Any] = [coordinator, supervisor, RunMetrics(None)]
    return coordinator, MemberViews(*stand_ins, late_seconds=4.0)


def test_members_are_seen_in_order_whether_they_have_joined_or_not():
    _, views = views_of(3)
    assert [(v.role, v.index, v.state) for v in views.present()] == [
        *(("actor", 0, "alive"), ("actor", 1, "late"), ("actor", 2, "alive")),
        ("evaluator", 0, "restarting"),
    ]


@pytest.mark.parametrize(("actors", "looked"), [(3, 4), (1000, 1)])
def test_thousands_of_members_are_not_looked_at_with_every_frame(
    actors: int, looked: int, monkeypatch: pytest.MonkeyPatch
):
    now = 50.0
    monkeypatch.setattr("launcher.run.views.time.monotonic", lambda: now)
    coordinator, views = views_of(actors)
    for _ in range(4):
        assert len(views.recent()) == actors + 1
        now += 0.25
    assert coordinator.asked == looked
    views.recent()
    assert coordinator.asked == looked + 1
