"""Views of a run's members: of few with every frame, of thousands less often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from launcher.console.views import MemberViews
from launcher.coordinator.places import Member
from launcher.metrics.metrics import MemberKey, RunMetrics
from launcher.metrics.roster import MOST_HOSTS, MOST_LISTED, MemberGroup, MemberView, Roster, merged
from launcher.metrics.snapshot import TO_CONSOLE, Seen, Snapshot
from pdqn.messages import decode


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
    monkeypatch.setattr("launcher.console.views.time.monotonic", lambda: now)
    coordinator, views = views_of(actors)
    for _ in range(4):
        assert sum(group.count for group in views.recent().groups) == actors + 1
        now += 0.25
    assert coordinator.asked == looked
    views.recent()
    assert coordinator.asked == looked + 1


# ---- rosters ----


def test_a_group_adds_up_the_members_of_a_role_on_a_host():
    roster = Roster.of(
        [
            MemberView("actor", 0, "a", 1, "alive", "", 50.0, 10),
            MemberView("actor", 1, "a", 2, "late", "", 25.0, 20),
            MemberView("actor", 2, "b", 3, "alive", "", 10.0, 5),
            MemberView("replay", 0, "a", 4, "alive"),
        ]
    )
    assert roster.groups == (
        MemberGroup("actor", "a", {"alive": 1, "late": 1}, 75.0, 30),
        MemberGroup("actor", "b", {"alive": 1}, 10.0, 5),
        MemberGroup("replay", "a", {"alive": 1}),
    )
    assert merged(group for group in roster.groups if group.role == "actor") == MemberGroup(
        "actor", "a", {"alive": 2, "late": 1}, 85.0, 35
    )
    assert merged([]) is None


def test_of_very_many_members_all_are_counted_and_as_many_listed_as_fit():
    actors = [MemberView("actor", i, f"host {i % 700}", i, "alive") for i in range(5000)]
    others = [
        MemberView("learner", 0, "head", 1, "alive"),
        MemberView("replay", 0, "head", 2, "late"),
    ]
    roster = Roster.of([*actors, *others])
    assert len(roster.members) == MOST_LISTED
    assert {"learner", "replay"} <= {view.role for view in roster.members}
    assert [v.index for v in roster.members if v.role == "actor"] == list(range(MOST_LISTED - 2))
    assert sum(group.count for group in roster.groups) == 5002
    assert len({group.host for group in roster.groups}) == MOST_HOSTS + 1


def test_a_snapshot_of_ten_thousand_members_comes_over_the_wire_whole():
    actors = [MemberView("actor", i, f"host {i % 700}", i, "alive") for i in range(10_000)]
    roster = Roster.of(actors)
    shown = Snapshot(
        "runs/a", "CartPole-v1", "parallel", 0, "running", "", 1.0, None, None, None, {}, "", "",
        None, roster.members, 0, {}, None, {}, groups=roster.groups,
    )  # fmt: skip
    seen = Seen(shown, 1, ((0.5, "started"),))
    assert decode(seen.encoded, TO_CONSOLE) == seen
