"""The prioritized replay buffer: whole TransitionBatches in, prioritized samples out.

A TransitionBatch is stored as one *segment*: its frames (observations) once, and its transitions,
which point into them. Segments are inserted and evicted whole, first in, first out.

Frames and transitions lie in flat rings. The transitions are numbered 0, 1, 2, ... as they are
inserted; that number is a transition's *key*, and key modulo capacity its slot. Frames are
numbered and placed likewise. What is alive is therefore one range of keys and one of frames, and
a key that was evicted is known by being below the oldest live one: late priority updates cannot
hit the transition that has taken its slot.

Nothing here is safe to call from several threads at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pdqn.specs import EnvironmentSpec, Observation
from pdqn.wire import OBSERVATION_PREFIX
from replay.sum_tree import SumTree

# What is stored of a transition; the two frames are numbers of frames, not slots.
_COLUMNS: dict[str, np.dtype[Any]] = {
    "action": np.dtype(np.int32),
    "n_step_return": np.dtype(np.float32),
    "discount": np.dtype(np.float32),
    "priority": np.dtype(np.float32),
    "observation_frame": np.dtype(np.int64),
    "bootstrap_frame": np.dtype(np.int64),
    "parameter_version": np.dtype(np.int64),
}
_COLUMN_BYTES = sum(dtype.itemsize for dtype in _COLUMNS.values())


@dataclass(frozen=True, eq=False)
class Sample:
    """B transitions, with copies of their observations.

    Attributes:
        keys: int64[B], for ``PrioritizedBuffer.update_priorities``; one may occur repeatedly.
        observation: of each field, stored_dtype[B, *stored_shape].
        bootstrap_observation: likewise, n steps later; of no meaning where discount is 0.
        action: int32[B].
        n_step_return: float32[B].
        discount: float32[B], gamma^n x (not terminated).
        importance_weight: float32[B], the largest is 1.
        parameter_version: int64[B], learner steps of the parameters that acted.
    """

    keys: NDArray[np.int64]
    observation: Observation
    bootstrap_observation: Observation
    action: NDArray[np.int32]
    n_step_return: NDArray[np.float32]
    discount: NDArray[np.float32]
    importance_weight: NDArray[np.float32]
    parameter_version: NDArray[np.int64]


class _Segment(NamedTuple):
    """How much one TransitionBatch brought."""

    transitions: int
    frames: int


class PrioritizedBuffer:
    """Transitions in a bounded memory, sampled in proportion to priority^priority_exponent.

    All arrays are allocated at once, but the system commits their memory only as it is first
    written; when the rings have been filled, it does not grow any more.

    Args:
        spec: what observations look like; they are stored as ``FieldSpec`` packs them.
        capacity: most transitions held.
        frame_capacity: most frames held, ``default_frame_capacity`` if not given. When frames
            run out before transitions do, the oldest segments are evicted just the same.
        priority_exponent: 0 samples uniformly.
        importance_sampling_exponent: 0 leaves the bias of prioritized sampling, 1 corrects it.
        rng: where the sampling's randomness comes from.
        minimum_priority: lower priorities are raised to it, so that nothing is never sampled.
        first_key: key of the first transition. A replay that restarts continues above the keys
            that it gave out before, since updates for those may still arrive.

    Attributes:
        ignored_evicted: priority updates for keys that are not alive any more, or never were.
        ignored_invalid: updates of live keys to priorities that are negative or not finite.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        capacity: int,
        *,
        frame_capacity: int | None = None,
        priority_exponent: float,
        importance_sampling_exponent: float,
        rng: np.random.Generator,
        minimum_priority: float = 1e-6,
        first_key: int = 0,
    ) -> None:
        if frame_capacity is None:
            frame_capacity = default_frame_capacity(capacity)
        if capacity < 1 or frame_capacity < 1:
            raise ValueError(f"a buffer for {capacity} transitions and {frame_capacity} frames")
        if priority_exponent < 0 or importance_sampling_exponent < 0 or first_key < 0:
            raise ValueError("exponents and first_key must not be negative")
        if not minimum_priority > 0:
            raise ValueError(f"minimum_priority is {minimum_priority}; it must be positive")
        self.capacity = capacity
        self.frame_capacity = frame_capacity
        self.ignored_evicted = 0
        self.ignored_invalid = 0
        self._priority_exponent = priority_exponent
        self._importance_sampling_exponent = importance_sampling_exponent
        self._minimum_priority = minimum_priority
        self._rng = rng
        self._observation_bytes = spec.observation_bytes
        self._frames: dict[str, NDArray[Any]] = {
            field.name: np.empty((frame_capacity, *field.stored_shape), field.stored_dtype)
            for field in spec.fields
        }
        self._columns: dict[str, NDArray[Any]] = {
            name: np.empty(capacity, dtype) for name, dtype in _COLUMNS.items()
        }
        self._tree = SumTree(capacity)
        self._segments: deque[_Segment] = deque()
        self._oldest_key = self._next_key = first_key
        self._oldest_frame = self._next_frame = 0

    @property
    def size(self) -> int:
        """Live transitions."""
        return self._next_key - self._oldest_key

    @property
    def frame_count(self) -> int:
        """Live frames."""
        return self._next_frame - self._oldest_frame

    @property
    def live_keys(self) -> range:
        """Keys of the live transitions, oldest first."""
        return range(self._oldest_key, self._next_key)

    @property
    def inserted(self) -> int:
        """Transitions ever inserted, which is the next key; ``first_key`` counts as before."""
        return self._next_key

    @property
    def evicted(self) -> int:
        """Transitions ever evicted, which is the oldest live key."""
        return self._oldest_key

    @property
    def stored_bytes(self) -> int:
        """Bytes of the live frames and of the live transitions' columns, without the sum tree."""
        return self.frame_count * self._observation_bytes + self.size * _COLUMN_BYTES

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all arrays. Each segment takes about a hundred more, not counted here."""
        arrays = (*self._frames.values(), *self._columns.values())
        return sum(array.nbytes for array in arrays) + self._tree.nbytes

    def insert(self, columns: Mapping[str, NDArray[Any]], parameter_version: int) -> range:
        """Store a copy of a TransitionBatch, evicting the oldest ones until it fits.

        Args:
            columns: those of ``pdqn.wire.TransitionBatch``, T transitions over F frames, their
                dtypes, shapes and values checked by ``pdqn.wire.decode_transitions``.
            parameter_version: learner steps of the parameters that acted.

        Returns:
            The T keys, in the order of the batch.

        Raises:
            ValueError: the batch is empty, or larger than the whole buffer; nothing was changed.
        """
        frames = {name: columns[OBSERVATION_PREFIX + name] for name in self._frames}
        segment = _Segment(len(columns["action"]), len(next(iter(frames.values()))))
        self._check_fits(segment)
        self._evict_for(segment)
        for name, values in frames.items():
            _write(self._frames[name], self._next_frame, values)
        rows = {
            "action": columns["action"],
            "n_step_return": columns["n_step_return"],
            "discount": columns["discount"],
            "priority": columns["priority"],
            "observation_frame": columns["observation_index"] + np.int64(self._next_frame),
            "bootstrap_frame": columns["bootstrap_index"] + np.int64(self._next_frame),
            "parameter_version": np.full(segment.transitions, parameter_version, np.int64),
        }
        for name, column in self._columns.items():
            _write(column, self._next_key, rows[name])
        self._segments.append(segment)
        return self._publish(segment)

    def sample(self, batch_size: int) -> Sample:
        """Draw transitions with replacement, in proportion to priority^priority_exponent.

        The draw is stratified (Schaul et al. 2016, appendix B.2.1): the line on which all
        priorities lie end to end is cut into batch_size equal pieces, and each yields one.

        Raises:
            ValueError: the buffer is empty.
        """
        if self.size == 0:
            raise ValueError("nothing can be sampled from an empty buffer")
        slots = self._tree.find(_stratified_points(self._tree.total, batch_size, self._rng))
        column = {name: values.take(slots) for name, values in self._columns.items()}
        return Sample(
            # The one key of the live range, which is no longer than the ring, that has the slot.
            keys=self._oldest_key + (slots - self._oldest_key) % self.capacity,
            observation=self._gather(column["observation_frame"]),
            bootstrap_observation=self._gather(column["bootstrap_frame"]),
            action=column["action"],
            n_step_return=column["n_step_return"],
            discount=column["discount"],
            importance_weight=_importance_weights(
                self._tree.get(slots), self._importance_sampling_exponent
            ),
            parameter_version=column["parameter_version"],
        )

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.float32]) -> int:
        """Set new priorities, of live transitions only; what is ignored is counted.

        Args:
            keys: int64[n]; of a key that occurs repeatedly, the last valid priority stays.
            priorities: float32[n], absolute errors as in a TransitionBatch, not yet raised to
                the priority exponent.

        Returns:
            How many of the updates were applied.

        Raises:
            ValueError: another number of priorities than of keys.
        """
        if keys.shape != priorities.shape:
            raise ValueError(f"{priorities.shape} priorities for {keys.shape} keys")
        live = (keys >= self._oldest_key) & (keys < self._next_key)
        applied = live & np.isfinite(priorities) & (priorities >= 0)
        num_live, num_applied = int(live.sum()), int(applied.sum())
        self.ignored_evicted += len(keys) - num_live
        self.ignored_invalid += num_live - num_applied
        slots = keys[applied] % self.capacity
        self._columns["priority"][slots] = priorities[applied]
        self._tree.set(slots, self._scaled(priorities[applied]))
        return num_applied

    def priorities(self) -> NDArray[np.float32]:
        """A copy of the priorities of ``live_keys``, float32[size], as they were given."""
        return _read(self._columns["priority"], self._oldest_key, self.size)

    def get_state(self) -> dict[str, Any]:
        """A copy of the live content, oldest first: arrays and whole numbers.

        Frames are ``observation.<field>`` [frames, *stored_shape]; ``observation_frame`` and
        ``bootstrap_frame`` count from the first of them. Capacities, exponents and the state of
        the random generator are the constructor's business, not part of it.
        """
        state: dict[str, Any] = {
            "first_key": self._oldest_key,
            "ignored_evicted": self.ignored_evicted,
            "ignored_invalid": self.ignored_invalid,
            "segments": np.array(self._segments, np.int64).reshape(-1, 2),
        }
        for name, ring in self._frames.items():
            state[OBSERVATION_PREFIX + name] = _read(ring, self._oldest_frame, self.frame_count)
        for name, ring in self._columns.items():
            state[name] = _read(ring, self._oldest_key, self.size)
        state["observation_frame"] -= self._oldest_frame
        state["bootstrap_frame"] -= self._oldest_frame
        return state

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Replace the content by that of ``get_state``.

        With the same capacity, and a generator in the same state, the samples that follow are
        the same ones. The state of a buffer of other capacities is accepted if it fits.

        Raises:
            ValueError: it does not fit; nothing was changed.
        """
        content = _Segment(*(int(total) for total in state["segments"].sum(axis=0)))
        if content.transitions > self.capacity or content.frames > self.frame_capacity:
            raise ValueError(f"{self._describe(content)} do not fit")
        self._tree = SumTree(self.capacity)
        self._segments = deque(_Segment(*row) for row in state["segments"].tolist())
        self._oldest_key = self._next_key = int(state["first_key"])
        self._oldest_frame = self._next_frame = 0
        self.ignored_evicted = int(state["ignored_evicted"])
        self.ignored_invalid = int(state["ignored_invalid"])
        for name, ring in self._frames.items():
            _write(ring, 0, state[OBSERVATION_PREFIX + name])
        for name, ring in self._columns.items():
            _write(ring, self._oldest_key, state[name])
        self._publish(content)

    def check_valid(self) -> None:
        """Assert that rings, segments and sum tree agree with each other.

        Raises:
            AssertionError: they do not.
        """
        segments = np.array(self._segments, np.int64).reshape(-1, 2)
        assert (segments >= 1).all(), "a segment is empty"
        assert segments[:, 0].sum() == self.size <= self.capacity, "segments and keys differ"
        assert segments[:, 1].sum() == self.frame_count <= self.frame_capacity, (
            "segments and frames differ"
        )
        first_frames = self._oldest_frame + np.cumsum(segments[:, 1]) - segments[:, 1]
        lowest = np.repeat(first_frames, segments[:, 0])
        beyond = np.repeat(first_frames + segments[:, 1], segments[:, 0])
        for name in ("observation_frame", "bootstrap_frame"):
            pointers = _read(self._columns[name], self._oldest_key, self.size)
            assert (pointers >= lowest).all(), f"{name} lies before its segment"
            assert (pointers < beyond).all(), f"{name} lies after its segment"
        self._check_priorities()

    def _check_priorities(self) -> None:
        self._tree.check_valid()
        scaled = np.zeros(self.capacity)
        live_slots = np.arange(self._oldest_key, self._next_key) % self.capacity
        scaled[live_slots] = self._scaled(self.priorities())
        in_tree = self._tree.get(np.arange(self.capacity))
        assert ((in_tree > 0) == (scaled > 0)).all(), "an evicted transition can be sampled"
        assert np.allclose(in_tree, scaled, rtol=1e-12, atol=0), "the sum tree has other priorities"

    def _check_fits(self, segment: _Segment) -> None:
        if min(segment) < 1:
            raise ValueError(f"{self._describe(segment)} are no TransitionBatch")
        if segment.transitions > self.capacity or segment.frames > self.frame_capacity:
            raise ValueError(f"a TransitionBatch of {self._describe(segment)} does not fit")

    def _describe(self, content: _Segment) -> str:
        return (
            f"{content.transitions} transitions over {content.frames} frames (the buffer has "
            f"room for {self.capacity} and {self.frame_capacity})"
        )

    def _evict_for(self, segment: _Segment) -> None:
        """Evict the oldest segments until there is room for another one."""
        first = self._oldest_key
        while (
            self.size + segment.transitions > self.capacity
            or self.frame_count + segment.frames > self.frame_capacity
        ):
            oldest = self._segments.popleft()
            self._oldest_key += oldest.transitions
            self._oldest_frame += oldest.frames
        for start, stop in _slot_ranges(first, self._oldest_key - first, self.capacity):
            self._tree.clear_range(start, stop)

    def _publish(self, content: _Segment) -> range:
        """Bring to life what has been written behind the live content."""
        first = self._next_key
        self._next_key += content.transitions
        self._next_frame += content.frames
        scaled = self._scaled(_read(self._columns["priority"], first, content.transitions))
        offset = 0
        for start, stop in _slot_ranges(first, content.transitions, self.capacity):
            self._tree.set_range(start, scaled[offset : offset + stop - start])
            offset += stop - start
        return range(first, self._next_key)

    def _scaled(self, priorities: NDArray[np.float32]) -> NDArray[np.float64]:
        """The sum tree's priorities: max(priority, minimum)^priority_exponent."""
        raised = np.maximum(priorities.astype(np.float64), self._minimum_priority)
        return raised**self._priority_exponent

    def _gather(self, frames: NDArray[np.int64]) -> Observation:
        # Measured: array.take costs what fancy indexing costs for large frames, and a fraction of
        # it for small ones; preallocated output is no faster.
        slots = frames % self.frame_capacity
        return {name: ring.take(slots, axis=0) for name, ring in self._frames.items()}


