"""A replay in the process that also acts and learns: all of it but sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from pdqn.messages import Welcome
from pdqn.telemetry import Telemetry
from pdqn.wire import FrameBlock, TransitionBatch, encode_transitions
from replay.durability import open_shard
from replay.intake import Columns, Insertion
from replay.samples import Sample


class Alone:
    """The contact of a process that has no coordinator; see ``durability.Contact``.

    Args:
        telemetry: telemetry of the replay.
        should_stop: function that tells whether the run is to end.
    """

    def __init__(self, telemetry: Telemetry, should_stop: Callable[[], bool]) -> None:
        self.telemetry = telemetry
        self._should_stop = should_stop

    @property
    def stopping(self) -> bool:
        """Return whether the run is to end."""
        return self._should_stop()

    def poll(self, timeout_seconds: float = 0.0) -> None:
        """Wait."""
        time.sleep(timeout_seconds)

    def wait(self, seconds: float) -> None:
        """Wait."""
        self.poll(seconds)


class LocalReplay:
    """The only shard of a run, in the process that also acts and learns.

    What is inserted and updated in a turn is in the journal after ``write``.

    Args:
        welcome: the run, and the incarnation of its one actor.
        telemetry: telemetry that counts what is inserted and refused.
        should_stop: function that tells whether the run is to end.

    Attributes:
        buffer: the stored transitions.
        limiter: the limiter.

    Raises:
        RunError: another process keeps the journal.
        StoppedError: the run is to end.
    """

    def __init__(
        self, welcome: Welcome, telemetry: Telemetry, should_stop: Callable[[], bool]
    ) -> None:
        self._welcome, self._telemetry = welcome, telemetry
        self._contents, self._keeper = open_shard(
            Alone(telemetry, should_stop), welcome, nullcontext()
        )
        self.buffer = self._contents.buffer
        self.limiter = self._contents.limiter.limiter
        self._insertion = Insertion(
            welcome.spec, self.buffer, telemetry, welcome.config.replay.max_age
        )
        telemetry.take_spans = self._contents.accounts.take
        self._stream = (0, welcome.incarnation)
        self._sequence = self._made = 0

    @property
    def has_journal(self) -> bool:
        """Return whether there is a journal, and it can be written."""
        return self._keeper.is_on and not self._keeper.blocked

    @property
    def blocked(self) -> bool:
        """Return whether nothing may be inserted before the journal can be written."""
        return self._keeper.blocked

    def insert(
        self, columns: Columns, blocks: Sequence[FrameBlock], version: int, learner_steps: int
    ) -> None:
        """Check transitions, and insert them unless they are refused.

        Args:
            columns: columns of a TransitionBatch.
            blocks: frames of the batch.
            version: learner steps of the parameters that acted.
            learner_steps: learner steps now, from which the age is counted.
        """
        count, sequence = len(columns["action"]), self._sequence
        self._sequence += 1
        self._made += count
        self._contents.sequences.put(self._stream, self._sequence)
        self._insertion.learner_steps = learner_steps
        inserts = self._insertion.check(columns, blocks)
        if not (inserts and self._insertion.make_room(count, blocks, version)):
            self._keeper.refuse(self._stream, sequence, count, self._made)
            return
        batch = self._batch(sequence, columns, blocks, version)
        self._keeper.store(batch, encode_transitions(batch) if self._keeper.is_on else b"")
        self._contents.limiter.count_inserted(self._insertion.insert(columns, blocks, version))
        self._keeper.owe(self._stream, self._sequence)

    def can_sample(self, count: int, learner_steps: int) -> bool:
        """Return whether transitions may be drawn now, of those that are not too old.

        Args:
            count: number of transitions.
            learner_steps: learner steps now, from which their age is counted.
        """
        self.expire(learner_steps)
        return self.buffer.size > 0 and self.limiter.can_sample(count)

    def expire(self, learner_steps: int) -> None:
        """Stop sampling transitions that are too old at a learner step."""
        self._insertion.learner_steps = learner_steps
        self._insertion.expire()

    def sample_into(self, sample: Sample) -> None:
        """Draw transitions; ask ``can_sample`` first."""
        self.buffer.sample_into(sample)
        self._contents.limiter.count_sampled(sample.count)
        self._telemetry.count("samples", sample.count)

    def update_priorities(self, keys: NDArray[np.int64], priorities: NDArray[np.float32]) -> None:
        """Set new priorities; see ``PrioritizedBuffer.update_priorities``."""
        # Of the keys a copy: the memory of a sample holds the next one before they are written.
        self._keeper.update(keys.copy(), priorities)
        self.buffer.update_priorities(keys, priorities)

    def write(self) -> None:
        """Write the journal; take a snapshot when one is due."""
        self._keeper.write()
        self._keeper.settled()
        self._keeper.attend()

    def report(self) -> None:
        """Set the figures of the present moment."""
        telemetry = self._telemetry
        telemetry.gauge("size", self.buffer.size)
        telemetry.gauge("stored_bytes", self.buffer.stored_bytes)
        telemetry.gauge("journal_bytes", self._keeper.journal_bytes)
        telemetry.counters["priorities_clipped"] = self.buffer.priorities_clipped
        telemetry.gauge("limiter_target", self.limiter.target)
        telemetry.gauge("limiter_balance", self.limiter.balance)

    def mark(self) -> dict[str, int]:
        """Return numbers by which a moment of the contents is recognised."""
        limiter = self._contents.limiter
        return {
            "first_key": self.buffer.evicted,
            "next_key": self.buffer.inserted,
            "sampled": limiter.sampled,
        }

    def save(self) -> bool:
        """Write a snapshot; return whether the journal now holds everything."""
        self._keeper.take_snapshot()
        return self.has_journal

    def close(self) -> None:
        """Close the journal and the buffer, which must not be used any more."""
        self._keeper.close()
        self.buffer.close()

    def _batch(
        self, sequence: int, columns: Columns, blocks: Sequence[FrameBlock], version: int
    ) -> TransitionBatch:
        return TransitionBatch(
            self._welcome.run,
            *self._stream,
            sequence,
            version,
            dict(columns),
            list(blocks),
            made=self._made,
        )
