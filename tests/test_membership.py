"""Membership without sockets or clocks: messages and losses in, instructions out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pdqn
from launcher.coordinator.membership import (
    Admit,
    Event,
    Instruction,
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
from pdqn.clients import EVERY_ROLE, Client
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import (
    MAX_ENDED,
    Episode,
    Evaluation,
    Join,
    Leave,
    Message,
    Refuse,
    Rejoin,
    Report,
    Unknown,
)
from pdqn.spans import Span


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
    assert membership.orders.pulse(host, 0.0).condemned == tuple(range(1000, 1150))
    membership.receive(b"host", Report(ended=(1000,)), 1.0)
    assert 1000 not in membership.orders.pulse(host, 0.0).condemned
    assert membership.orders.pulse(host, 0.0).condemned == tuple(range(1001, 1150))
    membership.receive(b"host", Report(ended=tuple(range(1000, 1150))), 1.0)
    assert membership.orders.pulse(host, 0.0).condemned == ()
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
    pulse = membership.orders.pulse(member, 0.0)
    assert membership.receive(b"one", Report(ended=(1,)), 2.0) == [SendPulse(member)]
    assert membership.orders.pulse(member, 0.0) is pulse


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
    first = membership.orders.pulse(member, 0.0)
    membership.receive(b"a", Report(), 1.0)
    assert membership.orders.pulse(member, 0.0) is first
    membership.command(["actor"], "run")
    second = membership.orders.pulse(member, 0.0)
    assert (first.command, second.command) == ("hold", "run")
    join(membership, b"b", index=1)
    join(membership, b"c")
    assert membership.orders.pulse(member, 0.0).actor_slots == 3


FALLING = {"learning_rate": 1e-3, "learning_rate_final": 1e-5}


def test_the_learner_is_told_how_much_of_the_run_is_over():
    membership = membership_of(learner=FALLING, run={"steps": 1000, "time_seconds": 60.0})
    actor = admitted(join(membership, b"a", index=0))
    learner = admitted(join(membership, b"l", role="learner"))
    membership.receive(b"a", Report(counters={"environment_steps": 100}), 5.0)
    told = [membership.orders.pulse(learner, now).progress for now in (5.0, 35.0, 600.0)]
    assert told == pytest.approx([0.1, 0.5, 1.0])
    assert membership.orders.pulse(actor, 35.0).progress == 0.0


@pytest.mark.parametrize(
    "changes", [{"learning_rate_decay_steps": 100}, {"learning_rate_final": 1e-3}]
)
def test_nobody_is_told_how_much_is_over_if_nothing_depends_on_it(changes: dict[str, float]):
    membership = membership_of(learner={**FALLING, **changes}, run={"steps": 1000})
    actor = admitted(join(membership, b"a", index=0))
    learner = admitted(join(membership, b"l", role="learner"))
    membership.receive(b"a", Report(counters={"environment_steps": 100}), 5.0)
    assert membership.orders.pulse(learner, 5.0).progress == 0.0
    assert membership.orders.pulse(actor, 5.0).command == "hold"


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


# ---- authority: which key may say what ----

HEAD, GPU, ACTORS, OTHERS = ("h" * 40, "g" * 40, "a" * 40, "o" * 40)
CLIENTS = {
    HEAD: Client("head", EVERY_ROLE),
    GPU: Client("gpu", frozenset({"learner", "replay", "evaluator"})),
    ACTORS: Client("actors-1"),
    OTHERS: Client("actors-2"),
}
PERIOD_SECONDS = 1.0


class Encrypted:
    """A membership with keys, and requests to it by connection and key."""

    def __init__(self, **sections: dict[str, Any]) -> None:
        config = build(("test", {"actor": {"count": 2}, "replay": {"shards": 2}, **sections}))
        self.metrics = RunMetrics(None)
        self.membership = Membership("the-run", config, self.metrics, head=HEAD)
        self.membership.allow(CLIENTS)
        self.now = 0.0

    def say(self, sender: bytes, user: str, message: Message) -> Instructions:
        return self.membership.receive(sender, message, self.now, user, 50)

    def join(self, sender: bytes, user: str, role: str = "actor", **of: Any) -> Instructions:
        own = {"host": "here", "pid": 1, "agent": "" if user == HEAD else f"host of {user[0]}"}
        return self.say(sender, user, Join(role, pdqn.__version__, **own | of))

    def joined(self, sender: bytes, user: str, role: str = "actor", **of: Any) -> Member:
        return admitted(self.join(sender, user, role, **of))

    def rejoin(self, sender: bytes, user: str, member: Member, **of: Any) -> str:
        """Ask for a member's place; return what becomes of it."""
        own = {"host": member.host, "pid": member.pid, "agent": member.agent}
        key = member.key
        place = {"role": key.role, "index": key.index, "incarnation": key.incarnation}
        told = self.say(sender, user, Rejoin(run="the-run", **place, **own | of))
        if not told:
            return "waits"
        return "refused" if any(is_refusal(one) for one in told) else "granted"

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.membership.listened_seconds += seconds

    @property
    def refused(self) -> dict[str, int]:
        return self.metrics.summary()["refused"]


