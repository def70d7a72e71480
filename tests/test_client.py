"""The learner's client against shards that answer only when a test lets them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zmq

from pdqn import transport, wire
from pdqn.config import Config
from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay import shared_memory
from replay.client import SampleClient
from replay.samples import (
    Sample,
    SampleAnswer,
    SampleLayout,
    SampleRequest,
    SlotLayout,
    decode_request,
    encode_answer,
    rows_of_request,
    slot_count,
)
from replay.sharding import ShardState
from replay.shared_memory import MemoryAddress, attach
from replay.silence import Silences

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec(
    "test/Mixed-v0",
    (FieldSpec("mask", (3,), "int8", binary=True), FieldSpec("observation", (2,), "float32")),
    2,
)
BATCH, PREFETCH = 6, 2
TRANSPORTS = ("auto", "socket")


def config_of(**replay: Any) -> Config:
    settings = {
        "capacity": 64,
        "min_size": 8,
        "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 16.0,
        **replay,
    }
    learner = {"batch_size": BATCH, "prefetch": PREFETCH}
    return build(("test", {"replay": settings, "learner": learner}))


SLOTS = SlotLayout(SPEC, BATCH, slot_count(config_of()))
SEVERAL = 3
# All that is requested ahead is then half of what the limiter tolerates.
SEVERAL_TOLERANCE = 2.0 * BATCH * PREFETCH * SEVERAL


def fill(out: Sample, first: int) -> None:
    """Fill rows with values that follow from ``first``."""
    numbers = np.arange(first, first + out.count)
    for array in (out.keys, out.action, out.n_step_return, out.sampling_priority):
        array[:] = numbers
    for part in (out.observation, out.bootstrap_observation):
        part["observation"][:] = numbers[:, None]
        part["mask"][:] = numbers[:, None] % 8
    out.discount[:], out.parameter_version[:] = 0.5, first


class Shard:
    """A shard's socket; it gathers requests and answers those that a test names."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], eventually: Eventually, batches: int = 1
    ) -> None:
        self._eventually = eventually
        self._rows = BATCH * batches
        self._slots = SlotLayout(SPEC, self._rows, SLOTS.count)
        self.router = context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.router.bind("tcp://127.0.0.1:*")
        self.address = self.router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.identity = b""
        self.requests: list[SampleRequest] = []
        self._memories: dict[MemoryAddress, memoryview] = {}
        self.inserted, self.sampled, self.total = 100, 0, 1.0
        self.attaches = True

    def take(self) -> list[SampleRequest]:
        """Take all requests so far, including those for the state alone."""
        while self.router.poll(0):
            self.identity, data = self.router.recv_multipart()
            request = decode_request(data, self._rows, self._slots)
            if request.memory is not None and request.memory not in self._memories:
                self._memories[request.memory] = attach(request.memory)
            self.requests.append(request)
        return self.requests

    def rows_requests(self, count: int, client: SampleClient) -> list[SampleRequest]:
        """Wait for ``count`` requests for rows, and return them."""

        def arrived() -> list[SampleRequest] | None:
            client.receive(0.0, 0)
            found = [request for request in self.take() if request.rows]
            assert len(found) <= count
            return found if len(found) == count else None

        return self._eventually(arrived)

    def state(self) -> ShardState:
        balance = float(self.inserted - 8 - self.sampled)
        counts = (self.inserted, self.sampled)
        return ShardState(0, *counts, self.inserted, self.total, *counts, balance)

    def answer(self, asked: SampleRequest, first: int = 0, **changes: Any) -> None:
        """Send the rows, numbered from ``first``, as a real shard does."""
        slot, slab = None, []
        if asked.memory is not None and asked.slot is not None and self.attaches:
            slot = asked.slot
            fill(self.slot_rows(asked), first)
        elif asked.rows:
            layout = SampleLayout(SPEC, asked.rows)
            memory = bytearray(layout.nbytes)
            fill(layout.view(memory), first)
            slab = [bytes(memory)]
        self.sampled += asked.rows
        values: dict[str, Any] = {
            "request": asked.request,
            "rows": asked.rows,
            "start": asked.start,
            "slot": slot,
            "memory": "" if self.attaches or asked.slot is None else "is another process's",
            "state": self.state(),
            "waiting": (),
            **changes,
        }
        self.send(encode_answer(SampleAnswer(**values)), *slab)

    def slot_rows(self, request: SampleRequest) -> Sample:
        """Return the memory in which a request wants its rows."""
        assert request.memory is not None
        assert request.slot is not None
        slot = self._slots.view(self._memories[request.memory], request.slot)
        return slot.rows(request.start, request.start + request.rows)

    def send(self, *frames: bytes) -> None:
        self.router.send_multipart([self.identity, *frames])


