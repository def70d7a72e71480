"""Several shards of replay act as one buffer with one limit, and never stop the run."""

from __future__ import annotations

import multiprocessing
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.coordinator.coordinator import Coordinator
from launcher.metrics.metrics import MemberKey, RunMetrics
from learner.process import LearnerProcess
from pdqn import wire
from pdqn.config import Config
from pdqn.files import RUN_ID, RunFiles
from pdqn.layers import build
from pdqn.link import CoordinatorLink
from pdqn.messages import Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.tickets import ticket_of
from replay.client import SampleClient
from replay.limiter import RateLimiter
from replay.process import ReplayServer, run_replay
from replay.samples import Sample, importance_weights
from replay.sender import TransitionSender, shard_of
from replay.sharding import Ledger, ShardLimiter, ShardState, Tally, allocate

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (1,), "float32"),), 2)
RUN = "the-run"
SEAL = bytes(range(32))
TRANSPORTS = ("auto", "socket")


# ---- sharing a batch out ----


@given(
    rows=st.integers(1, 300),
    totals=st.dictionaries(st.integers(0, 20), st.floats(1e-9, 1e9), min_size=1),
    u=st.floats(0, 1, exclude_max=True),
)
def test_every_shard_gets_the_floor_or_ceiling_of_its_share(
    rows: int, totals: dict[int, float], u: float
):
    counts = allocate(rows, totals, u)
    assert sum(counts.values()) == rows
    assert counts.keys() <= totals.keys()
    line = sum(totals.values())
    for shard, total in totals.items():
        exact = rows * total / line
        assert exact - 1 - 1e-6 <= counts.get(shard, 0) <= exact + 1 + 1e-6


def test_over_all_places_of_the_comb_the_shares_are_exact():
    totals = {0: 1.0, 1: 2.5, 2: 4.5}
    places = (np.arange(1000) + 0.5) / 1000
    given_out = Counter[int]()
    for u in places:
        given_out.update(allocate(7, totals, u))
    for shard, total in totals.items():
        assert given_out[shard] / 1000 == pytest.approx(7 * total / 8, abs=0.002)


def test_one_shard_gets_everything():
    assert allocate(64, {3: 1e-300}, 0.999) == {3: 64}


# ---- whom an actor sends to ----


def test_actors_are_spread_over_all_shards():
    assert [shard_of(actor, 3, [0, 1, 2]) for actor in range(6)] == [0, 1, 2, 0, 1, 2]


def test_the_actors_of_a_lost_shard_are_spread_over_the_others():
    found = [shard_of(actor, 3, [2, 0]) for actor in range(12)]
    assert found[0::3] == [0] * 4
    assert found[2::3] == [2] * 4
    assert Counter(found[1::3]) == {0: 2, 2: 2}


def test_without_a_shard_there_is_nobody_to_send_to():
    assert shard_of(5, 3, []) is None


# ---- the ledger ----


def limiter_of(
    target: float = 1.0, tolerance: float = 4.0, min_size: int = 8, batch: int = 4
) -> RateLimiter:
    return RateLimiter(target, tolerance, min_size, batch)


def state_of(inserted: int, sampled: int = 0, incarnation: int = 0, **view: float) -> ShardState:
    """Describe a shard that has not heard of others, unless ``view`` has its limiter's counts."""
    values: dict[str, Any] = {
        "num_inserted": inserted,
        "num_sampled": sampled,
        "balance": float(max(0, inserted - 8) - sampled),
        **view,
    }
    return ShardState(incarnation, inserted, sampled, inserted, float(inserted), **values)


