"""Network parameters on their way from the learner to everybody who acts.

One message is one frame: a topic of 16 bytes, and the tensors as an arrays message of
``pdqn.wire``. A single frame lets a subscriber keep only the newest message (``ZMQ_CONFLATE``).

A subscriber that comes late must not wait for the next publication: the publisher hears of every
subscription and then publishes the last parameters again, a few times a second at most. (A topic
for each subscriber would spare the others the repetition, but with ``ZMQ_CONFLATE`` a socket
keeps only the newest of its own subscriptions on their way, too, and loses one of the two.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import zmq

from pdqn import transport, wire

_TOPIC = b"pdqn-parameters-"
_REPEAT_SECONDS = 0.25
_TRY_AGAIN_SECONDS = 1.0
MAX_PARAMETER_BYTES = 1 << 30


@dataclass(frozen=True)
class Parameters:
    """A network's parameters.

    Attributes:
        parameter_version: learner steps when they were taken.
        generation: how often the learner was started before; versions of a later generation are
            newer, even if smaller.
        tensors: float32, by name in the network's ``state_dict``.
    """

    run: str
    generation: int
    parameter_version: int
    tensors: dict[str, torch.Tensor]


def encode(parameters: Parameters) -> bytes:
    """The message, without a topic."""
    arrays = {name: t.detach().cpu().numpy() for name, t in parameters.tensors.items()}
    return wire.encode_arrays(
        "parameters",
        {
            "run": parameters.run,
            "generation": parameters.generation,
            "parameter_version": parameters.parameter_version,
        },
        {name: array.astype(np.float32, copy=False) for name, array in arrays.items()},
    )


def decode(data: bytes | memoryview) -> Parameters:
    """The inverse of ``encode``; the tensors are copies.

    Raises:
        WireError: not exactly what ``encode`` writes.
    """
    header, arrays = wire.decode_arrays(data)
    if header["type"] != "parameters":
        raise wire.WireError("type", f"{wire.shown(header['type'])}, not 'parameters'")
    run = header.get("run")
    if not isinstance(run, str):
        raise wire.WireError("malformed", f"run is {wire.shown(run)}, not a text")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise wire.WireError("dtype", f"{wire.shown(name)} is {array.dtype}, not float32")
    return Parameters(
        run,
        wire.natural(header, "generation"),
        wire.natural(header, "parameter_version"),
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
    )


def matches(tensors: Mapping[str, torch.Tensor], network: torch.nn.Module) -> bool:
    """Whether the tensors have exactly the names and shapes of the network's."""
    own = network.state_dict()
    return tensors.keys() == own.keys() and all(own[n].shape == t.shape for n, t in tensors.items())


class ParameterPublisher:
    """Publishes parameters; remembers the last for those who come later.

    Attributes:
        endpoint: where subscribers connect.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 4)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        self.endpoint = transport.bind(self._socket, address)
        self._last: bytes | None = None
        self._sent = -_REPEAT_SECONDS
        self._wanted = False

    def publish(self, parameters: Parameters) -> None:
        """Send to all subscribers."""
        self._last = _TOPIC + encode(parameters)
        self._send()

    def serve(self) -> None:
        """Send the last parameters again if somebody new is there; call this often."""
        while self._socket.poll(0):
            self._wanted |= self._socket.recv()[:1] == b"\x01"
        if self._wanted and time.monotonic() - self._sent >= _REPEAT_SECONDS:
            self._send()

    def _send(self) -> None:
        if self._last is not None:
            self._socket.send(self._last)
            self._sent, self._wanted = time.monotonic(), False

    def close(self) -> None:
        """Close the socket; what is queued is still sent for a second."""
        self._socket.close()


class ParameterSubscriber:
    """Receives the newest parameters and drops all that are older."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, run: str) -> None:
        self._context, self._address = context, address
        self._run = run
        self._newest = (-1, -1)
        self.rejected = 0
        self._open()

    def latest(self, timeout_seconds: float = 0.0) -> Parameters | None:
        """Parameters newer than the last returned, or None when there are none in time."""
        if not self._socket.poll(int(timeout_seconds * 1000)):
            self._try_again()
            return None
        data = self._socket.recv(copy=False).buffer
        try:
            parameters = decode(data[len(_TOPIC) :])
        except wire.WireError:
            self.rejected += 1
            return None
        version = (parameters.generation, parameters.parameter_version)
        if parameters.run != self._run or version <= self._newest:
            return None
        self._newest = version
        return parameters

    def close(self) -> None:
        """Close the socket."""
        self._refusals.close()
        self._socket.close()

    def _open(self) -> None:
        self._opened = time.monotonic()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_PARAMETER_BYTES)
        self._socket.setsockopt(zmq.CONFLATE, 1)
        self._socket.subscribe(_TOPIC)
        self._refusals = transport.Refusals(self._socket)
        transport.connect(self._socket, self._address)

    def _try_again(self) -> None:
        """Connect anew when not let in: the learner may not have heard yet who may."""
        if time.monotonic() - self._opened >= _TRY_AGAIN_SECONDS and self._refusals.reason():
            self.close()
            self._open()
