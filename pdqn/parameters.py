"""Network parameters on their way from the learner to everybody who acts.

A message is an arrays message of ``pdqn.wire``, and is sent as ``pdqn.broadcast`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import zmq

from pdqn import wire
from pdqn.broadcast import Publisher, Subscriber


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


class ParameterPublisher(Publisher):
    """Publishes parameters; remembers the last for those who come later."""

    def publish(self, parameters: Parameters) -> None:
        """Send to all subscribers."""
        self.send(encode(parameters))


class ParameterSubscriber(Subscriber):
    """Receives the newest parameters and drops all that are older."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, run: str) -> None:
        super().__init__(context, address)
        self._run = run
        self._newest = (-1, -1)
        self.rejected = 0

    def latest(self, timeout_seconds: float = 0.0) -> Parameters | None:
        """Parameters newer than the last returned, or None when there are none in time."""
        message = self.receive(timeout_seconds)
        if message is None:
            return None
        try:
            parameters = decode(message)
        except wire.WireError:
            self.rejected += 1
            return None
        version = (parameters.generation, parameters.parameter_version)
        if parameters.run != self._run or version <= self._newest:
            return None
        self._newest = version
        return parameters
