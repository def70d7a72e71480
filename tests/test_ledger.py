"""The ledger of a run: what is made is stored, refused, waiting, lost, or died with its actor."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from launcher.metrics.ledger import Balance, Ledger
from pdqn.spans import MAX_SPANS, Span, Stream, as_spans
from pdqn.wire import WireError
from replay.accounts import Accounts
from replay.sequences import Sequences

WINDOW = 3
ACTORS, SHARDS = range(3), range(2)


def reported(made: int, sent: int | None = None) -> dict[str, float]:
    return {"transitions_made": made, "transitions_sent": made if sent is None else sent}


def balanced(balance: Balance) -> bool:
    ends = balance.received + balance.refused + balance.waiting + balance.lost + balance.died
    return balance.made == ends and balance.made >= balance.sent


# ---- one thing after the other ----


def test_what_an_actor_has_not_sent_waits_until_it_ends():
    ledger = Ledger()
    ledger.report((0, 0), reported(120, 100))
    ledger.settle(0, [Span(0, 0, 0, 90, 10)])
    assert ledger.balance() == Balance(120, 100, 80, 10, waiting=30)
    ledger.end((0, 0), "left")
    assert ledger.balance() == Balance(120, 100, 80, 10, lost=30)


def test_more_can_be_received_of_a_killed_actor_than_it_has_reported():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.end((0, 0), "died")
    assert ledger.balance().died == 100
    ledger.settle(0, [Span(0, 0, 0, 164)])
    assert ledger.balance() == Balance(164, 164, 164)
    # The next incarnation is a stream of its own.
    ledger.report((0, 1), reported(7))
    assert ledger.balance() == Balance(171, 171, 164, waiting=7)


def test_what_died_with_an_actor_is_not_lost_but_a_hole_before_it_is():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.settle(0, [Span(0, 0, 0, 20), Span(0, 0, 30, 90)])
    ledger.end((0, 0), "died")
    assert ledger.balance() == Balance(100, 100, 80, lost=10, died=10)


def test_an_actor_that_comes_back_is_there_again():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.end((0, 0), "died")
    ledger.report((0, 0), reported(110))
    assert ledger.balance() == Balance(110, 110, waiting=110)


def test_a_batch_that_two_shards_have_stored_is_received_once_and_said():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.settle(0, [Span(0, 0, 0, 60)])
    ledger.settle(1, [Span(0, 0, 40, 100)])
    assert ledger.balance() == Balance(100, 100, 100, stored_twice=20)


def test_a_shard_that_begins_again_without_a_journal_stores_nothing_twice():
    ledger = Ledger()
    ledger.settle(0, [Span(0, 0, 0, 60)])
    ledger.settle(0, [Span(0, 0, 40, 100)])
    assert ledger.balance() == Balance(100, 100, 100)


def test_nothing_is_lost_while_a_shard_may_come_back_with_it():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.settle(0, [Span(0, 0, 0, 60)])
    ledger.shard_is_away(0)
    ledger.end((0, 0), "left")
    assert ledger.balance() == Balance(100, 100, 60, waiting=40)
    ledger.settle(0, [Span(0, 0, 0, 95)])
    ledger.shard_is_back(0)
    assert ledger.balance() == Balance(100, 100, 95, lost=5)


def test_at_the_end_everything_that_waited_died_with_its_actor():
    ledger = Ledger()
    ledger.report((0, 0), reported(100))
    ledger.shard_is_away(1)
    ledger.close()
    assert ledger.balance() == Balance(100, 100, died=100)


def test_streams_beyond_the_bound_keep_their_sums(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launcher.metrics.ledger.MOST_STREAMS", 2)
    ledger = Ledger()
    for incarnation in range(5):
        ledger.report((0, incarnation), reported(10))
        ledger.settle(0, [Span(0, incarnation, 0, 8)])
        ledger.end((0, incarnation), "died")
    assert ledger.balance() == Balance(50, 50, 40, died=10)
    again = Ledger()
    again.set_state(json.loads(json.dumps(ledger.get_state())))
    assert again.balance() == ledger.balance()
    for actor in range(1, 4):
        ledger.report((actor, 0), reported(1))
    assert ledger.balance().made == 52, "two are there, and neither may be forgotten"


def test_spans_beyond_the_bound_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launcher.metrics.ledger.MOST_SPANS", 2)
    ledger = Ledger()
    spans = [Span(0, 0, start, start + 1) for start in (0, 2, 4, 6)]
    assert ledger.settle(0, spans) == 2
    assert ledger.balance().received == 2


@pytest.mark.parametrize(
    "spans",
    [
        7,
        [[0, 0, 0]],
        [[0, 0, 0, 5, 0.0]],
        [[0, 0, 5, 5, 0]],
        [[0, 0, 0, 5, 6]],
        [[-1, 0, 0, 5, 0]],
        [[0, 0, 0, 1 << 60, 0]],
        [[0, 0, 0, 5, 0]] * (MAX_SPANS + 1),
    ],
)
def test_impossible_spans_are_refused(spans: object):
    with pytest.raises(WireError):
        as_spans(spans)


# ---- the account of a shard ----


def test_a_report_has_what_changed_and_is_bounded():
    accounts = Accounts()
    for actor in range(3 * MAX_SPANS):
        accounts.add((actor, 0), 8, 8)
    first = accounts.take()
    assert len(first) == MAX_SPANS
    second, third = accounts.take(), accounts.take()
    assert accounts.waiting == 0
    assert len({span.actor for span in (*first, *second, *third)}) == 3 * MAX_SPANS
    accounts.add((5, 0), 20, 12, refused=12)
    changed, *others = accounts.take()
    assert changed == Span(5, 0, 0, 20, 12)
    assert len(others) < 300, "some of the others come again, in case that a report was lost"


def test_what_a_report_lost_comes_again():
    accounts = Accounts()
    for actor in range(700):
        accounts.add((actor, 0), 8, 8)
    accounts.take()  # it is lost
    again = [span.actor for _ in range(4) for span in accounts.take()]
    assert set(again) == set(range(700))


def test_spans_beyond_the_bound_are_forgotten_and_begin_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("replay.accounts.MOST_SPANS", 2)
    accounts = Accounts()
    for actor in range(3):
        accounts.add((actor, 0), 8, 8)
    accounts.add((0, 0), 12, 4)
    assert accounts.all() == (Span(2, 0, 0, 8), Span(0, 0, 8, 12))


def test_batches_that_do_not_say_what_was_made_have_no_account():
    accounts = Accounts()
    accounts.add((0, 0), 0, 8)
    assert accounts.all() == ()


def test_what_an_earlier_process_knew_is_joined_to_what_is_left_of_its_journal():
    accounts = Accounts()
    accounts.add((0, 0), 60, 10, refused=10)
    accounts.add((0, 0), 70, 10)
    accounts.add((2, 0), 10, 10)
    accounts.advance([Span(0, 0, 0, 65, 12), Span(1, 0, 0, 5), Span(2, 0, 0, 8)])
    accounts.add((1, 0), 9, 4)
    assert sorted(accounts.all()) == [Span(0, 0, 0, 70, 12), Span(1, 0, 0, 9), Span(2, 0, 0, 10)]


# ---- whatever happens ----


class Batch(NamedTuple):
    stream: Stream
    sequence: int
    made: int
    size: int
    is_bad: bool

    @property
    def numbers(self) -> range:
        return range(self.made - self.size, self.made)


@dataclass
class Actor:
    """An actor with its sender; it has at most a window of batches that are not acknowledged."""

    stream: Stream
    shard: int
    made: int = 0
    sent: int = 0
    sequence: int = 0
    reported_made: int = 0
    unacknowledged: list[Batch] = field(default_factory=list)


class Shard:
    """A shard whose journal is a list; all else is gone when it is killed."""

    def __init__(self, journal: list[Batch]) -> None:
        self.journal = journal
        self.accounts, self.sequences = Accounts(), Sequences(WINDOW)
        self.arrived: list[Batch] = []
        self.collected: list[Batch] = []
        for batch in journal:
            self.sequences.put(batch.stream, batch.sequence + 1)
            self.account(batch)

    def account(self, batch: Batch) -> None:
        refused = batch.size if batch.is_bad else 0
        self.accounts.add(batch.stream, batch.made, batch.size, refused)

    def take(self) -> None:
        batch = self.arrived.pop(0)
        if self.sequences.take(batch.stream, batch.sequence) is not None:
            self.account(batch)
            self.collected.append(batch)

    def write(self) -> None:
        self.journal += self.collected
        self.collected.clear()


class LedgerAgainstTwin(RuleBasedStateMachine):
    """Actors, shards and the ledger of their reports, against sets of numbered transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.journals: dict[int, list[Batch]] = {shard: [] for shard in SHARDS}
        self.shards: dict[int, Shard | None] = {s: Shard(self.journals[s]) for s in SHARDS}
        self.actors = {actor: Actor((actor, 0), actor % 2) for actor in ACTORS}
        self.acknowledged: defaultdict[Stream, set[int]] = defaultdict(set)
        self.gone: list[tuple[Actor, str]] = []

    # ---- actors ----

    @rule(
        actor=st.sampled_from(ACTORS),
        counts=st.lists(st.integers(1, 9), max_size=3),
        unsent=st.integers(0, 3),
        is_bad=st.booleans(),
    )
    def act(self, actor: int, counts: list[int], unsent: int, is_bad: bool) -> None:
        """Make transitions, and send batches of them as far as the window has room."""
        acting = self.actors[actor]
        self.follow(acting)
        for count in counts:
            acting.made += count
            self.send(acting, is_bad)
        acting.made += unsent

    def send(self, acting: Actor, is_bad: bool) -> None:
        count = acting.made - acting.sent
        if len(acting.unacknowledged) < WINDOW:
            batch = Batch(acting.stream, acting.sequence, acting.made, count, is_bad)
            acting.sequence, acting.sent = acting.sequence + 1, acting.made
            acting.unacknowledged.append(batch)
            if shard := self.shards[acting.shard]:
                shard.arrived.append(batch)

    def follow(self, actor: Actor) -> None:
        """Go to another shard if this one is away, or home if nothing is unacknowledged."""
        home = actor.stream[0] % 2
        wanted = home if self.shards[home] else 1 - home
        stays = self.shards[actor.shard] and actor.unacknowledged
        if wanted != actor.shard and not stays and (shard := self.shards[wanted]):
            actor.shard = wanted
            shard.arrived += self.greeted(actor, shard)

    def greeted(self, actor: Actor, shard: Shard) -> list[Batch]:
        """Take the acknowledgement of a greeting, and return what is sent again."""
        shard.write()
        self.hear(actor, shard)
        return actor.unacknowledged

    def hear(self, actor: Actor, shard: Shard) -> None:
        expected = shard.sequences.expected(actor.stream)
        for batch in list(actor.unacknowledged):
            if batch.sequence < expected:
                actor.unacknowledged.remove(batch)
                self.acknowledged[actor.stream].update(batch.numbers)

    @rule(actor=st.sampled_from(ACTORS), arrives=st.booleans())
    def report_actor(self, actor: int, arrives: bool) -> None:
        acting = self.actors[actor]
        if arrives:
            acting.reported_made = acting.made
            self.ledger.report(acting.stream, reported(acting.made, acting.sent))

    @rule(
        what=st.sampled_from(["shard", "restart", "shard", "restart", "actor", "leave", "all"]),
        number=st.sampled_from(ACTORS),
        share=st.floats(0, 1),
    )
    def fail(self, what: str, number: int, share: float) -> None:
        """Let something end, or come back; one rule, so that it is not too frequent."""
        if what == "actor":
            self.kill_actor(number, share)
        elif what == "leave":
            self.leave(number)
        elif what == "shard":
            self.kill_shard(number % 2, int(4 * share))
        elif what == "all" and share < 0.5:
            self.resume()
        else:
            self.restart_shards()

    def kill_actor(self, actor: int, share: float) -> None:
        """End an actor, of whose batches only the first are on their way yet."""
        acting = self.actors[actor]
        for shard in filter(None, self.shards.values()):
            its = [batch for batch in shard.arrived if batch.stream == acting.stream]
            for batch in its[int(share * len(its)) :]:
                shard.arrived.remove(batch)
        self.ledger.end(acting.stream, "died")
        self.replace(acting, "died")

    def leave(self, actor: int) -> None:
        """End an actor in order; it has not waited for all acknowledgements."""
        acting = self.actors[actor]
        acting.reported_made = acting.made
        self.ledger.report(acting.stream, reported(acting.made, acting.sent))
        self.ledger.end(acting.stream, "left")
        self.replace(acting, "left")

    def replace(self, acting: Actor, how: str) -> None:
        self.gone.append((acting, how))
        actor, incarnation = acting.stream
        self.actors[actor] = Actor((actor, incarnation + 1), actor % 2)

    # ---- shards ----

    @rule(
        shard=st.sampled_from(SHARDS),
        takes=st.integers(0, 9),
        end=st.sampled_from(["", "writes", "acknowledges", "acknowledges"]),
    )
    def turn(self, shard: int, takes: int, end: str) -> None:
        here = self.shards[shard]
        if here is None:
            return
        for _ in range(min(takes, len(here.arrived))):
            here.take()
        if end:
            here.write()
        if end == "acknowledges":
            for actor in self.actors.values():
                if actor.shard == shard:
                    self.hear(actor, here)

    @rule(shard=st.sampled_from(SHARDS), arrives=st.booleans())
    def report_shard(self, shard: int, arrives: bool) -> None:
        if here := self.shards[shard]:
            here.write()  # a turn writes before it reports
            spans = here.accounts.take()
            if arrives:
                self.ledger.settle(shard, as_spans([list(span) for span in spans]))

    def kill_shard(self, shard: int, written: int) -> None:
        if here := self.shards[shard]:
            here.journal += here.collected[:written]
            self.shards[shard] = None
            self.ledger.shard_is_away(shard)
            for actor in self.actors.values():
                self.follow(actor)

    def restart_shards(self) -> None:
        for number, shard in self.shards.items():
            if shard is None:
                self.shards[number] = new = Shard(self.journals[number])
                self.ledger.settle(number, new.accounts.take())
                self.ledger.shard_is_back(number)
                for actor in self.actors.values():
                    if actor.shard == number:
                        new.arrived += self.greeted(actor, new)

    def resume(self) -> None:
        """Kill everything at once and go on in another session, which has all journals."""
        for actor in ACTORS:
            acting = self.actors[actor]
            self.replace(acting, "died")
        state = json.loads(json.dumps(self.ledger.get_state()))
        self.ledger = Ledger()
        self.ledger.set_state(state)
        self.shards = dict.fromkeys(SHARDS)
        self.restart_shards()

    # ---- what holds ----

    @invariant()
    def balance_holds(self) -> None:
        total = self.ledger.balance()
        assert balanced(total)
        assert total.sent >= total.received + total.refused

    @invariant()
    def what_is_acknowledged_is_in_a_journal(self) -> None:
        written = self.written()
        for stream, numbers in self.acknowledged.items():
            assert numbers <= set().union(*(journal[stream] for journal in written))

    def written(self) -> list[defaultdict[Stream, set[int]]]:
        """Return the transitions of each stream in each journal."""
        found = []
        for journal in self.journals.values():
            numbers: defaultdict[Stream, set[int]] = defaultdict(set)
            for batch in journal:
                numbers[batch.stream].update(batch.numbers)
            found.append(numbers)
        return found

    def teardown(self) -> None:
        """Drain, hear every report, and compare each stream with the twin."""
        if not all(self.shards.values()):
            self.restart_shards()
        for number, shard in self.shards.items():
            assert shard is not None
            while shard.arrived:
                shard.take()
            shard.write()
            self.ledger.settle(number, shard.accounts.take())  # it has those of lost reports again
        for actor in ACTORS:
            self.report_actor(actor, arrives=True)
        for acting, how in [*self.gone, *((actor, "") for actor in self.actors.values())]:
            assert self.ledger.of(acting.stream) == self.expected(acting, how)
        self.balance_holds()
        self.what_is_acknowledged_is_in_a_journal()

    def expected(self, acting: Actor, how: str) -> Balance:
        first, second = (numbers[acting.stream] for numbers in self.written())
        settled = first | second
        bad = sum(
            batch.size
            for journal in self.journals.values()
            for batch in journal
            if batch.is_bad and batch.stream == acting.stream
        )
        refused = min(bad, len(settled))  # one that both have refused counts twice
        last = max(settled, default=-1) + 1
        made = max(acting.reported_made, last)
        rest, tail = made - len(settled), made - last
        balance = self.ledger.of(acting.stream)
        return Balance(
            made,
            balance.sent,
            len(settled) - refused,
            refused,
            waiting=0 if how else rest,
            lost={"left": rest, "died": rest - tail, "": 0}[how],
            died=tail if how == "died" else 0,
            stored_twice=len(first & second),
        )


TestLedgerAgainstTwin = LedgerAgainstTwin.TestCase
TestLedgerAgainstTwin.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
