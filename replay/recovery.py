"""Recovery of a shard from its journal: batches, then the snapshot's priorities, then the updates.

The numbering of transitions goes on where it ended, so that priority updates that are on their way
find their transitions. That is possible if the journal has no holes. Otherwise everything that is
left gets new keys, above all earlier ones, and updates for earlier keys are ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdqn import plain
from pdqn.specs import EnvironmentSpec
from pdqn.wire import TransitionBatch, WireError, decode_transitions
from replay.buffer import evict_before
from replay.contents import Contents
from replay.journal import (
    Damage,
    Latest,
    Refused,
    Segment,
    SegmentHead,
    Snapshot,
    Stored,
    read_latest,
    read_segment,
    segments_of,
)

# Of a batch: its run, its first key now, the mean by which it was clipped, and the message.
Taken = Callable[[str, int, float | None, memoryview], object]


class OtherKindError(Exception):
    """A journal whose transitions mean something else."""


class _HoleError(Exception):
    """A place in the journal where transitions are missing."""


@dataclass
class Result:
    """A recovery's outcome, beside the contents themselves.

    Attributes:
        damage: what was torn or damaged.
        renumbered: whether the transitions have new keys.
        holes: number of places where transitions are missing.
        left_out: transitions that are in the journal and cannot be used any more.
        run: id of the run that wrote last.
        unreported: transitions received there and not counted in any report.
        unreported_refused: transitions refused there and not counted in any report.
    """

    damage: Damage = field(default_factory=Damage)
    renumbered: bool = False
    holes: int = 0
    left_out: int = 0
    run: str = ""
    unreported: int = 0
    unreported_refused: int = 0


@dataclass
class Progress:
    """The bytes of the segments, for those who wait.

    Args:
        total_bytes: bytes of all segments.
        show: function that gets the share that is done, from 0 to 1.
    """

    total_bytes: int
    show: Callable[[float], object]
    done_bytes: int = 0

    def add(self, nbytes: int) -> None:
        """Count bytes as done."""
        self.done_bytes += nbytes
        self.show(min(1.0, self.done_bytes / max(1, self.total_bytes)))


def recover(
    folder: Path,
    spec: EnvironmentSpec,
    kind: str,
    new_contents: Callable[[], Contents],
    show: Callable[[float], object] = lambda _: None,
    rewrite: Callable[[Contents], Taken] = lambda _: lambda *_: None,
) -> tuple[Contents, Result]:
    """Read a shard's journal into new contents.

    Args:
        folder: folder of the journal.
        spec: spec of the environment.
        kind: text that is equal for runs whose transitions mean the same.
        new_contents: function that makes empty contents, whose buffer has a first key of its own.
        show: function that is called after every batch with the share of the journal that is read.
        rewrite: function that is called if the transitions get new keys. The function that it
            returns is called with each batch, before it is inserted.

    Raises:
        OSError: the journal cannot be read.
        OtherFormatError: another version of this program wrote it.
        OtherKindError: its transitions mean something else.
    """
    try:
        return _Recovery(folder, spec, kind, new_contents(), show).read()
    except _HoleError:
        contents = new_contents()
        return _Recovery(folder, spec, kind, contents, show, rewrite(contents)).read()


class _Recovery:
    """One attempt at reading a journal.

    Args:
        rewrite: as above; None to keep the keys, where a hole is an error.
    """

    def __init__(
        self,
        folder: Path,
        spec: EnvironmentSpec,
        kind: str,
        contents: Contents,
        show: Callable[[float], object],
        rewrite: Taken | None = None,
    ) -> None:
        self._folder, self._spec, self._kind = folder, spec, kind
        self._contents, self._buffer = contents, contents.buffer
        self._rewrite = rewrite
        self._result = Result(renumbered=rewrite is not None)
        self._segments = segments_of(folder)
        sizes = sum(segment.path.stat().st_size for segment in self._segments)
        self._progress = Progress(sizes, show)
        self._refused = 0
        # The key that the next batch of the journal should have.
        self._next_key: int | None = None
        self._moves = Moves()
        # Both because the record with which the first segment begins may be damaged.
        self._kind_is_known = False
        self._lost_streams = True

    def read(self) -> tuple[Contents, Result]:
        """Read everything.

        Raises:
            _HoleError: transitions are missing, and the keys should be kept.
        """
        latest = read_latest(self._folder, self._result.damage)
        if latest.head is not None:
            self._check_kind(latest.head)
        ends = [later.first_key for later in self._segments[1:]]
        for segment, end in zip_longest(self._segments, ends):
            self._read_segment(segment, end)
        if self._lost_streams and latest.head is not None:
            self._contents.sequences.advance(latest.head.streams)
            self._contents.accounts.advance(latest.head.spans)
        if latest.snapshot is not None and latest.snapshot.next_key > (self._next_key or 0):
            self._note_hole()  # the end is missing, although it was acknowledged
        if self._buffer.size:
            self._set_priorities(latest)
        self._continue_counts(latest)
        self._buffer.forget_counts()
        return self._contents, self._result

    # ---- batches ----

    def _read_segment(self, segment: Segment, end: int | None) -> None:
        for item in read_segment(segment, self._result.damage):
            if isinstance(item, SegmentHead):
                self._begin(item)
            elif isinstance(item, Stored) and end is not None and item.first_key >= end:
                # Another process had begun the next segment already; this was not acknowledged.
                continue
            elif isinstance(item, Stored):
                self._insert(item)
                self._progress.add(len(item.data))
            else:
                self._refuse(item)

    def _check_kind(self, head: SegmentHead) -> None:
        if head.kind != self._kind:
            raise OtherKindError(head.kind)
        self._kind_is_known = True

    def _begin(self, head: SegmentHead) -> None:
        self._check_kind(head)
        if self._next_key is None and not self._result.renumbered:
            self._buffer.begin_at(head.first_key, head.cursor)
        self._expect(head.first_key)
        self._contents.sequences.recover(head.streams)
        self._contents.accounts.recover(head.spans)
        self._lost_streams = False
        self._result.run = head.run

    def _expect(self, key: int) -> None:
        """Note that the next transitions of the journal have this key."""
        if self._next_key is not None and key != self._next_key:
            self._note_hole()
        self._next_key = key

    def _note_hole(self) -> None:
        if not self._result.renumbered:
            raise _HoleError
        self._result.holes += 1

    def _insert(self, stored: Stored) -> None:
        if self._next_key is None:
            self._note_hole()  # where its frames go is lost with the head of the segment
        self._expect(stored.first_key)
        try:
            batch = decode_transitions(stored.data, self._spec, None)
        except WireError:
            self._result.damage.damaged += 1
            return
        self._result.run = batch.run
        self._next_key = stored.first_key + batch.count
        self._contents.sequences.put(batch.stream, batch.sequence + 1)
        self._contents.accounts.add(batch.stream, batch.made, batch.count)
        if not self._kind_is_known:
            self._result.left_out += batch.count
            return
        try:
            self._buffer.make_room(batch.count, batch.blocks)
        except ValueError:  # the capacity is smaller than it was
            self._result.left_out += batch.count
            if not self._result.renumbered:
                raise _HoleError from None
            return
        self._store(stored, batch)

    def _store(self, stored: Stored, batch: TransitionBatch) -> None:
        mean = stored.mean_priority
        if self._rewrite is not None:
            data = memoryview(stored.data)
            self._rewrite(self._result.run, self._buffer.inserted, mean, data)
        keys = self._buffer.insert(batch.columns, batch.blocks, batch.parameter_version, mean)
        self._moves.add(stored.first_key, keys)

    def _refuse(self, refused: Refused) -> None:
        contents, stream, count = self._contents, refused.stream, refused.count
        contents.sequences.put(stream, refused.sequence + 1)
        contents.accounts.add(stream, refused.made, count, refused=count)
        self._refused = refused.total

    # ---- priorities and counts ----

    def _set_priorities(self, latest: Latest) -> None:
        if latest.snapshot is not None:
            if not self._result.renumbered:
                # What had become too old is gone, although there would be room for it.
                evict_before(self._buffer, latest.snapshot.oldest_key)
            for first, priorities in self._moves.of_snapshot(latest.snapshot):
                self._buffer.set_priorities(first, priorities)
        for update in latest.updates:
            keys = self._moves.of_keys(update.keys)
            self._buffer.update_priorities(keys, update.priorities, update.mean_priority)

    def _continue_counts(self, latest: Latest) -> None:
        contents, snapshot, counts = self._contents, latest.snapshot, latest.counts
        next_key = self._next_key or 0
        if snapshot is None:
            # What was sampled is not known: nothing is due, as after a start.
            size = self._buffer.size
            state = {"inserted": size, "sampled": 0, "num_inserted": size, "num_sampled": 0}
            contents.limiter.recover({**state, "balance": 0.0}, 0, 0)
        else:
            state = snapshot.counters
            contents.life = int(state["life"])
            sampled = max(0, counts.sampled - int(state["sampled"])) if counts else 0
            contents.limiter.recover(state, max(0, next_key - snapshot.next_key), sampled)
            self._refused = max(self._refused, int(state["refused"]))
            if (
                snapshot.sampler
                and next_key == snapshot.next_key
                and not (sampled or latest.updates)
            ):
                # Nothing followed it: what is drawn next has not been drawn before.
                plain.set_generator_state(self._buffer.rng, plain.unpack(snapshot.sampler))
        contents.refused = self._refused
        if counts is not None:
            self._result.unreported = max(0, next_key - counts.reported_key)
            self._result.unreported_refused = max(0, self._refused - counts.reported_refused)


class Moves:
    """New keys of ranges of earlier keys."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._news: list[int] = []
        self._counts: list[int] = []

    def add(self, first: int, keys: range) -> None:
        """Note that the keys from ``first`` on are these now; ranges come in order."""
        if self._firsts:
            end = self._firsts[-1] + self._counts[-1], self._news[-1] + self._counts[-1]
            if end == (first, keys.start):
                self._counts[-1] += len(keys)
                return
        self._firsts.append(first)
        self._news.append(keys.start)
        self._counts.append(len(keys))

    def of_keys(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the new keys, int64[n]; -1 for keys that are not there."""
        firsts = np.array(self._firsts, np.int64)
        place = np.searchsorted(firsts, keys, side="right") - 1
        offsets = keys - firsts[place]
        is_there = (place >= 0) & (offsets < np.array(self._counts, np.int64)[place])
        return np.where(is_there, np.array(self._news, np.int64)[place] + offsets, -1)

    def of_snapshot(self, snapshot: Snapshot) -> list[tuple[int, NDArray[np.float32]]]:
        """Return parts of a snapshot's priorities, each with the new key of its first."""
        parts = []
        for first, new, count in zip(self._firsts, self._news, self._counts, strict=True):
            start = max(first, snapshot.oldest_key)
            stop = min(first + count, snapshot.next_key)
            if start < stop:
                offset = start - snapshot.oldest_key
                part = snapshot.priorities[offset : offset + stop - start]
                parts.append((new + start - first, part))
        return parts
