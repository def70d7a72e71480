"""Access to encrypted sockets, and the bytes that a third party sees on the wire."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from pdqn import transport
from pdqn.clients import EVERY_ROLE, Client
from pdqn.errors import RunError
from pdqn.transport import Context, KeyPair, Network

Eventually = Callable[..., Any]
SECRET = b"an observation that nobody else may see"
LOOPBACK = "tcp://127.0.0.1:*"
QUIET_MILLISECONDS = 300


def admitted(*pairs: KeyPair, roles: frozenset[str] = EVERY_ROLE) -> dict[str, Client]:
    return {keys.public: Client(f"host-{index}", roles) for index, keys in enumerate(pairs)}


class KeepingContext(Context):
    """A context that holds its sockets until it is destroyed, so tests need not name them."""

    _kept: list[Any] = []  # noqa: RUF012 - every context replaces it

    def socket(self, *arguments: Any, **options: Any) -> Any:
        made = super().socket(*arguments, **options)
        self._kept = [*self._kept, made]
        return made


@pytest.fixture
def context() -> Iterator[Callable[..., Context]]:
    """Provide ``context(keys, **network)``, which makes the context of a process."""
    made: list[Context] = []

    def make(keys: KeyPair | None = None, **network: Any) -> Context:
        made.append(KeepingContext(Network(keys, **network)))
        return made[-1]

    yield make
    for one in made:
        one.destroy(linger=0)


class Server:
    """A PULL socket that admits some keys."""

    def __init__(self, context: Context, *clients: KeyPair) -> None:
        self.context = context
        context.allow(admitted(*clients))
        self.pull = context.socket(zmq.PULL)
        self.endpoint = transport.bind(self.pull, LOOPBACK)

    @property
    def address(self) -> str:
        return transport.split(self.endpoint)[0]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


def push(context: zmq.Context[Any], endpoint: str, data: bytes = SECRET) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.PUSH)
    transport.connect(socket, endpoint)
    with contextlib.suppress(zmq.Again):  # without a connection, nothing can be sent
        socket.send(data, zmq.NOBLOCK)
    return socket


# ---- endpoints ----


def test_an_endpoint_has_the_address_and_the_key_of_who_serves_there(context: Any):
    keys = KeyPair.new()
    server = Server(context(keys))
    assert transport.split(server.endpoint) == (server.address, keys.public)
    assert transport.split("tcp://10.0.0.1:7") == ("tcp://10.0.0.1:7", None)
    assert transport.endpoint_of("tcp://10.0.0.1:7", None) == "tcp://10.0.0.1:7"


def test_the_secret_key_is_in_no_representation():
    keys = KeyPair.new()
    assert keys.secret not in repr(Network(keys))


def test_the_advertised_address_is_what_others_are_told(context: Any):
    server = Server(context(None, advertise="head.example"))
    assert server.endpoint.startswith("tcp://head.example:")


@contextlib.contextmanager
def taken_port_before_a_free_one() -> Iterator[int]:
    """Keep a port whose successor nobody uses; other tests take ports meanwhile."""
    for _ in range(100):
        with sockets.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            try:
                sockets.create_server(("127.0.0.1", port + 1)).close()
            except (OSError, OverflowError):
                continue
            yield port
            return
    pytest.fail("no port has a free successor")


def test_roles_bind_within_the_range_of_ports_until_none_is_free(context: Any):
    with taken_port_before_a_free_one() as port:
        one = context(None, ports=(port, port + 1))
        assert transport.bind(one.socket(zmq.PULL), LOOPBACK) == f"tcp://127.0.0.1:{port + 1}"
        with pytest.raises(RunError, match=f"no port of {port} to {port + 1} is free at 127.0.0.1"):
            transport.bind(one.socket(zmq.PULL), LOOPBACK)


def test_the_route_to_this_host_begins_and_ends_here():
    assert transport.route_to("tcp://127.0.0.1:7777|key") == "127.0.0.1"
    with pytest.raises(RunError, match=r"tcp://no-such-host.invalid:1: "):
        transport.route_to("tcp://no-such-host.invalid:1")


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("ipc:///somewhere", True), ("tcp://127.0.0.1:1", True), ("tcp://127.9.9.9:1", True),
        ("tcp://localhost:1", True), ("tcp://0.0.0.0:1", False), ("tcp://10.0.0.1:1", False),
        ("tcp://head:1", False),
    ],
)  # fmt: skip
def test_what_stays_on_this_host(address: str, loopback: bool):
    assert transport.is_loopback(address) == loopback


# ---- who gets in ----


def test_who_is_listed_gets_through_and_is_known_by_the_key(context: Any):
    client = KeyPair.new()
    server = Server(context(KeyPair.new()), client)
    push(context(client), server.endpoint)
    assert server.pull.poll(5000)
    frame = server.pull.recv(copy=False)
    assert frame.bytes == SECRET
    assert frame.get("User-Id") == client.public


def test_an_unlisted_a_wrong_and_no_key_get_nothing_through(context: Any):
    listed, stranger = KeyPair.new(), KeyPair.new()
    server = Server(context(KeyPair.new()), listed)
    push(context(stranger), server.endpoint)
    push(context(listed), transport.endpoint_of(server.address, stranger.public))
    push(context(), server.address)
    assert not server.pull.poll(QUIET_MILLISECONDS)
    push(context(listed), server.endpoint)
    assert server.pull.poll(5000), "and who is listed still does"


def test_a_publisher_tells_strangers_nothing(context: Any):
    listed, stranger = KeyPair.new(), KeyPair.new()
    one = context(KeyPair.new())
    one.allow(admitted(listed))
    publisher = one.socket(zmq.XPUB)
    endpoint = transport.bind(publisher, LOOPBACK)
    subscribers = []
    for keys, where in (
        (stranger, endpoint),
        (None, transport.split(endpoint)[0]),
        (listed, endpoint),
    ):
        subscriber = context(keys).socket(zmq.SUB)
        subscriber.subscribe(b"")
        transport.connect(subscriber, where)
        subscribers.append(subscriber)
    assert publisher.poll(5000)
    publisher.recv()  # the admitted client's subscription
    assert not publisher.poll(QUIET_MILLISECONDS), "the others' are not even heard"
    publisher.send(SECRET)
    assert [bool(s.poll(QUIET_MILLISECONDS)) for s in subscribers] == [False, False, True]


def test_a_revoked_key_gets_in_no_more_and_who_serves_is_told_to_bind_anew(context: Any):
    kept, revoked = KeyPair.new(), KeyPair.new()
    server = Server(context(KeyPair.new()), kept, revoked)
    assert not server.context.allow(admitted(kept, revoked)), "nothing was revoked"
    assert not server.context.allow(admitted(kept, revoked, KeyPair.new()))
    assert server.context.allow(admitted(kept))
    push(context(revoked), server.endpoint)
    assert not server.pull.poll(QUIET_MILLISECONDS)


def test_a_key_gets_in_only_where_its_roles_have_business(context: Any):
    actor, learner = KeyPair.new(), KeyPair.new()
    one = context(KeyPair.new())
    one.allow(
        admitted(actor, roles=frozenset({"actor"}))
        | admitted(learner, roles=frozenset({"learner", "watch"}))
    )
    doors = {role: one.socket(zmq.PULL) for role in ("actor", "learner")}
    endpoints = {role: transport.bind(door, LOOPBACK, [role]) for role, door in doors.items()}
    push(context(actor), endpoints["learner"])
    push(context(learner), endpoints["actor"])
    assert not any(door.poll(QUIET_MILLISECONDS) for door in doors.values())
    # A refused client tries once and gives up.
    assert one.turned_away() == {
        "host-0: a connection": 2,
    }
    assert one.turned_away() == {}
    push(context(actor), endpoints["actor"])
    push(context(learner), endpoints["learner"])
    assert all(door.poll(5000) for door in doors.values())


def test_a_key_that_loses_a_role_counts_as_revoked(context: Any):
    keys, one = KeyPair.new(), context(KeyPair.new())
    one.allow(admitted(keys))
    assert not one.allow(admitted(keys))
    assert one.allow(admitted(keys, roles=frozenset({"actor"})))
    assert not one.allow(admitted(keys)), "it has more again"


def test_with_keys_nothing_is_sent_in_the_clear_and_without_none_to_who_has_some(context: Any):
    with pytest.raises(RunError, match=r"tcp://10.0.0.1:1 has no key: nothing is sent there"):
        transport.connect(context(KeyPair.new()).socket(zmq.PUSH), "tcp://10.0.0.1:1")
    endpoint = transport.endpoint_of("tcp://10.0.0.1:1", KeyPair.new().public)
    with pytest.raises(RunError, match="has a key, but this process has none"):
        transport.connect(context().socket(zmq.PUSH), endpoint)


@pytest.mark.parametrize(
    ("client", "asks", "said"),
    [
        ("stranger", "server", "refuses this host's key"),
        ("listed", "other", "is not the run that this host's key is for"),
        (None, "server", "is encrypted: give the key file"),
        ("listed", "plain", "or is not encrypted"),
    ],
)
def test_who_is_not_let_in_hears_why(
    context: Any, eventually: Eventually, client: str | None, asks: str, said: str
):
    keys = {"listed": KeyPair.new(), "stranger": KeyPair.new(), "server": KeyPair.new()}
    server = Server(context(keys["server"]), keys["listed"])
    plain = Server(context())
    endpoints = {
        "server": server.endpoint if client else server.address,
        "other": transport.endpoint_of(server.address, KeyPair.new().public),
        "plain": transport.endpoint_of(plain.address, KeyPair.new().public),
    }
    socket = context(keys[client] if client else None).socket(zmq.PUSH)
    refusals = transport.Refusals(socket)
    transport.connect(socket, endpoints[asks])
    assert said in eventually(refusals.reason)
    refusals.close()


class Breaking:
    """A relay that cuts the first connections in the middle of their handshake."""

    def __init__(self, port: int, cuts: int) -> None:
        self._port, self._cuts = port, cuts
        self._server = sockets.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        self._open: list[sockets.socket] = [self._server]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        for socket in self._open:
            with contextlib.suppress(OSError):
                socket.shutdown(sockets.SHUT_RDWR)
            socket.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                if self._cuts:
                    self._cuts -= 1
                    client.recv(10)
                    client.close()
                    continue
                server = sockets.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: sockets.socket, to: sockets.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_handshake_that_the_network_cuts_is_no_refusal(
    context: Any, eventually: Eventually, encrypted: bool
):
    ours = KeyPair.new() if encrypted else None
    server = Server(context(KeyPair.new() if encrypted else None), *([ours] if ours else []))
    way = Breaking(server.port, cuts=2)
    client = context(ours).socket(zmq.PUSH)
    refusals = transport.Refusals(client)
    key = transport.split(server.endpoint)[1]
    transport.connect(client, transport.endpoint_of(way.address, key))
    client.send(SECRET)
    said: list[str] = []

    def arrived() -> bool:
        said.append(refusals.reason())
        return bool(server.pull.poll(10))

    eventually(arrived)
    assert server.pull.recv() == SECRET
    assert set(said) == {""}
    refusals.close()
    way.close()


# ---- those who speak something else, and those who listen ----


def test_scanners_and_garbage_do_no_harm(context: Any):
    client = KeyPair.new()
    server = Server(context(KeyPair.new()), client)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: head\r\n\r\n", bytes(range(256)) * 64, b"\xff" * 9):
        with sockets.create_connection(("127.0.0.1", server.port)) as scanner:
            scanner.sendall(sent)
    for _ in range(50):
        sockets.create_connection(("127.0.0.1", server.port)).close()
    assert not server.pull.poll(QUIET_MILLISECONDS)
    push(context(client), server.endpoint)
    assert server.pull.poll(5000)
    assert server.pull.recv() == SECRET


class Tap:
    """A cable with an eavesdropper, which records the bytes of both directions."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = sockets.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.seen = bytearray()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            one, _ = self._listener.accept()
            other = sockets.create_connection(("127.0.0.1", self._target))
            for source, target in ((one, other), (other, one)):
                self._threads.append(threading.Thread(target=self._copy, args=(source, target)))
                self._threads[-1].start()

    def _copy(self, source: sockets.socket, target: sockets.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(1 << 16):
                self.seen += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(sockets.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(sockets.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.mark.parametrize("encrypted", [True, False])
def test_on_the_wire_nothing_can_be_read(context: Any, encrypted: bool):
    client = KeyPair.new() if encrypted else None
    server = Server(context(KeyPair.new() if encrypted else None), *[client] if client else [])
    tap = Tap(server.port)
    key = transport.split(server.endpoint)[1]
    one = context(client)
    push(one, transport.endpoint_of(f"tcp://127.0.0.1:{tap.port}", key))
    assert server.pull.poll(5000)
    assert server.pull.recv() == SECRET
    one.destroy(linger=0)
    tap.close()
    assert (SECRET in tap.seen) == (not encrypted), "the tap itself works"
    assert len(tap.seen) > len(SECRET)


def test_a_context_without_keys_starts_no_thread(context: Any):
    before = threading.active_count()
    Server(context())
    assert threading.active_count() == before
