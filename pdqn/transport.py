"""Addresses, ports and keys of a process's sockets.

An *endpoint* is an address that one role gives another through the coordinator. In an encrypted
run, it includes the public key of the serving process: ``tcp://10.0.0.2:41001|KEY``.

ZeroMQ's CURVE encrypts and authenticates (https://rfc.zeromq.org/spec/26/, curve25519). A client
must know the server's key. The server accepts only clients whose keys are on the coordinator's
list, for a role that has business at the socket. Every process that binds sockets receives this
list with its welcome and pulses. ZAP (https://rfc.zeromq.org/spec/27/) consults it at every
handshake, before a byte of a message is read.

A process's ``Context`` holds all of this. With an ordinary ``zmq.Context`` nothing is encrypted, as
between processes of one host.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket as sockets
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from pdqn.clients import KEY_ROLES, Clients, losers, name_of
from pdqn.connections import Connections, Cut, Penalties
from pdqn.errors import RunError
from pdqn.text import is_path_utf8, is_printable
from pdqn.trust import NOTHING, Trust

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

Socket = zmq.Socket[bytes]
_KEY = "|"
_MOST_TURNED_AWAY = 1000
_NOTHING_TURNED_AWAY: deque[str] = deque(maxlen=0)
_KEY_CHARACTERS = 40
# A silent connection counts as broken after this time and is made again. Otherwise TCP would notice
# a vanished host only after a quarter of an hour.
_HEARTBEAT_MILLISECONDS, _SILENCE_MILLISECONDS = 3000, 10_000
_CONNECT_MILLISECONDS = 3000
# A connection that does not finish its handshake holds a descriptor for this long.
_HANDSHAKE_MILLISECONDS = 10_000
_CUT_SHORT_MOST = 3
_FREE_SECONDS = 2.0


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, each key as 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """Make a random pair."""
        public, secret = zmq.curve_keypair()
        return cls(public.decode("ascii"), secret.decode("ascii"))


@dataclass(frozen=True)
class Network:
    """Everything that a process must know to take part in a run of several hosts.

    Attributes:
        keys: the process's own keys; None if the run is not encrypted.
        advertise: address at which others reach this host; None for its address on the route to the
            coordinator.
        ports: first and last port that may be bound; None for any.
        agent: name of the supervisor that started the process, shared by all processes that it
            starts and ends; empty for the run's launcher.
        settings: settings of this host, by section and key, which override the run's.
        relay: endpoint on this host that relays the learner's parameters; empty if every process
            gets them from the learner.
        trust: code that the run's head may have processes of ``agent`` import.
    """

    keys: KeyPair | None = None
    advertise: str | None = None
    ports: tuple[int, int] | None = None
    agent: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    relay: str = ""
    trust: Trust = NOTHING


class Context(zmq.Context[Socket]):
    """Context with this process's keys and the clients it allows. Use ``bind`` and ``connect``."""

    # pyzmq treats an attribute that is missing from the class as a socket option.
    network: Network = Network()
    _clients: Clients = MappingProxyType({})
    _authenticator: ThreadAuthenticator | None = None
    _turned_away: deque[str] = _NOTHING_TURNED_AWAY
    _penalties: Penalties = Penalties()

    def __init__(self, network: Network | None = None) -> None:
        super().__init__()
        self.network = network or Network()
        self._penalties = Penalties()
        # Two threads write: a flood of refusals must neither cost memory nor lose what was counted.
        self._turned_away = deque(maxlen=_MOST_TURNED_AWAY)

    def allow(self, clients: Clients) -> bool:
        """Allow only these clients, by public key, from the next handshake on.

        Returns:
            Whether any key was removed, or lost a role. Existing connections stay open: to close
            them, bind the sockets again.
        """
        before, self._clients = self._clients, dict(clients)
        return bool(losers(before, self._clients))

    def callback(self, domain: str, key: bytes) -> bool:
        """Tell ZAP whether a public key is allowed; the authenticator's thread calls this.

        Args:
            domain: the roles that the socket is for, separated by spaces.
            key: the public key.
        """
        user = key.decode("ascii")
        client = self._clients.get(user)
        is_out = self._penalties.is_out(user, time.monotonic())
        if client is not None and client.roles & set(domain.split()) and not is_out:
            return True
        self._turned_away.append(f"{name_of(self._clients, user)}: a connection")
        return False

    def punish(self, cuts: Iterable[Cut]) -> None:
        """Count connections that were cut, and shut out a key whose connections are cut often."""
        own = "" if self.network.keys is None else self.network.keys.public
        for cut in cuts:
            who = name_of(self._clients, cut.user) if cut.user else "an unnamed connection"
            self._turned_away.append(f"{who}: {cut.why}")
            if cut.counts and cut.user not in ("", own):
                self._penalties.note(cut.user, time.monotonic())

    def turned_away(self) -> dict[str, int]:
        """Return the number of refusals since the last call, by who was refused and for what.

        It is at most ``_MOST_TURNED_AWAY`` together.
        """
        return Counter(self._turned_away.popleft() for _ in range(len(self._turned_away)))

    def authenticate(self, domain: str) -> None:
        """Answer ZAP for a domain from now on."""
        if self._authenticator is None:
            from zmq.auth.thread import ThreadAuthenticator  # imports asyncio

            quiet = logging.getLogger("zap")
            quiet.setLevel(logging.ERROR)
            self._authenticator = ThreadAuthenticator(self, log=quiet)
            self._authenticator.start()
        self._authenticator.configure_curve_callback(domain, credentials_provider=self)

    def destroy(self, linger: int | None = None) -> None:
        """Close all sockets and the context."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        super().destroy(linger)


class Refusals:
    """Watch for refusals of a connecting socket, which would not try again by itself.

    A handshake that breaks off may have been cut by the network, or by a server with other keys.
    The socket tries again. Only when several handshakes in a row break off do they count as a
    refusal.

    Args:
        socket: the socket, before it connects.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._cut_short = 0  # in a row
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    def reason(self) -> str:
        """Describe the refusal since the last call; empty if there was none."""
        reason = ""
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if self._is_final(event):
                reason = _refusal(event, _keys(self._socket) is not None)
        return reason

    def _is_final(self, event: int) -> bool:
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._cut_short += 1
            return self._cut_short >= _CUT_SHORT_MOST
        self._cut_short = 0
        return event != zmq.EVENT_HANDSHAKE_SUCCEEDED

    def close(self) -> None:
        """Stop watching; call this before the socket is closed. Further calls do nothing."""
        if self._monitor.closed:
            return
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close()


