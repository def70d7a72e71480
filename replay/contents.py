"""The contents of a shard: all that a new process must have to continue after another."""

from __future__ import annotations

from dataclasses import dataclass, field

from pdqn import plain
from replay.accounts import Accounts
from replay.buffer import PrioritizedBuffer
from replay.journal import SegmentHead, Snapshot
from replay.sequences import Sequences
from replay.sharding import ShardLimiter


@dataclass
class Contents:
    """The contents of a shard.

    Attributes:
        buffer: the stored transitions.
        limiter: its counts, and the limiter.
        sequences: the next sequence number of each stream.
        life: incarnation of the process in which the counts began; later ones continue them.
        refused: transitions refused since then.
        accounts: account of what was settled of each stream.
    """

    buffer: PrioritizedBuffer
    limiter: ShardLimiter
    sequences: Sequences
    life: int
    refused: int = 0
    accounts: Accounts = field(default_factory=Accounts)

    def head(self, run: str, kind: str) -> SegmentHead:
        """Describe the present state for a new segment of the journal.

        Args:
            run: id of the run.
            kind: text that is equal for runs whose transitions mean the same.
        """
        buffer = self.buffer
        streams, spans = self.sequences.all(), self.accounts.all()
        return SegmentHead(run, kind, buffer.inserted, buffer.store.cursor, streams, spans)

    def snapshot(self) -> Snapshot:
        """Describe what the journal's segments do not hold."""
        own = {"life": self.life, "refused": self.refused}
        counters = {**own, **self.limiter.get_state()}
        sampler = plain.pack(plain.generator_state(self.buffer.rng))
        return Snapshot(self.buffer.evicted, self.buffer.priorities(), counters, sampler)