def is_refusal(one: Instruction) -> bool:
    return isinstance(one, Send) and isinstance(one.message, Refuse)


def refusal_of(told: Instructions) -> str:
    sent = [one.message for one in told if isinstance(one, Send)]
    return next(message.reason for message in sent if isinstance(message, Refuse))


def test_an_actor_does_not_become_the_learners_parameters():
    run = Encrypted()
    run.joined(b"l", GPU, "learner")
    run.say(b"l", GPU, Report(endpoints={"parameters": f"tcp://a:1|{GPU}"}))
    run.joined(b"a", ACTORS)
    theirs = Report({"environment_steps": 9.0}, endpoints={"parameters": f"tcp://b:1|{ACTORS}"})
    text = "actors-1: an address of what another serves"
    assert run.say(b"a", ACTORS, theirs) == [Event("refused", "actor", 2, text)]
    assert run.membership.places.served() == {"parameters": f"tcp://a:1|{GPU}"}
    assert run.refused == {text: 1}
    assert run.metrics.counts()["environment_steps"] == 0, "nothing of the report counts"
    assert run.membership.count("actor") == 1


A, K, OF_GPU = "tcp://a:1", "k" * 40, f"tcp://a:1|{GPU}"


@pytest.mark.parametrize(
    ("role", "endpoints", "offence"),
    [
        (
            "replay",
            {"samples/0": OF_GPU, "transitions/0": OF_GPU, "acknowledgements/0": OF_GPU},
            "",
        ),
        ("learner", {"parameters": OF_GPU}, ""),
        ("learner", {"parameters": f"ipc:///x|{GPU}"}, ""),
        ("replay", {"samples/1": OF_GPU}, "an address of what another serves"),
        ("replay", {"parameters": OF_GPU}, "an address of what another serves"),
        ("learner", {"samples/0": OF_GPU}, "an address of what another serves"),
        ("evaluator", {"parameters": OF_GPU}, "an address of what another serves"),
        ("learner", {"anything": OF_GPU}, "an address of what another serves"),
        ("learner", {"parameters": f"{A}|{HEAD}"}, "an address with another's key"),
        ("learner", {"parameters": f"{A}|"}, "an address with another's key"),
        ("learner", {"parameters": A}, "an address with another's key"),
        ("learner", {"parameters": f"nowhere|{GPU}"}, "an address where nothing can be reached"),
    ],
)
def test_a_role_announces_only_its_own_services_at_its_own_key(
    role: str, endpoints: dict[str, str], offence: str
):
    run = Encrypted()
    member = run.joined(b"m", GPU, role)
    run.say(b"m", GPU, Report(endpoints=endpoints))
    assert run.membership.places.served() == ({} if offence else endpoints)
    assert run.refused == ({f"gpu: {offence}": 1} if offence else {})
    run.membership.lost(role, 0)
    answer = run.rejoin(b"again", GPU, member, endpoints=endpoints)
    assert answer == ("refused" if offence else "granted")
    assert run.membership.places.served() == ({} if offence else endpoints)


def test_without_keys_an_address_has_none():
    membership = membership_of()
    join(membership, b"l", "learner")
    membership.receive(b"l", Report(endpoints={"parameters": f"{A}|{K}"}), 0.0)
    assert membership.places.served() == {}


EVALUATION = Evaluation(1, 2, 3.0, 0.5)
FOREIGN: list[tuple[str, str, Message, str]] = [
    ("actor", ACTORS, Report(evaluation=EVALUATION), "an evaluation"),
    ("learner", GPU, Report(evaluation=EVALUATION), "an evaluation"),
    ("actor", ACTORS, Leave(Report(evaluation=EVALUATION)), "an evaluation"),
    ("learner", GPU, Report(episodes=(Episode(1.0, 1),)), "episodes"),
    ("evaluator", GPU, Report(episodes=(Episode(1.0, 1),)), "episodes"),
    ("learner", GPU, Report(spans=(Span(0, 0, 0, 5),)), "spans of transitions"),
    ("actor", ACTORS, Report(ended=(1,)), "the end of a host's process"),
]


