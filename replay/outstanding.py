"""Batches on their way to the learner, and requests to each shard. This module sends nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zmq
from numpy.typing import NDArray

from pdqn import transport
from pdqn.wire import WireError
from replay.samples import MAX_UPDATES, Sample, SampleAnswer
from replay.slots import Slot

_MOST_UPDATES_WAITING = 256


@dataclass(eq=False)
class Shard:
    """A connection to a shard.

    Attributes:
        refusals: watch for refusals of this client by the shard.
        opened: monotonic time at which the connection was made.
        parts: outstanding requests for rows, by number.
        updates: bytes of keys and of priorities that wait for the next request.
        asked: monotonic time of the last request.
        state_asked: monotonic time of an unanswered request for the state alone; None if there is
            none.
        alive: whether the connection is still in use.
        attaches: whether the shard can attach the client's memory, as far as known.
    """

    index: int
    address: str
    socket: zmq.Socket[bytes]
    refusals: transport.Refusals
    opened: float
    parts: dict[int, Part] = field(default_factory=dict)
    updates: deque[tuple[bytes, bytes]] = field(default_factory=deque)
    asked: float = -1e9
    state_asked: float | None = None
    alive: bool = True
    attaches: bool = True

    def update(self, keys: NDArray[np.int64], priorities: NDArray[np.float32]) -> int:
        """Keep new priorities for the next request; return the number that are dropped."""
        if not self.alive:
            return len(priorities)
        self.updates.append((keys.tobytes(), priorities.tobytes()))
        if len(self.updates) <= _MOST_UPDATES_WAITING:
            return 0
        return len(self.updates.popleft()[1]) // 4

    def next_updates(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Take as many of the waiting priorities as a request may carry."""
        keys, priorities, size = [], [], 0
        while self.updates and size + len(self.updates[0][1]) // 4 <= MAX_UPDATES:
            some_keys, some_priorities = self.updates.popleft()
            keys.append(some_keys)
            priorities.append(some_priorities)
            size += len(some_priorities) // 4
        return (
            np.frombuffer(b"".join(keys), np.int64),
            np.frombuffer(b"".join(priorities), np.float32),
        )

    def lost_by(self, answer: SampleAnswer) -> list[int]:
        """List requests that the shard, asked for its state later, does not know of."""
        known = answer.request, *answer.waiting
        return [n for n in self.parts if n < answer.request and n not in known]


@dataclass(eq=False)
class Part:
    """Rows of a batch that a shard gives, and the slot for them."""

    batch: Batch
    shard: Shard
    start: int
    rows: int
    slot: Slot
    in_slot: bool

    def check(self, answer: SampleAnswer, slab_bytes: int | None, expected_bytes: int) -> None:
        """Check an answer against its request.

        Args:
            answer: answer to the request for these rows.
            slab_bytes: size of the rows that came with it; None without rows.
            expected_bytes: size of the rows if they come as a message.

        Raises:
            WireError: the answer does not fit the request.
        """
        if (answer.rows, answer.start) != (self.rows, self.start):
            raise WireError("index", "other rows than asked for")
        if answer.slot is not None:
            if not self.in_slot or answer.slot != self.slot.index:
                raise WireError("index", "another slot than asked for")
        elif slab_bytes != expected_bytes:
            raise WireError("size", "not a slab of the rows asked for")


@dataclass(eq=False)
class Batch:
    """A batch on its way or with the learner, or a few small ones of the same request.

    Attributes:
        sample: the slot's sample, or the memory of a message that brought all rows.
        missing: number of rows that have not arrived.
        unasked: (start, rows) that no shard has been asked for.
        parts: parts that have arrived.
        unreleased: number of rows that the learner has not released.
    """

    slot: Slot
    sample: Sample
    missing: int
    unasked: list[tuple[int, int]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    unreleased: int = 0

    def divide(self, batch_size: int) -> Iterator[Held]:
        """Yield the batches of a learner, in order."""
        for start in range(0, self.sample.count, batch_size):
            yield Held(self, start, self.sample.rows(start, start + batch_size))

    def take(self, part: Part, came: Sample | None) -> None:
        """Take rows: those of a message, or those in the slot of the part's request."""
        rows = (part.start, part.start + part.rows)
        if came is not None and part.rows == self.sample.count:
            self.sample = came  # not copied: nothing else uses this memory
        elif came is not None:
            self.sample.rows(*rows).copy_from(came)
        elif part.slot is not self.slot:
            self.sample.rows(*rows).copy_from(part.slot.sample.rows(*rows))
        self.parts.append(part)
        self.missing -= part.rows

    def update(self, held: Held, priorities: NDArray[np.float32]) -> int:
        """Keep new priorities of some rows for the shards that gave them; count those dropped."""
        dropped = 0
        for part in self.parts:
            first = max(part.start, held.start)
            beyond = min(part.start + part.rows, held.start + held.sample.count)
            if first < beyond:
                rows = slice(first - held.start, beyond - held.start)
                dropped += part.shard.update(held.sample.keys[rows], priorities[rows])
        return dropped

    def move(self, slot: Slot) -> None:
        """Copy the rows that have arrived to another slot."""
        old, self.slot, self.sample = self.sample, slot, slot.sample
        for part in self.parts:
            rows = (part.start, part.start + part.rows)
            self.sample.rows(*rows).copy_from(old.rows(*rows))


@dataclass(frozen=True, eq=False)
class Held:
    """A learner's batch of a request: the rows from ``start`` on."""

    whole: Batch
    start: int
    sample: Sample
