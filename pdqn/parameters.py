"""Network parameters on their way from the learner to all processes that act.

A message is an arrays message of ``pdqn.wire``, sent by ``pdqn.broadcast``.
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
        run: id of the run.
        generation: how often the learner was started before. Versions of a later generation are
            newer, even if smaller.
        parameter_version: learner steps when the parameters were copied.
        tensors: float32 tensors, by name in the network's ``state_dict``.
    """

    run: str
    generation: int
    parameter_version: int
    tensors: dict[str, torch.Tensor]


def encode(parameters: Parameters) -> bytes:
    """Encode parameters as a message without a topic."""
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
    """Decode a message of ``encode``; the tensors are copies.

    Raises:
        WireError: the message is not exactly of the form that ``encode`` writes.
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
    """Return whether the tensors have exactly the names and shapes of the network's."""
    own = network.state_dict()
    return tensors.keys() == own.keys() and all(own[n].shape == t.shape for n, t in tensors.items())


def published_bytes(network: torch.nn.Module) -> int:
    """Return the size of a network's parameters, as the learner publishes them."""
    return sum(tensor.nbytes for tensor in network.state_dict().values())


class ParameterPublisher(Publisher):
    """Publisher of parameters; it repeats the last ones for late subscribers."""

    def publish(self, parameters: Parameters) -> None:
        """Send parameters to all subscribers."""
        self.send(encode(parameters))


class ParameterSubscriber(Subscriber):
    """Receiver of the newest parameters; it drops older ones."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, run: str) -> None:
        super().__init__(context, address)
        self._run = run
        self._newest = (-1, -1)
        self.rejected = 0

    def latest(self, timeout_seconds: float = 0.0) -> Parameters | None:
        """Return parameters newer than the last returned, or None if none arrive in time."""
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
