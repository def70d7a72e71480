"""The replay service over real sockets, in a run held together by a real coordinator."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from launcher.coordinator.coordinator import Coordinator
from launcher.coordinator.places import Member
from launcher.metrics.metrics import MemberKey, RunMetrics
from pdqn import wire
from pdqn.config import Config
from pdqn.errors import RunError
from pdqn.layers import build
from pdqn.link import CoordinatorLink
from pdqn.messages import Report, Welcome
from pdqn.process import own_host
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.tickets import ticket_of
from replay.buffer import make_buffer
from replay.client import SampleClient
from replay.durability import journal_folder
from replay.journal import Journal
from replay.keeper import Keeper
from replay.process import ReplayServer
from replay.samples import (
    Sample,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_answer,
    encode_request,
    slot_count,
)
from replay.sender import Hello, TransitionSender
from replay.sequences import Sequences
from replay.sharding import Tally
from replay.shared_memory import MemoryAddress

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (2,), "float32"),), 3)
RUN = "the-run"
SEAL = bytes(range(32))
BATCH = 4
PREFETCH = 1
TRANSPORTS = ("auto", "socket")
NO_KEYS, NO_PRIORITIES = np.empty(0, np.int64), np.empty(0, np.float32)


def config_of(**replay: Any) -> Config:
    """Configure one sample per insert within 4, from 8 transitions on, in batches of 4."""
    settings = {
        "capacity": 64,
        "min_size": 8,
        "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 4.0,
        "priority_exponent": 1.0,
        "store": "dense",
        **replay,
    }
    learner = {"batch_size": BATCH, "prefetch": PREFETCH}
    system = {"telemetry_seconds": 0.02}
    # The largest message is derived from these.
    actor = {"segment_length": 256, "batch_transitions": 256}
    sections = {"actor": actor, "replay": settings, "learner": learner, "system": system}
    return build(("test", sections))


def request(number: int = 1, rows: int = BATCH, **changes: Any) -> SampleRequest:
    """Build a request for rows over the socket, and nothing else."""
    settings: dict[str, Any] = {
        "request": number,
        "batch_size": BATCH,
        "rows": rows,
        "start": 0,
        "slot": None,
        "memory": None,
        "learner_steps": 0,
        "tally": None,
        "keys": NO_KEYS,
        "priorities": NO_PRIORITIES,
        **changes,
    }
    return SampleRequest(**settings)


class Dealer:
    """A learner's bare socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self.socket = socket

    def ask(self, *arguments: Any, **changes: Any) -> None:
        self.socket.send(encode_request(request(*arguments, **changes)))

    def answers(self) -> list[Any]:
        """Receive what has arrived: for each answer the header, or header and slab."""
        found = []
        while self.socket.poll(0):
            header, *slab = self.socket.recv_multipart()
            found.append((decode_answer(header), *slab))
        return found