class Bench:
    """The shards and clients of one test."""

    def __init__(self, eventually: Eventually, transport: str) -> None:
        self._eventually = eventually
        self._transport = transport
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: list[SampleClient] = []
        self.shards: list[Shard] = []

    def shard(self, batches: int = 1) -> Shard:
        self.shards.append(Shard(self.context, self._eventually, batches))
        return self.shards[-1]

    def client(self, *shards: Shard, **replay: Any) -> SampleClient:
        config = config_of(transport=self._transport, shards=max(1, len(shards)), **replay)
        client = SampleClient(self.context, SPEC, config, np.random.default_rng(0))
        client.connect({index: shard.address for index, shard in enumerate(shards)})
        self.clients.append(client)
        return client

    def sample(self, client: SampleClient) -> Sample:
        return self._eventually(lambda: client.receive(0.01, 0))

    def until(self, happened: Callable[[], Any]) -> Any:
        return self._eventually(happened)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.context.destroy(linger=0)


@pytest.fixture
def make_bench(eventually: Eventually) -> Iterator[Callable[[str], Bench]]:
    benches: list[Bench] = []

    def make(transport: str = "auto") -> Bench:
        benches.append(Bench(eventually, transport))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture(params=TRANSPORTS)
def bench(request: pytest.FixtureRequest, make_bench: Callable[[str], Bench]) -> Bench:
    return make_bench(request.param)