def _refusal(event: int, has_keys: bool) -> str:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "refuses this host's key: it is not listed, or was revoked"
    if not has_keys:
        return "is encrypted: give the key file that was made for this host with --key"
    return "is not the run that this host's key is for, or is not encrypted"


def endpoint_of(address: str, key: str | None) -> str:
    """Join an address and the public key of its server to an endpoint."""
    return address if key is None else f"{address}{_KEY}{key}"


def can_be_address(path: str) -> bool:
    """Return whether a path can be part of an endpoint: ZeroMQ and messages take it as it is."""
    return is_path_utf8(path) and is_printable(path) and _KEY not in path


def split(endpoint: str) -> tuple[str, str | None]:
    """Split an endpoint into the address and the server's key, if it has one."""
    address, bar, key = endpoint.partition(_KEY)
    return address, key if bar else None


def connect(socket: Socket, endpoint: str) -> None:
    """Connect a socket to an endpoint, encrypted if this process has keys.

    Raises:
        RunError: only one of this process and the endpoint has keys, or the endpoint's key is
            malformed.
    """
    address, server = split(endpoint)
    keys = _keys(socket)
    if (server is None) != (keys is None) or (server and len(server) != _KEY_CHARACTERS):
        which = "no key" if server is None else "a key, but this process has none"
        raise RunError(f"{address} has {which}: nothing is sent there")
    if keys is not None and server is not None:
        _set_keys(socket, keys)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, server)
    _watch_connection(socket, address)
    socket.connect(address)