class TestLedger:
    def ledger(self, *states: ShardState) -> Ledger:
        ledger = Ledger(limiter_of())
        for shard, state in enumerate(states):
            ledger.hear(shard, state)
        ledger.begin(range(len(states)))
        return ledger

    def test_it_begins_once_every_shard_has_reported(self):
        ledger = Ledger(limiter_of())
        ledger.hear(0, state_of(10))
        ledger.begin([0, 1])
        assert ledger.tally(0) is None
        assert not ledger.open
        ledger.hear(1, state_of(5))
        ledger.begin([0, 1])
        assert ledger.open
        assert ledger.limiter.num_inserted == 15

    def test_each_is_told_what_the_others_did(self):
        ledger = self.ledger(state_of(10), state_of(5, 3))
        assert ledger.tally(0) == Tally(10, 0, 5, 3, balance=15 - 8 - 3)
        assert ledger.tally(1) == Tally(5, 3, 10, 0, balance=4)

    def test_it_is_open_once_all_together_have_enough(self):
        ledger = self.ledger(state_of(4), state_of(3))
        assert not ledger.open
        ledger.hear(1, state_of(4))
        assert ledger.open

    def test_a_shard_that_holds_nothing_is_asked_for_nothing(self):
        assert self.ledger(state_of(8), state_of(0)).totals == {0: 8.0}

    def test_what_a_lost_shard_did_remains_counted(self):
        ledger = self.ledger(state_of(10, 2), state_of(10, 2))
        ledger.lose(1)
        assert ledger.totals == {0: 10.0}
        ledger.hear(1, state_of(3, 1, incarnation=1))
        assert ledger.tally(1) == Tally(3, 1, 20, 4, balance=23 - 8 - 5)

    def test_a_shard_that_was_out_of_reach_for_a_while_is_not_counted_twice(self):
        ledger = self.ledger(state_of(10), state_of(10))
        ledger.lose(1)
        ledger.hear(1, state_of(12))
        assert ledger.limiter.num_inserted == 22

    def test_a_shard_that_nobody_waited_for_is_counted_from_when_it_is_heard(self):
        ledger = self.ledger(state_of(10))
        ledger.hear(1, state_of(6, 2))
        assert ledger.tally(1) == Tally(6, 2, 10, 0, balance=16 - 8 - 2)
        assert ledger.totals == {0: 10.0, 1: 6.0}

    def test_what_a_shard_did_that_was_told_before_and_is_heard_late_is_not_counted_twice(self):
        # The previous client had counted the 60 of shard 1, which has inserted 2 more since.
        told = {"num_inserted": 100, "num_sampled": 90, "balance": 2.0}
        ledger = self.ledger(state_of(40, 70, **told))
        ledger.hear(1, state_of(62, 20, **told))
        assert ledger.tally(1) == Tally(62, 20, 40, 70, balance=2.0 + 2)
        ledger.hear(1, state_of(63, 20, **told))
        assert ledger.tally(0) == Tally(40, 70, 63, 20, balance=5.0)

    @pytest.mark.parametrize("since", [0, 2])
    def test_a_shard_that_did_everything_and_is_heard_late_is_not_counted_twice(self, since: int):
        # There was one actor until shard 1 got a few transitions that are not reported yet.
        ledger = self.ledger(
            state_of(0, num_inserted=100_000, num_sampled=90_000, balance=2.0),
            state_of(5, num_inserted=100_005, num_sampled=90_000, balance=7.0),
        )
        ledger.hear(2, state_of(100_000 + since, 90_000))
        assert ledger.tally(2) == Tally(100_000 + since, 90_000, 5, 0, balance=7.0 + since)

    def test_a_new_shard_is_counted_whatever_was_told_of_those_that_are_gone(self):
        ledger = self.ledger(state_of(10, 5, num_inserted=120, num_sampled=100, balance=12.0))
        ledger.hear(1, state_of(6, 2, incarnation=1))
        assert ledger.tally(1) == Tally(6, 2, 120, 100, balance=12.0 + 6 - 2)

    def test_a_new_client_begins_with_what_the_shards_were_told_before(self):
        # 100 more were inserted, and 90 sampled, by a shard that is gone.
        told = state_of(10, 5, num_inserted=120, num_sampled=100, balance=12.0)
        less = state_of(12, 6, num_inserted=118, num_sampled=99, balance=11.0)
        ledger = self.ledger(told, less)
        assert ledger.tally(0) == Tally(10, 5, 110, 95, balance=12.0)
        assert ledger.tally(1) == Tally(12, 6, 108, 94, balance=12.0)

    def test_no_shard_is_told_less_than_it_was_told_before(self):
        told = state_of(10, 5, num_inserted=120, num_sampled=100, balance=12.0)
        ledger = self.ledger(told, state_of(500))
        tally = ledger.tally(0)
        assert tally is not None
        assert tally.inserted + tally.inserted_elsewhere == 510

    def test_another_ratio_leaves_the_balance_as_it_is_for_all(self):
        ledger = self.ledger(state_of(10), state_of(10))
        ledger.limiter.set_samples_per_insert(3.0)
        ledger.hear(0, state_of(12))
        newcomer = ShardLimiter(limiter_of(target=3.0))
        ledger.hear(2, newcomer.state(0, 0, 0.0))
        tally = ledger.tally(2)
        assert tally is not None
        assert newcomer.follow(tally)
        assert newcomer.limiter.balance == (20 - 8) + 3 * 2


