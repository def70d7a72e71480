"""The relay: one subscription for a host, from which all its processes get the newest message."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from pdqn.broadcast import Publisher, Relay, Subscriber
from pdqn.clients import EVERY_ROLE, Client
from pdqn.errors import RunError
from pdqn.transport import Context, KeyPair, Network


class Net:
    """Sockets that a test opens, closed at its end."""

    def __init__(self, folder: Path, eventually: Callable[..., Any]) -> None:
        self._folder, self._eventually = folder, eventually
        self._contexts: list[Context] = []
        self._relays: list[Relay] = []
        self._sockets: list[Publisher | Subscriber | zmq.Socket[bytes]] = []

    def context(self, keys: KeyPair | None = None, *clients: KeyPair) -> Context:
        context = Context(Network(keys))
        context.allow({keys.public: Client("peer", EVERY_ROLE) for keys in clients})
        self._contexts.append(context)
        return context

    def publisher(self, keys: KeyPair | None = None, *clients: KeyPair) -> Publisher:
        publisher = Publisher(self.context(keys, *clients), "tcp://127.0.0.1:*")
        self._sockets.append(publisher)
        return publisher

    def subscriber(self, endpoint: str, keys: KeyPair | None = None) -> Subscriber:
        subscriber = Subscriber(self.context(keys), endpoint)
        self._sockets.append(subscriber)
        return subscriber

    def bare(self, kind: int) -> zmq.Socket[bytes]:
        """Open a plain socket, which a test operates by hand."""
        socket = self.context().socket(kind)
        self._sockets.append(socket)
        return socket

    def relay(self, source: Publisher | None, keys: KeyPair | None = None) -> Relay:
        relay = Relay(Network(keys), f"ipc://{self._folder}/relay-{len(self._relays)}")
        self._relays.append(relay)
        relay.follow(source.endpoint if source else "")
        return relay

    def receive(self, subscriber: Subscriber, *publishers: Publisher) -> bytes:
        """Return the next message that arrives while publishers serve."""

        def look() -> memoryview | None:
            for publisher in publishers:
                publisher.serve()
            return subscriber.receive(0.01)

        return bytes(self._eventually(look))

    def arrives(self, text: bytes, subscriber: Subscriber, *publishers: Publisher) -> None:
        """Wait for a message, skipping older ones that are repeated for new subscribers."""
        while self.receive(subscriber, *publishers) != text:
            pass

    def close(self) -> None:
        for relay in self._relays:
            relay.close()
        for socket in self._sockets:
            socket.close()
        for context in self._contexts:
            context.destroy(linger=0)


@pytest.fixture
def net(tmp_path: Path, eventually: Any) -> Iterator[Net]:
    net = Net(tmp_path, eventually)
    yield net
    net.close()


def test_all_get_what_is_published_and_the_publisher_has_one_subscriber(net: Net, eventually: Any):
    bare = net.bare(zmq.XPUB)
    bare.setsockopt(zmq.XPUB_VERBOSE, 1)
    bare.bind("tcp://127.0.0.1:*")
    relay = net.relay(None)
    relay.follow(bare.getsockopt_string(zmq.LAST_ENDPOINT))
    subscription = eventually(lambda: bare.poll(10) and bare.recv())
    subscribers = [net.subscriber(relay.endpoint) for _ in range(5)]
    bare.send(subscription[1:] + b"one")
    assert [net.receive(subscriber) for subscriber in subscribers] == [b"one"] * 5
    bare.send(subscription[1:] + b"two")
    for subscriber in subscribers:
        net.arrives(b"two", subscriber)
    assert not bare.poll(0), f"somebody else has subscribed: {bare.recv()!r}"


def test_who_comes_late_gets_the_last_message_though_its_sender_is_gone(net: Net):
    publisher = net.publisher()
    relay = net.relay(publisher)
    publisher.send(b"last words")
    first = net.subscriber(relay.endpoint)
    assert net.receive(first, publisher) == b"last words"
    publisher.close()
    for _ in range(3):
        late = net.subscriber(relay.endpoint)
        assert net.receive(late) == b"last words"


def test_it_follows_a_sender_that_moves(net: Net):
    old, new = net.publisher(), net.publisher()
    relay = net.relay(old)
    subscriber = net.subscriber(relay.endpoint)
    old.send(b"old")
    assert net.receive(subscriber, old) == b"old"
    relay.follow(new.endpoint)
    new.send(b"new")
    net.arrives(b"new", subscriber, new)


def test_what_came_from_a_sender_that_is_revoked_reaches_nobody_new(net: Net):
    ours, thiefs, learners = KeyPair.new(), KeyPair.new(), KeyPair.new()
    thief, learner = net.publisher(thiefs, ours), net.publisher(learners, ours)
    relay = net.relay(thief, ours)
    thief.send(b"forged")
    assert net.receive(net.subscriber(relay.endpoint, ours), thief) == b"forged"
    relay.follow("", {thiefs.public})
    thief.send(b"forged again")
    late = net.subscriber(relay.endpoint, ours)
    assert late.receive(1.0) is None
    relay.follow(learner.endpoint, {thiefs.public})
    learner.send(b"real")
    assert net.receive(late, learner) == b"real"
    relay.follow("", {thiefs.public})  # the relay is elsewhere for a while
    assert net.receive(net.subscriber(relay.endpoint, ours), learner) == b"real"


class Held:
    """The relay's own subscriber, to a thief whose last message arrives when a test lets it.

    Attributes:
        wanted: set once the thief's last message is to be on its way.
        waits: set while the relay waits for it.
        arrives: set once it is to arrive.
    """

    wanted, waits, arrives = threading.Event(), threading.Event(), threading.Event()

    def __init__(self, _: object, endpoint: str) -> None:
        self._of_thief = endpoint.endswith("thief")

    def receive(self, timeout_seconds: float) -> memoryview | None:
        if not self._of_thief:
            return memoryview(b"real")
        if not self.wanted.wait(timeout_seconds):
            return memoryview(b"forged")
        self.waits.set()
        assert self.arrives.wait(60.0)
        return memoryview(b"forged again")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("moved", [False, True], ids=["as it is followed", "after it was followed"])
def test_a_message_that_arrives_as_its_sender_is_revoked_reaches_nobody(
    net: Net, monkeypatch: pytest.MonkeyPatch, moved: bool
):
    for name in ("wanted", "waits", "arrives"):
        monkeypatch.setattr(Held, name, threading.Event())
    monkeypatch.setattr("pdqn.broadcast.Subscriber", Held)
    relay = net.relay(None)
    relay.follow("tcp://127.0.0.1:1|thief")

    def subscribed() -> zmq.Socket[bytes]:
        # It keeps all that it gets, and not only the newest message.
        socket = net.bare(zmq.SUB)
        socket.subscribe(b"")
        socket.connect(relay.endpoint)
        return socket

    early = subscribed()
    assert early.recv().endswith(b"forged")
    Held.wanted.set()
    assert Held.waits.wait(60.0)
    if moved:
        relay.follow("tcp://127.0.0.1:1")
    relay.follow("", {"thief"})
    late = subscribed()
    Held.arrives.set()
    if not moved:
        assert not late.poll(200), "neither the message on its way nor the one before"
    relay.follow("tcp://127.0.0.1:1|learner", {"thief"})
    for socket, before in ((early, b"forged"), (late, b"real")):
        got = [socket.recv()[len("pdqn-parameters-") :] for _ in range(50)]
        assert set(got) <= {before, b"real"}
        assert b"real" in got


def test_only_the_hosts_own_processes_are_let_in(net: Net):
    ours, learners, others = KeyPair.new(), KeyPair.new(), KeyPair.new()
    publisher = net.publisher(learners, ours)
    relay = net.relay(publisher, ours)
    publisher.send(b"secret")
    assert net.receive(net.subscriber(relay.endpoint, ours), publisher) == b"secret"
    stranger = net.subscriber(relay.endpoint, others)
    naked = net.bare(zmq.SUB)
    naked.subscribe(b"")
    naked.connect(relay.endpoint.partition("|")[0])
    # A later message reaches the admitted subscriber, and neither of the two.
    last = net.subscriber(relay.endpoint, ours)
    for text in (b"again", b"and again"):
        publisher.send(text)
        net.arrives(text, last, publisher)
    assert stranger.receive(0.2) is None
    assert not naked.poll(200)


def test_a_relay_that_fails_says_so(net: Net, eventually: Any):
    relay = net.relay(None)
    endpoint = "tcp://127.0.0.1:1|" + KeyPair.new().public  # a relay without keys

    def failure() -> str:
        try:
            relay.follow(endpoint)
        except RunError as error:
            return str(error)
        return ""

    assert "relay of parameters failed: tcp://127.0.0.1:1 has a key" in eventually(failure)
