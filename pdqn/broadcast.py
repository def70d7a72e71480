"""One sender, many receivers, and only the newest message counts. Imports no torch.

One message is one frame with a topic of 16 bytes in front: a single frame lets a subscriber keep
only the newest message (``ZMQ_CONFLATE``).

A subscriber that comes late must not wait for the next message: the publisher hears of every
subscription and then sends the last message again, a few times a second at most. (A topic for each
subscriber would spare the others the repetition, but with ``ZMQ_CONFLATE`` a socket keeps only the
newest of its own subscriptions on their way, too, and loses one of the two.)

Where a host has many subscribers, a ``Relay`` receives for all of them: a message then crosses the
network, and is encrypted by its sender, once for each host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Container
from contextlib import closing

import zmq

from pdqn import transport
from pdqn.errors import RunError
from pdqn.transport import Context, Network

_TOPIC = b"pdqn-parameters-"
_REPEAT_SECONDS = 0.25
_TRY_AGAIN_SECONDS = 1.0
_TURN_SECONDS = 0.05
_CLOSE_SECONDS = 5.0
_MOST_SUBSCRIPTIONS_PER_TURN = 1000
MAX_MESSAGE_BYTES = 1 << 30


class Publisher:
    """Sends to all that have subscribed; remembers the last message for those who come later.

    Attributes:
        endpoint: where subscribers connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 3000)
        # Few: what waits for a slow connection is old when it has passed. Yet enough for messages
        # that come one after the other: the newest must not be the one that finds no room.
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)  # of subscriptions; not what it sends
        self.endpoint = transport.bind(self._socket, address)
        self._last: bytes | None = None
        self._sent = -_REPEAT_SECONDS
        self._wanted = False

    def send(self, data: bytes | memoryview) -> None:
        """Send to all subscribers."""
        self._last = _TOPIC + data
        self._send()

    def serve(self) -> None:
        """Send the last message again if somebody new is there; call this often."""
        for _ in range(_MOST_SUBSCRIPTIONS_PER_TURN):
            if not self._socket.poll(0):
                break
            self._wanted |= self._socket.recv()[:1] == b"\x01"
        if self._wanted and time.monotonic() - self._sent >= _REPEAT_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._last is not None:
            self._socket.send(self._last)
            self._sent, self._wanted = time.monotonic(), False

    def forget(self) -> None:
        """Send the last message to nobody any more."""
        self._last, self._wanted = None, False

    def close(self) -> None:
        """Close the socket; what is queued is still sent for three seconds."""
        self._socket.close()


class Subscriber:
    """Receives the newest message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._context, self._address = context, address
        self._open()

    def receive(self, timeout_seconds: float = 0.0) -> memoryview | None:
        """The newest message that has not been received yet, or None when none comes in time."""
        if not self._socket.poll(int(timeout_seconds * 1000)):
            self._try_again()
            return None
        return self._socket.recv(copy=False).buffer[len(_TOPIC) :]

    def close(self) -> None:
        """Close the socket."""
        self._refusals.close()
        self._socket.close()

    def _open(self) -> None:
        self._opened = time.monotonic()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.subscribe(_TOPIC)
        self._refusals = transport.Refusals(self._socket)
        try:
            transport.connect(self._socket, self._address)
        except RunError:
            self.close()
            raise

    def _try_again(self) -> None:
        """Connect anew when not let in: the publisher may not have heard yet who may."""
        if time.monotonic() - self._opened >= _TRY_AGAIN_SECONDS and self._refusals.reason():
            self.close()
            self._open()


class Relay:
    """A thread that hands a publisher's messages on to the processes of one host.

    It looks at none of them: whoever receives them does. Its processes connect with the keys that
    it has itself, where it has any.

    Args:
        network: how this host reaches others.
        address: where the host's processes subscribe.

    Attributes:
        endpoint: the same, once it is bound.
    """

    def __init__(self, network: Network, address: str) -> None:
        self._context = Context(network)
        if network.keys is not None:
            self._context.allow([network.keys.public])
        self._publisher = Publisher(self._context, address)
        self.endpoint = self._publisher.endpoint
        # Whom to receive from, and how often what came before was to be forgotten.
        self._source = ("", 0)
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def follow(self, endpoint: str, revoked: Container[str] = ()) -> None:
        """Receive from there from now on.

        Args:
            endpoint: empty while there is none: what the last one sent may still be on its way.
            revoked: public keys that are let in no longer; what came from them is forgotten.

        Raises:
            RunError: the relay has failed.
        """
        if self._failure is not None:
            raise RunError(f"the relay of parameters failed: {self._failure}") from self._failure
        source, forgotten = self._source
        if transport.split(source)[1] in revoked:
            source, forgotten = "", forgotten + 1
        if (endpoint or source, forgotten) != self._source:
            self._source = (endpoint or source, forgotten)

    def close(self) -> None:
        """End the thread, and close the sockets."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        try:
            self._hand_on()
        except Exception as error:  # noqa: BLE001 - follow raises it in the thread that asks
            self._failure = error
        finally:
            self._context.destroy(linger=1000)

    def _hand_on(self) -> None:
        forgotten = 0
        while not self._closing.is_set():
            source = self._source
            endpoint, forget = source
            if forget != forgotten:
                self._publisher.forget()
                forgotten = forget
            if not endpoint:
                self._closing.wait(_TURN_SECONDS)
                self._publisher.serve()
                continue
            with closing(Subscriber(self._context, endpoint)) as subscriber:
                while source is self._source and not self._closing.is_set():
                    if (message := subscriber.receive(_TURN_SECONDS)) is not None:
                        self._publisher.send(message)
                    self._publisher.serve()