class TestShardLimiter:
    def test_what_it_has_done_since_is_added(self):
        shard = ShardLimiter(limiter_of())
        shard.count_inserted(20)
        shard.count_sampled(4)
        assert shard.follow(Tally(15, 0, 100, 90, balance=115 - 8 - 90))
        assert shard.limiter.num_inserted == 120
        assert shard.limiter.num_sampled == 94
        assert shard.limiter.balance == 120 - 8 - 94

    def test_a_tally_of_more_than_it_has_done_changes_nothing(self):
        shard = ShardLimiter(limiter_of())
        shard.count_inserted(3)
        assert not shard.follow(Tally(4, 0, 100, 90, balance=0.0))
        assert shard.limiter.num_inserted == 3


# ---- no schedule stops the run ----


@dataclass
class SimulatedShard:
    """A shard with its two queues of messages."""

    incarnation: int
    counts: ShardLimiter
    total: float = 0.0
    pending: deque[tuple[int, int]] = field(default_factory=deque)  # number, rows
    inbox: deque[tuple[int, int, Tally | None]] = field(default_factory=deque)
    outbox: deque[tuple[int, int, ShardState]] = field(default_factory=deque)

    def state(self) -> ShardState:
        return self.counts.state(self.incarnation, int(self.total > 0), self.total)