def bind(socket: Socket, address: str, roles: Collection[str] = KEY_ROLES) -> str:
    """Bind a socket and return the endpoint at which others reach it.

    Args:
        socket: a socket that is not bound yet.
        address: address to bind to; the port ``*`` stands for any port that the process may use.
        roles: roles whose keys may connect, if the run is encrypted.

    Raises:
        RunError: none of those ports is free.
        ZMQError: the address cannot be bound.
    """
    context: Any = socket.context
    keys, network = _keys(socket), network_of(socket.context)
    if keys is not None:
        domain = " ".join(sorted(roles))
        context.authenticate(domain)
        _set_keys(socket, keys)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        # Without an answer from ZAP, no client is allowed.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    _watch_connection(socket, address)
    socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MILLISECONDS)
    host, _, port = address.rpartition(":")
    if network.ports is not None and port == "*":
        _bind_in_range(socket, host, network.ports)
    else:
        socket.bind(address)
    return endpoint_of(_seen_from_elsewhere(socket, network), keys.public if keys else None)


def turned_away(context: zmq.Context[Any]) -> Mapping[str, int]:
    """Return what the sockets of a context have refused; see ``Context.turned_away``."""
    return context.turned_away() if isinstance(context, Context) else {}


def tend(context: zmq.Context[Any], connections: Connections) -> None:
    """Cut the connections of a socket that are beyond its bounds, and count them."""
    cuts = connections.tend()
    if cuts and isinstance(context, Context):
        context.punish(cuts)


def network_of(context: zmq.Context[Any]) -> Network:
    """Return the network of a context; an ordinary context has the default one."""
    return context.network if isinstance(context, Context) else Network()


def user_of(frame: zmq.Frame, context: zmq.Context[Any]) -> str:
    """Read the public key of a message's sender.

    It is empty if this process encrypts nothing, or if an ended connection left the message behind.
    """
    if network_of(context).keys is None:
        return ""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def route_to(endpoint: str) -> str:
    """Find this host's address on its route to a ``tcp://`` endpoint.

    Raises:
        RunError: the host's name is unknown, or there is no route.
    """
    host, _, port = split(endpoint)[0].removeprefix("tcp://").rpartition(":")
    try:
        # Connecting a datagram socket sends nothing.
        with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))
            return probe.getsockname()[0]
    except (OSError, ValueError) as error:
        raise RunError(f"{split(endpoint)[0]}: {getattr(error, 'strerror', error)}") from error


def is_loopback(address: str) -> bool:
    """Return whether traffic to a ``tcp://`` or ``ipc://`` address stays on this host."""
    if not address.startswith("tcp://"):
        return True
    host = address.removeprefix("tcp://").rpartition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(socket: Socket) -> KeyPair | None:
    return network_of(socket.context).keys


def _set_keys(socket: Socket, keys: KeyPair) -> None:
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)


def _watch_connection(socket: Socket, address: str) -> None:
    """Detect vanished peers; not on this host, where none can vanish and a busy one may be slow."""
    if is_loopback(address):
        return
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _SILENCE_MILLISECONDS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MILLISECONDS)


def _bind_in_range(socket: Socket, host: str, ports: tuple[int, int]) -> None:
    first, last = ports
    # A port whose socket has just been closed is free a moment later.
    deadline = time.monotonic() + _FREE_SECONDS
    while True:
        for port in range(first, last + 1):
            try:
                socket.bind(f"{host}:{port}")
                return
            except zmq.ZMQError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        if time.monotonic() >= deadline:
            break
        time.sleep(_FREE_SECONDS / 20)
    raise RunError(f"no port of {first} to {last} is free at {host.removeprefix('tcp://')}")


def _seen_from_elsewhere(socket: Socket, network: Network) -> str:
    bound = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    if network.advertise is None or not bound.startswith("tcp://"):
        return bound
    return f"tcp://{network.advertise}:{bound.rpartition(':')[2]}"
