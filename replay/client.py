"""The learner's way to replay: it asks for SampleBatches, is never sent more.

The learner keeps requests outstanding (credit); every request carries the new priorities of an
earlier batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import wire
from pdqn.specs import Observation
from replay.buffer import Sample

_FLAT = (
    "keys",
    "action",
    "n_step_return",
    "discount",
    "importance_weight",
    "parameter_version",
)


def encode_sample(sample: Sample, content: dict[str, Any]) -> list[Any]:
    """The frames of a SampleBatch."""
    arrays = {name: getattr(sample, name) for name in _FLAT}
    arrays |= {f"observation.{name}": value for name, value in sample.observation.items()}
    arrays |= {f"bootstrap.{name}": value for name, value in sample.bootstrap_observation.items()}
    return wire.encode_arrays("sample", content, arrays)


def decode_sample(frames: list[Any]) -> tuple[dict[str, Any], Sample]:
    """Header and SampleBatch.

    Raises:
        WireError: not a SampleBatch.
    """
    header, arrays = wire.decode_arrays(frames)
    if header["type"] != "sample" or not arrays.keys() >= set(_FLAT):
        raise wire.WireError("type", "not a sample")
    observation = _with_prefix(arrays, "observation.")
    bootstrap = _with_prefix(arrays, "bootstrap.")
    flat = {name: arrays[name] for name in _FLAT}
    return header, Sample(observation=observation, bootstrap_observation=bootstrap, **flat)


class SampleClient:
    """DEALER to replay; use from one thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._socket: zmq.Socket[bytes] | None = None
        self._address = ""
        self._request = 0
        self.outstanding = 0
        self.rejected = 0

    def connect(self, address: str) -> None:
        """Ask at this address from now on; what was asked elsewhere is forgotten."""
        if address in ("", self._address):
            return
        self.close()
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, wire.MAX_ARRAYS_BYTES)
        socket.connect(address)
        self._socket, self._address, self.outstanding = socket, address, 0

    def request(
        self,
        batch_size: int,
        learner_steps: int,
        keys: NDArray[np.int64],
        priorities: NDArray[np.float32],
    ) -> bool:
        """Ask for one SampleBatch, and deliver new priorities [n] of keys [n].

        False when there is no replay to ask.
        """
        if self._socket is None:
            return False
        self._request += 1
        content = {
            "request": self._request,
            "batch_size": batch_size,
            "learner_steps": learner_steps,
        }
        arrays = {"keys": keys, "priorities": priorities}
        self._socket.send_multipart(wire.encode_arrays("request", content, arrays), copy=False)
        self.outstanding += 1
        return True

    def receive(self, timeout_seconds: float) -> Sample | None:
        """The next SampleBatch, or None when none comes in time."""
        if self._socket is None or not self._socket.poll(int(timeout_seconds * 1000)):
            return None
        frames = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        self.outstanding = max(0, self.outstanding - 1)
        try:
            return decode_sample(frames)[1]
        except wire.WireError:
            self.rejected += 1
            return None

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _with_prefix(arrays: dict[str, NDArray[Any]], prefix: str) -> Observation:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