class World:
    """Shards, actors and a client; every move is one message or one action of one of them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.shards_wanted = rng.randint(2, 4)
        self.batch = rng.randint(1, 16)
        self.prefetch = rng.randint(1, 3)
        self.tolerance = self.batch / 2 + rng.choice([0.0, rng.uniform(0, 60)])
        self.min_size = rng.randint(1, 60)
        self.target = rng.uniform(0.2, 5)
        self.insert_size = rng.randint(1, 12)
        # The number of actors and the size of the priorities, for each shard.
        self.actors = [rng.randint(0, 2) for _ in range(self.shards_wanted)]
        self.scales = [rng.choice([1e-6, 1.0, 1000.0]) for _ in range(self.shards_wanted)]
        self.incarnations = Counter[int]()
        self.shards: dict[int, SimulatedShard] = {}
        self.cut: set[int] = set()  # alive, but out of the client's reach
        self.moves = self.batches_done = self.numbers = 0
        for shard in range(self.shards_wanted):
            self.start(shard)
        self.new_client()

    def limiter(self) -> RateLimiter:
        return RateLimiter(self.target, self.tolerance, self.min_size, self.batch)

    # -- what happens to processes

    def start(self, shard: int) -> None:
        if shard not in self.shards:
            incarnation = self.incarnations[shard]
            self.incarnations[shard] += 1
            self.shards[shard] = SimulatedShard(incarnation, ShardLimiter(self.limiter()))

    def kill(self, shard: int) -> None:
        if self.shards.pop(shard, None) is not None:
            self.lose(shard)
            self.cut.discard(shard)

    def lose(self, shard: int) -> None:
        self.ledger.lose(shard)
        self.state_asked.discard(shard)
        for number in [n for n, (s, _, _) in self.outstanding.items() if s == shard]:
            _, rows, batch = self.outstanding.pop(number)
            self.unasked.append((rows, batch))

    def cut_off(self, shard: int) -> None:
        if shard in self.shards:
            self.cut.add(shard)
            self.lose(shard)
            for queue in (self.shards[shard].inbox, self.shards[shard].outbox):
                queue.clear()
            # Their senders are gone, so nobody is answered.
            self.shards[shard].pending.clear()

    def mend(self, shard: int) -> None:
        self.cut.discard(shard)

    @property
    def heard(self) -> list[int]:
        return [shard for shard in self.shards if shard not in self.cut]

    def new_client(self) -> None:
        self.ledger = Ledger(self.limiter())
        self.outstanding: dict[int, tuple[int, int, int]] = {}  # shard, rows, batch
        self.unasked: list[tuple[int, int]] = []  # rows, batch
        self.missing: dict[int, int] = {}  # rows of each batch
        self.state_asked: set[int] = set()
        for shard in self.shards.values():
            for queue in (shard.pending, shard.inbox, shard.outbox):
                queue.clear()

    def retarget(self) -> None:
        self.target = self.rng.uniform(0.2, 5)
        self.ledger.limiter.set_samples_per_insert(self.target)

    def hear_of_target(self, shard: SimulatedShard) -> None:
        if shard.counts.limiter.target != self.target:
            shard.counts.limiter.set_samples_per_insert(self.target)

    # -- what they do

    def insert(self, index: int) -> None:
        shard = self.shards[index]
        if self.has_actors(index) and shard.counts.limiter.can_insert():
            shard.counts.count_inserted(self.insert_size)
            shard.total += self.insert_size * self.scales[index]
            self.moves += 1

    def has_actors(self, index: int) -> bool:
        """Tell if actors send here: this shard's, or those of a shard that is gone."""
        actors = [s for s in range(self.shards_wanted) for _ in range(self.actors[s])]
        sent_to = [
            shard_of(shard + self.shards_wanted * n, self.shards_wanted, self.shards)
            for n, shard in enumerate(actors)
        ]
        return index in sent_to

    def take_request(self, shard: SimulatedShard) -> None:
        if shard.inbox:
            number, rows, tally = shard.inbox.popleft()
            if tally is not None:
                assert shard.counts.follow(tally)
            if rows:
                shard.pending.append((number, rows))
            else:
                shard.outbox.append((number, 0, shard.state()))

    def answer(self, shard: SimulatedShard) -> None:
        if shard.pending and shard.counts.limiter.can_sample(shard.pending[0][1]):
            assert shard.total > 0, "asked for rows that it does not have"
            number, rows = shard.pending.popleft()
            shard.counts.count_sampled(rows)
            shard.outbox.append((number, rows, shard.state()))
            self.moves += 1

    def hear(self, index: int) -> None:
        shard = self.shards[index]
        if not shard.outbox:
            return
        number, rows, state = shard.outbox.popleft()
        self.ledger.hear(index, state)
        self.ledger.begin(self.heard)
        if not rows:
            self.state_asked.discard(index)
        elif number in self.outstanding:
            _, rows, batch = self.outstanding.pop(number)
            self.missing[batch] -= rows
            if not self.missing[batch]:
                del self.missing[batch]
                self.batches_done += 1

    def ask(self) -> None:
        if not (self.ledger.open and self.ledger.totals):
            return
        unasked, self.unasked = self.unasked, []
        while len(self.missing) < self.prefetch:
            self.numbers += 1
            self.missing[self.numbers] = self.batch
            unasked.append((self.batch, self.numbers))
        for rows, batch in unasked:
            for index, count in allocate(rows, self.ledger.totals, self.rng.random()).items():
                self.send(index, count)
                self.outstanding[self.numbers] = (index, count, batch)

    def ask_state(self, index: int) -> None:
        if index not in self.state_asked and index not in self.cut:
            self.state_asked.add(index)
            self.send(index, 0)

    def send(self, index: int, rows: int) -> None:
        self.numbers += 1
        self.shards[index].inbox.append((self.numbers, rows, self.ledger.tally(index)))

    # -- time

    def anything(self) -> None:
        """Make one random move."""
        self.ask()
        if not self.shards:
            return
        index = self.rng.choice(list(self.shards))
        shard = self.shards[index]
        self.rng.choice(
            [
                lambda: self.insert(index),
                lambda: self.take_request(shard),
                lambda: self.answer(shard),
                lambda: self.hear(index),
                lambda: self.ask_state(index),
                lambda: self.hear_of_target(shard),
            ]
        )()

    def trouble(self) -> None:
        index = self.rng.randrange(self.shards_wanted)
        happens = [self.start, self.start, self.kill, self.cut_off, self.mend]
        self.rng.choice(happens)(index)
        if self.rng.random() < 0.2:
            self.new_client()
        if self.rng.random() < 0.2:
            self.retarget()

    def round(self) -> None:
        """Make every possible move once."""
        for index, shard in list(self.shards.items()):
            self.hear_of_target(shard)
            self.insert(index)
            self.ask_state(index)
            while shard.inbox:
                self.take_request(shard)
            self.answer(shard)
            while shard.outbox:
                self.hear(index)
            self.ask()


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 1 << 30), troubles=st.integers(0, 8))
def test_after_any_schedule_of_any_troubles_the_run_goes_on(seed: int, troubles: int):
    world = World(random.Random(seed))
    for _ in range(troubles):
        for _ in range(world.rng.randint(0, 400)):
            world.anything()
        world.trouble()
    reached = world.rng.randrange(world.shards_wanted)
    world.start(reached)
    world.mend(reached)
    if not any(world.has_actors(index) for index in world.heard):
        world.actors[reached] += 1
    done = world.batches_done
    idle = 0
    for _ in range(20_000):
        moves = world.moves
        world.round()
        idle = 0 if world.moves > moves else idle + 1
        assert idle < 10, "nothing moves any more"
        if world.batches_done >= done + 10:
            return
    pytest.fail("the learner gets no batches")


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 1 << 30))
def test_the_ratio_of_all_shards_together_stays_near_the_target(seed: int):
    world = World(random.Random(seed))
    world.actors[0] = 1
    for _ in range(3000):
        world.anything()
        counts = [shard.counts for shard in world.shards.values()]
        inserted, sampled = sum(c.inserted for c in counts), sum(c.sampled for c in counts)
        if inserted < world.min_size:
            assert sampled == 0
            continue
        balance = world.target * (inserted - world.min_size) - sampled
        on_its_way = world.prefetch * world.batch
        assert balance >= -world.tolerance - on_its_way
        # The transitions that a shard may insert before it hears of the others.
        alone = world.target * (world.min_size + world.insert_size) + 2 * world.tolerance
        assert balance <= world.shards_wanted * (alone + 2 * on_its_way)


