"""The actor's sender, against a stand-in for replay's sockets in this process."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import zmq

from pdqn import transport
from pdqn.clients import EVERY_ROLE, Client
from pdqn.transport import Context, KeyPair, Network
from replay.sender import (
    UNKNOWN,
    Hello,
    TransitionSender,
    encode_acknowledgement,
)

ACTOR, INCARNATION = 3, 1
PATIENCE_SECONDS = 20.0


class Peer:
    """Replay's sockets; they receive and acknowledge only when a test lets them."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.pull = context.socket(zmq.PULL)
        self.acks = context.socket(zmq.ROUTER)
        self.acks.setsockopt(zmq.LINGER, 1000)
        self.pull.bind(address.replace("NAME", "transitions"))
        self.acks.bind(address.replace("NAME", "acks"))
        self.received: list[bytes] = []
        self.greeted: list[tuple[int, int]] = []
        self.asker = b""
        self.expected = UNKNOWN

    @property
    def addresses(self) -> tuple[str, str]:
        sockets = (self.pull, self.acks)
        first, second = (socket.getsockopt_string(zmq.LAST_ENDPOINT) for socket in sockets)
        return first, second

    def greet(self) -> None:
        """Tell who says hello the sequence number that is expected next."""
        while self.acks.poll(0):
            self.asker, data = self.acks.recv_multipart()
            hello = Hello.decode(data)
            if hello is not None:
                self.greeted.append((hello.actor, hello.incarnation))
                self.acknowledge(self.expected, greeting=True)

    def take(self, most: int = 1000) -> None:
        """Receive the batches that are there, at most ``most``."""
        while most and self.pull.poll(0):
            self.received.append(self.pull.recv())
            most -= 1

    def take_and_acknowledge(self) -> None:
        """Receive and acknowledge one batch, as replay does."""
        before = len(self.received)
        self.take(1)
        for data in self.received[before:]:
            self.expected = number_of(data) + 1
            self.acknowledge(self.expected)

    def serve(self) -> None:
        """Do what replay does in one turn."""
        self.greet()
        self.take_and_acknowledge()

    def acknowledge(self, expected: int, greeting: bool = False) -> None:
        self.answer(encode_acknowledgement(expected, greeting=greeting))

    def answer(self, data: bytes) -> None:
        self.acks.send_multipart([self.asker, data])

    def close(self) -> None:
        self.pull.close(linger=0)
        self.acks.close()


class Proxy:
    """A TCP relay whose connections a test can break."""

    def __init__(self, address: str) -> None:
        host, _, port = address.removeprefix("tcp://").partition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._ended = False
        self.holds_back = False
        self.connections = 0
        self._thread = threading.Thread(target=self._relay)
        self._thread.start()

    def break_connections(self) -> None:
        """Close all connections in mid-stream; data inside the relay is lost."""
        with self._lock:
            for end in self._peers:
                end.close()
            self._peers.clear()

    def close(self) -> None:
        self._ended = True
        self._thread.join(PATIENCE_SECONDS)
        self.break_connections()
        self._listener.close()

    def _relay(self) -> None:
        while not self._ended:
            with self._lock:
                ends = [] if self.holds_back else list(self._peers)
                for end in select.select([self._listener, *ends], [], [], 0.005)[0]:
                    if end is self._listener:
                        self._accept()
                    elif end in self._peers:
                        self._pass_on(end)
            time.sleep(0.001)  # a thread that waits for the lock gets it now

    def _accept(self) -> None:
        here = self._listener.accept()[0]
        there = socket.create_connection(self._target)
        self._peers |= {here: there, there: here}
        self.connections += 1

    def _pass_on(self, end: socket.socket) -> None:
        try:
            data = end.recv(65_536)
            self._peers[end].sendall(data)
        except OSError:
            data = b""
        if not data:
            for closed in (end, self._peers.pop(end)):
                self._peers.pop(closed, None)
                closed.close()


