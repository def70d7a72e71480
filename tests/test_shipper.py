"""Shipping: the content of one message and the shard that it goes to, over real sockets."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zmq

from actors import shipper
from actors.segments import Segment
from actors.shipper import Shipper
from pdqn import wire
from pdqn.layers import build
from pdqn.link import CoordinatorLink
from pdqn.messages import Pulse, Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.sender import UNKNOWN, Hello, encode_acknowledgement


def spec_of(frame_bytes: int) -> EnvironmentSpec:
    return EnvironmentSpec("test/Steps-v0", (FieldSpec("step", (frame_bytes,), "uint8"),), 2)


SPEC = spec_of(10)
ACTOR = 1
Eventually = Callable[..., Any]


class Shard:
    """A replay that receives everything, and acknowledges it unless a test forbids that.

    Attributes:
        batches: those that came, in order.
        acknowledging: whether it acknowledges them.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], spec: EnvironmentSpec) -> None:
        self.batches: list[wire.TransitionBatch] = []
        self.acknowledging = threading.Event()
        self.acknowledging.set()
        self._spec = spec
        self._acknowledged = 0
        self._asker = b""
        self._pull = context.socket(zmq.PULL)
        self._router = context.socket(zmq.ROUTER)
        self.endpoints = tuple(
            f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
            for socket in (self._pull, self._router)
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def sequences(self) -> list[int]:
        """Sequence numbers of the batches that came."""
        return [batch.sequence for batch in self.batches]

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for socket in (self._pull, self._router):
            socket.close(linger=0)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._pull, zmq.POLLIN)
        poller.register(self._router, zmq.POLLIN)
        while not self._stopping.is_set():
            ready = dict(poller.poll(10))
            if self._router in ready:
                self._asker, hello = self._router.recv_multipart()
                assert Hello.decode(hello) == Hello(ACTOR, 0)
                self._acknowledge(greeting=True)
            if self._pull in ready:
                data = self._pull.recv()
                self.batches.append(wire.decode_transitions(data, self._spec, "run"))
            if self.acknowledging.is_set() and self._acknowledged < len(self.batches):
                self._acknowledged = len(self.batches)
                self._acknowledge()

    def _acknowledge(self, *, greeting: bool = False) -> None:
        answer = encode_acknowledgement(self._expected(), greeting=greeting)
        self._router.send_multipart([self._asker, answer])

    def _expected(self) -> int:
        return self.batches[-1].sequence + 1 if self.batches else UNKNOWN


def segment(count: int, spec: EnvironmentSpec = SPEC) -> Segment:
    """Build a segment of transitions between consecutive frames."""
    numbers = np.arange(count, dtype=np.int32)
    floats = numbers.astype(np.float32)
    columns = {
        "action": numbers % 2,
        "n_step_return": floats,
        "discount": np.ones(count, np.float32),
        "priority": floats,
        "observation_index": numbers,
        "bootstrap_index": numbers + np.int32(1),
    }
    frames = {f.name: np.zeros((count + 1, *f.shape), np.uint8) for f in spec.fields}
    return Segment(columns, frames)