# ---- real shards ----


def config_of(shards: int, **changes: Any) -> Config:
    """Configure batches of 64, and a limiter that never waits once there are 8 transitions."""
    replay = {
        "shards": shards,
        "capacity": 3000,
        "min_size": 8,
        "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 1e12,
        "priority_exponent": 0.5,
        "store": "dense",
        **changes,
    }
    learner = {"batch_size": 64, "prefetch": 2}
    system = {"telemetry_seconds": 0.02}
    # The largest message is derived from these.
    actor = {"segment_length": 256, "batch_transitions": 256}
    sections = {"actor": actor, "replay": replay, "learner": learner, "system": system}
    return build(("test", sections))


def encoded(sequence: int, actor: int, values: Any, priorities: Any) -> bytes:
    """Encode a batch of one-step episodes whose observations are these values."""
    count = len(values)
    columns = {
        "action": np.zeros(count, np.int32),
        "n_step_return": np.asarray(values, np.float32),
        "discount": np.zeros(count, np.float32),
        "priority": np.asarray(priorities, np.float32),
        "observation_index": np.arange(count, dtype=np.int32),
        "bootstrap_index": np.arange(count, dtype=np.int32),
    }
    frames = {"observation": np.asarray(values, np.float32)[:, None]}
    blocks = [wire.compress_block(frames, SPEC)]
    ticket = ticket_of(SEAL, actor, 0, "")
    return wire.encode_transitions(
        wire.TransitionBatch(RUN, actor, 0, sequence, 0, columns, blocks, ticket)
    )