@pytest.mark.parametrize(("role", "user", "message", "offence"), FOREIGN)
def test_what_only_another_role_can_know_is_refused(
    role: str, user: str, message: Message, offence: str
):
    run = Encrypted()
    run.joined(b"m", user, role)
    told = run.say(b"m", user, message)
    name = CLIENTS[user].name
    assert [(one.kind, one.text) for one in told if isinstance(one, Event)] == [
        ("refused", f"{name}: {offence}")
    ]
    assert run.refused == {f"{name}: {offence}": 1}
    assert run.metrics.take_evaluations() == []
    assert run.metrics.current()["rollout/ep_rew_mean"] is None
    assert run.membership.count(role) == 1


def test_what_a_stranger_said_while_it_had_no_place_is_checked_with_its_place():
    run = Encrypted()
    member = run.joined(b"a", ACTORS)
    run.membership.lost("actor", member.key.index)
    run.say(b"b", ACTORS, Report(evaluation=EVALUATION))
    run.say(b"b", ACTORS, Report(episodes=(Episode(7.0, 3),)))
    assert run.rejoin(b"b", ACTORS, member) == "granted"
    assert run.metrics.take_evaluations() == []
    assert run.metrics.current()["rollout/ep_rew_mean"] == 7.0


def test_a_host_ends_only_processes_of_its_own():
    run = Encrypted()
    run.joined(b"ha", ACTORS, "host")
    run.joined(b"ho", OTHERS, "host")
    run.joined(b"a", ACTORS, pid=7)
    run.say(b"ho", OTHERS, Report(ended=(7,)))
    assert run.membership.count("actor") == 1
    run.say(b"ha", ACTORS, Report(ended=(7,)))
    assert run.membership.count("actor") == 0


# ---- admission: who gets a place, and who gets it back ----


def test_a_live_members_place_is_given_to_no_stranger_who_names_it():
    run = Encrypted()
    learner = run.joined(b"l", GPU, "learner")
    for seconds in (0.0, 1.0, 2.0, 60.0):
        run.wait(seconds)
        for user in (ACTORS, OTHERS, HEAD):
            assert run.rejoin(b"x", user, learner) == "refused"
        assert run.rejoin(b"x", GPU, learner, pid=99) == "refused"
        assert run.rejoin(b"x", GPU, learner, agent="another") == "refused"
    assert run.membership.places.find(b"l") is learner
    run.membership.lost("learner", 0)
    assert run.rejoin(b"x", ACTORS, learner) == "refused", "nor when it is free"
    assert run.rejoin(b"y", GPU, learner) == "granted"
    assert run.refused["actors-1: a request for another's place"] == 5


def test_a_process_with_a_new_connection_waits_until_the_old_one_is_silent():
    run = Encrypted()
    member = run.joined(b"old", ACTORS)
    run.wait(2 * PERIOD_SECONDS)
    run.say(b"old", ACTORS, Report())
    news = Report({"episodes": 1.0}, episodes=(Episode(7.0, 3),))
    assert run.say(b"new", ACTORS, news) == [Send(b"new", Unknown())]
    for _ in range(3):
        assert run.rejoin(b"new", ACTORS, member) == "waits"
        run.wait(PERIOD_SECONDS)
    run.wait(0.5)
    assert run.rejoin(b"new", ACTORS, member) == "granted"
    assert run.membership.places.find(b"old") is None
    assert run.metrics.current()["rollout/ep_rew_mean"] == 7.0, "what it said meanwhile was kept"
    assert run.rejoin(b"new", ACTORS, member) == "granted", "asked twice, answered twice"
    assert run.membership.count("actor") == 1


def test_reports_of_a_broken_connection_that_arrive_late_do_no_harm():
    run = Encrypted()
    member = run.joined(b"old", ACTORS)
    for _ in range(5):
        assert run.rejoin(b"new", ACTORS, member) == "waits"
        run.wait(PERIOD_SECONDS)
        run.say(b"old", ACTORS, Report())
    run.wait(4 * PERIOD_SECONDS)
    assert run.rejoin(b"new", ACTORS, member) == "granted"


def test_who_asks_for_the_place_of_a_process_that_goes_on_speaking_is_refused_in_the_end():
    run = Encrypted()
    member = run.joined(b"real", ACTORS)
    answers: list[str] = []
    while "refused" not in answers:
        answers.append(run.rejoin(b"copy", ACTORS, member))
        run.wait(PERIOD_SECONDS)
        run.say(b"real", ACTORS, Report())
    assert answers == ["waits"] * 11 + ["refused"]
    assert run.membership.places.find(b"real") is member


