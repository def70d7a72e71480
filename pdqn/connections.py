"""Bounds on the connections of a bound TCP socket: their number, and the bytes that wait unread.

ZeroMQ bounds a message's frame and the number of unread messages of one connection. It bounds
neither the connections nor the frames of one message, which it holds until the last one has come.
Whoever has a key could thus fill the memory. This module cuts such connections.

A message tells the file descriptor that it came through (``ZMQ_SRCFD``), and the key of its sender.
The kernel tells the bytes that a descriptor has received (``TCP_INFO``). The difference from the
bytes of the messages read is the *backlog*: what waits in this process, complete or not.

A connection that is cut can be made again. Nothing is lost, since every sender repeats what was not
acknowledged. A key whose connections are cut again and again is shut out for a while.
"""

from __future__ import annotations

import fcntl
import socket as sockets
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

MOST_CONNECTIONS, _SPARE_CONNECTIONS = 1024, 64
# Bytes of a message beside its content: the headers of ZMTP and CURVE.
_MESSAGE_BYTES = 42
# Heartbeats are not messages, and come to less than this.
_HEARTBEAT_BYTES_PER_SECOND = 60.0
_HANDSHAKE_BYTES = 2000
_TEND_SECONDS = 0.1
_LOOKS_PER_TURN = 100
_CUTS_FORGIVEN, _FORGIVEN_SECONDS = 5, 60.0
# The field tcpi_bytes_received of the kernel's struct tcp_info, since Linux 4.1.
_BYTES_RECEIVED = struct.Struct("=128xQ")
_WORD = struct.Struct("=i")
_RESET = struct.pack("ii", 1, 0)  # linger on, for no time
_numbers = count()


@dataclass(frozen=True)
class Bounds:
    """Bounds of one socket.

    Attributes:
        connections: number of connections of one key, and of those that have not sent anything.
        connection_bytes: backlog of one connection.
        key_bytes: backlog of all connections of one key.
        messages: number of messages that a connection may send; None for any.

    A message has one frame with content. One of many costs its reader seconds.
    """

    connections: int = MOST_CONNECTIONS
    connection_bytes: int = 16 << 20
    key_bytes: int = 64 << 20
    messages: int | None = None


def most_connections(actors: int) -> int:
    """Return the number of connections of one key.

    Every actor may be alone on its host, which has a connection too. Both may come again before
    their old connections are known to have ended.
    """
    return max(MOST_CONNECTIONS, 4 * actors + _SPARE_CONNECTIONS)


@dataclass(frozen=True)
class Cut:
    """A connection that is to be cut.

    Attributes:
        descriptor: of the connection.
        user: the public key behind it; empty if that is not known.
        why: the reason.
        counts: whether it counts against the key; of several that go for one reason, one does.
    """

    descriptor: int
    user: str
    why: str
    counts: bool = True


@dataclass
class _Connection:
    peer: Any
    looked: float
    user: str | None = None
    messages: int = 0
    has_sent_several: bool = False
    received_bytes: int = _HANDSHAKE_BYTES
    read_bytes: int = 0  # since the last look
    backlog: float = 0.0