class Run:
    """A coordinator and a client in this thread, with shards in separate threads or processes."""

    def __init__(self, eventually: Eventually, directory: Path, config: Config) -> None:
        self._eventually = eventually
        self.config = config
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.metrics = RunMetrics(None)
        self.coordinator = Coordinator(
            self.context,
            "tcp://127.0.0.1:*",
            welcome=Welcome(RUN, 0, 0, config, SPEC, "tcp://127.0.0.1:*", str(directory)),
            metrics=self.metrics,
        )
        self._pool = ThreadPoolExecutor(config.replay.shards)
        self.processes: dict[int, BaseProcess] = {}
        self._senders: list[TransitionSender] = []
        self._clients: list[SampleClient] = []

    def start_threads(self) -> None:
        for index in range(self.config.replay.shards):
            self._pool.submit(self._serve, index)
        self.until(lambda: len(self.served("samples")) == self.config.replay.shards)

    def start_process(self, index: int) -> None:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=run_replay, args=(self.coordinator.endpoint, index))
        process.start()
        self.processes[index] = process

    def kill(self, index: int) -> None:
        process = self.processes.pop(index)
        process.kill()
        process.join()
        self.coordinator.lost("replay", index)

    def _serve(self, index: int) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            link = CoordinatorLink(context, self.coordinator.endpoint, "replay", index=index)
            server = ReplayServer(context, link, link.join())
            server.serve()
            link.leave()
        finally:
            context.destroy(linger=1000)

    def until(self, happened: Callable[[], Any]) -> Any:
        return self._eventually(lambda: self.coordinator.poll(0.01) or happened())

    def served(self, name: str) -> dict[int, str]:
        """Map the shards to the addresses of one of their sockets, as a pulse lists them."""
        members = list(self.coordinator.membership.members("replay"))
        found = {m.key.index: m.endpoints.get(f"{name}/{m.key.index}", "") for m in members}
        return {index: address for index, address in found.items() if address}

    def sampled(self, shard: int) -> float:
        """Count the rows that a shard has given."""
        return self.metrics.counted(MemberKey("replay", shard, 0)).get("samples", 0.0)

    def sender(self, shard: int, actor: int, window: int = 100) -> TransitionSender:
        ticket = ticket_of(SEAL, actor, 0, "")
        sender = TransitionSender(self.context, actor, 0, window, ticket=ticket)
        sender.connect(self.served("transitions")[shard], self.served("acknowledgements")[shard])
        self._senders.append(sender)
        return sender

    def insert(self, sender: TransitionSender, actor: int, values: Any, priorities: Any) -> None:
        data = encoded(sender.next_sequence, actor, values, priorities)
        turns = iter(range(300))

        def talk() -> bool:
            self.coordinator.poll(0.01)
            return next(turns, None) is not None

        assert sender.send(data, talk)
        assert sender.flush(talk), "not acknowledged"

    def client(self) -> SampleClient:
        client = SampleClient(self.context, SPEC, self.config, np.random.default_rng(1))
        client.connect(self.served("samples"))
        self._clients.append(client)
        return client

    def sample(self, client: SampleClient) -> Sample:
        def receive() -> Sample | None:
            client.connect(self.served("samples"))
            return client.receive(0.01, 0)

        return self.until(receive)

    def close(self) -> None:
        for part in (*self._senders, *self._clients):
            part.close()
        self.coordinator.command(["replay"], "stop")
        self._eventually(
            lambda: self.coordinator.poll(0.01) or not self.coordinator.membership.count("replay")
        )
        self._pool.shutdown()
        for process in self.processes.values():
            process.join(10)
        self.context.destroy(linger=0)


