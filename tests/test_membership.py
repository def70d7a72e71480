"""Membership without sockets or clocks: messages and losses in, instructions out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pdqn
from launcher.coordinator.membership import (
    Admit,
    Event,
    Instructions,
    Membership,
    Send,
    SendPulse,
    SendPulses,
)
from launcher.coordinator.places import Member, Places
from launcher.hosts.agent import recent_ends
from launcher.metrics.counters import MemberKey
from launcher.metrics.metrics import RunMetrics
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import MAX_ENDED, Episode, Join, Leave, Refuse, Rejoin, Report, Unknown


def membership_of(actors: int = 2, **sections: dict[str, Any]) -> Membership:
    config = build(("test", {"actor": {"count": actors}, **sections}))
    return Membership("the-run", config, RunMetrics(None))


def join(
    membership: Membership, sender: bytes, role: str = "actor", **changes: Any
) -> Instructions:
    return membership.receive(sender, Join(role, pdqn.__version__, "here", 1, **changes), 0.0)


def admitted(told: Instructions) -> Member:
    return next(one.member for one in told if isinstance(one, Admit))


# ---- what comes of messages ----


def test_who_joins_is_admitted_and_that_is_written_down():
    told = join(membership_of(), b"a", index=1)
    assert [type(one) for one in told] == [Admit, Event]
    assert admitted(told).key == MemberKey("actor", 1, 0)


def test_who_is_refused_gets_a_sentence_and_no_place():
    membership = membership_of()
    told = membership.receive(b"a", Join("actor", "0.0.9", "here", 1), 0.0)
    reason = f"it runs pdqn '0.0.9', the run {pdqn.__version__}"
    assert told == [Send(b"a", Refuse(reason)), Event("refused", "actor", -1, reason)]
    assert membership.count("actor") == 0


def test_a_report_is_answered_with_a_pulse_to_its_sender_alone():
    membership = membership_of()
    member = admitted(join(membership, b"a"))
    assert membership.receive(b"a", Report(), 1.0) == [SendPulse(member)]
    assert member.reported


def test_where_a_member_serves_is_told_to_all_when_it_changes_and_only_then():
    membership = membership_of()
    admitted(join(membership, b"a", "replay"))
    served = Report(endpoints={"samples/0": "ipc:///a"})
    assert membership.receive(b"a", served, 1.0) == [SendPulses()]
    assert [type(one) for one in membership.receive(b"a", served, 2.0)] == [SendPulse]
    assert membership.places.served() == {"samples/0": "ipc:///a"}


def test_notes_of_a_report_are_events():
    membership = membership_of()
    join(membership, b"a", index=0)
    told = membership.receive(b"a", Report(notes=(("seeds", "1, 2"),)), 1.0)
    assert told[0] == Event("seeds", "actor", 0, "1, 2")


def test_a_stranger_is_told_so_and_what_it_tells_once_waits_for_its_place():
    membership = membership_of()
    key = admitted(join(membership, b"a", index=0)).key
    membership.lost("actor", 0)
    news = Report(counters={"episodes": 1}, episodes=(Episode(7.0, 3),))
    assert membership.receive(b"a", news, 1.0, "", 50) == [Send(b"a", Unknown())]
    again = Rejoin("actor", key.index, key.incarnation, "the-run", "here", 1)
    told = membership.receive(b"a", again, 2.0)
    assert [type(one) for one in told] == [Event, SendPulse]
    assert membership.receive(b"b", Leave(), 3.0) == [], "it does not wait for an answer"
    assert membership.receive(b"b", Report(ended=(1,)), 3.0) == [Send(b"b", Unknown())]
    assert membership.count("actor") == 1


def test_who_leaves_with_a_reason_has_failed():
    membership = membership_of()
    join(membership, b"a", index=0)
    told = membership.receive(b"a", Leave(Report(), "ValueError: it broke", "Traceback"), 1.0)
    assert told == [Event("failed", "actor", 0, "ValueError: it broke", True, "Traceback")]
    assert membership.count("actor") == 0


def test_of_a_host_with_a_hundred_and_fifty_roles_that_hang_all_are_condemned():
    membership = membership_of()
    host = admitted(join(membership, b"host", "host", agent="one"))
    for index in range(150):
        message = Join("actor", pdqn.__version__, "here", 1000 + index, agent="one")
        admitted(membership.receive(b"%d" % index, message, 0.0))
    for member in list(membership.members("actor")):
        membership.condemn(member)
    assert membership.orders.pulse(host).condemned == tuple(range(1000, 1150))
    membership.receive(b"host", Report(ended=(1000,)), 1.0)
    assert 1000 not in membership.orders.pulse(host).condemned
    assert membership.orders.pulse(host).condemned == tuple(range(1001, 1150))
    membership.receive(b"host", Report(ended=tuple(range(1000, 1150))), 1.0)
    assert membership.orders.pulse(host).condemned == ()
    assert membership.count("actor") == 0


@pytest.mark.parametrize("role", ["learner", "evaluator", "replay"])
def test_who_is_refused_because_the_place_is_taken_is_told_that_it_may_become_free(role: str):
    membership = membership_of()
    join(membership, b"host", "host", agent="one")
    join(membership, b"a", role, agent="one")
    [refused, event] = join(membership, b"b", role, agent="one")
    assert isinstance(refused, Send)
    assert isinstance(refused.message, Refuse)
    assert refused.message.taken
    assert isinstance(event, Event)
    assert event.text == refused.message.reason
    told = membership.receive(b"host", Report(ended=(1,)), 1.0)
    assert isinstance(told[-1], SendPulse)
    assert admitted(join(membership, b"b", role, agent="one")).key.index == 0


def test_the_ended_processes_of_a_host_are_its_own_and_named_by_itself_only():
    membership = membership_of()
    join(membership, b"one", "host", agent="one")
    join(membership, b"two", "host", agent="two")
    first = admitted(join(membership, b"a", "actor", agent="one"))
    for stranger in (b"two", b"a"):
        membership.receive(stranger, Report(ended=(1,)), 1.0)
        assert set(membership.members("actor")) == {first}
    membership.receive(b"one", Report(ended=(1,)), 1.0)
    assert membership.count("actor") == 0
    assert membership.count("host") == 2, "although it has the same pid here"


def test_a_report_that_repeats_what_has_ended_changes_no_pulse():
    membership = membership_of()
    member = admitted(join(membership, b"one", "host", agent="one"))
    join(membership, b"a", "actor", agent="one")
    membership.receive(b"one", Report(ended=(1,)), 1.0)
    pulse = membership.orders.pulse(member)
    assert membership.receive(b"one", Report(ended=(1,)), 2.0) == [SendPulse(member)]
    assert membership.orders.pulse(member) is pulse


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["start", "end", "report", "lose"]), st.integers(0, 5)),
        max_size=40,
    )
)
def test_after_any_report_that_arrives_no_place_is_that_of_an_ended_process(
    steps: list[tuple[str, int]],
):
    """Compare with a host that knows its processes, whose pids are used again and again."""
    membership = membership_of()
    join(membership, b"host", "host", agent="one")
    running: dict[int, bytes] = {}
    ended: tuple[int, ...] = ()
    lost = False
    for number, (kind, pid) in enumerate(steps):
        if kind == "start" and pid not in running:
            running[pid] = b"%d" % number
            ended = recent_ends(ended, (), lambda: running)
            message = Join("actor", pdqn.__version__, "here", pid, agent="one")
            admitted(membership.receive(running[pid], message, 0.0))
        elif kind == "end" and pid in running:
            del running[pid]
            ended = recent_ends(ended, [pid], lambda: running)
            lost = True
        elif kind == "report":
            membership.receive(b"host", Report(ended=ended), 0.0)
            lost = False
        present = {member.identity for member in membership.members("actor")}
        assert present >= set(running.values()), "a running process has lost its place"
        if not lost:
            assert {m.pid for m in membership.members("actor")} == set(running)


def test_a_host_names_the_processes_that_ended_last_and_a_bounded_number():
    assert recent_ends((), (), lambda: pytest.fail("nothing has ended")) == ()
    assert recent_ends((1, 2), [3, 2], lambda: {1}) == (2, 3)
    many = recent_ends(tuple(range(MAX_ENDED)), [MAX_ENDED + 5], lambda: ())
    assert many == (*range(1, MAX_ENDED), MAX_ENDED + 5)
    assert Report(ended=many).ended == many


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_that_no_replay_could_aim_at_is_refused(value: float):
    with pytest.raises(UsageError, match="expected a finite number above 0"):
        membership_of().aim_at(value)


# ---- pulses ----


def test_a_pulse_is_made_again_only_after_a_change():
    membership = membership_of()
    member = admitted(join(membership, b"a", index=0))
    first = membership.orders.pulse(member)
    membership.receive(b"a", Report(), 1.0)
    assert membership.orders.pulse(member) is first
    membership.command(["actor"], "run")
    second = membership.orders.pulse(member)
    assert (first.command, second.command) == ("hold", "run")
    join(membership, b"b", index=1)
    join(membership, b"c")
    assert membership.orders.pulse(member).actor_slots == 3


# ---- silence ----


def test_silence_is_counted_by_the_time_of_listening():
    membership = membership_of()
    member = admitted(join(membership, b"a", index=0))
    host = admitted(join(membership, b"h", "host", agent="one"))
    membership.listened_seconds = 10.0
    assert membership.silent(9.0) == [member]
    assert membership.silent_hosts(9.0) == [host]
    membership.receive(b"a", Report(), 1.0)
    assert membership.silent(9.0) == []
    assert membership.silent_hosts(10.0) == []


# ---- places, against a slow twin that is obviously right ----


class SlowPlaces:
    """Does with sorted lists and searches through all members what ``Places`` does without."""

    def __init__(self, own_actors: int, shards: int) -> None:
        self.own_actors, self.shards = own_actors, shards
        self.members: list[Member] = []
        self.given_up: set[int] = set()

    def indices(self, role: str) -> set[int]:
        return {m.key.index for m in self.members if m.key.role == role}

    def ladder(self) -> list[int]:
        return sorted((set(range(self.own_actors)) - self.given_up) | self.indices("actor"))

    def free_index(self, role: str, wanted: int | None) -> int:
        taken = self.indices(role)
        below = self.shards if role == "replay" else 1 << 20
        if wanted is not None and wanted < below and wanted not in taken:
            return wanted
        first = self.own_actors if role == "actor" else 0
        return next(i for i in range(first, first + len(taken) + 1) if i not in taken)


_OPERATIONS = st.one_of(
    st.tuples(st.just("join"), st.sampled_from(["actor", "replay"]), st.none() | st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, 20), st.none()),
    st.tuples(st.just("give up"), st.integers(0, 3), st.none()),
)


@given(own_actors=st.integers(0, 4), operations=st.lists(_OPERATIONS, max_size=40))
def test_places_do_what_a_slow_twin_does(own_actors: int, operations: list[tuple[str, Any, Any]]):
    places, slow = Places(own_actors, 3, {}), SlowPlaces(own_actors, 3)
    for number, (kind, what, wanted) in enumerate(operations):
        if kind == "join" and (what == "actor" or len(slow.indices("replay")) < 3):
            index = places.free_index(what, wanted)
            assert index == slow.free_index(what, wanted)
            identity = b"%d" % number
            member = Member(identity, MemberKey(what, index, 0), "here", number, 0.0, f"a{index}")
            member.endpoints = {f"{what}/{index}": f"ipc:///{number}"}
            places.add(member)
            slow.members.append(member)
        elif kind == "leave" and slow.members:
            member = slow.members.pop(what % len(slow.members))
            places.remove(member)
        elif kind == "give up" and what < own_actors:
            places.give_up(what)
            slow.given_up.add(what)
        assert set(places.all()) == set(slow.members)
        assert places.slots == len(slow.ladder())
        for member in slow.members:
            key = member.key
            assert places.find(member.identity) is places.at(key.role, key.index) is member
            assert member in places.of_agent(member.agent)
            if key.role == "actor":
                assert places.slot(key.index) == slow.ladder().index(key.index)
        served = {name: where for m in slow.members for name, where in m.endpoints.items()}
        assert places.served() == served
