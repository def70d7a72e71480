"""Bounds on connections: a ledger by hand, and real sockets that a peer abuses."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import zmq

from pdqn import transport
from pdqn.broadcast import Publisher
from pdqn.clients import EVERY_ROLE, Client
from pdqn.connections import Bounds, Connections, Cut, Ledger, Penalties, most_connections
from pdqn.transport import Context, KeyPair, Network

Eventually = Callable[..., Any]
MB = 1 << 20
ONE, OTHER = "key-of-one", "key-of-another"


def ledger(**bounds: Any) -> Ledger:
    return Ledger(Bounds(**{"connection_bytes": 1000, "key_bytes": 1500, **bounds}))


def joined(book: Ledger, descriptor: int, user: str = ONE, now: float = 0.0) -> None:
    """Open a connection, read its first message, and look at what it has received."""
    book.open(descriptor, ("127.0.0.1", descriptor), now)
    book.read(descriptor, -42, user)  # which leaves the bytes that these tests count
    book.look(descriptor, 2000, now)


def reasons(book: Ledger) -> dict[int, str]:
    return {cut.descriptor: cut.why for cut in book.excess()}


def test_what_was_read_does_not_wait():
    book = ledger()
    joined(book, 7)
    for second in range(1, 100):
        book.read(7, 900 - 42, ONE)
        book.look(7, 2000 + 900 * second, float(second))
    assert reasons(book) == {}


def test_bytes_that_nobody_read_are_a_backlog_until_they_are_read():
    book = ledger()
    joined(book, 7)
    book.look(7, 2000 + 1001, 0.0)
    assert reasons(book) == {7: "more than 1000 unread bytes in a connection"}
    book.read(7, 500, ONE)
    book.look(7, 2000 + 1001, 0.0)
    assert reasons(book) == {}


def test_heartbeats_are_no_backlog_in_any_number_of_days():
    book = ledger()
    joined(book, 7)
    for minute in range(1, 5000):
        book.look(7, 2000 + 2100 * minute, 60.0 * minute)
    assert reasons(book) == {}


def test_connections_of_one_key_are_added_up_and_those_of_others_are_not():
    book = ledger()
    for descriptor, user in ((1, ONE), (2, ONE), (3, OTHER)):
        joined(book, descriptor, user)
        book.look(descriptor, 2000 + 800, 0.0)
    assert reasons(book) == dict.fromkeys((1, 2), "more than 1500 unread bytes")
    book.close(2)
    assert reasons(book) == {}


def test_a_key_keeps_its_first_connections_and_loses_those_beyond_the_bound():
    book = ledger(connections=3)
    for descriptor in range(5):
        joined(book, descriptor)
    joined(book, 9, OTHER)
    assert reasons(book) == dict.fromkeys((3, 4), "more than 3 connections")


def test_of_connections_that_say_nothing_the_oldest_are_cut():
    book = ledger(connections=3)
    for descriptor in range(5):
        book.open(descriptor, None, float(descriptor))
    assert sorted(reasons(book)) == [0, 1]


def test_a_connection_may_send_only_so_many_messages():
    book = ledger(messages=2)
    joined(book, 7)
    book.read(7, 1, ONE)
    assert reasons(book) == {}
    book.read(7, 1, ONE)
    assert reasons(book) == {7: "more than 2 messages in a connection"}


def test_a_message_of_several_frames_ends_its_connection():
    book = ledger()
    joined(book, 7)
    joined(book, 8, OTHER)
    book.read(7, 1, ONE, several=True)
    assert reasons(book) == {7: "a message of several frames"}
    book.read(7, 1, OTHER)  # an ended connection had sent that
    assert reasons(book) == {}


def test_a_descriptor_that_is_used_again_begins_anew():
    book = ledger(messages=1)
    joined(book, 7)
    for _ in range(2):
        book.read(7, 1, ONE)
    book.close(7)
    assert book.peer(7) is None
    joined(book, 7, OTHER)
    assert reasons(book) == {}
    book.read(8, 1, ONE)  # of a connection that has ended, and whose message came late


def test_what_an_ended_connection_left_behind_does_not_count_against_another_key():
    book = ledger(messages=8)
    book.open(7, ("127.0.0.1", 7), 0.0)  # ANOTHER's, under the descriptor that ONE's had
    for _ in range(8):
        book.read(7, 1, ONE)
    book.read(7, 1, OTHER)
    assert reasons(book) == {}
    for _ in range(8):
        book.read(7, 1, ONE)
    assert reasons(book) == {}
    for _ in range(9):
        book.read(7, 1, OTHER)
    assert [cut.user for cut in book.excess()] == [OTHER]


def test_connections_that_wait_for_their_reader_are_not_cut_for_silent_ones():
    book = ledger(connections=3, connection_bytes=1 << 20)
    for descriptor in range(2):  # such as actors, while replay takes nothing
        book.open(descriptor, None, 0.0)
        book.look(descriptor, 2000 + 500, 0.0)
    for descriptor in range(2, 8):
        book.open(descriptor, None, float(descriptor))
    assert sorted(reasons(book)) == [2, 3, 4, 5, 6]


def test_the_connections_that_nobody_looked_at_for_longest_are_next():
    book = ledger()
    for descriptor in range(4):
        book.open(descriptor, None, float(descriptor))
    book.look(0, 2000, 10.0)
    assert book.longest_unseen(2) == [1, 2]


def test_a_key_is_shut_out_for_a_minute_after_five_cuts_within_one():
    penalties = Penalties()
    for second in range(4):
        penalties.note(ONE, float(second))
    assert not penalties.is_out(ONE, 4.0)
    penalties.note(ONE, 4.0)
    assert penalties.is_out(ONE, 5.0)
    assert penalties.is_out(ONE, 63.0)
    assert not penalties.is_out(OTHER, 5.0)
    assert not penalties.is_out(ONE, 64.0)
    for minute in range(2, 20):
        penalties.note(ONE, 60.0 * minute)
        assert not penalties.is_out(ONE, 60.0 * minute), "a cut now and then is forgiven"


def test_every_actor_of_a_run_may_have_two_connections():
    assert most_connections(0) == 1024
    assert most_connections(10_000) >= 2 * 10_000


def test_hosts_with_one_key_that_all_come_back_at_once_are_within_the_bound():
    actors = hosts = 5000
    assert most_connections(actors) >= 2 * (actors + hosts), "new ones, and those that broke"


def test_one_mishap_of_many_connections_shuts_no_key_out():
    public = KeyPair.new().public
    context = Context(Network(KeyPair.new()))
    context.allow({public: Client("actors-1", EVERY_ROLE)})
    book = ledger()
    for descriptor in range(100):
        joined(book, descriptor, public)
        book.look(descriptor, 2000 + 20, 0.0)
    try:
        context.punish(book.excess())
        assert context.turned_away() == {"actors-1: more than 1500 unread bytes": 100}
        assert not context._penalties.is_out(public, time.monotonic())
        for _ in range(4):
            context.punish(book.excess())
        assert context._penalties.is_out(public, time.monotonic())
    finally:
        context.destroy(linger=0)


# ---- real sockets ----


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


class Server:
    """A bound socket with bounds; it reads only when a test says so."""

    def __init__(
        self, closing: contextlib.ExitStack, kind: int, bounds: Bounds, *clients: KeyPair
    ) -> None:
        self.context = Context(Network(KeyPair.new() if clients else None))
        closing.callback(self.context.destroy, linger=0)
        self.context.allow(
            {keys.public: Client(f"host-{n}", EVERY_ROLE) for n, keys in enumerate(clients)}
        )
        self.socket = self.context.socket(kind)
        self.socket.setsockopt(zmq.RCVHWM, 4)
        self.socket.setsockopt(zmq.MAXMSGSIZE, 1 * MB)
        self.connections = Connections(self.socket, "tcp://127.0.0.1:*", bounds)
        closing.callback(self.socket.close, linger=0)
        closing.callback(self.connections.close)
        self.endpoint = transport.bind(self.socket, "tcp://127.0.0.1:*")
        self.read: list[bytes] = []

    def serve(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
                user = transport.user_of(frames[-1], self.context)
                self.connections.read(frames[-1], sum(map(len, frames)), user)
                self.read.append(frames[-1].bytes)

    def cut(self) -> list[Cut]:
        cuts = self.connections.tend()
        self.context.punish(cuts)
        return cuts


def connected(
    closing: contextlib.ExitStack, keys: KeyPair | None, kind: int, endpoint: str
) -> zmq.Socket[bytes]:
    context = Context(Network(keys))
    closing.callback(context.destroy, linger=0)
    socket = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 100_000)
    socket.setsockopt(zmq.LINGER, 0)
    closing.callback(socket.close)
    transport.connect(socket, endpoint)
    return socket


class RawPush:
    """A peer that speaks ZMTP by hand, without encryption, and so can do what libzmq cannot."""

    def __init__(self, address: str, kind: bytes = b"PUSH", frame_bytes: int = 64 * 1024) -> None:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._socket = sockets.create_connection((host, int(port)))
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
        self._socket.sendall(greeting)
        self._receive(64)  # the other's greeting
        self._frame = b"\x03" + frame_bytes.to_bytes(8, "big") + b"\x05" * frame_bytes
        ready = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
        self._socket.sendall(bytes([4, len(ready)]) + ready)
        self._receive(self._receive(2)[1])  # the other is ready
        self.sent = 0
        self.is_cut = threading.Event()

    def _receive(self, nbytes: int) -> bytes:
        data = b""
        while len(data) < nbytes:
            data += self._socket.recv(nbytes - len(data))
        return data

    def send_frames_without_end(self) -> None:
        try:
            while True:
                self._socket.sendall(self._frame)  # which says that more follow
                self.sent += len(self._frame)
        except OSError:
            self.is_cut.set()

    def close(self) -> None:
        self._socket.close()


def test_a_message_that_never_ends_is_cut_and_its_memory_is_given_back(
    closing: contextlib.ExitStack, eventually: Eventually
):
    server = Server(closing, zmq.PULL, Bounds(connection_bytes=8 * MB))
    honest = connected(closing, None, zmq.PUSH, server.endpoint)
    hostile = RawPush(server.endpoint)
    before = psutil.Process().memory_info().rss
    thread = threading.Thread(target=hostile.send_frames_without_end)
    thread.start()
    closing.callback(thread.join)
    closing.callback(hostile.close)
    cuts: list[Cut] = []
    peak = 0

    def has_been_cut() -> bool:
        nonlocal peak
        server.serve()
        peak = max(peak, psutil.Process().memory_info().rss - before)
        cuts.extend(server.cut())
        return hostile.is_cut.is_set()

    eventually(has_been_cut)
    assert [cut.why for cut in cuts] == [f"more than {8 * MB} unread bytes in a connection"]
    assert hostile.sent > 8 * MB
    # The bound, and what came between two looks.
    assert peak < 500 * MB
    honest.send(b"data")
    eventually(lambda: server.serve() or server.read == [b"data"])


def test_whoever_sends_faster_than_is_read_is_cut_and_others_are_not(
    closing: contextlib.ExitStack, eventually: Eventually
):
    loud, quiet = KeyPair.new(), KeyPair.new()
    bounds = Bounds(connection_bytes=100 * MB, key_bytes=20 * MB)
    server = Server(closing, zmq.PULL, bounds, loud, quiet)
    honest = connected(closing, quiet, zmq.PUSH, server.endpoint)
    honest.send(b"first")
    eventually(lambda: server.serve() or server.read == [b"first"])
    hostile = [connected(closing, loud, zmq.PUSH, server.endpoint) for _ in range(20)]
    for socket in hostile:
        socket.send(b"hello")
    eventually(lambda: server.serve() or len(server.read) == 21)
    for socket in hostile:
        for _ in range(10):
            socket.send(bytes(MB - 100))
    cuts: list[Cut] = []
    eventually(lambda: cuts.extend(server.cut()) or cuts)
    assert {cut.user for cut in cuts} == {loud.public}
    assert {cut.why for cut in cuts} == {f"more than {20 * MB} unread bytes"}
    eventually(lambda: not server.cut())
    server.read.clear()
    honest.send(b"data")
    eventually(lambda: server.serve() or b"data" in server.read)
    assert f"host-0: more than {20 * MB} unread bytes" in server.context.turned_away()


def test_a_flood_of_connections_is_cut_and_its_key_is_shut_out(
    closing: contextlib.ExitStack, eventually: Eventually
):
    many, other = KeyPair.new(), KeyPair.new()
    server = Server(closing, zmq.PULL, Bounds(connections=5), many, other)
    for number in range(30):
        connected(closing, many, zmq.PUSH, server.endpoint).send(b"%d" % number)
    process = psutil.Process()
    port = int(server.endpoint.partition("|")[0].rpartition(":")[2])

    def open_connections() -> int:
        found = process.net_connections("tcp")
        return sum(c.laddr.port == port and c.status == "ESTABLISHED" for c in found)

    refused: Counter[str] = Counter()

    def are_refused() -> bool:
        server.serve()
        server.cut()
        refused.update(server.context.turned_away())
        # First they are cut, whether they have said something or not, and then not let in at all.
        return refused["host-0: a connection"] > 0 and open_connections() <= 10

    eventually(are_refused)
    assert refused["host-0: more than 5 connections"] >= 5
    server.read.clear()
    connected(closing, other, zmq.PUSH, server.endpoint).send(b"data")
    eventually(lambda: server.serve() or b"data" in server.read)


def test_a_publisher_cuts_whoever_subscribes_again_and_again(
    closing: contextlib.ExitStack, eventually: Eventually
):
    serving = Context(Network(KeyPair.new()))
    closing.callback(serving.destroy, linger=0)
    hostile, honest = KeyPair.new(), KeyPair.new()
    serving.allow(
        {k.public: Client(n, EVERY_ROLE) for k, n in ((hostile, "bad"), (honest, "good"))}
    )
    publisher = Publisher(serving, "tcp://127.0.0.1:*")
    closing.callback(publisher.close)
    listening = connected(closing, honest, zmq.SUB, publisher.endpoint)
    listening.subscribe(b"")
    flooding = connected(closing, hostile, zmq.XSUB, publisher.endpoint)
    before = psutil.Process().memory_info().rss
    for number in range(20_000):
        with contextlib.suppress(zmq.Again):
            flooding.send(b"\x01" + number.to_bytes(500, "big"), zmq.NOBLOCK)
    eventually(lambda: publisher.serve() or serving.turned_away())
    for _ in range(50):
        publisher.serve()
    assert psutil.Process().memory_info().rss - before < 100 * MB
    publisher.send(b"parameters")
    assert listening.poll(10_000)


def test_a_publisher_that_nobody_serves_cuts_a_message_that_never_ends(
    closing: contextlib.ExitStack, eventually: Eventually
):
    """A learner that compiles its network does nothing else for minutes."""
    context = zmq.Context[Any]()
    closing.callback(context.destroy, linger=0)
    publisher = Publisher(context, "tcp://127.0.0.1:*")
    closing.callback(publisher.close)
    hostile = RawPush(publisher.endpoint, b"XSUB", 900)
    thread = threading.Thread(target=hostile.send_frames_without_end)
    thread.start()
    closing.callback(thread.join)
    closing.callback(hostile.close)
    eventually(hostile.is_cut.is_set)
    assert 1 * MB < hostile.sent < 500 * MB
