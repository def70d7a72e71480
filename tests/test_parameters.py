"""Parameters: their bytes, and delivery of the newest ones within a run."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import msgpack
import numpy as np
import pytest
import torch
import zmq

from pdqn import wire
from pdqn.parameters import (
    ParameterPublisher,
    Parameters,
    ParameterSubscriber,
    decode,
    encode,
    matches,
)
from pdqn.wire import WireError

RUN = "run-1"
PATIENCE_SECONDS = 20.0
Value = TypeVar("Value")


def parameters(version: int, generation: int = 0, run: str = RUN) -> Parameters:
    """Build a few tensors that identify the parameters."""
    tensors = {
        "layer.weight": torch.full((3, 2), float(version)),
        "layer.bias": torch.arange(3, dtype=torch.float32) + generation,
        "scale": torch.tensor(0.5),
        "nothing": torch.empty(0, 4),
    }
    return Parameters(run, generation, version, tensors)


def assert_equal(received: Parameters | None, sent: Parameters) -> None:
    assert received is not None
    names = ("run", "generation", "parameter_version")
    assert [getattr(received, n) for n in names] == [getattr(sent, n) for n in names]
    assert list(received.tensors) == list(sent.tensors)
    for name, tensor in sent.tensors.items():
        assert received.tensors[name].dtype == torch.float32
        torch.testing.assert_close(received.tensors[name], tensor, rtol=0, atol=0)


class TestBytes:
    def test_parameters_go_round_bit_by_bit(self):
        sent = parameters(7, generation=2)
        assert_equal(decode(encode(sent)), sent)
        assert_equal(decode(memoryview(encode(sent))), sent)

    def test_what_is_decoded_is_a_copy_that_may_be_changed(self):
        data = bytearray(encode(parameters(7)))
        received = decode(memoryview(data))
        data[:] = bytes(len(data))
        received.tensors["scale"] += 1
        assert float(received.tensors["scale"]) == 1.5
        assert float(received.tensors["layer.weight"][0, 0]) == 7.0

    def test_other_floats_and_layouts_travel_as_contiguous_float32(self):
        tensor = torch.arange(6, dtype=torch.float64).reshape(2, 3).T.requires_grad_()
        received = decode(encode(Parameters(RUN, 0, 1, {"a": tensor}))).tensors["a"]
        assert received.dtype == torch.float32
        torch.testing.assert_close(received, tensor.detach().float())

    def test_names_and_shapes_decide_whether_they_fit_a_network(self):
        network = torch.nn.Linear(2, 3)
        fitting = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        assert matches(fitting, network)
        assert not matches({}, network)
        assert not matches({"weight": fitting["weight"]}, network)
        assert not matches(fitting | {"extra": fitting["bias"]}, network)
        assert not matches(fitting | {"weight": fitting["weight"].T}, network)


GOOD = encode(parameters(7))


def message(header: dict[str, Any], *buffers: bytes) -> bytes:
    packed = msgpack.packb({"version": wire.PROTOCOL_VERSION, "type": "parameters"} | header)
    assert packed is not None
    return b"".join([len(packed).to_bytes(4, "big"), packed, *buffers])


def deep(depth: int) -> object:
    value: object = None
    for _ in range(depth):
        value = [value]
    return value


def described(dtype: object = "float32", *shape: object) -> dict[str, Any]:
    return {
        "run": RUN,
        "generation": 0,
        "parameter_version": 1,
        "columns": [{"name": "a", "dtype": dtype, "shape": list(shape)}],
    }


class TestHostileBytes:
    def test_the_well_formed_message_of_these_tests_is_accepted(self):
        assert decode(message(described("float32", 2), bytes(8))).tensors["a"].tolist() == [0, 0]

    @pytest.mark.parametrize(
        ("reason", "data"),
        [
            ("malformed", b""),
            ("malformed", b"\0\0\0"),
            ("malformed", bytes(4)),
            ("malformed", b"\xff" * 100),
            ("size", GOOD[:-1]),
            ("size", GOOD + b"\0"),
            ("too large", (2 << 20).to_bytes(4, "big") + bytes(2 << 20)),
            ("version", message(described("float32", 2) | {"version": 1}, bytes(8))),
            ("type", message(described("float32", 2) | {"type": "sample"}, bytes(8))),
            ("columns", message(described() | {"columns": None})),
            ("columns", message(described() | {"columns": described()["columns"] * 2}, bytes(8))),
            ("dtype", message(described("float64", 1), bytes(8))),
            ("dtype", message(described("object", 1), bytes(8))),
            ("shape", message(described("float32", -2), bytes(8))),
            ("shape", message(described("float32", 1 << 62), bytes(8))),
            ("shape", message(described("float32", 1 << 30, 1 << 30, 1 << 30), bytes(8))),
            ("shape", message(described("float32", 0, 1 << 30, 1 << 30, 1 << 30))),
            ("size", message(described("float32", 1 << 30), bytes(8))),
            ("size", message(described("float32", 1), bytes(8))),
            *[
                ("malformed", message(described("float32", 2) | {key: value}, bytes(8)))
                for key in ("generation", "parameter_version")
                for value in ("0", 1.5, None, True, -1, 1 << 62, [[]])
            ],
            *[
                ("malformed", message(described("float32", 2) | {"run": value}, bytes(8)))
                for value in (None, 3, b"run-1", deep(900))
            ],
            ("malformed", b"\xff" * 4 + GOOD[4:]),
        ],
    )
    def test_what_encode_does_not_write_is_refused_for_the_reason(self, reason, data):
        with pytest.raises(WireError) as caught:
            decode(data)
        assert caught.value.reason == reason

    def test_an_error_does_not_repeat_what_a_stranger_wrote_at_length(self):
        with pytest.raises(WireError) as caught:
            decode(message(described("float32", 2) | {"type": "x" * 100_000}, bytes(8)))
        assert len(str(caught.value)) < 100

    def test_claims_allocate_nothing(self):
        data = message(described("float32", 1 << 28), bytes(8))
        tracemalloc.start()
        with pytest.raises(WireError):
            decode(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak_bytes < 1 << 20


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


class Opened:
    """Sockets that a test opens; they are closed at its end."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.context = context
        self.sockets: list[ParameterPublisher | ParameterSubscriber] = []

    def subscriber(self, address: str) -> ParameterSubscriber:
        subscriber = ParameterSubscriber(self.context, address, RUN)
        self.sockets.append(subscriber)
        return subscriber

    def publisher(self, address: str) -> ParameterPublisher:
        publisher = ParameterPublisher(self.context, address)
        self.sockets.append(publisher)
        return publisher


