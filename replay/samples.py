"""SampleBatches: the layout of their columns in memory, and the messages about them.

A SampleBatch is one contiguous piece of memory, a *slab*, whose layout follows from the run's
environment and the number of rows. Replay gathers rows directly into the slab. It may be memory
that replay shares with the learner, or a message on its way there.

The learner owns a few slabs of whole batches, its *slots*. It asks each shard of replay for some
rows of a batch, and names the batch's rows that they become. It asks a single shard for a few
batches at once if they are small (``rows_of_request``). Here these count as one batch, and lie one
after another.

A *request* is one frame, a control map. The answer is a control map. A slab of just these rows
follows it, unless replay has written the rows into the slot::

    request     number of the request                answer   the number answered
    batch_size  of the run                                    rows, start: as asked
    rows        wanted; 0 asks for the state alone            slot: index if rows are there
    start       row of the batch that the first becomes       memory: "", or why it was not used
    slot        index, or nil: send the rows                  state: of the shard (ShardState)
    memory      where the slots are (MemoryAddress)           waiting: requests of this learner
    learner_steps                                                 that wait for their rows
    tally       what other shards did (Tally), or nil
    keys, priorities   bytes of int64[n] and float32[n], new priorities of transitions of this
                       shard

A decoder checks every value, since requests may come from anybody.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pdqn.config import Config
from pdqn.specs import EnvironmentSpec, Observation
from pdqn.wire import WireError, decode_control, encode_control, natural, shown
from replay.sharding import ShardState, Tally
from replay.shared_memory import TOKEN_BYTES, MemoryAddress

# Limit of one request: more than a batch has, and less than a control message holds.
MAX_UPDATES = 1 << 16
_MOST_WAITING = 1 << 10
# Of batches that one request asks for.
_MOST_BATCHES = 4
_SMALL_BYTES = 1 << 17
_Record = TypeVar("_Record", MemoryAddress, ShardState, Tally)

# No column shares a cache line with another, and all are aligned for their dtypes.
_ALIGNMENT_BYTES = 64
_FLAT: dict[str, np.dtype[Any]] = {
    "keys": np.dtype(np.int64),
    "action": np.dtype(np.int32),
    "n_step_return": np.dtype(np.float32),
    "discount": np.dtype(np.float32),
    "sampling_priority": np.dtype(np.float64),
    "parameter_version": np.dtype(np.int64),
}


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample of B transitions, with copies of their observations.

    Attributes:
        keys: int64[B], for ``PrioritizedBuffer.update_priorities``; one may occur repeatedly.
        observation: stored_dtype[B, *stored_stacked_shape] of each field.
        bootstrap_observation: the same n steps later; meaningless where discount is 0, and not
            written if all returns are complete.
        action: int32[B].
        n_step_return: float32[B].
        discount: float32[B], gamma^n x (not terminated).
        sampling_priority: float64[B], priority^priority_exponent; each transition was drawn in
            proportion to it.
        parameter_version: int64[B], learner steps of the parameters that acted.
    """

    keys: NDArray[np.int64]
    observation: Observation
    bootstrap_observation: Observation
    action: NDArray[np.int32]
    n_step_return: NDArray[np.float32]
    discount: NDArray[np.float32]
    sampling_priority: NDArray[np.float64]
    parameter_version: NDArray[np.int64]

    @property
    def count(self) -> int:
        """Number of transitions."""
        return len(self.keys)

    def rows(self, start: int, stop: int) -> Sample:
        """Return a view of some of the transitions."""
        part = slice(start, stop)
        return Sample(
            observation={name: array[part] for name, array in self.observation.items()},
            bootstrap_observation={
                name: array[part] for name, array in self.bootstrap_observation.items()
            },
            **{name: getattr(self, name)[part] for name in _FLAT},
        )

    def copy_from(self, other: Sample) -> None:
        """Overwrite all arrays with those of another sample of the same size."""
        for name in _FLAT:
            np.copyto(getattr(self, name), getattr(other, name))
        for name, array in self.observation.items():
            np.copyto(array, other.observation[name])
        for name, array in self.bootstrap_observation.items():
            np.copyto(array, other.bootstrap_observation[name])


