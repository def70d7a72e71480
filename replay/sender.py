"""The actor's way to replay: TransitionBatches over PUSH, acknowledged over SUB.

Replay acknowledges every batch that it has taken care of, cumulatively: the message is the
sequence number that it expects next. At most ``window`` batches are on their way unacknowledged,
however large the buffers of the transport are, so data is never older than that. A subscriber is
told the present state at once, so nothing is sent before acknowledgements can arrive, and after a
restart of replay exactly what it had not acknowledged is sent again.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable

import zmq

_POLL_SECONDS = 0.1
_MOST_IN_PIPE = 1000
_ACK = struct.Struct(">4sIIq")
_PREFIX = b"ack-"
UNKNOWN = -1


def ack_topic(actor: int, incarnation: int) -> bytes:
    """The topic of one actor's acknowledgements."""
    return _ACK.pack(_PREFIX, actor, incarnation, 0)[:-8]


def encode_ack(actor: int, incarnation: int, expected: int) -> bytes:
    """An acknowledgement of all sequence numbers below ``expected``; ``UNKNOWN`` for none seen."""
    return _ACK.pack(_PREFIX, actor, incarnation, expected)


def subscriber_of(event: bytes) -> tuple[int, int] | None:
    """(actor, incarnation) of a subscription that an XPUB received; None for anything else."""
    if len(event) != 1 + _ACK.size - 8 or event[:5] != b"\x01" + _PREFIX:
        return None
    _, actor, incarnation, _ = _ACK.unpack(event[1:] + bytes(8))
    return actor, incarnation


class TransitionSender:
    """Sends batches in order, each until it is acknowledged.

    Args:
        context: of the process.
        actor: index of this actor.
        incarnation: of this actor.
        window: batches that may be unacknowledged.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], actor: int, incarnation: int, window: int
    ) -> None:
        self._context = context
        self._topic = ack_topic(actor, incarnation)
        self._window = window
        self._push: zmq.Socket[bytes] | None = None
        self._sub: zmq.Socket[bytes] | None = None
        self._addresses = ("", "")
        self._unacknowledged: deque[tuple[int, bytes]] = deque()
        self._sequence = 0
        self._greeted = False

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next batch must carry."""
        return self._sequence

    @property
    def unacknowledged(self) -> int:
        """Batches that replay has not acknowledged."""
        return len(self._unacknowledged)

    def connect(self, transitions: str, acknowledgements: str) -> None:
        """Send to this replay from now on; what another did not acknowledge is sent again."""
        if (transitions, acknowledgements) == self._addresses:
            return
        self.close()
        self._addresses = (transitions, acknowledgements)
        self._greeted = False
        self._sub = self._context.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        # Not less: the handshake's own messages count, too.
        self._sub.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._sub.subscribe(self._topic)
        self._sub.connect(acknowledgements)
        self._push = self._context.socket(zmq.PUSH)
        self._push.setsockopt(zmq.LINGER, 0)
        # Never reached: the window is the bound. At the bound a PUSH would block.
        self._push.setsockopt(zmq.SNDHWM, _MOST_IN_PIPE)
        self._push.connect(transitions)

    def send(self, data: bytes, while_waiting: Callable[[], bool]) -> bool:
        """Send a batch when the window has room for it.

        Args:
            data: an encoded TransitionBatch with sequence ``next_sequence``.
            while_waiting: called several times a second; False gives up.

        Returns:
            Whether the batch is on its way; if not, the sequence number is still free.
        """
        if not self._wait(
            lambda: self._greeted and self.unacknowledged < self._window, while_waiting
        ):
            return False
        self._unacknowledged.append((self._sequence, data))
        self._sequence += 1
        assert self._push is not None
        self._push.send(data)
        return True

    def flush(self, while_waiting: Callable[[], bool]) -> bool:
        """Wait until everything is acknowledged; whether it is."""
        return self._wait(lambda: not self._unacknowledged, while_waiting)

    def close(self) -> None:
        """Close the sockets; what is unacknowledged is kept for the next ``connect``."""
        for socket in (self._push, self._sub):
            if socket is not None:
                socket.close()
        self._push = self._sub = None

    def _wait(self, done: Callable[[], bool], while_waiting: Callable[[], bool]) -> bool:
        self._receive(0.0)
        while not done():
            if not while_waiting():
                return False
            self._receive(_POLL_SECONDS)
        return True

    def _receive(self, timeout_seconds: float) -> None:
        if self._sub is None:
            time.sleep(timeout_seconds)
            return
        if self._sub.poll(int(timeout_seconds * 1000)):
            while self._sub.poll(0):
                self._acknowledge(self._sub.recv())

    def _acknowledge(self, message: bytes) -> None:
        if len(message) != _ACK.size:
            return
        expected = _ACK.unpack(message)[3]
        while self._unacknowledged and self._unacknowledged[0][0] < expected:
            self._unacknowledged.popleft()
        # One that knows nothing of this actor is another one, if at the same address.
        if not self._greeted or expected == UNKNOWN:
            self._greeted = True
            assert self._push is not None
            for _, data in self._unacknowledged:
                self._push.send(data)