@pytest.fixture
def opened(context) -> Iterator[Opened]:
    opened = Opened(context)
    yield opened
    for socket in opened.sockets:
        socket.close()


@pytest.fixture(params=["tcp", "ipc"])
def address(request, tmp_path) -> str:
    return "tcp://127.0.0.1:*" if request.param == "tcp" else f"ipc://{tmp_path}/p"


@pytest.fixture
def publisher(opened, address) -> ParameterPublisher:
    return opened.publisher(address)


def until(found: Callable[[], Value | None]) -> Value:
    """Ask until there is an answer, and return it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        value = found()
        if value is not None:
            return value
    raise AssertionError("nothing came")


def receive(publisher: ParameterPublisher, subscriber: ParameterSubscriber) -> Parameters:
    """Return the next parameters that a subscriber gets while the publisher serves."""

    def look() -> Parameters | None:
        publisher.serve()
        return subscriber.latest(0.01)

    return until(look)


class TestSockets:
    def test_a_late_subscriber_gets_the_last_parameters(self, opened, publisher):
        for version in range(5):
            publisher.publish(parameters(version))
        for _ in range(3):
            late = opened.subscriber(publisher.endpoint)
            assert_equal(receive(publisher, late), parameters(4))
            late.close()

    def test_everybody_gets_what_is_published(self, opened, publisher):
        subscribers = [opened.subscriber(publisher.endpoint) for _ in range(3)]
        publisher.publish(parameters(1))
        for subscriber in subscribers:
            assert_equal(receive(publisher, subscriber), parameters(1))
        publisher.publish(parameters(2))
        for subscriber in subscribers:
            assert_equal(until(lambda: subscriber.latest(0.01)), parameters(2))  # noqa: B023

    def test_before_the_first_publication_there_is_nothing(self, opened, publisher):
        subscriber = opened.subscriber(publisher.endpoint)
        publisher.serve()
        assert subscriber.latest() is None
        publisher.publish(parameters(0))
        assert_equal(receive(publisher, subscriber), parameters(0))

    def test_who_looks_seldom_gets_the_newest_and_none_in_between(self, opened, publisher):
        subscriber = opened.subscriber(publisher.endpoint)
        publisher.publish(parameters(0))
        receive(publisher, subscriber)
        witness = opened.subscriber(publisher.endpoint)
        receive(publisher, witness)
        for version in range(1, 51):
            publisher.publish(parameters(version))
            assert_equal(receive(publisher, witness), parameters(version))
        # The newest parameters may still be in transit to this subscriber.
        received = [until(lambda: subscriber.latest(0.01)).parameter_version]
        while received[-1] < 50:
            received.append(until(lambda: subscriber.latest(0.01)).parameter_version)
        assert len(received) < 25
        assert received == sorted(received)
        assert subscriber.latest() is None


class Sender:
    """A bare publisher that sends any bytes."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.XPUB)
        self.socket.bind("tcp://127.0.0.1:*")
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def send(self, data: bytes) -> None:
        self.socket.send(b"pdqn-parameters-" + data)

    def subscriber(self, opened: Opened) -> ParameterSubscriber:
        """Connect a subscriber."""
        subscriber = opened.subscriber(self.address)
        assert self.socket.poll(int(PATIENCE_SECONDS * 1000))
        self.socket.recv()
        return subscriber

    def offer(self, subscriber: ParameterSubscriber, data: bytes) -> Parameters | None:
        """Return the subscriber's reading of a message that has arrived for certain."""
        self.send(data)
        return subscriber.latest(PATIENCE_SECONDS)