@pytest.fixture(autouse=True)
def _known_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator use a seal of which the tests make tickets."""
    monkeypatch.setattr("launcher.coordinator.coordinator.new_seal", lambda: SEAL)


@pytest.fixture
def make_run(eventually: Eventually, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def make(shards: int, **changes: Any) -> Run:
        runs.append(Run(eventually, tmp_path, config_of(shards, **changes)))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


def chi_square(observed: np.ndarray, expected: np.ndarray) -> float:
    return float(((observed - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("sizes", [(30, 30), (5, 40, 15)], ids=["two", "three"])
def test_what_shards_give_is_distributed_as_from_one_buffer(
    make_run: Callable[..., Run], transport: str, sizes: tuple[int, ...]
):
    run = make_run(len(sizes), transport=transport)
    run.start_threads()
    rng = np.random.default_rng(7)
    priorities = rng.uniform(0.01, 4.0, sum(sizes)).astype(np.float32)
    first = 0
    for shard, size in enumerate(sizes):
        values = np.arange(first, first + size)
        run.insert(run.sender(shard, actor=shard), shard, values, priorities[values])
        first += size
    scaled = priorities.astype(np.float64) ** 0.5
    client, drawn = run.client(), np.zeros(sum(sizes))
    batches = 150
    for _ in range(batches):
        sample = run.sample(client)
        seen = sample.observation["observation"][:, 0].astype(int)
        np.add.at(drawn, seen, 1)
        np.testing.assert_allclose(sample.sampling_priority, scaled[seen], rtol=1e-6)
        # One buffer would give (N P(i))^-exponent, divided by the largest of the batch.
        probability = scaled[seen] / scaled.sum()
        weights = (sum(sizes) * probability) ** -0.7
        found = importance_weights(sample.sampling_priority, 0.7)
        np.testing.assert_allclose(found, weights / weights.max(), rtol=1e-5)
        client.release(sample, None)
    expected = batches * 64 * scaled / scaled.sum()
    # A stratified draw spreads less than chi-square does at this many degrees of freedom.
    freedom = sum(sizes) - 1
    assert chi_square(drawn, expected) < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_new_priorities_reach_the_shard_that_gave_the_rows(
    make_run: Callable[..., Run], transport: str
):
    run = make_run(2, transport=transport)
    run.start_threads()
    for shard in range(2):
        values = np.arange(8) + 100 * shard
        run.insert(run.sender(shard, actor=shard), shard, values, np.ones(8))
    client = run.client()

    def only_odd_values() -> bool:
        sample = run.sample(client)
        odd = sample.n_step_return.astype(int) % 2 == 1
        client.release(sample, np.where(odd, 1e6, 0).astype(np.float32))
        return bool(odd.all())

    # Both shards have the same keys: a client that confuses them never gets there.
    run.until(only_odd_values)


def test_a_shard_without_actors_gives_nothing_and_stops_nobody(make_run: Callable[..., Run]):
    run = make_run(3, samples_per_insert_tolerance=64.0, min_size=64)
    run.start_threads()
    sender, client = run.sender(1, actor=1), run.client()
    for step in range(20):
        run.insert(sender, 1, np.full(64, step), np.ones(64))
        sample = run.sample(client)
        assert sample.count == 64
        client.release(sample, None)


def test_the_limit_holds_for_all_shards_together(make_run: Callable[..., Run]):
    run = make_run(2, samples_per_insert=2.0, samples_per_insert_tolerance=256.0, min_size=64)
    run.start_threads()
    senders, client = [run.sender(shard, shard, window=1000) for shard in range(2)], run.client()
    for _ in range(30):  # more than may be due: most of them wait
        for actor, sender in enumerate(senders):
            data = encoded(sender.next_sequence, actor, np.zeros(16), np.ones(16))
            assert sender.send(data, lambda: True)
    received = 0

    def learn() -> bool:
        nonlocal received
        sample = client.receive(0.01, 0)
        if sample is not None:
            received += sample.count
            client.release(sample, None)
        return all(sender.flush(lambda: False) is not False for sender in senders)

    run.until(learn)
    # 960 were inserted in all, and inserts stopped where more than 256 (+ 2 x 16) were due.
    assert received >= 2 * (960 - 64) - 2 * 2 * (256 + 128 + 32)


def test_a_new_learner_goes_on_with_the_balance_of_the_one_before(make_run: Callable[..., Run]):
    run = make_run(2, samples_per_insert_tolerance=64.0, min_size=64)
    run.start_threads()
    senders = [run.sender(shard, actor=shard) for shard in range(2)]
    for shard, sender in enumerate(senders):
        run.insert(sender, shard, np.zeros(64), np.ones(64))
    first = run.client()
    for _ in range(2):  # 128 - 64 were due, and 64 more may be ahead
        first.release(run.sample(first), None)
    first.close()
    second = run.client()
    assert second.receive(0.3, 0) is None, "what the first one sampled is forgotten"
    # Two more batches make one due. XX batches that the shards gave the
    # first client before they heard of each other: at most the two that it had requested.
    for _ in range(4):
        run.insert(senders[0], 0, np.zeros(64), np.ones(64))
        if second.receive(0.3, 0) is not None:
            return
    pytest.fail("the second one gets nothing")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_killing_a_shard_does_not_stop_the_run(make_run: Callable[..., Run], transport: str):
    run = make_run(2, transport=transport)
    for shard in range(2):
        run.start_process(shard)
    run.until(lambda: len(run.served("samples")) == 2)
    for shard in range(2):
        run.insert(run.sender(shard, actor=shard), shard, np.full(64, shard), np.ones(64))
    client = run.client()
    held = run.sample(client)
    assert client.shared_memory == (transport == "auto")
    seen = held.n_step_return.copy()
    run.kill(1)
    for _ in range(4):
        client.release(run.sample(client), np.ones(64, np.float32))
    sample = run.sample(client)
    assert set(sample.n_step_return) == {0}
    client.release(sample, None)
    assert (held.n_step_return == seen).all(), "a batch that the learner has is not touched"
    client.release(held, np.ones(64, np.float32))
    assert client.priorities_dropped > 0
    run.start_process(1)
    run.until(lambda: len(run.served("samples")) == 2)
    run.insert(run.sender(1, actor=3), 3, np.full(64, 7), np.ones(64))

    def has_rows_of_the_new_one() -> bool:
        sample = run.sample(client)
        values = set(sample.n_step_return)
        client.release(sample, None)
        return values == {0, 7}

    run.until(has_rows_of_the_new_one)


def learn_without_looking(run: Run, done: list[str]) -> None:
    """Learn without looking for shards, as with batches that are always there.

    Args:
        run: the run to take part in.
        done: list that gets its actions, as far as they are noted.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        link = CoordinatorLink(context, run.coordinator.endpoint, "learner")
        welcome = link.join()
        process = LearnerProcess(context, link, welcome, RunFiles(link, welcome))

        def take() -> None:
            sample = process._client.receive(0.1, process._learner.learner_steps)
            if sample is not None:
                process._stager.put(sample)

        def noted(name: str, what: Callable[[], Any]) -> Callable[[], Any]:
            def do() -> Any:
                done.append(name)
                return what()

            return do

        release = process._client.release

        def release_with_priorities(sample: Any, priorities: Any) -> None:
            assert priorities is not None
            assert priorities.shape == sample.keys.shape
            done.append("priorities")
            release(sample, priorities)

        process._client.release = release_with_priorities
        process._await_batch = take
        process._publish = noted("publish", process._publish)
        save = noted("save", partial(process._save, last=True))
        process._save = lambda *, last=False: save()
        process.learn()
        process.close()
        link.leave()
    finally:
        context.destroy(linger=1000)


