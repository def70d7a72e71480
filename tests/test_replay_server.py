"""The replay service over real sockets, in a run that a real coordinator holds together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from launcher.coordinator import Coordinator, Member
from launcher.metrics import RunMetrics
from pdqn import wire
from pdqn.config import Config, build
from pdqn.link import CoordinatorLink
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.buffer import Sample
from replay.client import SampleClient
from replay.sender import TransitionSender, ack_topic
from replay.server import ReplayServer

Eventually = Callable[..., Any]

SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (2,), "float32"),), 3)
RUN = "the-run"
BATCH = 4
NO_KEYS, NO_PRIORITIES = np.empty(0, np.int64), np.empty(0, np.float32)


def config_of(**replay: Any) -> Config:
    """One sample per insert, at most 4 samples off, after 8 transitions, in batches of 4."""
    settings = {
        "capacity": 64,
        "min_size": 8,
        "samples_per_insert": 1.0,
        "samples_per_insert_tolerance": 4.0,
        "priority_exponent": 1.0,
        **replay,
    }
    learner = {"batch_size": BATCH}
    system = {"telemetry_seconds": 0.02}
    return build(("test", {"replay": settings, "learner": learner, "system": system}))


class Bench:
    """A replay server in a thread, a coordinator in this one, and ways to reach both."""

    def __init__(self, eventually: Eventually, directory: Path, config: Config) -> None:
        self._eventually = eventually
        self._directory = directory
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.metrics = RunMetrics(None)
        self.coordinator = Coordinator(
            self.context,
            "tcp://127.0.0.1:*",
            run=RUN,
            run_dir=str(directory),
            role_bind="tcp://127.0.0.1:*",
            config=config,
            spec=SPEC,
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
        """Let the coordinator speak with the server until something is true."""

        def talk() -> Any:
            self.coordinator.poll(0.01)
            if self.server.done():
                pytest.fail(f"the server ended: {self.server.exception()!r}")
            return happened()

        return self._eventually(talk)

    def after_reports(self, number: int = 5) -> None:
        """Until the server has reported a few times more: what it has now, it is content with."""
        start = self.member().heard
        heard = {start}
        self.until(lambda: heard.add(self.member().heard) or len(heard) > number)

    def member(self) -> Member:
        return next(self.coordinator.members("replay"))

    def endpoint(self, name: str) -> str:
        found = self.until(lambda: [m for m in self.coordinator.members() if name in m.endpoints])
        return found[0].endpoints[name]

    def total(self, name: str) -> float:
        return self.metrics.total("replay", name)

    def socket(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.connect(self.endpoint(endpoint))
        self._sockets.append(socket)
        return socket

    def sender(self, actor: int = 0, incarnation: int = 0, window: int = 10) -> TransitionSender:
        sender = TransitionSender(self.context, actor, incarnation, window)
        sender.connect(self.endpoint("transitions"), self.endpoint("acknowledgements"))
        self._senders.append(sender)
        return sender

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
        client = SampleClient(self.context)
        client.connect(self.endpoint("samples"))
        self._clients.append(client)
        return client

    def sample(
        self,
        client: SampleClient,
        keys: NDArray[np.int64] = NO_KEYS,
        priorities: NDArray[np.float32] = NO_PRIORITIES,
        learner_steps: int = 0,
    ) -> Sample:
        assert client.request(BATCH, learner_steps, keys, priorities)
        return self.until(lambda: client.receive(0.01))

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


def columns_of(count: int, first: int = 0, **changes: Any) -> dict[str, NDArray[Any]]:
    """``count`` steps of one environment; frame i holds (first + i, 0.5)."""
    frames = first + np.arange(count + 1, dtype=np.float32)
    columns = {
        "observation.observation": np.stack([frames, np.full_like(frames, 0.5)], axis=1),
        "action": np.arange(count, dtype=np.int32) % 3,
        "n_step_return": frames[:-1] * 10,
        "discount": np.full(count, 0.5, np.float32),
        "priority": np.ones(count, np.float32),
        "observation_index": np.arange(count, dtype=np.int32),
        "bootstrap_index": np.arange(1, count + 1, dtype=np.int32),
    }
    return {**columns, **changes}


def encoded(
    sequence: int,
    count: int = BATCH,
    *,
    actor: int = 0,
    run: str = RUN,
    version: int = 0,
    **of: Any,
) -> bytes:
    columns = columns_of(count, **of)
    return wire.encode_transitions(wire.TransitionBatch(run, actor, 0, sequence, version, columns))


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


# ---- taking and answering ----


def test_accepted_batches_are_acknowledged_and_can_be_sampled(bench: Bench):
    sender, client = bench.sender(), bench.client()
    for first in (0, 100):
        bench.send(sender, first=first)
    bench.flush(sender)
    assert sender.unacknowledged == 0
    sample = bench.sample(client)
    seen = sample.observation["observation"][:, 0]
    assert set(seen) <= {0, 1, 2, 3, 100, 101, 102, 103}
    assert (sample.observation["observation"][:, 1] == 0.5).all()
    assert (sample.bootstrap_observation["observation"][:, 0] == seen + 1).all()
    assert (sample.n_step_return == seen * 10).all()
    assert (sample.action == seen % 100 % 3).all()
    assert (sample.discount == 0.5).all()
    bench.until(lambda: bench.total("samples") == BATCH)
    assert bench.total("transitions_received") == 8


def test_every_waiting_request_is_answered_once_there_is_enough(bench: Bench):
    client, sender = bench.client(), bench.sender()
    for _ in range(3):
        assert client.request(BATCH, 0, NO_KEYS, NO_PRIORITIES)
    assert client.outstanding == 3
    bench.send(sender)
    bench.flush(sender)
    bench.until(lambda: bench.member().activity == "fills to 8 before the first batch")
    assert client.receive(0.0) is None
    for _ in range(3):
        bench.send(sender)
    bench.flush(sender)
    for outstanding in (2, 1, 0):
        assert bench.until(lambda: client.receive(0.01)) is not None
        assert client.outstanding == outstanding


def test_batches_of_several_actors_are_acknowledged_to_each(bench: Bench):
    senders = [bench.sender(actor) for actor in (0, 7)]
    for sender, actor in zip(senders, (0, 7), strict=True):
        bench.send(sender, count=2, actor=actor)
    for sender in senders:
        bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 4)


def test_what_comes_twice_is_counted_and_not_inserted(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions")
    for sequence in (0, 0, 1, 0):
        push.send(encoded(sequence, count=3))
    bench.until(lambda: bench.total("transitions_duplicate") == 6)
    assert bench.total("transitions_received") == 6
    assert bench.metrics.gauge("replay", "size") == 6


def test_the_same_numbers_from_another_actor_are_no_duplicates(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions")
    push.send(encoded(0, count=3))
    push.send(encoded(0, count=3, actor=1))
    bench.until(lambda: bench.total("transitions_received") == 6)
    assert bench.total("transitions_duplicate") == 0


def test_a_gap_in_the_numbers_is_a_missing_batch(bench: Bench):
    push = bench.socket(zmq.PUSH, "transitions")
    for sequence in (5, 6, 9):
        push.send(encoded(sequence, count=2))
    bench.until(lambda: bench.total("transitions_received") == 6)
    assert bench.total("batches_missing") == 2, "7 and 8; what came before 5 was another replay's"
    assert bench.metrics.lost_so_far() == 2


def test_policy_lag_is_the_learners_steps_since_the_parameters_that_acted(bench: Bench):
    client, sender = bench.client(), bench.sender()
    assert client.request(BATCH, 10, NO_KEYS, NO_PRIORITIES)
    bench.until(lambda: bench.member().activity.startswith("fills"))
    bench.send(sender, count=4, version=4)  # 6 steps old
    bench.send(sender, count=2, version=10)  # fresh
    bench.send(sender, count=2, version=12)  # newer than the learner's last word: not negative
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 8)
    assert bench.metrics.policy_lag() == 4 * 6 / 8


# ---- flow control ----


def test_the_limiter_blocks_inserts_until_samples_are_taken(bench: Bench):
    # Balance after 8, 12, 16 transitions: 0, 4, 8; from above 4 on, inserting waits.
    push = bench.socket(zmq.PUSH, "transitions")
    for sequence in range(7):
        push.send(encoded(sequence))
    bench.until(lambda: bench.total("transitions_received") == 16)
    bench.until(lambda: bench.member().activity == "actors wait for the learner")
    bench.after_reports()
    assert bench.total("transitions_received") == 16
    bench.sample(bench.client())  # balance 4: one batch more
    bench.until(lambda: bench.total("transitions_received") == 20)
    bench.after_reports()
    assert bench.total("transitions_received") == 20
    assert bench.total("inserts_blocked_seconds") > 0


def test_the_limiter_blocks_samples_until_there_are_inserts(bench: Bench):
    client, sender = bench.client(), bench.sender()
    for _ in range(2):
        bench.send(sender)
    bench.sample(client)  # balance -4, the lowest that is allowed
    assert client.request(BATCH, 0, NO_KEYS, NO_PRIORITIES)
    bench.until(lambda: bench.member().activity == "learner waits for the actors")
    bench.after_reports()
    assert bench.total("samples") == BATCH
    bench.send(sender)
    assert bench.until(lambda: client.receive(0.01)) is not None


def test_draining_takes_everything(bench: Bench):
    sender = bench.sender(window=100)
    for _ in range(20):
        bench.send(sender, count=2)
    bench.until(lambda: bench.member().activity == "actors wait for the learner")
    assert sender.unacknowledged > 0
    bench.coordinator.command(["replay"], "drain")
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 40)


def test_a_window_of_batches_is_the_most_that_is_on_its_way(bench: Bench):
    sender = bench.sender(window=2)
    for _ in range(6):  # four are taken, two wait
        bench.send(sender)
    bench.until(lambda: bench.member().activity == "actors wait for the learner")
    assert not sender.send(encoded(sender.next_sequence), lambda: False)
    assert sender.next_sequence == 6, "the number is still free"


def test_stopping_ends_the_server_with_its_last_figures(bench: Bench):
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
    bench.stop()
    assert bench.coordinator.count("replay") == 0
    assert bench.total("transitions_received") == BATCH


# ---- priorities ----


def test_a_request_sets_priorities(bench: Bench):
    sender, client = bench.sender(), bench.client()
    for _ in range(3):
        bench.send(sender)
    bench.flush(sender)
    priorities = np.zeros(12, np.float32)
    priorities[5] = 1e6
    sample = bench.sample(client, np.arange(12), priorities)
    assert sample.keys.tolist() == [5] * BATCH
    assert sample.importance_weight.tolist() == [1.0] * BATCH


def test_priorities_that_are_no_numbers_and_keys_that_are_gone_are_ignored(bench: Bench):
    sender, client = bench.sender(), bench.client()
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    keys = np.array([0, 1, 2, 999, -1], np.int64)
    priorities = np.array([np.nan, -1, np.inf, 1, 1], np.float32)
    bench.sample(client, keys, priorities)
    bench.until(lambda: bench.total("priorities_ignored") == 5)


# ---- restart ----


def test_a_replay_that_is_restarted_gets_what_was_not_acknowledged(bench: Bench):
    sender = bench.sender(window=10)
    for _ in range(6):  # four are taken, two wait
        bench.send(sender)
    bench.until(lambda: bench.total("transitions_received") == 16)
    while sender.unacknowledged > 2:
        sender.flush(iter([True, False]).__next__)
    bench.stop()
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench.until(lambda: bench.coordinator.count("replay"))
    sender.connect(bench.endpoint("transitions"), bench.endpoint("acknowledgements"))
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == 24)
    assert bench.total("transitions_duplicate") == 0
    assert bench.total("batches_missing") == 0


def test_priorities_meant_for_the_replay_before_a_restart_change_nothing(bench: Bench):
    sender = bench.sender()
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    stale = bench.sample(bench.client()).keys
    bench.stop()
    bench.coordinator.command(["replay"], "run")
    bench.server = bench.start()
    bench.until(lambda: bench.coordinator.count("replay"))
    sender.connect(bench.endpoint("transitions"), bench.endpoint("acknowledgements"))
    for _ in range(2):
        bench.send(sender)
    bench.flush(sender)
    sample = bench.sample(bench.client(), stale, np.full(BATCH, 1e6, np.float32))
    bench.until(lambda: bench.total("priorities_ignored") == BATCH)
    assert not set(stale) & set(sample.keys)


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
    push, sender = bench.socket(zmq.PUSH, "transitions"), bench.sender(actor=3)
    push.send(data)
    bench.until(lambda: bench.metrics.rejected() == {reason: 1})
    assert bench.total("transitions_rejected") >= 1
    assert bench.total("transitions_received") == 0
    bench.send(sender, actor=3)
    bench.flush(sender)
    bench.until(lambda: bench.total("transitions_received") == BATCH)


def test_a_message_of_several_frames_is_garbage_in_each(bench: Bench):
    push, sender = bench.socket(zmq.PUSH, "transitions"), bench.sender(actor=3)
    push.send_multipart([b"one", b"two", b"three"])
    bench.until(lambda: bench.metrics.rejected() == {"malformed": 3})
    bench.send(sender, actor=3)
    bench.flush(sender)


def bad_request(
    keys: Any = NO_KEYS, priorities: Any = NO_PRIORITIES, kind: str = "request", **content: Any
) -> list[Any]:
    content = {"batch_size": BATCH, "learner_steps": 0, **content}
    return wire.encode_arrays(kind, content, {"keys": keys, "priorities": priorities})


BAD_REQUESTS: dict[str, list[Any]] = {
    "noise": [b"\xc1 garbage"],
    "nothing": [b""],
    "many frames": [b""] * 300,
    "another kind": bad_request(kind="sample"),
    "another batch size": bad_request(batch_size=1 << 40),
    "no arrays": [wire.encode_control("request", {"batch_size": BATCH, "columns": []})],
    "keys without priorities": bad_request(keys=np.arange(3)),
    "keys that are no integers": bad_request(np.zeros(2, np.float32), np.zeros(2, np.float32)),
    "keys of two dimensions": bad_request(np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32)),
    "less data than described": bad_request(np.arange(2), np.ones(2, np.float32))[:-1],
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_garbage_from_learners_is_counted_and_harms_nothing(bench: Bench, name: str):
    dealer = bench.socket(zmq.DEALER, "samples")
    dealer.send_multipart(BAD_REQUESTS[name])
    bench.until(lambda: sum(bench.metrics.rejected().values()) == 1)
    assert re.match("request ", next(iter(bench.metrics.rejected())))
    sender, client = bench.sender(), bench.client()
    for _ in range(2):
        bench.send(sender)
    bench.sample(client)
    assert not dealer.poll(0)


def test_more_requests_than_anybody_needs_are_dropped_and_counted(bench: Bench):
    dealer = bench.socket(zmq.DEALER, "samples")
    for _ in range(300):
        dealer.send_multipart(bad_request())
    bench.until(lambda: bench.total("requests_dropped") == 300 - 256)


def test_garbage_from_subscribers_harms_nothing(bench: Bench):
    stranger = bench.socket(zmq.XSUB, "acknowledgements")
    for message in (b"", b"\x01", b"\x01ack-", b"\x01" + b"x" * 500, b"\x02hello", b"\x00ack-"):
        stranger.send(message)
    stranger.send(b"\x01" + ack_topic(2**32 - 1, 2**32 - 1))
    assert bench.until(lambda: stranger.poll(10)), "even an odd actor is told where it stands"
    sender = bench.sender()
    bench.send(sender)
    bench.flush(sender)