@pytest.fixture
def sender(context) -> Iterator[Sender]:
    sender = Sender(context)
    yield sender
    sender.socket.close(linger=0)


class TestSubscriber:
    def test_parameters_of_another_run_are_ignored(self, opened, sender):
        subscriber = sender.subscriber(opened)
        assert sender.offer(subscriber, encode(parameters(9, run="run-2"))) is None
        assert_equal(sender.offer(subscriber, encode(parameters(3))), parameters(3))

    def test_an_older_version_is_not_returned_after_a_newer_one(self, opened, sender):
        subscriber = sender.subscriber(opened)
        assert_equal(sender.offer(subscriber, encode(parameters(5))), parameters(5))
        assert sender.offer(subscriber, encode(parameters(4))) is None
        assert sender.offer(subscriber, encode(parameters(5))) is None
        assert_equal(sender.offer(subscriber, encode(parameters(6))), parameters(6))

    def test_a_later_generation_is_newer_even_with_a_smaller_version(self, opened, sender):
        subscriber = sender.subscriber(opened)
        assert_equal(sender.offer(subscriber, encode(parameters(500))), parameters(500))
        restarted = parameters(400, generation=1)
        assert_equal(sender.offer(subscriber, encode(restarted)), restarted)
        assert sender.offer(subscriber, encode(parameters(600))) is None

    @pytest.mark.parametrize("data", [b"", b"garbage", GOOD[:-1], b"\xff" * 5000])
    def test_garbage_is_counted_and_passed_over(self, opened, sender, data):
        subscriber = sender.subscriber(opened)
        assert sender.offer(subscriber, data) is None
        assert subscriber.rejected == 1
        assert_equal(sender.offer(subscriber, GOOD), parameters(7))
        assert subscriber.rejected == 1

    def test_the_network_computes_the_same_before_and_after_the_journey(self, opened, sender):
        network, other = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
        sent = Parameters(RUN, 0, 1, network.state_dict())
        received = sender.offer(sender.subscriber(opened), encode(sent))
        assert received is not None
        assert matches(received.tensors, other)
        other.load_state_dict(received.tensors)
        inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 4))).float()
        torch.testing.assert_close(network(inputs), other(inputs), rtol=0, atol=0)