def test_a_learner_that_never_waits_for_batches_asks_a_shard_that_comes_later(
    eventually: Eventually, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("replay.client.SampleClient.unheard", "replay 7 does not answer")
    learner = {"device": "cpu", "precision": "float32", "learning_rate": 1e-3, "threads": 1}
    changes = {"learner": learner, "network": {"hidden": 8, "layers": 1}}
    (tmp_path / RUN_ID).write_text(RUN, encoding="utf-8")  # the learner saves here
    run = Run(eventually, tmp_path, build(("test", config_of(2).to_map()), ("learner", changes)))
    try:
        with ThreadPoolExecutor(1) as pool:
            learning = pool.submit(learn_without_looking, run, done := [])
            for shard in range(2):
                run.start_process(shard)
                run.until(lambda shard=shard: shard in run.served("samples"))
                run.insert(run.sender(shard, actor=shard), shard, np.zeros(64), np.ones(64))
                run.until(lambda shard=shard: run.sampled(shard) > 256)
            run.coordinator.command(["learner"], "stop")
            run.until(learning.done)
            learning.result()
        # The last parameters come twice: a slow connection may have had no room the first time.
        assert done[-3:] == ["publish", "save", "publish"]
        assert 64 * done.count("priorities") >= 512
        told = [event.text for event in run.coordinator.events if event.kind == "unheard"]
        assert told == ["replay 7 does not answer"]
    finally:
        run.close()
