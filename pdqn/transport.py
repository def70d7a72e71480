"""How the sockets of a process reach those of others: addresses, ports and keys.

An *endpoint* is what one role tells another through the coordinator: an address and, where the run
is encrypted, the public key of the process that serves there: ``tcp://10.0.0.2:41001|KEY``.

Encryption and authentication are ZeroMQ's CURVE (curve25519, https://rfc.zeromq.org/spec/26/): who
connects must know the key of whom it connects to, and is let in only when its own key is on the
list that the coordinator keeps. The list reaches every process that binds sockets with its welcome
and pulses, and is asked through ZAP (https://rfc.zeromq.org/spec/27/) at every handshake, before a
byte of a message is read.

All of it hangs on the process's ``Context``. With an ordinary ``zmq.Context`` nothing is
encrypted, as between processes of one host.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket as sockets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from pdqn.errors import RunError

if TYPE_CHECKING:
    from zmq.auth.thread import ThreadAuthenticator

Socket = zmq.Socket[bytes]
_KEY = "|"
_ZAP_DOMAIN = "pdqn"
_KEY_CHARACTERS = 40
# A connection on which nothing comes back for so long is broken, and made anew; without this, a
# host that vanished would be noticed when TCP gives up, after a quarter of an hour.
_HEARTBEAT_MILLISECONDS, _SILENCE_MILLISECONDS = 3000, 10_000
_CONNECT_MILLISECONDS = 3000
_CUT_SHORT_MOST = 3
_FREE_SECONDS = 2.0


@dataclass(frozen=True)
class KeyPair:
    """A CURVE key pair, each key as 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Network:
    """What a process needs to know to take part in a run of several hosts.

    Attributes:
        keys: its own; None where nothing is encrypted.
        advertise: address at which others reach this host; None for the one from which its route
            to the coordinator starts.
        ports: first and last that may be bound; None for any.
        agent: who started the process, where that was not the run's launcher: one name for all
            processes that come and go with it.
        settings: of this host, by section and key; they take the place of the run's.
        relay: endpoint on this host where the learner's parameters are to be had; empty where
            there is none, and every process gets them from the learner.
    """

    keys: KeyPair | None = None
    advertise: str | None = None
    ports: tuple[int, int] | None = None
    agent: str = ""
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    relay: str = ""


class Context(zmq.Context[Socket]):
    """A context that knows its process's keys and who may connect. Use ``bind`` and ``connect``."""

    # pyzmq takes an attribute that the class does not have for a socket option.
    network: Network = Network()
    _clients: frozenset[str] = frozenset()
    _authenticator: ThreadAuthenticator | None = None

    def __init__(self, network: Network | None = None) -> None:
        super().__init__()
        self.network = network or Network()

    def allow(self, clients: Iterable[str]) -> bool:
        """Let in these public keys only, from the next handshake on.

        Returns:
            Whether some that were let in are no longer. Their connections live on: who serves
            must bind its sockets anew.
        """
        before, self._clients = self._clients, frozenset(clients)
        return not before <= self._clients

    def callback(self, _domain: str, key: bytes) -> bool:
        """Answer ZAP whether a public key is let in; called from the authenticator's thread."""
        return key.decode("ascii") in self._clients

    def authenticate(self) -> None:
        """Start to answer ZAP, if that has not been done yet."""
        if self._authenticator is not None:
            return
        from zmq.auth.thread import ThreadAuthenticator  # imports asyncio

        quiet = logging.getLogger("zap")
        quiet.setLevel(logging.ERROR)
        self._authenticator = ThreadAuthenticator(self, log=quiet)
        self._authenticator.configure_curve_callback(_ZAP_DOMAIN, credentials_provider=self)
        self._authenticator.start()

    def destroy(self, linger: int | None = None) -> None:
        """Close all sockets, and end."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        super().destroy(linger)


class Refusals:
    """Hears when a socket that connects is not let in; it would not try again by itself.

    A connection that ends in the middle of its handshake may have been cut by the network, or by
    who has other keys. The socket tries again; only when it ends so every time is it a refusal.

    Args:
        socket: before it connects.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._cut_short = 0  # one after the other
        self._monitor = socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )

    def reason(self) -> str:
        """Why it was not let in since the last call, in words; empty if it was."""
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
        """Hear no more; call it before the socket is closed. A second time does nothing."""
        if self._monitor.closed:
            return
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close()


def _refusal(event: int, has_keys: bool) -> str:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return "does not let in this host's key: it is not listed, or was revoked"
    if not has_keys:
        return "is encrypted: give the key file that was made for this host with --key"
    return "is not the run that this host's key is for, or not encrypted"


def endpoint_of(address: str, key: str | None) -> str:
    """An address, and the public key of who serves there."""
    return address if key is None else f"{address}{_KEY}{key}"


def split(endpoint: str) -> tuple[str, str | None]:
    """The address, and the key of who serves there."""
    address, bar, key = endpoint.partition(_KEY)
    return address, key if bar else None


def connect(socket: Socket, endpoint: str) -> None:
    """Connect a socket to an endpoint, encrypted where this process has keys.

    Raises:
        RunError: this process has keys, and the endpoint has none, or the other way round.
    """
    address, server = split(endpoint)
    keys = _keys(socket)
    if (server is None) != (keys is None) or (server and len(server) != _KEY_CHARACTERS):
        which = "no key" if server is None else "a key, and this process none"
        raise RunError(f"{address} has {which}: nothing is sent there")
    if keys is not None and server is not None:
        _set_keys(socket, keys)
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, server)
    _watch_connection(socket, address)
    socket.connect(address)


def bind(socket: Socket, address: str) -> str:
    """Bind a socket; the endpoint where others reach it.

    Args:
        socket: not bound yet.
        address: where to; with the port ``*``, one of those that the process may use.

    Raises:
        RunError: none of those ports is free.
        ZMQError: the address cannot be bound.
    """
    context: Any = socket.context
    keys, network = _keys(socket), network_of(socket.context)
    if keys is not None:
        context.authenticate()
        _set_keys(socket, keys)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        # Without an answer, nobody is let in.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    _watch_connection(socket, address)
    host, _, port = address.rpartition(":")
    if network.ports is not None and port == "*":
        _bind_in_range(socket, host, network.ports)
    else:
        socket.bind(address)
    return endpoint_of(_seen_from_elsewhere(socket, network), keys.public if keys else None)


def network_of(context: zmq.Context[Any]) -> Network:
    """What a context knows of the network; an ordinary one knows nothing."""
    return context.network if isinstance(context, Context) else Network()


def route_to(endpoint: str) -> str:
    """This host's address on its route to a ``tcp://`` endpoint.

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
    """Whether what goes to a ``tcp://`` or ``ipc://`` address stays on this host."""
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
    """Notice a peer that vanished; on one host it cannot, and a busy one may be late to answer."""
    if is_loopback(address):
        return
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MILLISECONDS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _SILENCE_MILLISECONDS)
    socket.setsockopt(zmq.CONNECT_TIMEOUT, _CONNECT_MILLISECONDS)


def _bind_in_range(socket: Socket, host: str, ports: tuple[int, int]) -> None:
    first, last = ports
    # A port of a socket that was closed just now is free a moment later.
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