class Ledger:
    """The account of a socket's connections. Pure.

    Args:
        bounds: the socket's.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._connections: dict[int, _Connection] = {}

    def set_key_bytes(self, key_bytes: int) -> None:
        """Change the bound on the backlog of a key."""
        self._bounds = replace(self._bounds, key_bytes=key_bytes)

    def open(self, descriptor: int, peer: Any, now: float) -> None:
        """Note a new connection."""
        self._connections[descriptor] = _Connection(peer, now)

    def close(self, descriptor: int) -> None:
        """Forget a connection that has ended."""
        self._connections.pop(descriptor, None)

    def peer(self, descriptor: int) -> Any:
        """Return the address at the other end of a connection; None without the connection."""
        connection = self._connections.get(descriptor)
        return None if connection is None else connection.peer

    def read(self, descriptor: int, nbytes: int, user: str, *, several: bool = False) -> None:
        """Note a message that was read.

        A message of a connection that has ended names a descriptor that may be another one's by
        now. What one key sent must not count against another, so a change of keys begins again.

        Args:
            descriptor: of its connection.
            nbytes: size of the message.
            user: public key of its sender; empty if nothing is encrypted.
            several: whether it has several frames with content.
        """
        connection = self._connections.get(descriptor)
        if connection is None:
            return
        if connection.user != user:
            connection.user, connection.messages, connection.has_sent_several = user, 0, False
        connection.has_sent_several |= several
        connection.messages += 1
        connection.read_bytes += nbytes + _MESSAGE_BYTES

    def is_known(self, descriptor: int) -> bool:
        """Return whether the key behind a connection is known."""
        connection = self._connections.get(descriptor)
        return connection is not None and connection.user is not None

    def longest_unseen(self, most: int) -> list[int]:
        """List the connections whose received bytes were noted longest ago."""
        oldest = sorted(self._connections, key=lambda d: self._connections[d].looked)
        return oldest[:most]

    def look(self, descriptor: int, received_bytes: int, now: float) -> None:
        """Note the bytes that a connection has received in all."""
        connection = self._connections[descriptor]
        came = received_bytes - connection.received_bytes
        heartbeats = _HEARTBEAT_BYTES_PER_SECOND * (now - connection.looked)
        backlog = connection.backlog + came - connection.read_bytes - heartbeats
        connection.backlog = max(0.0, backlog)
        connection.received_bytes, connection.read_bytes = received_bytes, 0
        connection.looked = now

    def excess(self) -> list[Cut]:
        """List the connections that are beyond the bounds."""
        bounds, cuts = self._bounds, dict[int, Cut]()
        by_user: dict[str | None, list[int]] = {}
        for descriptor, connection in self._connections.items():
            by_user.setdefault(connection.user, []).append(descriptor)
            if why := self._too_much(connection):
                cuts[descriptor] = Cut(descriptor, connection.user or "", why)
        for user, descriptors in by_user.items():
            if user is None:
                descriptors = self._unknown_in_order(descriptors)
            beyond = descriptors[bounds.connections :]
            why, together = f"more than {bounds.connections} connections", False
            if user and sum(map(self._backlog, descriptors)) > bounds.key_bytes:
                beyond, why = descriptors, f"more than {bounds.key_bytes} unread bytes"
                together = True
            for number, descriptor in enumerate(beyond):
                counts = not (together and number)
                cuts.setdefault(descriptor, Cut(descriptor, user or "", why, counts))
        return list(cuts.values())

    def _unknown_in_order(self, descriptors: list[int]) -> list[int]:
        """Order connections of unknown users: those that are cut first are last.

        Who has sent something waits for its reader, and had a key to get so far. Among the silent
        ones the oldest go, which had the most time.
        """
        spoke = [d for d in descriptors if self._connections[d].received_bytes > _HANDSHAKE_BYTES]
        spoken = set(spoke)
        return spoke + [d for d in reversed(descriptors) if d not in spoken]

    def _backlog(self, descriptor: int) -> float:
        return self._connections[descriptor].backlog

    def _too_much(self, connection: _Connection) -> str:
        bounds = self._bounds
        if connection.backlog > bounds.connection_bytes:
            return f"more than {bounds.connection_bytes} unread bytes in a connection"
        if bounds.messages is not None and connection.messages > bounds.messages:
            return f"more than {bounds.messages} messages in a connection"
        if connection.has_sent_several:
            return "a message of several frames"
        return ""


@dataclass
class Penalties:
    """The keys that are shut out for a while, because their connections were cut repeatedly. Pure.

    Attributes:
        until: time until which a key is shut out.
    """

    until: dict[str, float] = field(default_factory=dict)
    _cuts: dict[str, deque[float]] = field(default_factory=dict)

    def note(self, user: str, now: float) -> None:
        """Note that connections of a key were cut."""
        cuts = self._cuts.setdefault(user, deque(maxlen=_CUTS_FORGIVEN))
        cuts.append(now)
        if len(cuts) == _CUTS_FORGIVEN and now - cuts[0] < _FORGIVEN_SECONDS:
            self.until[user] = now + _FORGIVEN_SECONDS

    def is_out(self, user: str, now: float) -> bool:
        """Return whether a key is shut out now."""
        return now < self.until.get(user, now)


class Connections:
    """The connections of one bound socket. Make it before the socket is bound.

    Another thread than the socket's may call ``tend``.

    On other addresses than TCP, only this user's processes connect, and it does nothing. On other
    systems than Linux, it bounds only the number of connections.

    Args:
        socket: a socket that is not bound yet.
        address: the address to which it will be bound.
        bounds: its bounds.
    """

    def __init__(self, socket: zmq.Socket[bytes], address: str, bounds: Bounds) -> None:
        self._socket, self._ledger = socket, Ledger(bounds)
        self._next_turn = 0.0
        self._lock = threading.Lock()  # of the ledger, and the monitor's socket
        self._monitor: zmq.Socket[bytes] | None = None
        if address.startswith("tcp://"):
            self._monitor = _monitor(socket)

    def set_key_bytes(self, key_bytes: int) -> None:
        """Change the bound on the backlog of a key."""
        self._ledger.set_key_bytes(key_bytes)

    @property
    def are_bounded(self) -> bool:
        """Return whether there is anything to tend."""
        return self._monitor is not None

    def read(self, frame: zmq.Frame, nbytes: int, user: str, *, several: bool = False) -> None:
        """Note a message that was read from the socket.

        Args:
            frame: its first frame with content.
            nbytes: size of all its frames.
            user: public key of its sender; empty if nothing is encrypted.
            several: whether there are several frames with content.
        """
        if self._monitor is None:
            return
        descriptor = _descriptor_of(frame)
        if descriptor is None:
            return
        with self._lock:
            if not self._ledger.is_known(descriptor):
                self._note_events()
            self._ledger.read(descriptor, nbytes, user, several=several)

    def tend(self, now: float | None = None) -> list[Cut]:
        """Cut the connections that are beyond the bounds; return them. Call this often."""
        now = time.monotonic() if now is None else now
        if self._monitor is None or now < self._next_turn:
            return []
        self._next_turn = now + _TEND_SECONDS
        with self._lock:
            return self._cut(now)

    def _cut(self, now: float) -> list[Cut]:
        self._note_events()
        for descriptor in self._ledger.longest_unseen(_LOOKS_PER_TURN):
            received = _received_bytes(descriptor)
            if received is not None:
                self._ledger.look(descriptor, received, now)
        cuts = self._ledger.excess()
        for cut in cuts:
            _shut_down(cut.descriptor, self._ledger.peer(cut.descriptor))
            self._ledger.close(cut.descriptor)
        return cuts

    def close(self) -> None:
        """Stop watching; call this before the socket is closed."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._monitor = None

    def _note_events(self) -> None:
        """Note the connections that have begun and ended."""
        now = time.monotonic()
        for event, descriptor in self._events():
            if event == zmq.EVENT_ACCEPTED:
                self._ledger.open(descriptor, _peer(descriptor), now)
            else:
                self._ledger.close(descriptor)

    def _events(self) -> Iterator[tuple[int, int]]:
        assert self._monitor is not None
        while True:
            try:
                message = self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event = parse_monitor_message(message)
            yield event["event"], int(event["value"])