def test_a_claim_that_was_given_up_does_not_count_against_the_next():
    run = Encrypted()
    member = run.joined(b"one", ACTORS)
    assert run.rejoin(b"two", ACTORS, member) == "waits"
    for _ in range(100):
        run.wait(PERIOD_SECONDS)
        run.say(b"one", ACTORS, Report())
    assert run.rejoin(b"three", ACTORS, member) == "waits"
    run.wait(4 * PERIOD_SECONDS)
    assert run.rejoin(b"three", ACTORS, member) == "granted"


def test_the_name_of_a_hosts_supervisor_belongs_to_the_key_that_used_it_first():
    run = Encrypted()
    run.joined(b"h", ACTORS, "host", agent="one")
    for role in ("host", "actor"):
        refused = run.join(b"x", OTHERS, role, agent="one")
        assert refusal_of(refused) == "its host's name belongs to another key"
    run.joined(b"a", ACTORS, agent="one")
    run.membership.lose_host("one")
    refused = run.join(b"x", OTHERS, agent="one")
    assert refusal_of(refused) == "its host's name belongs to another key"
    assert run.refused == {"actors-2: a request to join": 3}


def test_only_the_launchers_own_processes_join_without_a_supervisor_and_choose_an_index():
    run = Encrypted()
    refused = run.join(b"x", ACTORS, agent="")
    assert refusal_of(refused) == (
        "only the launcher's own processes join without a host's supervisor"
    )
    assert run.joined(b"a", HEAD, index=1).key.index == 1
    assert run.joined(b"b", ACTORS, index=0).key.index == 2, "after those of the launcher"


def test_a_key_has_only_so_many_members_and_joins_only_so_often():
    run = Encrypted()
    most = 4096 + 2 * 2
    for number in range(most):
        run.joined(b"%d" % number, ACTORS, pid=number)
    assert refusal_of(run.join(b"x", ACTORS)) == "its key, actors-1, has 4100 members already"
    run.joined(b"o", OTHERS)
    for _ in range(most):  # each of them again, over its own connection
        run.say(b"7", ACTORS, Leave())
        run.joined(b"7", ACTORS)
    run.say(b"7", ACTORS, Leave())
    refused = run.join(b"7", ACTORS)
    assert refusal_of(refused) == (
        "its key, actors-1, has joined too often; it may do so again in 1 s"
    )
    run.wait(1.5)
    run.joined(b"7", ACTORS)
    for number in range(5):
        run.joined(b"h%d" % number, HEAD, "host", agent=f"{number}")


def test_hosts_of_one_key_join_less_often_than_actors():
    run = Encrypted()
    for number in range(2 * (200 + 2)):
        run.joined(b"h", ACTORS, "host", agent=f"{number}")
    refused = run.join(b"h", ACTORS, "host", agent="one more")
    assert refusal_of(refused) == (
        "its key, actors-1, has joined too often; it may do so again in 20 s"
    )
    run.joined(b"a", ACTORS, agent="0")
    run.wait(20.5)
    run.joined(b"h", ACTORS, "host", agent="one more")


def test_a_cluster_with_one_key_and_a_worker_for_every_actor_joins_at_once_and_again():
    actors = 3000
    run = Encrypted(actor={"count": actors})
    for session in range(2):
        for number in range(actors):
            agent = f"worker {number} of {session}"
            run.joined(b"h%d" % number, ACTORS, "host", agent=agent)
            run.joined(b"a%d" % number, ACTORS, agent=agent)
        for number in range(actors):
            run.membership.lose_host(f"worker {number} of {session}", for_good=True)


def test_of_an_actors_incarnations_only_the_last_two_are_remembered():
    run = Encrypted()
    for steps in range(1, 4):
        member = run.joined(b"a", ACTORS)
        run.say(b"a", ACTORS, Report({"environment_steps": float(steps)}))
        run.membership.lost("actor", member.key.index)
    assert run.metrics.counts()["environment_steps"] == 1 + 2 + 3
    known = [run.metrics.counted(MemberKey("actor", 2, number)) for number in range(3)]
    assert known == [{}, {"environment_steps": 2.0}, {"environment_steps": 3.0}]


# ---- places and keys, against a slow twin that keeps everything that ever happened ----


@dataclass(frozen=True)
class Process:
    number: int
    user: str
    agent: str
    pid: int

    def connection(self, number: int) -> bytes:
        return b"%d over %d" % (self.number, number)