class Bench:
    """A replay server in a thread, a coordinator in this one, and connections to both."""

    def __init__(self, eventually: Eventually, directory: Path, config: Config) -> None:
        self._eventually = eventually
        self._config = config
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.metrics = RunMetrics(None)
        self.coordinator = Coordinator(
            self.context,
            "tcp://127.0.0.1:*",
            welcome=Welcome(RUN, 0, 0, config, SPEC, "tcp://127.0.0.1:*", str(directory)),
            metrics=self.metrics,
        )
        self._pool = ThreadPoolExecutor(1)
        self._sockets: list[zmq.Socket[bytes]] = []
        self._senders: list[TransitionSender] = []
        self._clients: list[SampleClient] = []
        self.server = self.start()

    def start(self) -> Future[None]:
        return self._pool.submit(self._serve)

    def _serve(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            link = CoordinatorLink(context, self.coordinator.endpoint, "replay")
            server = ReplayServer(context, link, link.join())
            server.serve()
            link.leave()
        finally:
            context.destroy(linger=1000)

    def until(self, happened: Callable[[], Any]) -> Any:
        """Let the coordinator serve the server's messages until something is true."""

        def talk() -> Any:
            self.coordinator.poll(0.01)
            if self.server.done():
                pytest.fail(f"the server ended: {self.server.exception()!r}")
            return happened()

        return self._eventually(talk)

    def after_reports(self, number: int = 5) -> None:
        """Wait for a few more reports: what the server holds back now, it holds back for good."""
        start = self.until(lambda: list(self.coordinator.membership.members("replay")))[0].heard
        heard = {start}
        self.until(lambda: heard.add(self.member().heard) or len(heard) > number)

    def member(self) -> Member:
        return next(self.coordinator.membership.members("replay"))

    def endpoint(self, name: str) -> str:
        found = self.until(
            lambda: [m for m in self.coordinator.membership.members() if name in m.endpoints]
        )
        return found[0].endpoints[name]

    def total(self, name: str) -> float:
        return self.metrics.total("replay", name)

    def socket(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.connect(self.endpoint(endpoint))
        self._sockets.append(socket)
        return socket

    def sender(self, actor: int = 0, incarnation: int = 0, window: int = 10) -> TransitionSender:
        ticket = ticket_of(SEAL, actor, incarnation, "")
        sender = TransitionSender(self.context, actor, incarnation, window, ticket=ticket)
        sender.connect(*self.actors_endpoints)
        self._senders.append(sender)
        return sender

    @property
    def actors_endpoints(self) -> tuple[str, str]:
        return self.endpoint("transitions/0"), self.endpoint("acknowledgements/0")

    def send(self, sender: TransitionSender, count: int = BATCH, **changes: Any) -> None:
        """Send a batch that fits into the window."""
        data = encoded(sender.next_sequence, count, **changes)
        assert sender.send(data, self._talk())

    def flush(self, sender: TransitionSender) -> None:
        assert sender.flush(self._talk()), "not acknowledged"

    def _talk(self) -> Callable[[], bool]:
        turns = iter(range(300))

        def talk() -> bool:
            self.coordinator.poll(0.01)
            return next(turns, None) is not None

        return talk

    def client(self) -> SampleClient:
        client = SampleClient(self.context, SPEC, self._config, np.random.default_rng(0))
        client.connect({0: self.endpoint("samples/0")})
        self._clients.append(client)
        return client

    def sample(self, client: SampleClient, learner_steps: int = 0) -> Sample:
        """Return the next batch without releasing it."""
        return self.until(lambda: client.receive(0.01, learner_steps))

    def dealer(self) -> Dealer:
        return Dealer(self.socket(zmq.DEALER, "samples/0"))

    def stop(self) -> None:
        self.coordinator.command(["replay"], "stop")
        self._eventually(lambda: self.coordinator.poll(0.01) or self.server.done())
        self.server.result()

    def close(self) -> None:
        self.stop()
        self._pool.shutdown()
        for part in (*self._senders, *self._clients):
            part.close()
        self.context.destroy(linger=0)


def columns_of(count: int, **changes: Any) -> dict[str, NDArray[Any]]:
    """Build ``count`` steps of one environment over the frames of ``frames_of(count)``."""
    columns = {
        "action": np.arange(count, dtype=np.int32) % 3,
        "n_step_return": np.arange(count, dtype=np.float32),
        "discount": np.full(count, 0.5, np.float32),
        "priority": np.ones(count, np.float32),
        "observation_index": np.arange(count, dtype=np.int32),
        "bootstrap_index": np.arange(1, count + 1, dtype=np.int32),
    }
    return {**columns, **changes}


def frames_of(count: int, first: int = 0) -> wire.FrameBlock:
    """Build the frames of ``count`` steps; frame i holds (first + i, 0.5)."""
    frames = first + np.arange(count + 1, dtype=np.float32)
    observation = np.stack([frames, np.full_like(frames, 0.5)], axis=1)
    return wire.compress_block({"observation": observation}, SPEC)


def encoded(
    sequence: int,
    count: int = BATCH,
    *,
    actor: int = 0,
    run: str = RUN,
    version: int = 0,
    first: int = 0,
    **of: Any,
) -> bytes:
    columns, blocks = columns_of(count, **of), [frames_of(count, first)]
    ticket = ticket_of(SEAL, actor % (1 << 32), 0, "")
    made = count + (BATCH * sequence if sequence < 1 << 32 else 0)
    return wire.encode_transitions(
        wire.TransitionBatch(run, actor, 0, sequence, version, columns, blocks, ticket, made)
    )


@pytest.fixture(autouse=True)
def _known_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator use a seal of which the tests make tickets."""
    monkeypatch.setattr("launcher.coordinator.coordinator.new_seal", lambda: SEAL)


@pytest.fixture
def make_bench(eventually: Eventually, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def make(**replay: Any) -> Bench:
        benches.append(Bench(eventually, tmp_path, config_of(**replay)))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture(params=TRANSPORTS)
def either_way(request: pytest.FixtureRequest, make_bench: Callable[..., Bench]) -> Bench:
    """Provide a bench with SampleBatches in shared memory, and one with messages."""
    return make_bench(transport=request.param)


# ---- taking and answering ----


def test_accepted_batches_are_acknowledged_and_can_be_sampled(either_way: Bench):
    bench = either_way
    sender, client = bench.sender(), bench.client()
    for first in (0, 100):
        bench.send(sender, first=first, n_step_return=np.full(BATCH, first, np.float32))
    bench.flush(sender)
    assert sender.unacknowledged == 0
    sample = bench.sample(client)
    seen = sample.observation["observation"][:, 0]
    assert set(seen) <= {0, 1, 2, 3, 100, 101, 102, 103}
    assert (sample.observation["observation"][:, 1] == 0.5).all()
    assert (sample.bootstrap_observation["observation"][:, 0] == seen + 1).all()
    assert (sample.n_step_return == seen // 100 * 100).all()
    assert (sample.action == seen % 100 % 3).all()
    assert (sample.discount == 0.5).all()
    assert (sample.sampling_priority == 1).all()
    bench.until(lambda: bench.total("samples") == BATCH)
    assert bench.total("transitions_received") == 8


def test_every_waiting_request_is_answered_once_there_is_enough(bench: Bench):
    dealer, sender = bench.dealer(), bench.sender()
    for number in (1, 2, 3):
        dealer.ask(number)
    bench.send(sender)
    bench.flush(sender)
    bench.until(lambda: bench.member().activity == "fills: 4 of 8 before the first batch")
    assert dealer.answers() == []
    for _ in range(3):
        bench.send(sender)
    bench.flush(sender)
    answers: list[Any] = []
    bench.until(lambda: answers.extend(dealer.answers()) or len(answers) == 3)
    assert [header.request for header, _ in answers] == [1, 2, 3]
    assert [header.state.sampled for header, _ in answers] == [4, 8, 12]


def test_a_request_for_no_rows_is_answered_at_once_with_the_state(bench: Bench):
    dealer, sender = bench.dealer(), bench.sender()
    for number in (5, 6):
        dealer.ask(number)
    bench.send(sender, priority=np.array([1, 2, 3, 4], np.float32))
    bench.flush(sender)
    dealer.ask(7, rows=0)
    ((answer,),) = bench.until(dealer.answers)
    assert (answer.request, answer.rows, answer.waiting) == (7, 0, (5, 6))
    state = answer.state
    assert (state.inserted, state.sampled, state.size, state.incarnation) == (4, 0, 4, 0)
    assert state.total_priority == pytest.approx(10)


def test_a_message_alone_does_not_have_replay_do_its_other_work(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
):
    attended: list[float] = []
    attend = ReplayServer._attend

    def noted(server: ReplayServer) -> None:
        attended.append(time.monotonic())
        attend(server)

    monkeypatch.setattr(ReplayServer, "_attend", noted)
    bench = make_bench()
    dealer = bench.dealer()
    began = time.monotonic()
    for number in range(300):
        dealer.ask(number, rows=0)
        assert dealer.socket.poll(10_000)
        dealer.answers()
    there = sum(began < moment for moment in attended)
    # Ten milliseconds pass between two times, or a message of the coordinator calls for one.
    assert there < 30 + 200 * (time.monotonic() - began)


def test_nobody_is_told_of_the_requests_of_others(bench: Bench):
    dealer, other = bench.dealer(), bench.dealer()
    dealer.ask(5)
    dealer.ask(6, rows=0)
    ((answer,),) = bench.until(dealer.answers)
    assert answer.waiting == (5,)
    other.ask(6, rows=0)
    ((answer,),) = bench.until(other.answers)
    assert answer.waiting == ()


def test_batches_of_several_actors_are_acknowledged_to_each(bench: Bench):
    senders = [bench.sender(actor) for actor in (0, 7)]
    for sender, actor in zip(senders, (0, 7), strict=True):
        bench.send(sender, count=2, actor=actor)
    for sender in senders:
        bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 4)


def test_each_shard_serves_under_its_own_index(make_bench: Callable[..., Bench]):
    bench = make_bench(shards=4)
    bench.endpoint("samples/0")
    assert bench.member().endpoints.keys() == {"samples/0", "transitions/0", "acknowledgements/0"}


# ---- sequence numbers ----


def test_what_comes_twice_is_counted_and_not_inserted(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions/0")
    for sequence in (0, 0, 1, 0):
        push.send(encoded(sequence, count=3))
    bench.until(lambda: bench.total("transitions_duplicate") == 6)
    assert bench.total("transitions_received") == 6
    bench.until(lambda: bench.metrics.gauge("replay", "size") == 6)


def test_the_same_numbers_from_another_actor_are_no_duplicates(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions/0")
    push.send(encoded(0, count=3))
    push.send(encoded(0, count=3, actor=1))
    bench.until(lambda: bench.total("transitions_received") == 6)
    assert bench.total("transitions_duplicate") == 0


def test_a_gap_in_the_numbers_is_a_missing_batch(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions/0")
    for sequence in (5, 6, 9):
        push.send(encoded(sequence, count=2))
    bench.until(lambda: bench.total("transitions_received") == 6)
    assert bench.total("batches_missing") == 2, "7 and 8; what came before 5 was another replay's"
    assert bench.metrics.value("system/lost") == 2


def test_an_absurd_number_is_refused_and_the_actor_goes_on(bench: Bench):
    push, sender = bench.socket(zmq.PUSH, "transitions/0"), bench.sender()
    bench.send(sender)
    bench.flush(sender)
    push.send(encoded(1 << 61, count=1))
    bench.until(lambda: bench.metrics.rejected() == {"sequence": 1})
    bench.send(sender)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 8)
    assert bench.total("transitions_duplicate") == 0
    assert bench.total("batches_missing") == 0


def test_an_absurd_number_before_the_actors_first_is_no_reason_to_drop_what_the_actor_sends(
    bench: Bench,
):
    push, sender = bench.socket(zmq.PUSH, "transitions/0"), bench.sender()
    push.send(encoded(1 << 61, count=1))
    bench.until(lambda: bench.total("transitions_received") == 1)
    for _ in range(2):
        bench.send(sender)
        bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 9)
    assert bench.total("transitions_duplicate") == 0


class TestSequences:
    """Batches of an actor with at most 4 unacknowledged ones."""

    def sequences(self, *taken: int) -> Sequences:
        sequences = Sequences(4)
        for number in taken:
            sequences.take((0, 0), number)
        return sequences

    def test_nothing_is_expected_of_a_stream_that_is_not_known(self):
        assert self.sequences(7).expected((0, 0)) == 8
        assert self.sequences(7).expected((0, 1)) == -1

    @pytest.mark.parametrize(("number", "missing"), [(8, 0), (9, 1), (12, 4)])
    def test_a_gap_that_a_window_explains_is_missing(self, number: int, missing: int):
        sequences = self.sequences(7)
        assert sequences.take((0, 0), number) == missing
        assert sequences.expected((0, 0)) == number + 1

    def test_an_actor_that_was_with_another_shard_misses_nothing(self):
        sequences = self.sequences(7)
        assert sequences.take((0, 0), 5000) == 0
        assert sequences.expected((0, 0)) == 5001

    @pytest.mark.parametrize("number", [0, 6, 7])
    def test_what_a_window_explains_to_come_again_is_a_duplicate(self, number: int):
        sequences = self.sequences(7)
        assert sequences.take((0, 0), number) is None
        assert sequences.expected((0, 0)) == 8

    def test_a_number_that_no_actor_comes_to_is_refused_and_changes_nothing(self):
        sequences = self.sequences(7)
        with pytest.raises(ValueError, match="where 8 was expected"):
            sequences.take((0, 0), 8 + (1 << 32) + 1)
        assert sequences.expected((0, 0)) == 8

    def test_an_actor_far_below_what_was_taken_for_its_number_is_believed(self):
        sequences = self.sequences(1 << 31)
        assert sequences.take((0, 0), 8) == 0
        assert sequences.take((0, 0), 9) == 0

    def test_the_number_of_streams_is_bounded(self):
        sequences = Sequences(4)
        for actor in range((1 << 16) + 1):
            sequences.take((actor, 0), 5)
        assert sequences.expected((0, 0)) == -1
        assert sequences.expected((1, 0)) == 6

    def test_an_actor_that_joins_again_and_again_drives_out_no_other(self):
        sequences = Sequences(4)
        sequences.take((0, 0), 5)
        for incarnation in range((1 << 16) + 10):
            sequences.take((1, incarnation), 7)
        assert sequences.expected((0, 0)) == 6
        assert sequences.expected((1, (1 << 16) + 9)) == 8


def test_policy_lag_is_the_learners_steps_since_the_parameters_that_acted(bench: Bench):
    dealer, sender = bench.dealer(), bench.sender()
    dealer.ask(1, rows=0, learner_steps=10)
    bench.until(dealer.answers)
    bench.send(sender, count=4, version=4)  # 6 steps old
    bench.send(sender, count=2, version=10)  # fresh
    bench.send(sender, count=2, version=12)  # newer than the learner's last step: not negative
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 8)
    assert bench.metrics.value("learner/policy_lag") == 4 * 6 / 8


# ---- flow control ----


def test_the_limiter_blocks_inserts_until_samples_are_taken(either_way: Bench):
    # The balance after 8, 12, 16 transitions is 0, 4, 8; above 4, inserts wait.
    bench = either_way
    push, client = bench.socket(zmq.PUSH, "transitions/0"), bench.client()
    for sequence in range(7):
        push.send(encoded(sequence))
    bench.until(lambda: bench.total("transitions_received") == 16)
    waits = "actors wait for the learner: 8 samples due, at most 4 may be"
    bench.until(lambda: bench.member().activity == waits)
    bench.after_reports()
    assert bench.total("transitions_received") == 16
    assert bench.metrics.gauge("replay", "limiter_balance") == 8
    bench.sample(client)  # balance 4: room for one more batch
    bench.until(lambda: bench.total("transitions_received") == 20)
    bench.after_reports()
    assert bench.total("transitions_received") == 20
    assert bench.total("inserts_blocked_seconds") > 0
    assert bench.total("samples_blocked_seconds") == 0


def test_the_limiter_blocks_samples_until_there_are_inserts(either_way: Bench):
    bench = either_way
    client, sender = bench.client(), bench.sender()
    for _ in range(2):
        bench.send(sender)
    bench.sample(client)  # balance -4, the lowest allowed
    assert client.receive(0.0, 0) is None
    waits = "learner waits for the actors: 8 samples ahead, at most 4 may be"
    bench.until(lambda: bench.member().activity == waits)
    bench.after_reports()
    assert bench.total("samples") == BATCH
    assert bench.total("samples_blocked_seconds") > 0
    bench.send(sender)
    assert bench.until(lambda: client.receive(0.01, 0)) is not None


@pytest.mark.parametrize("exponent", [0.0, 1.0])
def test_samples_are_young_and_where_none_is_left_inserts_are_not_blocked(
    make_bench: Callable[..., Bench], exponent: float
):
    bench = make_bench(max_age=10, priority_exponent=exponent, samples_per_insert=2.0)
    sender, dealer = bench.sender(), bench.dealer()
    for version in (0, 8, 0):
        bench.send(sender, version=version, priority=np.full(BATCH, 1 + version, np.float32))
    bench.flush(sender)
    dealer.ask(1, learner_steps=11)
    ((_, slab),) = bench.until(dealer.answers)
    assert (SampleLayout(SPEC, BATCH).view(slab).parameter_version == 8).all()
    # Updates of priorities do not bring back what is too old.
    dealer.ask(2, learner_steps=11, keys=np.arange(12), priorities=np.full(12, 9, np.float32))
    ((_, slab),) = bench.until(dealer.answers)
    assert (SampleLayout(SPEC, BATCH).view(slab).parameter_version == 8).all()
    bench.until(lambda: bench.total("transitions_expired") == 8)
    bench.send(sender, version=9)  # now more samples are due than actors may be ahead
    bench.send(sender, version=9)
    dealer.ask(3, learner_steps=30)
    bench.until(lambda: bench.total("transitions_expired") == 16)
    bench.until(lambda: bench.total("transitions_refused") == 4)  # the one that had to wait
    bench.send(sender, version=30)
    bench.flush(sender)
    ((_, slab),) = bench.until(dealer.answers)
    assert (SampleLayout(SPEC, BATCH).view(slab).parameter_version == 30).all()


def test_how_long_the_present_block_lasts_is_told(bench: Bench):
    push, client = bench.socket(zmq.PUSH, "transitions/0"), bench.client()
    for sequence in range(4):
        push.send(encoded(sequence))
    bench.until(lambda: (bench.metrics.gauge("replay", "blocked_for_seconds") or 0) > 0.1)
    bench.sample(client)
    bench.until(lambda: bench.metrics.gauge("replay", "blocked_for_seconds") == 0)


def test_another_samples_per_insert_is_aimed_at_from_now_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    push = bench.socket(zmq.PUSH, "transitions/0")
    for sequence in range(3):
        push.send(encoded(sequence))
    bench.until(lambda: bench.total("transitions_received") == 12)  # balance 4
    with caplog.at_level("INFO", "replay"):
        bench.coordinator.set_samples_per_insert(3.0)
        bench.until(lambda: bench.metrics.gauge("replay", "limiter_target") == 3)
    assert "samples_per_insert is 3 from now on, after 1" in caplog.text
    push.send(encoded(3))  # 4 x 3 samples become due, not 4 x 1
    bench.until(lambda: bench.metrics.gauge("replay", "limiter_balance") == 16)


def test_a_tally_of_other_shards_counts_as_if_it_were_done_here(bench: Bench):
    push, dealer = bench.socket(zmq.PUSH, "transitions/0"), bench.dealer()
    push.send(encoded(0))
    bench.until(lambda: bench.total("transitions_received") == 4)
    # 4 here and 96 elsewhere, 88 sampled elsewhere: 100 - 8 - 88 = 4 are due.
    tally = Tally(inserted=4, sampled=0, inserted_elsewhere=96, sampled_elsewhere=88, balance=4.0)
    dealer.ask(1, tally=tally)
    ((answer, _),) = bench.until(dealer.answers)
    state = answer.state
    assert (state.inserted, state.num_inserted) == (4, 100)
    assert (state.sampled, state.num_sampled) == (4, 92)
    assert state.balance == 0


def test_a_tally_of_more_than_was_done_here_is_not_believed(bench: Bench):
    dealer = bench.dealer()
    tally = Tally(inserted=4, sampled=0, inserted_elsewhere=96, sampled_elsewhere=88, balance=4.0)
    dealer.ask(1, rows=0, tally=tally)
    ((answer,),) = bench.until(dealer.answers)
    assert answer.state.num_inserted == 0
    bench.until(lambda: bench.total("tallies_ignored") == 1)


def test_draining_takes_everything(bench: Bench):
    sender = bench.sender(window=100)
    for _ in range(20):
        bench.send(sender, count=2)
    bench.until(lambda: bench.member().activity.startswith("actors wait for the learner"))
    assert sender.unacknowledged > 0
    bench.coordinator.command(["replay"], "drain")
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 40)


def test_a_window_of_batches_is_the_most_that_is_on_its_way(bench: Bench):
    sender = bench.sender(window=2)
    for _ in range(6):  # four are taken, two wait
        bench.send(sender)
    bench.until(lambda: bench.member().activity.startswith("actors wait for the learner"))
    assert not sender.send(encoded(sender.next_sequence), lambda: False)
    assert sender.next_sequence == 6, "the number is still free"


def test_stopping_ends_the_server_with_its_last_figures(bench: Bench):
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    bench.stop()
    assert bench.coordinator.membership.count("replay") == 0
    assert bench.total("transitions_received") == BATCH


# ---- priorities ----


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_new_priorities_go_with_the_next_request(make_bench: Callable[..., Bench], transport: str):
    bench = make_bench(transport=transport, priority_max=1e30)
    sender, client = bench.sender(), bench.client()
    for _ in range(3):
        bench.send(sender)
    bench.flush(sender)
    first = bench.sample(client)
    keys, wanted = first.keys.copy(), int(first.keys[0])
    client.release(first, np.where(keys == wanted, 1e9, 0).astype(np.float32))
    sample = bench.sample(client)
    # The other transitions have at most 12 of 1e9.
    assert sample.keys.tolist() == [wanted] * BATCH
    assert sample.sampling_priority.tolist() == [1e9] * BATCH
    bench.until(lambda: bench.total("priorities_ignored") == 0)


def test_priorities_that_are_no_numbers_and_keys_that_are_gone_are_ignored(bench: Bench):
    sender, dealer = bench.sender(), bench.dealer()
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    keys = np.array([0, 1, 2, 999, -1], np.int64)
    priorities = np.array([np.nan, -1, np.inf, 1, 1], np.float32)
    dealer.ask(keys=keys, priorities=priorities)
    bench.until(dealer.answers)
    bench.until(lambda: bench.total("priorities_ignored") == 5)


def test_priorities_out_of_proportion_are_clipped_and_counted(
    make_bench: Callable[..., Bench],
):
    bench = make_bench(priority_max=10.0)
    sender, dealer = bench.sender(), bench.dealer()
    for _ in range(2):
        bench.send(sender)
    bench.send(sender, priority=np.array([1, 1, 1e6, 1], np.float32))
    bench.flush(sender)
    dealer.ask(keys=np.array([0, 1], np.int64), priorities=np.array([1e9, 2], np.float32))
    bench.until(dealer.answers)
    bench.until(lambda: bench.total("priorities_clipped") == 2)
    bench.after_reports()
    assert bench.total("priorities_clipped") == 2
    assert bench.total("priorities_ignored") == 0


# ---- restart ----


def restart(bench: Bench) -> None:
    bench.stop()
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench.until(lambda: bench.coordinator.membership.count("replay"))


def test_a_replay_that_is_restarted_gets_what_was_not_acknowledged(bench: Bench):
    sender = bench.sender(window=10)
    for _ in range(6):  # four are taken, two wait
        bench.send(sender)
    bench.until(lambda: bench.total("transitions_received") == 16)
    while sender.unacknowledged > 2:
        sender.flush(iter([True, False]).__next__)
    restart(bench)
    sender.connect(*bench.actors_endpoints)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 24)
    assert bench.total("transitions_duplicate") == 0
    assert bench.total("batches_missing") == 0


def test_rows_asked_of_a_replay_that_is_gone_come_from_the_next_one(either_way: Bench):
    bench = either_way
    client, sender = bench.client(), bench.sender()
    bench.send(sender)
    assert client.receive(0.0, 0) is None
    bench.flush(sender)
    restart(bench)
    sender.connect(*bench.actors_endpoints)
    for _ in range(2):
        bench.send(sender, first=500)
    client.connect({})
    assert client.receive(0.0, 0) is None
    client.connect({0: bench.endpoint("samples/0")})
    sample = bench.sample(client)
    assert (sample.observation["observation"][:, 0] >= 500).all()
    assert (sample.keys >= 1 << 40).all()


def test_priorities_meant_for_the_replay_before_a_restart_change_nothing(bench: Bench):
    sender, dealer = bench.sender(), bench.dealer()
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    stale = np.arange(8)
    restart(bench)
    sender.connect(*bench.actors_endpoints)
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    dealer = bench.dealer()
    dealer.ask(keys=stale, priorities=np.full(8, 1e6, np.float32))
    (((_, slab),)) = bench.until(dealer.answers)
    bench.until(lambda: bench.total("priorities_ignored") == 8)
    assert (np.frombuffer(slab, np.int64, BATCH) >= 1 << 40).all()


# ---- the journal ----


@pytest.fixture
def keep(make_bench: Callable[..., Bench], tmp_path: Path) -> Callable[..., Bench]:
    """Make a bench whose replay finds the run's directory, and so has a journal there."""
    (tmp_path / "run_id").write_text(RUN)
    return make_bench


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server that stops take no last snapshot, as one that is killed."""

    def close(keeper: Keeper) -> None:
        keeper.note_report()  # a link that leaves does report
        keeper.write()
        keeper._release()

    monkeypatch.setattr(Keeper, "close", close)


@pytest.mark.usefixtures("kill")
@pytest.mark.parametrize("journal", ["write", "sync"])
def test_a_replay_that_is_killed_comes_back_with_its_contents(
    keep: Callable[..., Bench], journal: str
):
    bench = keep(journal=journal)
    sender, dealer = bench.sender(window=10), bench.dealer()
    for batch in range(3):
        bench.send(sender, first=10 * batch)
    bench.flush(sender)
    dealer.ask(keys=np.arange(4), priorities=np.full(4, 1e-6, np.float32))
    bench.until(dealer.answers)
    restart(bench)
    sender.connect(*bench.actors_endpoints)
    client = bench.client()
    bench.send(sender, first=30)
    bench.flush(sender)
    keys = bench.sample(client).keys
    assert ((keys >= 4) & (keys < 16)).all(), "the first four have hardly any priority"
    assert bench.total("transitions_recovered") == 12
    bench.until(lambda: bench.total("transitions_received") == 16)
    assert bench.total("transitions_duplicate") == bench.total("batches_missing") == 0


def test_a_replay_whose_disk_hangs_is_heard_and_loses_nothing(
    keep: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pdqn.heartbeat._LATE_SECONDS", 0.05)
    answers, write = threading.Event(), Journal.write

    def slow(journal: Journal) -> None:
        if journal._segment._added:
            assert answers.wait(60)
        write(journal)

    bench = keep()
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    monkeypatch.setattr(Journal, "write", slow)
    bench.send(sender, first=10)
    bench.until(lambda: "waits for the disk" in bench.member().activity)
    bench.after_reports()
    assert sender.unacknowledged == 1
    answers.set()
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 8)
    assert bench.total("transitions_duplicate") == bench.total("batches_missing") == 0


@pytest.mark.usefixtures("kill")
def test_a_batch_that_the_journal_has_is_not_taken_again(
    keep: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
):
    bench = keep()
    sender = bench.sender()
    sender._greeted = True
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "settled", lambda _: [])  # it is killed before it acknowledges
        bench.send(sender)
        bench.until(lambda: bench.total("transitions_received") == 4)
        assert sender.unacknowledged == 1
        restart(bench)
    sender.connect(*bench.actors_endpoints)
    bench.flush(sender)
    bench.after_reports()
    assert bench.metrics.gauge("replay", "size") == 4
    assert bench.total("transitions_received") == 4
    assert bench.total("transitions_duplicate") == 0, "the greeting says that it is there"


@pytest.mark.usefixtures("kill")
def test_priorities_that_are_on_their_way_when_replay_is_killed_find_their_transitions(
    keep: Callable[..., Bench],
):
    bench = keep()
    sender = bench.sender()
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    restart(bench)
    dealer = bench.dealer()
    dealer.ask(keys=np.arange(7), priorities=np.full(7, 1e-6, np.float32))
    (((_, slab),)) = bench.until(dealer.answers)
    assert (np.frombuffer(slab, np.int64, BATCH) == 7).all()
    assert bench.total("priorities_ignored") == 0


def test_the_first_replay_of_a_run_does_not_take_over_a_journal_that_it_finds(
    keep: Callable[..., Bench],
):
    first = keep()
    sender = first.sender()
    first.send(sender)
    first.flush(sender)
    first.stop()
    second = keep()
    second.after_reports()
    assert second.total("transitions_recovered") == 0
    assert second.metrics.gauge("replay", "size") == 0


@pytest.mark.usefixtures("kill")
def test_a_damaged_journal_is_replaced_by_what_is_left_of_it(
    keep: Callable[..., Bench], tmp_path: Path
):
    bench = keep()
    sender = bench.sender(window=10)
    for batch in range(3):
        bench.send(sender, first=10 * batch)
    bench.flush(sender)
    bench.stop()
    folder = tmp_path / "journal" / "replay-0"
    for path in folder.glob("*.segment"):
        data = path.read_bytes()
        middle = encoded(1, first=10)[-8:]
        path.write_bytes(data.replace(middle, bytes(8)))
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench.until(lambda: bench.metrics.gauge("replay", "size") == 8)
    text = "1 places of the journal are damaged; 8 transitions are taken over"
    assert [e.text for e in bench.coordinator.events if e.kind == "journal"] == [text]
    restart(bench)
    bench.until(lambda: bench.metrics.gauge("replay", "size") == 8)
    assert bench.total("journal_damaged") == 1, "the new journal is whole"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["replay-0", "replay-0.lock"]
    client = bench.client()
    assert (bench.sample(client).keys >= 1 << 40).all()


def test_a_journal_that_another_process_keeps_is_left_alone(
    keep: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("replay.ownership._LOCK_SECONDS", 0.1)
    bench = keep()
    bench.send(bench.sender())
    bench.after_reports()
    lock = (tmp_path / "journal" / "replay-0.lock").open()
    bench.stop()
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench._eventually(lambda: bench.coordinator.poll(0.01) or bench.server.done())
    with pytest.raises(RunError, match=r"replay-0\.lock: another process keeps this journal"):
        bench.server.result()
    lock.close()
    bench.coordinator.lost("replay", 0, os.getpid())
    bench.server = bench.start()
    bench.until(lambda: bench.metrics.gauge("replay", "size") == 4)


def test_a_run_with_fewer_replays_tells_what_it_leaves_out_and_removes_it(
    keep: Callable[..., Bench], tmp_path: Path
):
    bench = keep()
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    bench.stop()
    journals = tmp_path / "journal"
    for number in (1, 2):
        shutil.copytree(journals / "replay-0", journals / f"replay-{number}")
        (journals / f"replay-{number}.lock").touch()
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench.until(lambda: bench.total("transitions_recovered") == 4)
    assert sorted(path.name for path in journals.iterdir()) == ["replay-0", "replay-0.lock"]
    text = "8 transitions are left out: the run had more replays, and their journals are removed"
    assert [e.text for e in bench.coordinator.events if e.kind == "journal"] == [text]


@pytest.mark.usefixtures("kill")
def test_in_a_shared_folder_the_lock_of_a_host_that_is_gone_keeps_nobody_out(
    keep: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("replay.ownership._FOREIGN_LOCK_SECONDS", 0.1)
    bench = keep(journal_dir=str(tmp_path / "shared"))
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    bench.stop()
    (path,) = (tmp_path / "shared").glob("*/replay-0.lock")
    assert path.read_text() == own_host()
    path.write_text("another-host")
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        bench.coordinator.command(["replay"], "run")
        bench.server = bench.start()
        bench.until(lambda: bench.total("transitions_recovered") == 4)
        assert json.loads(path.with_suffix(".owner").read_text()) == [RUN, 1]
        bench.stop()


def test_another_kind_of_transitions_is_not_taken_over(
    keep: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
):
    bench = keep()
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    monkeypatch.setattr("replay.durability.kind_of", lambda *_: "another")
    restart(bench)
    bench.until(lambda: bench.metrics.gauge("replay", "size") == 0)
    text = "the journal is not taken over: its transitions mean something else"
    assert text in [event.text for event in bench.coordinator.events]


@pytest.mark.parametrize(
    ("settings", "run_dir", "own_folder", "expected"),
    [
        ({}, "here", "", "here/journal/replay-3"),
        ({"journal_dir": "shared"}, "here", "", r"shared/here-[0-9a-f]{8}/replay-3"),
        ({}, "elsewhere", "own", "own/journal/replay-3"),
        ({"journal_dir": "shared"}, "elsewhere", "own", r"shared/elsewhere-[0-9a-f]{8}/replay-3"),
        ({}, "elsewhere", "", None),
        # A head that is not trusted does not say where a host writes.
        ({"journal_dir": "shared"}, "", "own", "own/journal/replay-3"),
        ({"journal_dir": "shared"}, "", "", None),
    ],
)
def test_the_journal_is_in_the_runs_folder_or_where_it_is_wanted_or_in_the_hosts_own(
    tmp_path: Path, settings: dict[str, str], run_dir: str, own_folder: str, expected: str | None
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "run_id").write_text(RUN)
    config = config_of(**{name: str(tmp_path / path) for name, path in settings.items()})
    directory = str(tmp_path / run_dir) if run_dir else ""
    welcome = Welcome(RUN, 3, 0, config, SPEC, "tcp://127.0.0.1:*", directory)
    folder = journal_folder(welcome, str(tmp_path / own_folder) if own_folder else "")
    if expected is None:
        assert folder is None
    else:
        assert folder is not None
        assert re.fullmatch(expected, str(folder.relative_to(tmp_path)))


def test_a_replay_without_a_place_for_its_journal_says_so(bench: Bench):
    bench.after_reports()
    [text] = [event.text for event in bench.coordinator.events if event.kind == "journal"]
    assert text == "no journal: this host has no folder for one; replay.journal_dir names a folder"


# ---- what a configuration describes ----


def test_shards_share_capacity_and_have_keys_and_randomness_of_their_own():
    config = config_of(shards=3, capacity=64, min_size=8)
    buffers = [make_buffer(config, SPEC, shard, incarnation=2) for shard in range(3)]
    assert [buffer.capacity for buffer in buffers] == [22, 22, 22]
    drawn = []
    for buffer in buffers:
        keys = buffer.insert(columns_of(20), [frames_of(20)], 0)
        assert keys.start == 2 << 40
        drawn.append(tuple(buffer.sample(5).keys))
    assert len(set(drawn)) == 3


def test_a_compressed_buffer_takes_its_shards_share_of_the_memory():
    config = config_of(shards=2, store="compressed", memory="2000000", decode_threads=1)
    assert 900_000 < make_buffer(config, SPEC).allocated_bytes <= 1_000_000


# ---- batches in another actor's name ----


def test_a_batch_in_another_actors_name_is_refused_and_the_real_one_is_taken(bench: Bench):
    push, sender = bench.socket(zmq.PUSH, "transitions/0"), bench.sender(actor=3)
    bench.send(sender, actor=3)
    bench.flush(sender)
    batch = wire.decode_transitions(encoded(1, actor=3), SPEC, RUN)
    for ticket in (b"", ticket_of(SEAL, 7, 0, "")):
        push.send(wire.encode_transitions(dataclasses.replace(batch, ticket=ticket)))
    refused = "a process without a key: a batch in another actor's name"
    bench.until(lambda: bench.metrics.rejected() == {refused: 2})
    bench.send(sender, actor=3)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 2 * BATCH)
    assert bench.total("transitions_duplicate") == bench.total("batches_missing") == 0
    told = [event.text for event in bench.coordinator.events if event.kind == "refused"]
    assert told == [
        "a process without a key sent a batch in another actor's name: ticket: not that of actor 3"
    ]


def test_nobody_hears_the_acknowledgements_of_another_actor_or_takes_them_from_it(bench: Bench):
    sender, stranger = bench.sender(actor=3), bench.socket(zmq.DEALER, "acknowledgements/0")
    bench.send(sender, actor=3)
    bench.flush(sender)
    stranger.send(Hello(3, 0, ticket_of(SEAL, 7, 0, "")).encode())
    refused = "a process without a key: a hello in another actor's name"
    bench.until(lambda: bench.metrics.rejected() == {refused: 1})
    bench.send(sender, actor=3)
    bench.flush(sender)
    assert not stranger.poll(0)


def test_one_that_joins_again_and_again_takes_nobodys_acknowledgements(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("replay.sequences.MOST_STREAMS", 20)
    sender, restless = bench.sender(actor=3), bench.socket(zmq.DEALER, "acknowledgements/0")
    bench.send(sender, actor=3)
    bench.flush(sender)
    for incarnation in range(50):
        restless.send(Hello(7, incarnation, ticket_of(SEAL, 7, incarnation, "")).encode())
        assert restless.poll(10_000)
        restless.recv()
    bench.send(sender, actor=3)
    bench.flush(sender)


# ---- garbage ----

BAD_BATCHES: dict[str, tuple[bytes, str]] = {
    "noise": (b"\xc1 garbage", "malformed"),
    "nothing": (b"", "malformed"),
    "control": (wire.encode_control("join", {"role": "actor"}), "type"),
    "another run": (encoded(0, run="other"), "other run"),
    "a return that is not finite": (
        encoded(0, n_step_return=np.full(BATCH, np.nan, np.float32)),
        "not finite",
    ),
    "an action out of range": (encoded(0, action=np.full(BATCH, 3, np.int32)), "action"),
    "a negative priority": (encoded(0, priority=np.full(BATCH, -1, np.float32)), "priority"),
    "a pointer beyond the frames": (
        encoded(0, bootstrap_index=np.full(BATCH, 9, np.int32)),
        "index",
    ),
    "cut short": (encoded(0)[:-10], "malformed"),
    "an actor that cannot exist": (encoded(0, actor=1 << 40), "malformed"),
    "more than the buffer holds": (encoded(0, count=100), "too large"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_garbage_from_actors_is_counted_by_reason_and_harms_nothing(bench: Bench, name: str):
    data, reason = BAD_BATCHES[name]
    push, sender = bench.socket(zmq.PUSH, "transitions/0"), bench.sender(actor=3)
    push.send(data)
    bench.until(lambda: bench.metrics.rejected() == {reason: 1})
    assert bench.total("transitions_rejected") >= 1
    assert bench.total("transitions_received") == 0
    bench.send(sender, actor=3)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == BATCH)


def test_an_actor_whose_batches_cannot_be_used_goes_on(bench: Bench):
    """Recover like a sensor, whose readings are sometimes not finite."""
    sender, not_finite = bench.sender(window=2), np.full(BATCH, np.inf, np.float32)
    for _ in range(5):
        bench.send(sender, n_step_return=not_finite)
    bench.send(sender)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == BATCH)
    assert bench.metrics.rejected() == {"not finite": 5}
    told = [event.text for event in bench.coordinator.events if event.kind == "rejected"]
    assert len(told) == 1
    assert told[0].startswith("the first of its kind: not finite: n_step_return of transition 0")
    assert bench.total("transitions_rejected") == bench.total("transitions_refused") == 5 * BATCH
    assert bench.total("batches_missing") == 0
    bench.metrics.ingest(MemberKey("actor", 0, 0), Report({"transitions_sent": 6.0 * BATCH}), 1.0)
    assert bench.metrics.in_flight() == 0


def test_what_cannot_be_used_and_comes_twice_is_counted_once(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions/0")
    data = encoded(0, n_step_return=np.full(BATCH, np.nan, np.float32))
    push.send(data)
    push.send(data)
    bench.until(lambda: bench.total("transitions_duplicate") == BATCH)
    assert bench.total("transitions_refused") == BATCH
    assert bench.metrics.rejected() == {"not finite": 1}


def test_a_message_of_several_frames_is_garbage_in_each(bench: Bench):
    push, sender = bench.socket(zmq.PUSH, "transitions/0"), bench.sender(actor=3)
    push.send_multipart([b"one", b"two", b"three"])
    bench.until(lambda: bench.metrics.rejected() == {"malformed": 3})
    bench.send(sender, actor=3)
    bench.flush(sender)


SLOTS = SlotLayout(SPEC, BATCH, slot_count(config_of()))
MEMORY = MemoryAddress(1, 2, bytes(16), SLOTS.nbytes)
TALLY = Tally(0, 0, 0, 0, 0.0)


def changed(**content: Any) -> list[Any]:
    """Build a request with some of its content replaced."""
    header = wire.decode_control(encode_request(request(slot=0, memory=MEMORY, tally=TALLY)))
    return [wire.encode_control("request", {**header, "type": "request", **content})]


BAD_REQUESTS: dict[str, list[Any]] = {
    "noise": [b"\xc1 garbage"],
    "nothing": [b""],
    "many frames": [b""] * 300,
    "two frames": [encode_request(request()), b""],
    "another kind": [wire.encode_control("sample", {})],
    "without content": [wire.encode_control("request", {})],
    "another batch size": changed(batch_size=1 << 40),
    "more rows than a batch has": changed(rows=BATCH + 1),
    "fewer rows than none": changed(rows=-1),
    "rows that are no number": changed(rows=True),
    "rows beyond the batch": changed(rows=2, start=3),
    "a slot that does not exist": changed(slot=SLOTS.count),
    "a slot of no memory": changed(memory=None),
    "memory of another size": changed(memory={**vars(MEMORY), "nbytes": 1}),
    "memory without a token": changed(memory={**vars(MEMORY), "token": b""}),
    "memory of a negative process": changed(memory={**vars(MEMORY), "pid": -1}),
    "keys without priorities": changed(keys=bytes(24)),
    "keys cut short": changed(keys=bytes(7), priorities=bytes(4)),
    "keys that are no bytes": changed(keys=[1, 2], priorities=[1, 2]),
    "more updates than a batch can have": changed(
        keys=bytes(8 * 65_537), priorities=bytes(4 * 65_537)
    ),
    "a tally that is no map": changed(tally=3),
    "a negative tally": changed(tally={**vars(TALLY), "inserted_elsewhere": -1}),
    "a balance that is not finite": changed(tally={**vars(TALLY), "balance": float("nan")}),
    "steps that are no number": changed(learner_steps="7"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_garbage_from_learners_is_counted_and_harms_nothing(bench: Bench, name: str):
    dealer = bench.socket(zmq.DEALER, "samples/0")
    dealer.send_multipart(BAD_REQUESTS[name])
    bench.until(lambda: sum(bench.metrics.rejected().values()) == 1)
    assert re.match("request ", next(iter(bench.metrics.rejected())))
    sender, client = bench.sender(), bench.client()
    for _ in range(2):
        bench.send(sender)
    bench.sample(client)
    assert not dealer.poll(0)


@pytest.mark.parametrize("memory", [MEMORY, MemoryAddress(1 << 30, 0, bytes(16), SLOTS.nbytes)])
def test_memory_that_is_not_there_is_answered_with_the_rows_and_the_reason(
    bench: Bench, memory: MemoryAddress
):
    dealer, sender = bench.dealer(), bench.sender()
    for _ in range(2):
        bench.send(sender)
    dealer.ask(slot=1, memory=memory)
    ((answer, slab),) = bench.until(dealer.answers)
    assert answer.slot is None
    assert answer.memory
    assert len(slab) > 0


def test_more_requests_than_anybody_needs_are_dropped_and_counted(bench: Bench):
    dealer = bench.dealer()
    for number in range(300):
        dealer.ask(number)
    bench.until(lambda: bench.total("requests_dropped") == 300 - 256)


def test_rows_for_a_learner_that_is_gone_are_not_drawn(bench: Bench):
    dealer, sender = bench.dealer(), bench.sender()
    dealer.ask(1)
    dealer.ask(2, rows=0)
    bench.until(dealer.answers)
    dealer.socket.close()
    bench.after_reports()
    for _ in range(2):
        bench.send(sender)
    bench.until(lambda: bench.total("answers_undeliverable") == 1)
    assert bench.total("samples") == 0


def test_garbage_where_actors_say_hello_harms_nothing(bench: Bench):
    stranger = bench.socket(zmq.DEALER, "acknowledgements/0")
    for message in (b"", b"\x01", b"ack-", b"x" * 500, Hello(1, 1).encode() + b"0"):
        stranger.send(message)
    stranger.send_multipart([Hello(1, 1).encode(), b"more"])
    last = 2**32 - 1
    stranger.send(Hello(last, last, ticket_of(SEAL, last, last, "")).encode())
    assert bench.until(lambda: stranger.poll(10)), "even an odd actor is told where it stands"
    bench.until(lambda: bench.metrics.rejected() == {"hello": 6})
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