def _descriptor_of(frame: zmq.Frame) -> int | None:
    """Find the connection that a message came through; None if an ended one left it behind."""
    try:
        descriptor: Any = frame.get(zmq.SRCFD)
    except zmq.ZMQError:
        return None
    return descriptor


def _monitor(socket: zmq.Socket[bytes]) -> zmq.Socket[bytes]:
    """Open a monitor of connections that begin and end.

    Without a bound on unread events: a full queue would block the thread of all sockets, and the
    lock that closing needs. Connections are far slower than a turn of their reader.
    """
    address = f"inproc://pdqn-connections-{next(_numbers)}"
    socket.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED)
    monitor = socket.context.socket(zmq.PAIR)
    monitor.setsockopt(zmq.RCVHWM, 0)
    monitor.setsockopt(zmq.LINGER, 0)
    monitor.connect(address)
    return monitor


@contextmanager
def _seen(descriptor: int) -> Iterator[sockets.socket]:
    """Look at a connection of ZeroMQ's as a socket, which stays open.

    Raises:
        OSError: the connection has ended.
    """
    seen = sockets.socket(sockets.AF_INET, sockets.SOCK_STREAM, 0, fileno=descriptor)
    try:
        yield seen
    finally:
        seen.detach()


def _peer(descriptor: int) -> Any:
    """Return the address at the other end of a connection; None if it has ended."""
    with suppress(OSError), _seen(descriptor) as connection:
        return connection.getpeername()
    return None


def _received_bytes(descriptor: int) -> int | None:
    """Ask for the bytes that this process has received of a connection; None if nobody can tell.

    What still lies in the kernel's buffer does not count.
    """
    if sys.platform != "linux":
        return None
    told, left = b"", _WORD.pack(0)
    with suppress(OSError), _seen(descriptor) as connection:
        left = fcntl.ioctl(descriptor, termios.FIONREAD, left)
        size = _BYTES_RECEIVED.size
        told = connection.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, size)
    if len(told) < _BYTES_RECEIVED.size:
        return None
    return _BYTES_RECEIVED.unpack(told)[0] - _WORD.unpack(left)[0]


def _shut_down(descriptor: int, peer: Any) -> None:
    """End a connection, unless the descriptor is another one's by now."""
    with suppress(OSError), _seen(descriptor) as connection:
        if peer is not None and connection.getpeername() == peer:
            # Reset it: a peer that waits for room to send would not notice a mere end for a minute.
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
            connection.shutdown(sockets.SHUT_RDWR)
