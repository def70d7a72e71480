"""The actor's way to replay: TransitionBatches over PUSH, acknowledged over DEALER.

Replay acknowledges every batch that it has processed, cumulatively: the message is the sequence
number that it expects next. At most ``window`` batches and ``window_bytes`` are unacknowledged at a
time, however large the buffers of the transport are. This bounds the age of the data, and the
memory that it takes where it waits.

An actor first says *hello* at the socket for acknowledgements, and replay *greets* it with the
present state. It sends no batch before, so acknowledgements can always arrive. After the greeting,
it sends all unacknowledged batches again, in order. This happens at the start, at another replay,
and after a connection broke or was refused. Replay drops the batches that it already has.

When one of the two connections is lost, both sockets are replaced. If they reconnected by
themselves, the next batches would overtake the lost ones, and replay would not know its actor.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import zmq

from pdqn import transport
from pdqn.tickets import TICKET_BYTES

_POLL_SECONDS = 0.1
_REOPEN_SECONDS = 0.2
_MOST_IN_PIPE = 1000
_ACKNOWLEDGEMENT = struct.Struct(">qB")
_HELLO = struct.Struct(">4sII16s")
_PREFIX = b"ack-"
_BROKEN = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
UNKNOWN = -1
NO_TICKET = bytes(TICKET_BYTES)


class Hello(NamedTuple):
    """The first message of an actor that wants acknowledgements.

    Attributes:
        actor: index of the actor.
        incarnation: incarnation of that actor.
        ticket: proof that both were given to it.
    """

    actor: int
    incarnation: int
    ticket: bytes = NO_TICKET

    def encode(self) -> bytes:
        """Encode as a message."""
        return _HELLO.pack(_PREFIX, *self)

    @classmethod
    def decode(cls, data: bytes) -> Hello | None:
        """Decode a message; return None if it is another one."""
        if len(data) != _HELLO.size or not data.startswith(_PREFIX):
            return None
        return cls(*_HELLO.unpack(data)[1:])


def shard_of(actor: int, shards: int, live: Iterable[int]) -> int | None:
    """Choose the shard of replay that an actor sends to: its own, while that one is alive.

    The actors of dead shards are spread evenly over the others. None if no shard is alive.
    """
    alive = sorted(live)
    if not alive:
        return None
    preferred = actor % shards
    # With the actor's index alone, all actors of one shard would go to the same other shard.
    return preferred if preferred in alive else alive[actor // shards % len(alive)]


def encode_acknowledgement(expected: int, *, greeting: bool = False) -> bytes:
    """Encode an acknowledgement of all sequence numbers below ``expected``.

    Args:
        expected: the sequence number that replay expects next; ``UNKNOWN`` if it has seen none.
        greeting: whether it answers a hello, so that nothing sent earlier may be relied on.
    """
    return _ACKNOWLEDGEMENT.pack(expected, greeting)


class TransitionSender:
    """A sender of batches in order, each until it is acknowledged.

    Args:
        context: context of the process.
        actor: index of this actor.
        incarnation: incarnation of this actor.
        window: largest number of unacknowledged batches.
        window_bytes: largest size of all of them together; None for any size. A batch that is
            larger goes alone.
        ticket: proof that both were given to it; see ``pdqn.tickets``.

    Attributes:
        window_bytes: the same, from now on.
        unheard_seconds: time for which it has waited for a greeting, since the last one or the last
            ``connect``.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        actor: int,
        incarnation: int,
        window: int,
        window_bytes: int | None = None,
        ticket: bytes = NO_TICKET,
    ) -> None:
        self._context = context
        self._hello = Hello(actor, incarnation, ticket).encode()
        self._window = window
        self.window_bytes = window_bytes
        self._push: zmq.Socket[bytes] | None = None
        self._acks: zmq.Socket[bytes] | None = None
        self._monitors: list[zmq.Socket[bytes]] = []  # of both sockets, to reconnect them
        self._poller = zmq.Poller()
        self._broken = False
        self._reopen_at = 0.0
        self._addresses: tuple[str, str] | None = None
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._unacknowledged_bytes = 0
        self._sequence = 0
        self._greeted = False
        self.unheard_seconds = 0.0

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next batch must carry."""
        return self._sequence

    @property
    def unacknowledged(self) -> int:
        """Number of batches that replay has not acknowledged."""
        return len(self._unacknowledged)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Endpoints that the sender is connected to."""
        return self._addresses or ()

    def connect(self, transitions: str, acknowledgements: str) -> None:
        """Send to this replay from now on, including batches that another did not acknowledge."""
        if (transitions, acknowledgements) == self._addresses:
            return
        self._addresses = (transitions, acknowledgements)
        self.unheard_seconds = 0.0
        self._open(*self._addresses)

    def send(self, data: bytes, while_waiting: Callable[[], bool]) -> bool:
        """Send a batch when the window has room for it.

        Args:
            data: an encoded TransitionBatch with sequence ``next_sequence``.
            while_waiting: function called several times a second; False gives up.

        Returns:
            Whether the batch is on its way; if not, the sequence number is still free.
        """
        if not self._wait(lambda: self._greeted and self._has_room(len(data)), while_waiting):
            return False
        self._unacknowledged.append((self._sequence, data))
        self._unacknowledged_bytes += len(data)
        self._sequence += 1
        self._transmit(data)
        return True

    def flush(self, while_waiting: Callable[[], bool]) -> bool:
        """Wait until all batches are acknowledged; return whether they are."""
        return self._wait(lambda: not self._unacknowledged, while_waiting)

    def close(self) -> None:
        """Close the sockets; unacknowledged batches are kept for the next ``connect``."""
        self._addresses = None
        self._close()

    def _has_room(self, size_bytes: int) -> bool:
        """Return whether a batch of this size may go now."""
        if not self._unacknowledged or self.window_bytes is None:
            return self.unacknowledged < self._window
        fits = self._unacknowledged_bytes + size_bytes <= self.window_bytes
        return fits and self.unacknowledged < self._window

    def _open(self, transitions: str, acknowledgements: str) -> None:
        self._close()
        self._acks = self._context.socket(zmq.DEALER)
        self._acks.setsockopt(zmq.LINGER, 0)
        # Not less: the limit also applies to the handshake's own messages.
        self._acks.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._acks.setsockopt(zmq.RECONNECT_IVL, -1)
        self._monitors = [self._acks.get_monitor_socket(_BROKEN)]
        transport.connect(self._acks, acknowledgements)
        try:
            # It waits in the new socket until the connection is there. If that has failed already,
            # as with a replay that has just ended, no place is left for it: it would wait forever.
            self._acks.send(self._hello, zmq.NOBLOCK)
        except zmq.Again:
            self._broken = True
        self._push = self._context.socket(zmq.PUSH)
        self._push.setsockopt(zmq.LINGER, 0)
        self._push.setsockopt(zmq.RECONNECT_IVL, -1)
        # Never reached: the window is the bound.
        self._push.setsockopt(zmq.SNDHWM, _MOST_IN_PIPE)
        self._monitors.append(self._push.get_monitor_socket(_BROKEN))
        transport.connect(self._push, transitions)
        self._poller = zmq.Poller()
        for socket in (self._acks, *self._monitors):
            self._poller.register(socket, zmq.POLLIN)
        self._reopen_at = time.monotonic() + _REOPEN_SECONDS

    def _close(self) -> None:
        for socket in (self._push, self._acks):
            if socket is not None:
                socket.disable_monitor()
                socket.close()
        for monitor in self._monitors:
            monitor.close()
        self._push, self._acks, self._monitors = None, None, []
        self._greeted = self._broken = False

    def _transmit(self, data: bytes) -> None:
        """Send on a connection that may just have broken; the next one sends the batch again."""
        assert self._push is not None
        try:
            self._push.send(data, zmq.NOBLOCK)
        except zmq.Again:
            self._broken = True

    def _wait(self, done: Callable[[], bool], while_waiting: Callable[[], bool]) -> bool:
        self._receive(0.0)
        while not done():
            if not while_waiting():
                return False
            self._receive(_POLL_SECONDS)
        return True

    def _receive(self, timeout_seconds: float) -> None:
        if self._acks is None:
            time.sleep(timeout_seconds)
            return
        if timeout_seconds:
            began = time.monotonic()
            self._poller.poll(int(timeout_seconds * 1000))
            # No more than that: who was stopped meanwhile has not listened.
            self.unheard_seconds += min(timeout_seconds, time.monotonic() - began)
        self._take_acknowledgements()
        if self._greeted:
            self.unheard_seconds = 0.0
        self._mend()

    def _take_acknowledgements(self) -> None:
        assert self._acks is not None
        while True:
            try:
                message = self._acks.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._acknowledge(message)

    def _mend(self) -> None:
        """Reconnect after a broken connection, but not all the time."""
        for monitor in self._monitors:
            try:
                monitor.recv_multipart(zmq.NOBLOCK)
                self._broken = True
            except zmq.Again:
                pass
        if self._broken:
            self._greeted = False
            if time.monotonic() >= self._reopen_at and self._addresses is not None:
                self._open(*self._addresses)

    def _acknowledge(self, message: bytes) -> None:
        if len(message) != _ACKNOWLEDGEMENT.size:
            return
        expected, greeting = _ACKNOWLEDGEMENT.unpack(message)
        while self._unacknowledged and self._unacknowledged[0][0] < expected:
            _, data = self._unacknowledged.popleft()
            self._unacknowledged_bytes -= len(data)
        if greeting and not self._broken:
            self._greeted = True
            for _, data in self._unacknowledged:
                self._transmit(data)