class Given:
    """A patience that ends after a while, so that a wrong sender fails and does not hang.

    Args:
        meanwhile: called at every question.
    """

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.deadline = time.monotonic() + PATIENCE_SECONDS

    def __call__(self) -> bool:
        self.meanwhile()
        return time.monotonic() < self.deadline


class GivesUp:
    """A patience that ends at the third question."""

    def __init__(self) -> None:
        self.questions = 0

    def __call__(self) -> bool:
        self.questions += 1
        return self.questions < 3


def batch(number: int) -> bytes:
    return b"batch %d" % number


def number_of(data: bytes) -> int:
    return int(data.split()[1])


def numbers(peer: Peer) -> list[int]:
    return [number_of(data) for data in peer.received]


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.fixture
def context(closing) -> zmq.Context[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    closing.callback(context.destroy, linger=0)
    return context


@pytest.fixture(params=["tcp", "ipc"])
def start_peer(request, context, closing, tmp_path) -> Callable[[], Peer]:
    """Start peers, each at a new address, as replay is after every start."""
    started: list[Peer] = []

    def start() -> Peer:
        ipc = f"ipc://{tmp_path}/{len(started)}-NAME"
        peer = Peer(context, "tcp://127.0.0.1:*" if request.param == "tcp" else ipc)
        started.append(peer)
        closing.callback(peer.close)
        return peer

    return start


@pytest.fixture
def make_sender(context, closing) -> Callable[[int], TransitionSender]:
    def make(window: int) -> TransitionSender:
        sender = TransitionSender(context, ACTOR, INCARNATION, window)
        closing.callback(sender.close)
        return sender

    return make


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def receive(peer: Peer, count: int) -> None:
    """Wait until the peer has received ``count`` batches in all."""

    def received() -> bool:
        peer.take()
        return len(peer.received) >= count

    until(received)


def connected(sender: TransitionSender, peer: Peer) -> None:
    """Connect and send the first batch, which shows that the peer has greeted."""
    sender.connect(*peer.addresses)
    assert sender.send(batch(sender.next_sequence), Given(peer.greet))


def send(sender: TransitionSender, *sequence: int) -> None:
    """Send batches that the window has room for."""
    for number in sequence:
        assert sender.send(batch(number), Given())


def until_unacknowledged(
    sender: TransitionSender, count: int, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Wait until ``count`` batches are unacknowledged."""

    def reached() -> bool:
        meanwhile()
        sender.flush(lambda: False)
        return sender.unacknowledged == count

    until(reached)


class TestMessages:
    def test_a_hello_tells_whose_it_is(self):
        for hello in (Hello(7, 2, b"0123456789abcdef"), Hello(2**32 - 1, 2**32 - 1)):
            assert Hello.decode(hello.encode()) == hello

    def test_acknowledgements_of_any_number_can_be_told_apart_from_greetings(self):
        for expected in (0, 12, UNKNOWN, 2**62):
            plain = encode_acknowledgement(expected)
            assert plain != encode_acknowledgement(expected, greeting=True)
            assert plain != encode_acknowledgement(expected + 1)

    @pytest.mark.parametrize("data", [b"", Hello(7, 2).encode()[:-1], Hello(7, 2).encode() + b"0"])
    def test_a_message_of_another_length_is_nobodys_hello(self, data):
        assert Hello.decode(data) is None

    def test_a_message_with_another_beginning_is_nobodys_hello(self):
        assert Hello.decode(b"else" + Hello(7, 2).encode()[4:]) is None


class TestSending:
    def test_batches_arrive_in_order_and_once(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(2)
        connected(sender, peer)
        for number in range(1, 40):
            assert sender.next_sequence == number
            assert sender.send(batch(number), Given(peer.take_and_acknowledge))
        assert sender.flush(Given(peer.take_and_acknowledge))
        assert sender.unacknowledged == 0
        assert numbers(peer) == list(range(40))
        assert peer.greeted == [(ACTOR, INCARNATION)]

    def test_at_most_so_many_bytes_are_unacknowledged_and_a_larger_batch_goes_alone(
        self, start_peer, make_sender
    ):
        peer, sender = start_peer(), make_sender(10)
        sender.window_bytes = 2 * len(batch(0))
        connected(sender, peer)
        send(sender, 1)
        assert not sender.send(batch(2), GivesUp())
        large = batch(2) + b" " + bytes(sender.window_bytes)
        assert not sender.send(large, GivesUp())
        peer.take_and_acknowledge()
        assert not sender.send(large, GivesUp()), "another batch is still unacknowledged"
        receive(peer, 2)
        peer.expected = 2
        peer.acknowledge(2)
        assert sender.send(large, Given())
        assert not sender.send(batch(3), GivesUp())
        peer.expected = 3
        peer.acknowledge(3)
        assert sender.send(batch(3), Given())
        receive(peer, 4)
        assert numbers(peer) == [0, 1, 2, 3]

    @pytest.mark.parametrize("window", [1, 2, 5])
    def test_at_most_a_window_of_batches_is_unacknowledged(self, start_peer, make_sender, window):
        peer, sender = start_peer(), make_sender(window)
        connected(sender, peer)
        send(sender, *range(1, window))
        assert sender.unacknowledged == window
        assert not sender.send(batch(window), GivesUp())
        assert sender.unacknowledged == window
        assert sender.next_sequence == window
        receive(peer, window)
        peer.acknowledge(1)
        assert sender.send(batch(window), Given())
        assert sender.unacknowledged == window
        receive(peer, window + 1)
        assert numbers(peer) == list(range(window + 1))

    def test_one_acknowledgement_covers_all_before_it(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(4)
        connected(sender, peer)
        send(sender, 1, 2, 3)
        receive(peer, 4)
        peer.acknowledge(3)
        until_unacknowledged(sender, 1)
        peer.acknowledge(4)
        assert sender.flush(Given())

    def test_nothing_is_sent_before_acknowledgements_can_arrive(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(2)
        sender.connect(*peer.addresses)
        assert not sender.send(batch(0), GivesUp())
        assert sender.next_sequence == 0
        assert sender.unacknowledged == 0
        peer.take()
        assert peer.received == []
        assert sender.send(batch(0), Given(peer.greet))

    def test_nonsense_and_old_acknowledgements_change_nothing(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(3)
        connected(sender, peer)
        send(sender, 1)
        peer.answer(b"nonsense of another length")
        peer.answer(b"")
        peer.acknowledge(0)
        peer.acknowledge(1)
        peer.acknowledge(0)
        until_unacknowledged(sender, 1)
        assert not sender.flush(GivesUp())
        receive(peer, 2)
        assert numbers(peer) == [0, 1]

    def test_it_gives_up_when_it_is_told_to(self, start_peer, make_sender):
        sender = make_sender(2)
        assert not sender.send(batch(0), lambda: False)
        peer = start_peer()
        connected(sender, peer)
        assert not sender.flush(lambda: False)
        assert sender.unacknowledged == 1

    def test_who_waits_may_find_replay_meanwhile(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(2)

        def follow() -> None:
            sender.connect(*peer.addresses)
            peer.greet()

        assert sender.send(batch(0), Given(follow))
        receive(peer, 1)


class TestAnotherReplay:
    @pytest.mark.parametrize("acknowledged", [0, 1, 3])
    def test_it_gets_exactly_what_the_first_did_not_acknowledge(
        self, start_peer, make_sender, acknowledged
    ):
        first, sender = start_peer(), make_sender(3)
        connected(sender, first)
        send(sender, 1, 2)
        receive(first, 3)
        first.acknowledge(acknowledged)
        until_unacknowledged(sender, 3 - acknowledged)
        first.close()
        second = start_peer()
        sender.connect(*second.addresses)
        assert sender.flush(Given(second.serve))
        assert numbers(second) == list(range(acknowledged, 3))

    def test_it_gets_what_was_on_the_way_before_anything_new(self, start_peer, make_sender):
        first, sender = start_peer(), make_sender(2)
        connected(sender, first)
        send(sender, 1)
        first.close()
        second = start_peer()
        sender.connect(*second.addresses)
        for number in (2, 3, 4):
            assert sender.send(batch(number), Given(second.serve))
        assert sender.flush(Given(second.serve))
        assert numbers(second) == [0, 1, 2, 3, 4]

    def test_one_that_kept_what_it_got_is_sent_only_the_rest(self, start_peer, make_sender):
        first, sender = start_peer(), make_sender(3)
        connected(sender, first)
        send(sender, 1, 2)
        second = start_peer()
        second.expected = 2
        sender.connect(*second.addresses)
        until_unacknowledged(sender, 1, second.greet)
        receive(second, 1)
        assert numbers(second) == [2]

    def test_at_the_same_address_it_gets_what_the_first_did_not_acknowledge(
        self, context, make_sender, closing, tmp_path
    ):
        address = f"ipc://{tmp_path}/NAME"
        first, sender = Peer(context, address), make_sender(3)
        closing.callback(first.close)
        connected(sender, first)
        send(sender, 1, 2)
        receive(first, 3)
        first.acknowledge(1)
        until_unacknowledged(sender, 2)
        first.close()
        second = Peer(context, address)
        closing.callback(second.close)
        sender.connect(*second.addresses)
        assert sender.flush(Given(second.serve))
        assert numbers(second) == [1, 2]

    def test_the_same_addresses_again_change_nothing(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(3)
        connected(sender, peer)
        for number in (1, 2):
            sender.connect(*peer.addresses)
            assert sender.send(batch(number), Given(peer.greet))
        receive(peer, 3)
        assert numbers(peer) == [0, 1, 2]
        assert len(peer.greeted) == 1

    def test_closing_keeps_what_is_not_acknowledged(self, start_peer, make_sender):
        peer, sender = start_peer(), make_sender(2)
        connected(sender, peer)
        sender.close()
        sender.close()
        assert sender.unacknowledged == 1
        assert not sender.flush(GivesUp())


class TestBrokenConnection:
    """Replay outlives the connection and drops duplicates by their number."""

    @pytest.fixture
    def peer(self, context, closing) -> Peer:
        peer = Peer(context, "tcp://127.0.0.1:*")
        closing.callback(peer.close)
        return peer

    @pytest.fixture
    def proxies(self, peer, closing) -> tuple[Proxy, Proxy]:
        """Put one relay before the transitions' socket and one before the acknowledgements'."""
        made = []
        for address in peer.addresses:
            made.append(Proxy(address))
            closing.callback(made[-1].close)
        return made[0], made[1]

    def through(self, sender: TransitionSender, peer: Peer, proxies: tuple[Proxy, Proxy]) -> None:
        sender.connect(*(proxy.address for proxy in proxies))
        assert sender.send(batch(sender.next_sequence), Given(peer.greet))
        receive(peer, 1)
        peer.expected = 1
        peer.acknowledge(1)
        until_unacknowledged(sender, 0)

    @pytest.mark.parametrize("broken", [(0,), (1,), (0, 1)], ids=["out", "back", "both"])
    def test_what_got_lost_is_sent_again(self, peer, proxies, make_sender, broken):
        sender = make_sender(3)
        self.through(sender, peer, proxies)
        for proxy in proxies:
            proxy.holds_back = True
        send(sender, 1, 2)
        for index in broken:
            proxies[index].break_connections()
        for proxy in proxies:
            proxy.holds_back = False

        def serve() -> None:
            peer.greet()
            before = len(peer.received)
            peer.take(1)
            for data in peer.received[before:]:
                # A duplicate does not lower the number, here as in replay.
                peer.expected = max(peer.expected, number_of(data) + 1)
                peer.acknowledge(peer.expected)

        assert sender.flush(Given(serve))
        assert sender.send(batch(3), Given(serve))
        assert sender.flush(Given(serve))
        found = numbers(peer)
        assert sorted(set(found)) == [0, 1, 2, 3], "nothing is lost"
        firsts = [number for at, number in enumerate(found) if number not in found[:at]]
        assert firsts == [0, 1, 2, 3], "nothing overtakes what was lost"

    def test_a_lost_acknowledgement_is_made_up_for_by_the_greeting(
        self, peer, proxies, make_sender
    ):
        sender = make_sender(2)
        self.through(sender, peer, proxies)
        send(sender, 1)
        receive(peer, 2)
        proxies[1].holds_back = True
        peer.expected = 2
        peer.acknowledge(2)
        proxies[1].break_connections()
        proxies[1].holds_back = False
        assert sender.flush(Given(peer.greet))
        assert numbers(peer) == [0, 1]

    def test_an_acknowledgement_is_no_reason_to_send_again(self, peer, proxies, make_sender):
        sender = make_sender(3)
        self.through(sender, peer, proxies)
        send(sender, 1, 2)
        receive(peer, 3)
        for _ in range(5):
            peer.acknowledge(1)
        peer.acknowledge(2)
        until_unacknowledged(sender, 1)
        peer.take()
        assert numbers(peer) == [0, 1, 2]


class JustListed(Context):
    """A server learns of a new key only after that key's first attempt to connect."""

    refusals = 1

    def callback(self, domain: str, key: bytes) -> bool:
        refused, self.__dict__["refusals"] = self.refusals > 0, self.refusals - 1
        return not refused


@pytest.mark.parametrize("late", ["transitions", "acknowledgements"])
def test_a_sender_whose_key_one_of_the_sockets_does_not_know_yet_gets_in(closing, late: str):
    theirs, ours = (KeyPair.new() for _ in range(2))
    made: dict[str, zmq.Socket[bytes]] = {}
    endpoints: dict[str, str] = {}
    for name, kind in (("transitions", zmq.PULL), ("acknowledgements", zmq.ROUTER)):
        serving = (JustListed if name == late else Context)(Network(theirs))
        closing.callback(serving.destroy, linger=0)
        serving.allow({ours.public: Client("peer", EVERY_ROLE)})
        made[name] = serving.socket(kind)
        closing.callback(made[name].close, linger=0)
        endpoints[name] = transport.bind(made[name], "tcp://127.0.0.1:*")
    joining = Context(Network(ours))
    closing.callback(joining.destroy, linger=0)
    sender = TransitionSender(joining, ACTOR, INCARNATION, 2)
    closing.callback(sender.close)
    sender.connect(endpoints["transitions"], endpoints["acknowledgements"])

    def greet() -> None:
        while made["acknowledgements"].poll(0):
            identity, data = made["acknowledgements"].recv_multipart()
            if Hello.decode(data):
                greeting = encode_acknowledgement(UNKNOWN, greeting=True)
                made["acknowledgements"].send_multipart([identity, greeting])

    assert sender.send(batch(0), Given(greet))
    assert made["transitions"].poll(5000)


def test_a_connection_that_fails_before_the_hello_is_sent_keeps_nobody_waiting(
    make_sender, start_peer, monkeypatch: pytest.MonkeyPatch
):
    # As when the replay has just ended: its refusal can be faster than the next statement.
    peer, sender = start_peer(), make_sender(2)
    with monkeypatch.context() as gone:
        gone.setattr("replay.sender.transport.connect", lambda *_: None)
        sender.connect(*peer.addresses)
    connected(sender, peer)
    assert sender.flush(Given(peer.take_and_acknowledge))