class Replays:
    """Two shards, the pulse that an actor gets of them, and the actor's shipper."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        spec: EnvironmentSpec,
        enough: int,
        window_bytes: int = wire.MAX_TRANSITION_BYTES,
    ) -> None:
        actor = {"batch_transitions": enough, "window": 2, "window_bytes": window_bytes}
        layer = {"actor": actor, "replay": {"shards": 2}}
        welcome = Welcome("run", ACTOR, 0, build(("test", layer)), spec, "", "")
        self._coordinator = context.socket(zmq.ROUTER)
        port = self._coordinator.bind_to_random_port("tcp://127.0.0.1")
        self.shards = [Shard(context, spec) for _ in range(2)]
        self.link = CoordinatorLink(context, f"tcp://127.0.0.1:{port}", "actor")
        self.shipper = Shipper(context, self.link, welcome)
        self.tell()

    def tell(self, *alive: int) -> None:
        """Send the pulse that lists these shards as alive."""
        endpoints: dict[str, str] = {}
        for k in alive:
            names = (f"transitions/{k}", f"acknowledgements/{k}")
            endpoints |= dict(zip(names, self.shards[k].endpoints, strict=True))
        self.link.pulse = Pulse(endpoints=endpoints)

    @property
    def sequences(self) -> list[list[int]]:
        """Sequence numbers of the batches that came, for each shard."""
        return [shard.sequences for shard in self.shards]

    def ship(self) -> None:
        """Ship a whole batch."""
        self.shipper.add([segment(6)], 0)

    def shipping(self) -> threading.Thread:
        """Ship a whole batch in a thread, because it has to wait."""
        thread = threading.Thread(target=self.ship)
        thread.start()
        return thread

    def close(self) -> None:
        self.link.pulse = Pulse("stop")
        for shard in self.shards:
            shard.acknowledging.set()
        self.shipper.finish()
        self.link.leave()
        for shard in self.shards:
            shard.stop()  # it may have stopped before
        self._coordinator.close(linger=0)


@contextmanager
def running(spec: EnvironmentSpec, enough: int) -> Iterator[Replays]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    made = Replays(context, spec, enough)
    try:
        yield made
    finally:
        made.close()
        context.destroy(linger=0)


@pytest.fixture
def replays() -> Iterator[Replays]:
    """Provide replays for small batches of six transitions."""
    with running(SPEC, enough=6) as made:
        yield made


def test_an_actor_sends_to_its_own_shard(replays: Replays, eventually: Eventually):
    replays.tell(0, 1)
    for _ in range(3):
        replays.ship()
    eventually(lambda: replays.sequences == [[], [0, 1, 2]])
    batches = replays.shards[1].batches
    made = list(itertools.accumulate(batch.count for batch in batches))
    assert [batch.made for batch in batches] == made
    assert replays.link.telemetry.counters["transitions_made"] == made[-1]


def test_an_actor_leaves_a_replay_that_is_let_in_no_longer(
    replays: Replays, eventually: Eventually
):
    replays.tell(1)
    replays.ship()
    eventually(lambda: replays.sequences == [[], [0]])
    sender = replays.shipper._sender
    assert sender.addresses
    pulse = Pulse()
    object.__setattr__(pulse, "revoked", frozenset({None}))  # the key of a connection that has none
    replays.link.pulse = pulse
    thread = replays.shipping()
    eventually(lambda: not sender.addresses)
    replays.tell(0)
    thread.join()
    eventually(lambda: replays.sequences[0][-1:] == [1])
    assert replays.sequences[1] == [0]


def test_without_any_shard_it_waits_for_one(replays: Replays, eventually: Eventually):
    thread = replays.shipping()
    eventually(lambda: replays.link.telemetry.activity == "waits for replay")
    replays.tell(0)
    thread.join()
    eventually(lambda: replays.sequences == [[0], []])


def test_a_shard_that_is_known_by_half_is_not_alive(replays: Replays, eventually: Eventually):
    replays.tell(0, 1)
    del replays.link.pulse.endpoints["acknowledgements/1"]
    replays.ship()
    eventually(lambda: replays.sequences == [[0], []])


def test_an_actor_that_is_asked_to_leave_still_brings_what_it_has(
    replays: Replays, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    replays.tell(0, 1)
    replays.shards[1].acknowledging.clear()
    replays.ship()
    replays.ship()
    monkeypatch.setattr(CoordinatorLink, "orphaned", property(lambda _: True))
    thread = replays.shipping()  # the window is full
    eventually(lambda: replays.link.telemetry.activity == "waits for replay")
    replays.shards[1].acknowledging.set()
    thread.join()
    replays.shipper.finish()
    assert replays.sequences == [[], [0, 1, 2]]
    assert replays.link.telemetry.counters["transitions_unsent"] == 0


def test_an_actor_that_is_sent_away_waits_for_a_replay_that_is_gone_as_long_as_the_run_goes_on(
    replays: Replays, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    for name in ("_FLUSH_SECONDS", "_ORPHAN_FLUSH_SECONDS"):
        monkeypatch.setattr(shipper, name, 0.0)
    monkeypatch.setattr(CoordinatorLink, "orphaned", property(lambda _: True))
    dismissed = [True]
    monkeypatch.setattr(CoordinatorLink, "is_dismissed", property(lambda _: dismissed[0]))
    thread = replays.shipping()
    eventually(lambda: replays.link.telemetry.activity == "waits for replay")
    replays.tell(1)
    thread.join()
    assert replays.link.telemetry.counters["transitions_unsent"] == 0
    eventually(lambda: replays.sequences == [[], [0]])
    replays.tell()
    replays.shipper._sender.close()
    thread = replays.shipping()
    eventually(lambda: replays.link.telemetry.activity == "waits for replay")
    dismissed[0] = False  # the run stops
    thread.join()
    assert replays.link.telemetry.counters["transitions_unsent"] == 6


def test_while_its_shard_is_gone_another_gets_what_was_not_acknowledged(
    replays: Replays, eventually: Eventually
):
    replays.tell(0, 1)
    replays.shards[1].acknowledging.clear()
    replays.ship()
    replays.ship()
    eventually(lambda: replays.sequences == [[], [0, 1]])
    thread = replays.shipping()  # the window is full
    replays.tell(0)
    thread.join()
    eventually(lambda: replays.sequences == [[0, 1, 2], [0, 1]])


@pytest.mark.parametrize("is_heard", [False, True], ids=["hanging", "heard"])
def test_a_shard_that_does_not_greet_is_passed_over_only_while_the_launcher_hangs(
    replays: Replays, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, is_heard: bool
):
    monkeypatch.setattr(shipper, "_SILENCE_SECONDS", 0.2)
    seconds = 0.0 if is_heard else 100.0
    monkeypatch.setattr(CoordinatorLink, "silent_seconds", property(lambda _: seconds))
    replays.tell(0, 1)
    replays.shards[1].acknowledging.clear()
    replays.ship()
    replays.ship()
    eventually(lambda: replays.sequences == [[], [0, 1]])
    replays.shards[1].stop()
    thread = replays.shipping()  # the window is full
    sender = replays.shipper._sender
    if is_heard:
        eventually(lambda: sender.unheard_seconds > 0.5)
        assert replays.sequences == [[], [0, 1]], "it waits for the launcher's word"
        replays.tell(0)
    thread.join()
    replays.shipper.finish()
    assert replays.sequences == [[0, 1, 2], [0, 1]]
    assert replays.link.telemetry.counters["transitions_unsent"] == 0


def test_a_shard_that_does_not_greet_is_waited_for_if_there_is_no_other(
    replays: Replays, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shipper, "_SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(CoordinatorLink, "silent_seconds", property(lambda _: 100.0))
    replays.tell(1)
    replays.shards[1].acknowledging.clear()
    replays.ship()
    replays.ship()
    replays.shards[1].stop()
    thread = replays.shipping()  # the window is full
    sender = replays.shipper._sender
    eventually(lambda: sender.unheard_seconds > 0.5)
    assert thread.is_alive(), "the actor takes no further step"
    replays.tell(0)
    thread.join()
    replays.shipper.finish()
    assert replays.sequences[0] == [0, 1, 2]
    assert replays.link.telemetry.counters["transitions_unsent"] == 0


def test_back_to_its_own_shard_it_goes_when_nothing_is_on_its_way(
    replays: Replays, eventually: Eventually
):
    replays.tell(0)
    replays.shards[0].acknowledging.clear()
    replays.ship()
    eventually(lambda: replays.sequences == [[0], []])
    replays.tell(0, 1)
    thread = replays.shipping()
    eventually(lambda: replays.link.telemetry.activity == "waits for replay")
    assert replays.sequences == [[0], []]
    replays.shards[0].acknowledging.set()
    thread.join()
    # No batch is at both shards.
    eventually(lambda: replays.sequences == [[0], [1]])


def test_a_shard_whose_key_is_revoked_gets_nothing_more_however_readily_it_takes_it(
    replays: Replays, eventually: Eventually
):
    replays.tell(0, 1)
    replays.ship()
    eventually(lambda: replays.sequences == [[], [0]])
    # Another shard takes over at once, so there is nothing to wait for.
    names, revoked = ("transitions/1", "acknowledgements/1"), f"|{'k' * 40}"
    theirs = replays.shards[1].endpoints
    replays.shipper._sender._addresses = (theirs[0] + revoked, theirs[1] + revoked)
    successor = dict(zip(names, replays.shards[0].endpoints, strict=True))
    replays.link.pulse = Pulse(endpoints=successor, revoked=frozenset(["k" * 40]))
    for _ in range(3):
        replays.ship()
    eventually(lambda: replays.sequences[0][-3:] == [1, 2, 3])
    assert replays.sequences[1] == [0]


def test_segments_are_sent_when_there_are_enough_one_batch_after_another(
    replays: Replays, eventually: Eventually
):
    replays.tell(0, 1)
    replays.shipper.add([segment(n) for n in (4, 1, 3, 5, 2, 1)], 7)
    eventually(lambda: [batch.count for batch in replays.shards[1].batches] == [8, 7])
    batches = replays.shards[1].batches
    assert [batch.frames for batch in batches] == [8 + 3, 7 + 2]
    assert {batch.parameter_version for batch in batches} == {7}
    replays.shipper.send()
    eventually(lambda: [batch.count for batch in batches] == [8, 7, 1])


def test_no_message_becomes_larger_than_replay_takes(eventually: Eventually):
    # 16 such frames are as much as a message may hold with nothing else in it.
    spec = spec_of(wire.MAX_TRANSITION_BYTES // 16)
    with running(spec, enough=100) as replays:
        replays.tell(0, 1)
        replays.shipper.add([segment(n, spec) for n in (3, 3, 3, 9, 1)], 0)
        replays.shipper.send()
        batches = replays.shards[1].batches
        eventually(lambda: [batch.frames for batch in batches] == [4 + 4, 4, 10, 2])
