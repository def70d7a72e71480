"""Broadcasts from one sender to many receivers, where only the newest message counts.

This module does not import torch.

A message is one frame that begins with a topic of 16 bytes. Because it is a single frame, a
subscriber can keep only the newest message (``ZMQ_CONFLATE``).

A late subscriber must not have to wait for the next message. The publisher learns of every
subscription and repeats the last message, at most a few times a second. A separate topic for each
subscriber would spare the others the repetition. With ``ZMQ_CONFLATE``, however, a socket also
keeps only the newest of its outgoing subscriptions, and one of the two would be lost.

On a host with many subscribers, a ``Relay`` receives for all of them. Each message then crosses the
network, and is encrypted by its sender, once per host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Container
from contextlib import closing

import zmq

from pdqn import transport
from pdqn.clients import EVERY_ROLE, Client
from pdqn.connections import Bounds, Connections
from pdqn.errors import RunError
from pdqn.socket_files import SocketFile
from pdqn.transport import Context, Network

_TOPIC = b"pdqn-parameters-"
_SUBSCRIBERS = ("actor", "evaluator")
_REPEAT_SECONDS = 0.25
_TRY_AGAIN_SECONDS = 1.0
_TURN_SECONDS = 0.05
_CLOSE_SECONDS = 5.0
_TEND_SECONDS = 0.1
_MOST_SUBSCRIPTIONS_PER_TURN = 1000
_MOST_SUBSCRIPTIONS = 16  # of one connection; every one costs memory until the connection ends
_BOUNDS = Bounds(connection_bytes=1 << 20, key_bytes=8 << 20, messages=_MOST_SUBSCRIPTIONS)
MAX_MESSAGE_BYTES = 1 << 30


class Publisher:
    """Sender to all subscribers; it repeats its last message for those that subscribe later.

    A learner may serve it only after minutes, while it compiles its network or saves to a slow
    disk. A thread of its own therefore cuts the connections that send too much meanwhile.

    Attributes:
        endpoint: where subscribers connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._context = context
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 3000)
        # A short queue: messages that wait for a slow connection are old when they arrive. It still
        # holds several in quick succession, because the newest must not be the one that is dropped.
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        # Both limit subscriptions, not outgoing messages: unread ones, and the size of each.
        self._socket.setsockopt(zmq.RCVHWM, _MOST_SUBSCRIPTIONS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1024)
        self._connections = Connections(self._socket, address, _BOUNDS)
        self.endpoint = transport.bind(self._socket, address, _SUBSCRIBERS)
        self._socket_file = SocketFile(self._socket, self.endpoint)
        self._last: bytes | None = None
        self._sent = -_REPEAT_SECONDS
        self._wanted = False
        self._closing = threading.Event()
        self._tending = threading.Thread(target=self._tend, name="subscribers", daemon=True)
        if self._connections.are_bounded:
            self._tending.start()

    def send(self, data: bytes | memoryview) -> None:
        """Send to all subscribers."""
        self._last = _TOPIC + data
        self._send()

    def serve(self) -> None:
        """Repeat the last message if there are new subscribers; call this often."""
        self._socket_file.tend()
        for _ in range(_MOST_SUBSCRIPTIONS_PER_TURN):
            if not self._socket.poll(0):
                break
            event = self._socket.recv(copy=False)
            self._wanted |= event.bytes[:1] == b"\x01"
            user = transport.user_of(event, self._context)
            self._connections.read(event, len(event), user, several=event.more)
        if self._wanted and time.monotonic() - self._sent >= _REPEAT_SECONDS:
            self._send()

    def _tend(self) -> None:
        while not self._closing.wait(_TEND_SECONDS):
            transport.tend(self._context, self._connections)

    def _send(self) -> None:
        if self._last is not None:
            self._socket.send(self._last)
            self._sent, self._wanted = time.monotonic(), False

    def forget(self) -> None:
        """Forget the last message, so that new subscribers do not get it."""
        self._last, self._wanted = None, False

    def close(self) -> None:
        """Close the socket; queued messages are still sent for up to three seconds."""
        self._closing.set()
        if self._tending.is_alive():
            self._tending.join()
        self._connections.close()
        self._socket.close()


class Subscriber:
    """Receiver of the newest message."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._context, self._address = context, address
        self._open()

    def receive(self, timeout_seconds: float = 0.0) -> memoryview | None:
        """Return the newest message not received before, or None if none arrives in time."""
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
        """Reconnect after a refusal: the publisher may not yet know that this key is allowed."""
        if time.monotonic() - self._opened >= _TRY_AGAIN_SECONDS and self._refusals.reason():
            self.close()
            self._open()


class Relay:
    """A thread that forwards a publisher's messages to the processes of one host.

    It does not inspect the messages; their receivers do. The processes of the host connect with the
    relay's own keys, if it has any.

    Args:
        network: this host's connection to others.
        address: where the host's processes subscribe.

    Attributes:
        endpoint: the bound address.
    """

    def __init__(self, network: Network, address: str) -> None:
        self._context = Context(network)
        if network.keys is not None:
            self._context.allow({network.keys.public: Client("this host", EVERY_ROLE)})
        self._publisher = Publisher(self._context, address)
        self.endpoint = self._publisher.endpoint
        # The lock makes a change take effect at once. The relay's own thread may hold a message
        # that arrived before the change, so it looks again before it hands the message on.
        self._lock = threading.Lock()
        self._source = ""
        self._last_from = ""  # the endpoint that the publisher's last message came from
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def follow(self, endpoint: str, revoked: Container[str | None] = ()) -> None:
        """Receive from this endpoint from now on.

        Once this returns, the relay hands on no further message from elsewhere. New subscribers do
        not get the last message of a revoked key either.

        Args:
            endpoint: the publisher's endpoint. Empty keeps the previous one, whose messages may
                still be on their way.
            revoked: public keys that are no longer allowed; messages from them are forgotten.

        Raises:
            RunError: the relay has failed.
        """
        if self._failure is not None:
            raise RunError(f"the relay of parameters failed: {self._failure}") from self._failure
        with self._lock:
            if transport.split(self._last_from)[1] in revoked:
                self._publisher.forget()
                self._last_from = ""
            source = endpoint or self._source
            self._source = "" if transport.split(source)[1] in revoked else source

    def close(self) -> None:
        """End the thread and close the sockets."""
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
        while not self._closing.is_set():
            source = self._source
            if not source:
                self._closing.wait(_TURN_SECONDS)
                self._serve()
                continue
            with closing(Subscriber(self._context, source)) as subscriber:
                while source == self._source and not self._closing.is_set():
                    message = subscriber.receive(_TURN_SECONDS)
                    self._serve(source, message)

    def _serve(self, source: str = "", message: memoryview | None = None) -> None:
        """Hand a message on if its source is still followed, and serve new subscribers."""
        with self._lock:
            if message is not None and source == self._source:
                self._publisher.send(message)
                self._last_from = source
            self._publisher.serve()