class SampleLayout:
    """The layout of a SampleBatch's columns in its slab, for a given number of rows.

    Attributes:
        nbytes: size of the slab.
    """

    def __init__(self, spec: EnvironmentSpec, rows: int) -> None:
        self._columns: list[tuple[str, np.dtype[Any], tuple[int, ...], int]] = []
        self.nbytes = 0
        for name, dtype in _FLAT.items():
            self._add(name, dtype, (rows,))
        for prefix in ("observation.", "bootstrap."):
            for field in spec.fields:
                shape = (rows, *field.stored_stacked_shape)
                self._add(prefix + field.name, field.stored_dtype, shape)

    def view(self, slab: Any) -> Sample:
        """View a slab, any buffer of ``nbytes`` bytes, as the arrays of a SampleBatch."""
        arrays = {
            name: np.frombuffer(slab, dtype, math.prod(shape), offset).reshape(shape)
            for name, dtype, shape, offset in self._columns
        }
        return Sample(
            observation=_with_prefix(arrays, "observation."),
            bootstrap_observation=_with_prefix(arrays, "bootstrap."),
            **{name: arrays[name] for name in _FLAT},
        )

    def _add(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._columns.append((name, dtype, shape, self.nbytes))
        size = math.prod(shape) * dtype.itemsize
        self.nbytes += -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


class SlotLayout:
    """The layout of slots in one memory: ``count`` slabs of whole batches, one after another.

    Attributes:
        count: number of slots.
        nbytes: size of the memory.
    """

    def __init__(self, spec: EnvironmentSpec, batch_size: int, count: int) -> None:
        self._slab = SampleLayout(spec, batch_size)
        self.count = count
        self.nbytes = count * self._slab.nbytes

    def view(self, memory: memoryview, slot: int) -> Sample:
        """View a slot as the arrays of a SampleBatch."""
        start = slot * self._slab.nbytes
        return self._slab.view(memory[start : start + self._slab.nbytes])


def slot_count(config: Config) -> int:
    """Count a learner's slots: those of its requests, the one it learns from, and a spare."""
    return config.learner.prefetch + 2


def rows_of_request(config: Config, spec: EnvironmentSpec) -> int:
    """Count the rows of a request: those of a batch, or of several if batches are small.

    A message costs replay and learner as much as a small batch does. The rows of several shards
    are mixed within a batch, so that there every batch is a request of its own. All that is
    requested ahead must be a part of what the rate limiter tolerates, which a plan settles last.
    """
    batch_size = config.learner.batch_size
    if config.replay.shards > 1:
        return batch_size
    tolerance = config.replay.samples_per_insert_tolerance
    ahead = 2 * batch_size * config.learner.prefetch
    tolerated = _MOST_BATCHES if tolerance is None else tolerance / ahead
    small = _SMALL_BYTES / SampleLayout(spec, batch_size).nbytes
    return batch_size * max(1, int(min(_MOST_BATCHES, tolerated, small)))


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """A learner's request to a shard; see the docstring of this module.

    Attributes:
        keys: int64[n].
        priorities: float32[n].
    """

    request: int
    batch_size: int
    rows: int
    start: int
    slot: int | None
    memory: MemoryAddress | None
    learner_steps: int
    tally: Tally | None
    keys: NDArray[np.int64]
    priorities: NDArray[np.float32]


@dataclass(frozen=True)
class SampleAnswer:
    """A shard's answer; see the docstring of this module."""

    request: int
    rows: int
    start: int
    slot: int | None
    memory: str
    state: ShardState
    waiting: tuple[int, ...] = ()


def encode_request(request: SampleRequest) -> bytes:
    """Encode a request as one frame."""
    memory, tally = request.memory, request.tally
    return encode_control(
        "request",
        {
            "request": request.request,
            "batch_size": request.batch_size,
            "rows": request.rows,
            "start": request.start,
            "slot": request.slot,
            "memory": None if memory is None else vars(memory),
            "learner_steps": request.learner_steps,
            "tally": None if tally is None else vars(tally),
            "keys": request.keys.tobytes(),
            "priorities": request.priorities.tobytes(),
        },
    )


def decode_request(data: bytes | memoryview, batch_size: int, slots: SlotLayout) -> SampleRequest:
    """Decode and check a request for rows of a batch of ``batch_size``, for the given slots.

    Raises:
        WireError: a learner of this run would not send this.
    """
    header = _decode(data, "request")
    if header.get("batch_size") != batch_size:
        raise WireError("size", f"batch_size is {header.get('batch_size')!r:.20}")
    rows = natural(header, "rows", batch_size + 1)
    start = natural(header, "start", batch_size + 1 - rows)
    slot = None if header.get("slot") is None else natural(header, "slot", slots.count)
    memory = None if slot is None else _memory(header.get("memory"))
    if memory is not None and memory.nbytes != slots.nbytes:
        raise WireError("size", f"{memory.nbytes} bytes, where slots have {slots.nbytes}")
    tally = header.get("tally")
    keys, priorities = header.get("keys"), header.get("priorities")
    return SampleRequest(
        natural(header, "request"),
        batch_size,
        rows,
        start,
        slot,
        memory,
        natural(header, "learner_steps"),
        None if tally is None else _record(Tally, tally),
        *_updates(keys, priorities),
    )


def encode_answer(answer: SampleAnswer) -> bytes:
    """Encode the first frame of an answer."""
    content = {
        "request": answer.request,
        "rows": answer.rows,
        "start": answer.start,
        "slot": answer.slot,
        "memory": answer.memory,
        "state": vars(answer.state),
        "waiting": answer.waiting,
    }
    return encode_control("sample", content)


def decode_answer(data: bytes | memoryview) -> SampleAnswer:
    """Decode an answer, with all checks that do not need the request.

    Raises:
        WireError: the message is not an answer.
    """
    header = _decode(data, "sample")
    waiting, memory = header.get("waiting"), header.get("memory")
    if not isinstance(waiting, list) or len(waiting) > _MOST_WAITING:
        raise WireError("malformed", "waiting")
    if not isinstance(memory, str):
        raise WireError("malformed", "memory")
    return SampleAnswer(
        natural(header, "request"),
        natural(header, "rows"),
        natural(header, "start"),
        None if header.get("slot") is None else natural(header, "slot"),
        memory[:200],
        _record(ShardState, header.get("state")),
        tuple(natural({"waiting": number}, "waiting") for number in waiting),
    )


def importance_weights(priorities: NDArray[np.float64], exponent: float) -> NDArray[np.float32]:
    """Compute weights float32[B] that correct the bias of sampling by priorities, float64[B].

    Schaul et al. 2016, section 3.4: w_i = (N P(i))^-exponent, over the batch's largest w. In that
    quotient N and the sum of all priorities cancel: w_i = (min_j p_j / p_i)^exponent.
    """
    if not exponent:
        return np.ones(len(priorities), np.float32)
    return ((priorities.min() / priorities) ** exponent).astype(np.float32)


def _with_prefix(arrays: dict[str, NDArray[Any]], prefix: str) -> Observation:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


def _decode(data: bytes | memoryview, kind: str) -> dict[str, Any]:
    header = decode_control(bytes(data))
    if header["type"] != kind:
        raise WireError("type", f"{header['type']!r:.40}")
    return header


def _memory(values: Any) -> MemoryAddress:
    if not isinstance(values, dict):
        raise WireError("malformed", "a slot without a memory")
    token = values.get("token")
    if not isinstance(token, bytes) or len(token) != TOKEN_BYTES:
        raise WireError("malformed", "token of the memory")
    pid, fd = natural(values, "pid", 1 << 31), natural(values, "fd", 1 << 31)
    return MemoryAddress(pid, fd, token, natural(values, "nbytes"))


def _record(kind: type[_Record], values: Any) -> _Record:
    """Make a dataclass of natural numbers, except for fields declared as float."""
    if not isinstance(values, dict):
        raise WireError("malformed", f"not a {kind.__name__}")
    checked: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if field.type == "float":
            if type(value) is not float or not math.isfinite(value):
                raise WireError("not finite", f"{field.name} is {shown(value)}")
            checked[field.name] = value
        else:
            checked[field.name] = natural(values, field.name)
    return kind(**checked)


def _updates(keys: Any, priorities: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    if not isinstance(keys, bytes) or not isinstance(priorities, bytes):
        raise WireError("malformed", "keys and priorities are not bytes")
    count = len(priorities) // 4
    if len(priorities) != 4 * count or len(keys) != 8 * count or count > MAX_UPDATES:
        raise WireError("size", f"{len(keys)} bytes of keys, {len(priorities)} of priorities")
    return np.frombuffer(keys, np.int64), np.frombuffer(priorities, np.float32)