def default_frame_capacity(capacity: int) -> int:
    """Frames to hold for so many transitions: a quarter more, and 64.

    A segment of L consecutive steps of one environment has L + n_step frames, since its last
    transitions bootstrap from beyond it: a quarter more suffices from L = 4 n_step on. The 64
    is the longest n_step, so that one such segment always fits, however small the buffer is.
    """
    return capacity + capacity // 4 + 64


def bytes_needed(spec: EnvironmentSpec, capacity: int, frame_capacity: int | None = None) -> int:
    """The ``allocated_bytes`` of a buffer, without making one."""
    if frame_capacity is None:
        frame_capacity = default_frame_capacity(capacity)
    transitions = capacity * _COLUMN_BYTES + SumTree.bytes_needed(capacity)
    return transitions + frame_capacity * spec.observation_bytes


def _stratified_points(total: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """One uniform point in each of ``count`` equal pieces of 0 .. total, float64[count]."""
    return (np.arange(count) + rng.random(count)) * (total / count)


def _importance_weights(priorities: NDArray[np.float64], exponent: float) -> NDArray[np.float32]:
    """Weights float32[B] against the bias of sampling in proportion to priorities, float64[B].

    Schaul et al. 2016, section 3.4: w_i = (N P(i))^-exponent, over the batch's largest w. In
    that quotient N and the sum of all priorities cancel: w_i = (min_j p_j / p_i)^exponent.
    """
    return ((priorities.min() / priorities) ** exponent).astype(np.float32)


def _slot_ranges(first: int, count: int, capacity: int) -> Iterator[tuple[int, int]]:
    """The slots of the numbers first .. first + count - 1, as (start, stop), one or two."""
    start = first % capacity
    head = min(count, capacity - start)
    yield start, start + head
    if head < count:
        yield 0, count - head


def _write(ring: NDArray[Any], first: int, values: NDArray[Any]) -> None:
    """Copy ``values`` into the slots of the numbers first, first + 1, ..."""
    offset = 0
    for start, stop in _slot_ranges(first, len(values), len(ring)):
        ring[start:stop] = values[offset : offset + stop - start]
        offset += stop - start


def _read(ring: NDArray[Any], first: int, count: int) -> NDArray[Any]:
    """A copy of what is in the slots of the numbers first .. first + count - 1."""
    ranges = _slot_ranges(first, count, len(ring))
    return np.concatenate([ring[start:stop] for start, stop in ranges])