@pytest.fixture
def sharing(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


def assert_rows(sample: Sample, *numbers: int) -> None:
    """Assert that the sample is what ``fill`` made of these numbers."""
    expected = np.array(numbers)
    for array in (sample.keys, sample.action, sample.n_step_return, sample.sampling_priority):
        np.testing.assert_array_equal(array, expected)
    for part in (sample.observation, sample.bootstrap_observation):
        np.testing.assert_array_equal(part["observation"], np.stack([expected] * 2, axis=1))
        np.testing.assert_array_equal(part["mask"][:, 0], expected % 8)


# ---- one shard ----


def test_so_many_batches_as_configured_are_requested_and_no_more(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    requests = shard.rows_requests(PREFETCH, client)
    assert [(r.rows, r.start, r.tally) for r in requests] == [(BATCH, 0, None)] * PREFETCH
    shard.answer(requests[0], 10)
    assert_rows(bench.sample(client), *range(10, 16))
    requests = shard.rows_requests(PREFETCH + 1, client)
    assert client.receive(0.0, 0) is None


def test_small_batches_come_several_at_once_and_their_memory_is_free_after_the_last(bench: Bench):
    shard = bench.shard(SEVERAL)
    client = bench.client(shard, samples_per_insert_tolerance=SEVERAL_TOLERANCE)
    requests = shard.rows_requests(PREFETCH, client)
    assert [(r.rows, r.start) for r in requests] == [(SEVERAL * BATCH, 0)] * PREFETCH
    for number, request in enumerate(requests):
        shard.answer(request, 100 * number)
    held = []
    for first in (0, 6, 12, 100, 106, 112):
        held.append(bench.sample(client))
        assert_rows(held[-1], *range(first, first + BATCH))
    assert client.receive(0.0, 0) is None
    later = shard.rows_requests(PREFETCH + 2, client)
    for number in (0, 3, 2):
        client.release(held[number], None)
    assert client.receive(0.05, 0) is None
    assert len([r for r in shard.take() if r.rows]) == len(later), "a part of each slot is held"
    client.release(held[1], None)
    shard.answer(later[PREFETCH], 200)
    assert_rows(bench.sample(client), *range(200, 206))
    assert shard.rows_requests(PREFETCH + 3, client)[-1].slot == requests[0].slot


def test_priorities_of_batches_that_came_together_go_to_the_transitions_of_each(bench: Bench):
    shard = bench.shard(SEVERAL)
    client = bench.client(shard, samples_per_insert_tolerance=SEVERAL_TOLERANCE)
    shard.answer(shard.rows_requests(PREFETCH, client)[0], 10)
    _, second, third = (bench.sample(client) for _ in range(SEVERAL))
    client.release(third, np.full(BATCH, 3.0, np.float32))
    client.release(second, np.full(BATCH, 2.0, np.float32))
    shard.answer(shard.take()[1], 100)
    bench.sample(client)
    carrying = shard.rows_requests(PREFETCH + 2, client)[PREFETCH]
    assert carrying.keys.tolist() == [*range(22, 28), *range(16, 22)]
    assert carrying.priorities.tolist() == [3.0] * BATCH + [2.0] * BATCH


@pytest.mark.parametrize(
    ("replay", "batches"),
    [
        ({"samples_per_insert_tolerance": 2 * SEVERAL_TOLERANCE}, 4),
        ({"samples_per_insert_tolerance": SEVERAL_TOLERANCE}, SEVERAL),
        ({"samples_per_insert_tolerance": SEVERAL_TOLERANCE - 1}, SEVERAL - 1),
        ({"samples_per_insert_tolerance": BATCH / 2}, 1),
        ({"samples_per_insert_tolerance": 2 * SEVERAL_TOLERANCE, "shards": 2}, 1),
    ],
)
def test_a_request_is_for_as_many_batches_as_the_limiter_tolerates(
    replay: dict[str, Any], batches: int
):
    assert rows_of_request(config_of(**replay), SPEC) == batches * BATCH


def test_a_request_is_for_one_batch_where_observations_are_large():
    pictures = EnvironmentSpec("test/Pictures-v0", (FieldSpec("screen", (84, 84), "uint8"),), 2)
    assert rows_of_request(config_of(samples_per_insert_tolerance=1e6), pictures) == BATCH


def test_batches_come_in_the_order_in_which_they_are_complete(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    first, second = shard.rows_requests(2, client)
    shard.answer(second, 20)
    shard.answer(first, 10)
    assert_rows(bench.sample(client), *range(20, 26))
    assert_rows(bench.sample(client), *range(10, 16))


def test_what_is_received_may_be_written_to_and_is_not_touched_before_it_is_released(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    held = []
    for number in range(4):
        request = shard.rows_requests(min(number + 2, 4), client)[number]
        shard.answer(request, 10 * number)
        held.append(bench.sample(client))
        held[-1].n_step_return[:] = -number
    assert client.receive(0.05, 0) is None, "there are no more than four slots"
    assert len([r for r in shard.take() if r.rows]) == 4
    for number, sample in enumerate(held):
        assert (sample.n_step_return == -number).all()
    client.release(held[2], None)
    shard.answer(shard.rows_requests(5, client)[4], 50)
    assert_rows(bench.sample(client), *range(50, 56))
    assert held[0].keys.tolist() == list(range(6))


def test_new_priorities_go_with_the_next_request(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    shard.answer(shard.rows_requests(2, client)[0], 10)
    priorities = np.linspace(1, 2, BATCH, dtype=np.float32)
    client.release(bench.sample(client), priorities)
    request = shard.rows_requests(3, client)[2]
    assert request.keys.tolist() == list(range(10, 16))
    np.testing.assert_array_equal(request.priorities, priorities)


def test_the_learners_steps_are_told(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    client.receive(0.0, 1234)
    bench.until(lambda: len(shard.take()) == 2)
    assert [request.learner_steps for request in shard.requests] == [1234, 1234]


def test_only_what_was_received_and_not_released_can_be_released(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    shard.answer(shard.rows_requests(2, client)[0])
    sample = bench.sample(client)
    with pytest.raises(ValueError, match=r"\(3,\) priorities"):
        client.release(sample, np.ones(3, np.float32))
    client.release(sample, None)
    with pytest.raises(ValueError, match="not released"):
        client.release(sample, None)


def test_without_a_shard_nothing_is_received(bench: Bench):
    client = bench.client()
    assert client.receive(0.02, 0) is None
    shard = bench.shard()
    client.connect({0: shard.address})
    shard.answer(shard.rows_requests(2, client)[0], 10)
    assert_rows(bench.sample(client), *range(10, 16))


def test_samples_that_are_held_stay_valid_when_the_client_is_closed(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    shard.answer(shard.rows_requests(2, client)[0], 10)
    sample = bench.sample(client)
    client.close()
    bench.clients.clear()
    assert_rows(sample, *range(10, 16))


# ---- several shards ----


def begin(bench: Bench, client: SampleClient, *shards: Shard) -> None:
    """Let the shards report, as they do as soon as a client asks for their state."""
    client.receive(0.0, 0)
    for shard in shards:
        bench.until(shard.take)
        shard.answer(shard.requests[-1])


def test_shards_are_asked_for_rows_in_proportion_once_all_have_reported(bench: Bench):
    shards = [bench.shard(), bench.shard()]
    shards[0].total, shards[1].total = 1.0, 2.0
    client = bench.client(*shards)
    begin(bench, client, shards[0])
    assert client.receive(0.0, 0) is None
    assert not [request for shard in shards for request in shard.take() if request.rows]
    begin(bench, client, shards[1])
    first = shards[0].rows_requests(2, client)
    second = shards[1].rows_requests(2, client)
    assert [(r.start, r.rows) for r in first] == [(0, 2)] * 2
    assert [(r.start, r.rows) for r in second] == [(2, 4)] * 2


def test_a_batch_is_complete_when_all_its_rows_are_there(bench: Bench):
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    first = shards[0].rows_requests(2, client)
    second = shards[1].rows_requests(2, client)
    shards[1].answer(second[0], 50)
    shards[1].answer(second[1], 60)
    assert client.receive(0.05, 0) is None
    shards[0].answer(first[1], 10)
    sample = bench.sample(client)
    assert_rows(sample, 10, 11, 12, 60, 61, 62)
    client.release(sample, np.arange(6, dtype=np.float32))
    shards[0].answer(first[0], 0)
    assert_rows(bench.sample(client), 0, 1, 2, 50, 51, 52)
    updates = [shard.rows_requests(4, client)[2] for shard in shards]
    assert updates[0].keys.tolist() == [10, 11, 12]
    assert updates[1].keys.tolist() == [60, 61, 62]
    assert updates[1].priorities.tolist() == [3, 4, 5]


def test_every_shard_is_told_what_the_others_did_even_if_it_gives_no_rows(bench: Bench):
    shards = [bench.shard(), bench.shard()]
    shards[1].total, shards[1].inserted = 0.0, 30
    client = bench.client(*shards)
    begin(bench, client, *shards)
    first = shards[0].rows_requests(2, client)
    assert [request.rows for request in first] == [BATCH] * 2
    shards[0].answer(first[0], 10)
    bench.sample(client)

    def told() -> bool:
        client.receive(0.01, 0)
        request = shards[1].take()[-1]
        shards[1].answer(request) if request.tally is None else None
        return request.tally is not None and request.tally.sampled_elsewhere == BATCH

    bench.until(told)
    tally = shards[1].requests[-1].tally
    assert tally is not None
    assert (tally.inserted_elsewhere, tally.inserted) == (100, 30)
    assert tally.balance == 130 - 8 - BATCH


def test_the_rows_of_a_lost_shard_are_asked_of_the_others(bench: Bench):
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    kept, lost = (shard.rows_requests(2, client) for shard in shards)
    shards[0].answer(kept[0], 10)

    def heard() -> bool:
        assert client.receive(0.01, 0) is None
        tally = shards[1].take()[-1].tally
        return tally is not None and tally.sampled_elsewhere == BATCH // 2

    bench.until(heard)
    client.connect({0: shards[0].address})
    again = shards[0].rows_requests(4, client)[2:]
    assert [(r.start, r.rows) for r in again] == [(3, 3)] * 2
    shards[0].answer(again[0], 20)
    assert_rows(bench.sample(client), 10, 11, 12, 20, 21, 22)
    # The first half of the other batch is still to come; its request named the old memory.
    shards[0].answer(again[1], 40)
    shards[0].answer(kept[1], 30)
    assert_rows(bench.sample(client), 30, 31, 32, 40, 41, 42)
    assert {request.memory for request in lost}.isdisjoint({r.memory for r in again} - {None})


# ---- what gets lost ----


def test_what_a_replay_that_is_gone_was_asked_for_is_asked_of_the_next(bench: Bench):
    old, new = bench.shard(), bench.shard()
    client = bench.client(old)
    old.answer(old.rows_requests(2, client)[0], 10)
    sample = bench.sample(client)
    client.connect({0: new.address})
    client.release(sample, np.ones(BATCH, np.float32))
    assert client.priorities_dropped == BATCH
    requests = new.rows_requests(2, client)
    assert not any(len(request.keys) for request in requests)
    new.answer(requests[0], 20)
    assert_rows(bench.sample(client), *range(20, 26))


def test_a_replay_that_is_gone_but_still_writes_harms_nothing(sharing: Bench):
    old, new = sharing.shard(), sharing.shard()
    client = sharing.client(old)
    stale = old.rows_requests(2, client)
    client.connect({0: new.address})
    requests = new.rows_requests(2, client)
    new.answer(requests[0], 20)
    sample = sharing.sample(client)
    for request in stale:
        fill(old.slot_rows(request), 66)
    assert_rows(sample, *range(20, 26))


def test_memory_is_kept_where_nobody_may_write_to_it_late(sharing: Bench):
    old, new = sharing.shard(), sharing.shard()
    client = sharing.client(old)
    held = []
    for number in range(4):
        request = old.rows_requests(min(number + 2, 4), client)[number]
        old.answer(request, number)
        held.append(sharing.sample(client))
    client.connect({0: new.address})
    client.release(held[0], None)
    assert new.rows_requests(1, client)[0].memory == old.requests[0].memory


def test_a_request_that_the_shard_does_not_know_of_is_asked_for_again(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    lost, known = shard.rows_requests(2, client)

    def state_request() -> SampleRequest | None:
        client.receive(0.05, 0)
        return next((request for request in shard.take() if not request.rows), None)

    shard.answer(bench.until(state_request), waiting=(known.request,))
    again = shard.rows_requests(3, client)[2]
    assert (again.start, again.rows) == (0, BATCH)
    if again.memory is not None:
        assert again.memory != lost.memory, "whoever has the first request may still write there"
    shard.answer(again, 30)
    assert_rows(bench.sample(client), *range(30, 36))
    shard.answer(known, 20)
    assert_rows(bench.sample(client), *range(20, 26))


def test_answers_that_were_not_asked_for_are_ignored(bench: Bench):
    shard = bench.shard()
    client = bench.client(shard)
    request = shard.rows_requests(2, client)[0]
    shard.answer(request, 40, request=999)
    shard.answer(request, 10)
    assert_rows(bench.sample(client), *range(10, 16))
    assert client.rejected == 0


# ---- silence ----


class Hours:
    """The clock that measures silence; a test advances it.

    Silence is measured in turns, so that an answer to one turn's request arrives before the next.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("pdqn.silence.monotonic", lambda: self.now)
        monkeypatch.setattr("replay.client._STATE_SECONDS", 0.005)

    def pass_by(
        self, bench: Bench, client: SampleClient, seconds: int, *, states: tuple[Shard, ...] = ()
    ) -> None:
        """Advance the clock while these shards answer every request for their state."""
        for _ in range(seconds):
            self.now += 1.0
            for shard in states:
                bench.until(lambda shard=shard: self._tells(shard, client))
            client.receive(0.0, 0)

    def _tells(self, shard: Shard, client: SampleClient) -> bool:
        """Let a shard answer a request for its state, and the client receive the answer."""
        before = len(shard.requests)
        client.receive(0.001, 0)
        rows = tuple(request.request for request in shard.take() if request.rows)
        asked = [request for request in shard.requests[before:] if not request.rows]
        for request in asked:
            shard.answer(request, waiting=rows)
        return bool(asked) and client.receive(0.001, 0) is None


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    return Hours(monkeypatch)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List the log's messages about shards that answer or do not, without addresses."""
    found = [r.getMessage() for r in caplog.records if "answer" in r.getMessage()]
    return [" ".join(w for w in text.split() if not w.startswith("tcp://")) for text in found]


GIVEN_UP = "replay 1 does not answer at the others give its rows until it does"
WAITED_FOR = "replay {} does not answer at it is waited for"


def test_the_others_begin_without_a_shard_that_does_not_answer(
    bench: Bench, hours: Hours, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    hours.pass_by(bench, client, 9, states=(shards[0],))
    assert not [request for request in shards[0].take() if request.rows]
    assert (client.unheard, said(caplog)) == ("", [])
    hours.pass_by(bench, client, 5, states=(shards[0],))
    request = shards[0].rows_requests(2, client)[0]
    assert (request.start, request.rows) == (0, BATCH)
    shards[0].answer(request, 10)
    assert_rows(bench.sample(client), *range(10, 16))
    hours.pass_by(bench, client, 30, states=(shards[0],))
    assert client.unheard == "replay 1 does not answer"
    assert said(caplog) == [GIVEN_UP], "once"


def test_a_shard_that_answers_again_gives_its_rows_again(
    bench: Bench, hours: Hours, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    hours.pass_by(bench, client, 14, states=(shards[0],))
    asked = shards[0].rows_requests(2, client)
    shards[1].total = 2.0
    begin(bench, client, shards[1])
    bench.until(lambda: client.receive(0.01, 0) is None and not client.unheard)
    assert said(caplog) == [GIVEN_UP, "replay 1 answers now"]
    shards[0].answer(asked[0], 10)
    client.release(bench.sample(client), None)
    request = shards[1].rows_requests(1, client)[0]
    assert (request.start, request.rows) == (2, 4)
    assert request.tally is not None
    assert (request.tally.inserted, request.tally.inserted_elsewhere) == (100, 100)


def test_rows_that_a_shard_does_not_give_are_asked_of_the_others(bench: Bench, hours: Hours):
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    kept, lost = (shard.rows_requests(2, client) for shard in shards)
    shards[0].answer(kept[0], 10)
    hours.pass_by(bench, client, 14, states=(shards[0],))
    again = shards[0].rows_requests(4, client)[2:]
    assert [(r.start, r.rows) for r in again] == [(3, 3)] * 2
    assert {request.memory for request in lost}.isdisjoint({r.memory for r in again} - {None})
    shards[0].answer(again[0], 20)
    assert_rows(bench.sample(client), 10, 11, 12, 20, 21, 22)


def test_a_shard_whose_rows_wait_is_not_silent(
    bench: Bench, hours: Hours, caplog: pytest.LogCaptureFixture
):
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    first, second = (shard.rows_requests(2, client)[0] for shard in shards)
    shards[0].answer(first, 10)
    hours.pass_by(bench, client, 30, states=(shards[0], shards[1]))
    assert said(caplog) == []
    shards[1].answer(second, 50)
    assert_rows(bench.sample(client), 10, 11, 12, 50, 51, 52)


def test_rows_on_their_way_over_a_slow_line_are_waited_for(
    make_bench: Callable[[str], Bench],
    hours: Hours,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    nbytes = PREFETCH * SampleLayout(SPEC, BATCH).nbytes
    monkeypatch.setattr("replay.silence._SLOWEST_BYTES_PER_SECOND", nbytes / 20)
    bench = make_bench("socket")
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    for shard in shards:
        shard.rows_requests(2, client)
    hours.pass_by(bench, client, 29, states=(shards[0],))
    assert said(caplog) == []
    hours.pass_by(bench, client, 5, states=(shards[0],))
    assert said(caplog) == [GIVEN_UP]


def test_time_in_which_the_learner_was_stopped_is_no_silence(
    bench: Bench, hours: Hours, caplog: pytest.LogCaptureFixture
):
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    for shard in shards:
        shard.rows_requests(2, client)
    hours.pass_by(bench, client, 2, states=(shards[0],))
    hours.now += 3600.0
    hours.pass_by(bench, client, 3, states=(shards[0],))
    assert said(caplog) == []


def test_where_no_shard_answers_all_are_waited_for(
    bench: Bench, hours: Hours, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    shards = [bench.shard(), bench.shard()]
    client = bench.client(*shards)
    begin(bench, client, *shards)
    first, second = (shard.rows_requests(2, client)[0] for shard in shards)
    bench.until(lambda: client.receive(0.01, 0) is None and not shards[1].take()[-1].rows)
    hours.pass_by(bench, client, 30)
    assert said(caplog) == [WAITED_FOR.format(0), WAITED_FOR.format(1)]
    assert client.unheard == "replays 0, 1 do not answer"
    # The connection is repaired, and the client hears one of them before the other.
    hours.pass_by(bench, client, 3, states=(shards[0],))
    shards[0].answer(first, 10)
    shards[1].answer(second, 50)
    assert_rows(bench.sample(client), 10, 11, 12, 50, 51, 52)
    assert said(caplog)[2:] == ["replay 0 answers now", "replay 1 answers now"]


def test_silent_shards_are_named_in_order_whichever_fell_silent_first(
    hours: Hours, caplog: pytest.LogCaptureFixture
):
    silences = Silences()
    addresses = {shard: f"tcp://127.0.0.1:{7000 + shard}" for shard in range(3)}
    for shard in (2, 0, 1):
        silences.asked(shard)
    for _ in range(12):
        hours.now += 1.0
        assert silences.turn(addresses, 0) == []
    assert said(caplog) == [WAITED_FOR.format(shard) for shard in range(3)]
    assert silences.unheard == "replays 0, 1, 2 do not answer"


def test_the_only_shard_is_waited_for_and_that_is_said_once(
    bench: Bench,
    hours: Hours,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr("replay.client._ONLY_SHARD_STATE_SECONDS", 0.05)
    caplog.set_level(logging.INFO)
    shard = bench.shard()
    client = bench.client(shard)
    request = shard.rows_requests(2, client)[0]
    bench.until(lambda: client.receive(0.01, 0) is None and not shard.take()[-1].rows)
    hours.pass_by(bench, client, 9)
    assert said(caplog) == []
    hours.pass_by(bench, client, 30)
    assert said(caplog) == [WAITED_FOR.format(0)]
    assert client.unheard == "replay 0 does not answer"
    shard.answer(request, 10)
    assert_rows(bench.sample(client), *range(10, 16))
    assert client.unheard == ""
    assert said(caplog)[1:] == ["replay 0 answers now"]


def test_a_shard_that_lets_this_client_in_at_no_time_is_silent(
    bench: Bench,
    hours: Hours,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    shards = [bench.shard(), bench.shard()]

    class Refused(transport.Refusals):
        def reason(self) -> str:
            refuses = self._socket.getsockopt_string(zmq.LAST_ENDPOINT) == shards[1].address
            return "is not let in" if refuses else ""

    monkeypatch.setattr("pdqn.transport.Refusals", Refused)
    monkeypatch.setattr("replay.client._TRY_AGAIN_SECONDS", 0.01)
    client = bench.client(*shards)
    hours.pass_by(bench, client, 14, states=(shards[0],))
    assert said(caplog) == [GIVEN_UP]
    shards[0].answer(shards[0].rows_requests(2, client)[0], 10)
    assert_rows(bench.sample(client), *range(10, 16))


# ---- answers that make no sense ----

GARBAGE: dict[str, dict[str, Any]] = {
    "other rows": {"rows": BATCH - 1},
    "another start": {"start": 1},
    "a slot that was not asked for": {"slot": 0},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_an_answer_that_does_not_fit_its_request_is_counted(bench: Bench, name: str):
    shard = bench.shard()
    client = bench.client(shard)
    first, second = shard.rows_requests(2, client)
    shard.answer(first, 10, **GARBAGE[name])
    shard.answer(second, 20)
    assert_rows(bench.sample(client), *range(20, 26))
    assert client.rejected == 1


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1 garbage"],
        [b""] * 20,
        [wire.encode_control("request", {})],
        [wire.encode_control("sample", {"waiting": [], "memory": ""})],
        [wire.encode_control("sample", {"waiting": 3, "memory": ""})],
        [wire.encode_control("sample", {"waiting": []})],
    ],
)
def test_noise_is_counted_and_harms_nothing(bench: Bench, frames: list[bytes]):
    shard = bench.shard()
    client = bench.client(shard)
    first = shard.rows_requests(2, client)[0]
    shard.send(*frames)
    shard.answer(first, 10)
    assert_rows(bench.sample(client), *range(10, 16))
    assert client.rejected == 1


def test_rows_of_another_size_are_counted(make_bench: Callable[[str], Bench]):
    bench = make_bench("socket")
    shard = bench.shard()
    client = bench.client(shard)
    first, second = shard.rows_requests(2, client)
    answer = SampleAnswer(first.request, BATCH, 0, None, "", shard.state())
    shard.send(encode_answer(answer), b"too short")
    shard.send(encode_answer(answer))
    shard.answer(second, 20)
    assert_rows(bench.sample(client), *range(20, 26))
    assert client.rejected == 2


# ---- which way the rows come ----


def test_rows_are_written_into_the_clients_memory_where_possible(sharing: Bench):
    shard = sharing.shard()
    client = sharing.client(shard)
    requests = shard.rows_requests(2, client)
    assert {request.slot for request in requests} <= set(range(SLOTS.count))
    assert len({request.slot for request in requests}) == 2
    assert len({request.memory for request in requests}) == 1
    assert client.shared_memory


def test_a_shard_that_cannot_attach_the_memory_sends_the_rows_from_then_on(
    sharing: Bench, caplog: pytest.LogCaptureFixture
):
    shard = sharing.shard()
    shard.attaches = False
    client = sharing.client(shard)
    with caplog.at_level(logging.INFO):
        for number, request in enumerate(shard.rows_requests(2, client)):
            shard.answer(request, 10 * number)
        for number in range(2):
            first = 10 * number
            sample = sharing.sample(client)
            assert_rows(sample, *range(first, first + BATCH))
            client.release(sample, None)
    assert not client.shared_memory
    request = shard.rows_requests(4, client)[3]
    assert (request.slot, request.memory) == (None, None)
    said = [r.getMessage() for r in caplog.records if "SampleBatches" in r.getMessage()]
    assert said == [
        "SampleBatches come over the socket: "
        "replay 0 cannot use this learner's memory: it is another process's"
    ]


@pytest.mark.parametrize(
    ("transport", "directory", "reason"),
    [
        ("socket", "/dev/shm", "replay.transport = socket"),
        ("auto", "/nowhere", "no memory file in /nowhere: No such file or directory"),
    ],
)
def test_without_shared_memory_one_line_says_why(
    make_bench: Callable[[str], Bench],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    transport: str,
    directory: str,
    reason: str,
):
    monkeypatch.setattr(shared_memory, "DIRECTORY", directory)
    bench = make_bench(transport)
    old, new = bench.shard(), bench.shard()
    with caplog.at_level(logging.INFO):
        client = bench.client(old)
        old.rows_requests(2, client)
        client.connect({0: new.address})
        new.answer(new.rows_requests(2, client)[0], 10)
        assert_rows(bench.sample(client), *range(10, 16))
    assert not client.shared_memory
    said = [r.getMessage() for r in caplog.records if "SampleBatches" in r.getMessage()]
    assert said == [f"SampleBatches come over the socket: {reason}"]