# Two pairs with the same key, of which one also has the same supervisor; two with the same pid.
PROCESSES = [
    Process(0, HEAD, "", 10),
    Process(1, ACTORS, "one", 11),
    Process(2, ACTORS, "one", 12),
    Process(3, ACTORS, "two", 11),
    Process(4, OTHERS, "three", 11),
    Process(5, OTHERS, "one", 11),  # which belongs to another key
]


class SlowAdmission:
    """Decides on joins and rejoins by looking through all that ever happened."""

    def __init__(self) -> None:
        self.now = 0.0
        self.held: list[tuple[MemberKey, Process, bytes]] = []  # ever, by whom, over what
        self.there: dict[tuple[str, int], bytes] = {}
        self.heard: list[tuple[float, bytes]] = []
        self.asked: list[tuple[float, tuple[str, int], bytes]] = []

    def join(self, process: Process) -> bool:
        owners = [other.user for _, other, _ in self.held if other.agent == process.agent]
        return not owners or owners[0] == process.user

    def answer(self, process: Process, connection: bytes, key: MemberKey) -> str:
        place = (key.role, key.index)
        holders = [(k, p) for k, p, _ in self.held if (k.role, k.index) == place]
        if not holders or holders[-1] != (key, process):
            return "refused"
        if place not in self.there or self.there[place] == connection:
            return "granted"
        heard = max(when for when, who in self.heard if who == self.there[place])
        if self.now - heard > 3 * PERIOD_SECONDS:
            return "granted"
        since = self.now
        for when, where, who in reversed(self.asked):
            if where == place:
                if who != connection:
                    break
                since = when
        if heard <= since + 10 * PERIOD_SECONDS:
            self.asked.append((self.now, place, connection))
            return "waits"
        self.decided(place)
        return "refused"

    def decided(self, place: tuple[str, int]) -> None:
        """Forget who asked for a place."""
        self.asked = [one for one in self.asked if one[1] != place]

    def take(self, key: MemberKey, process: Process, connection: bytes) -> None:
        """Let a process have a place, and no other over that connection."""
        place = (key.role, key.index)
        self.there = {where: who for where, who in self.there.items() if who != connection}
        self.there[place] = connection
        self.held.append((key, process, connection))
        self.heard.append((self.now, connection))
        self.decided(place)


_STEPS = st.one_of(
    st.tuples(st.just("join"), st.integers(0, 5), st.integers(0, 1)),
    st.tuples(st.just("report"), st.integers(0, 5), st.integers(0, 1)),
    st.tuples(st.just("is lost"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("time"), st.integers(1, 6), st.just(0)),
    # A process asks for the place of any other, over either of its connections.
    st.tuples(st.just("rejoin"), st.integers(0, 5), st.integers(0, 11)),
    # Most often one process speaks and asks over its two connections, while time passes.
    *2 * [st.tuples(st.sampled_from(["returns", "report"]), st.just(1), st.integers(0, 1))],
    st.tuples(st.just("time"), st.integers(1, 4), st.just(0)),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(_STEPS, min_size=20, max_size=60))
def test_places_are_given_and_given_back_as_a_slow_twin_says(steps: list[tuple[str, int, int]]):
    run, slow = Encrypted(), SlowAdmission()
    places = run.membership.places
    for kind, number, other in [("join", 1, 0), *steps]:
        if kind == "time":
            run.wait(number)
            slow.now += number
        elif kind == "is lost":
            run.membership.lost("actor", number)
            slow.there.pop(("actor", number), None)
        elif kind == "report":
            connection = PROCESSES[number].connection(other)
            run.say(connection, PROCESSES[number].user, Report())
            slow.heard.append((slow.now, connection))
        elif kind == "join":
            process = PROCESSES[number]
            connection = process.connection(other)
            told = run.join(connection, process.user, agent=process.agent, pid=process.pid)
            assert is_refusal(told[0]) != slow.join(process)
            if slow.join(process):
                slow.take(admitted(told).key, process, connection)
        elif slow.held:
            process = PROCESSES[number]
            key, holder, _ = slow.held[other % len(slow.held)]
            if kind == "returns":
                mine = [(key, holder) for key, holder, _ in slow.held if holder == process]
                key, holder = mine[-1] if mine else (key, holder)
            connection = process.connection(other % 2)
            answer = slow.answer(process, connection, key)
            wanted = Member(b"", key, "here", process.pid, 0.0, process.agent, holder.user)
            assert run.rejoin(connection, process.user, wanted) == answer
            if answer == "granted":
                slow.take(key, process, connection)
        assert {(m.key.role, m.key.index): m.identity for m in places.all()} == slow.there
