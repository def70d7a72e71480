"""The journal of a shard: what it has stored, in files from which a new process stores it again.

A folder holds *segments*, a *snapshot*, and *updates*:

* Segments, ``<number>-<first key>.segment``, hold the accepted TransitionBatches as they came, in
  order, and a stub for each refused one. Each begins with the streams' next sequence numbers and
  the account of what was settled, so that older segments are not needed. The snapshot repeats them,
  as that record may be damaged. A segment is removed once its transitions are evicted.
* The snapshot, ``<number>.snapshot``, holds the priorities of the live transitions and the
  counters. It is replaced every few seconds.
* Updates, ``<number>.updates``, hold priority updates and counts since the snapshot of that number.

Recovery (``replay.recovery``) inserts the batches of the segments, sets the priorities of the
snapshot, and applies the updates. Batches and updates carry the mean priority by which they were
clipped. The buffer therefore ends with the same keys, priorities and sum as the one that ended.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from pdqn.spans import Span, Stream
from replay.records import Contents, Piece, Record, RecordWriter, read_records

SEGMENT_BYTES = 16 << 20
# Kinds of records.
_HEAD, _STORED, _REFUSED, _UPDATE, _COUNTS, _SNAPSHOT = range(1, 7)
_STORED_HEAD = struct.Struct("<qd")  # first key, mean priority
# actor, incarnation, sequence, transitions, total, made
_REFUSED_BODY = struct.Struct("<QQQQQQ")
_UPDATE_HEAD = struct.Struct("<Qd")  # number of updates, mean priority
_COUNTS_BODY = struct.Struct("<QQQ")  # sampled, reported key, reported refusals
_SNAPSHOT_HEAD = struct.Struct("<QQ")  # oldest key, bytes of the counters
_FORMAT = 1
_SAMPLER = "sampler"  # among the counters


class OtherFormatError(ValueError):
    """A journal that another version of this program wrote."""


@dataclass(frozen=True)
class SegmentHead:
    """The state of a shard where a segment begins.

    Attributes:
        run: id of the run whose batches follow.
        kind: text that is equal for runs whose transitions mean the same.
        first_key: key of the first transition that follows.
        cursor: place in the store where its frames go; see ``FrameStore.cursor``.
        streams: next sequence number of each (actor, incarnation).
        spans: transitions that were settled before; see ``replay.accounts``.
    """

    run: str
    kind: str
    first_key: int
    cursor: int
    streams: Mapping[Stream, int]
    spans: tuple[Span, ...] = ()

    def encode(self) -> bytes:
        """Encode as msgpack."""
        streams = [[*stream, expected] for stream, expected in self.streams.items()]
        place = [self.run, self.kind, self.first_key, self.cursor]
        return _packed([_FORMAT, *place, streams, self.spans])

    @classmethod
    def decode(cls, data: Piece) -> SegmentHead:
        """Decode what ``encode`` gave.

        Raises:
            OtherFormatError: another version wrote it.
        """
        version, *rest = msgpack.unpackb(data)
        if version != _FORMAT:
            raise OtherFormatError(f"the journal has the format {version}, not {_FORMAT}")
        run, kind, first_key, cursor, streams, spans = rest
        expected = {(actor, incarnation): n for actor, incarnation, n in streams}
        return cls(run, kind, first_key, cursor, expected, tuple(Span(*span) for span in spans))


@dataclass(frozen=True)
class Stored:
    """A batch that was accepted.

    Attributes:
        first_key: key of its first transition.
        mean_priority: mean by which its priorities were clipped; None in an empty buffer.
        data: the message.
    """

    first_key: int
    mean_priority: float | None
    data: Piece


@dataclass(frozen=True)
class Refused:
    """A stub of a batch that was refused.

    Attributes:
        stream: (actor, incarnation) of its sender.
        sequence: its number in the stream.
        count: its transitions.
        total: transitions refused so far, these included.
        made: transitions of the stream up to its last one; 0 if it does not say.
    """

    stream: Stream
    sequence: int
    count: int
    total: int
    made: int = 0


@dataclass(frozen=True)
class Update:
    """Priorities as the learner sent them.

    Attributes:
        keys: int64[n].
        priorities: float32[n].
        mean_priority: mean by which they were clipped; None in an empty buffer.
    """

    keys: NDArray[np.int64]
    priorities: NDArray[np.float32]
    mean_priority: float | None


@dataclass(frozen=True)
class Counts:
    """Counts that neither batches nor updates hold.

    Attributes:
        sampled: transitions sampled.
        reported_key: key below which transitions were counted in a report to the coordinator.
        reported_refused: refused transitions that were.
    """

    sampled: int = 0
    reported_key: int = 0
    reported_refused: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Priorities and counters at one moment.

    Attributes:
        oldest_key: key of the oldest live transition.
        priorities: float32[n] of the live transitions, in the order of their keys.
        counters: numbers by name.
        sampler: state of the sampler's random generator; empty if it is not known.
    """

    oldest_key: int
    priorities: NDArray[np.float32]
    counters: Mapping[str, float]
    sampler: bytes = b""

    @property
    def next_key(self) -> int:
        """Key of the next transition at that moment."""
        return self.oldest_key + len(self.priorities)


@dataclass(frozen=True)
class Sync:
    """Files that the disk must hold before their contents count as safe from a loss of power.

    Attributes:
        files: files that are written on.
        retired: files that are complete.
        obsolete: paths that nobody needs once the others are on the disk.
        folder: the folder of all.
        check: as in ``Journal``.
    """

    files: list[RecordWriter]
    retired: list[RecordWriter]
    obsolete: list[Path]
    folder: Path
    check: Callable[[], object]

    def run(self) -> None:
        """Wait for the disk; another thread may go on writing.

        Raises:
            OSError: the disk fails.
        """
        for file in (*self.retired, *self.files):
            file.sync()
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.check()

    def finish(self) -> None:
        """Close what is complete, and remove what is obsolete."""
        for file in self.retired:
            file.close()
        for path in self.obsolete:
            with suppress(OSError):
                path.unlink()


class Journal:
    """The files of a shard, while it adds to them; it begins with a new segment.

    Nothing is written before ``write``, and nothing may be acknowledged before that.

    Args:
        folder: folder of the shard; it is made if it does not exist.
        head: function that describes the present state for a new segment.
        segment_bytes: size beyond which a new segment begins.
        check: function that raises an error if another process keeps the journal by now. It is
            called after each write and each sync.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        head: Callable[[], SegmentHead],
        segment_bytes: int = SEGMENT_BYTES,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._head = head
        self._segment_bytes = segment_bytes
        self._check = check
        self._segments = segments_of(folder)
        self._number = max(_numbered(folder, "updates"), default=0)
        self._retired: list[RecordWriter] = []
        self._obsolete: list[Path] = []
        self._segment = self._begun()
        try:
            self._updates = RecordWriter(_path(folder, self._number, "updates"))
        except OSError:
            self._segment.close()
            raise

    @property
    def nbytes(self) -> int:
        """Bytes of all files of the folder."""
        total = 0
        for path in self._folder.iterdir():
            with suppress(OSError):
                total += path.stat().st_size
        return total

    @property
    def is_whole(self) -> bool:
        """Return whether the folder still has all files that recovery needs.

        Writing to a file that somebody has removed raises no error.
        """
        try:
            there = {path.name for path in self._folder.iterdir()}
        except OSError:
            return False
        needed = {segment.path.name for segment in self._segments} | {self._updates.path.name}
        return needed <= there and self._segment.has_name and self._updates.has_name

    def store(self, first_key: int, mean_priority: float | None, data: Piece) -> None:
        """Collect a batch that will be inserted; its bytes must not change before ``write``."""
        self._segment.add(_STORED, _STORED_HEAD.pack(first_key, _known(mean_priority)), data)

    def refuse(self, refused: Refused) -> None:
        """Collect a stub of a refused batch."""
        body = (refused.sequence, refused.count, refused.total, refused.made)
        self._segment.add(_REFUSED, _REFUSED_BODY.pack(*refused.stream, *body))

    def update(
        self,
        keys: NDArray[np.int64],
        priorities: NDArray[np.float32],
        mean_priority: float | None,
    ) -> None:
        """Collect priority updates that will be applied."""
        head = _UPDATE_HEAD.pack(len(keys), _known(mean_priority))
        self._updates.add(_UPDATE, head, _bytes_of(keys), _bytes_of(priorities))

    def count(self, counts: Counts) -> None:
        """Collect the present counts."""
        body = (counts.sampled, counts.reported_key, counts.reported_refused)
        self._updates.add(_COUNTS, _COUNTS_BODY.pack(*body))

    def write(self) -> None:
        """Append what was collected; it survives a kill of this process from then on.

        All collected batches must have been inserted, because a new segment may begin here.

        Raises:
            OSError: the disk is full, or fails. What was collected is kept, for another attempt.
        """
        wrote_segment = self._segment.write()
        if self._updates.write() or wrote_segment:
            self._check()
        if self._segment.size_bytes >= self._segment_bytes:
            self.begin()

    def begin(self) -> None:
        """Begin a new segment.

        Raises:
            OSError: the disk is full, or fails.
        """
        new = self._begun()
        self._retired.append(self._segment)
        self._segment = new

    def snapshot(self, snapshot: Snapshot) -> None:
        """Write what was collected and a new snapshot, which makes older files obsolete.

        Raises:
            OSError: the disk is full, or fails. The snapshot before it stays valid.
        """
        self._segment.write()
        self._check()
        number = self._number + 1
        path = _path(self._folder, number, "snapshot")
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        counters = _packed({**snapshot.counters, _SAMPLER: snapshot.sampler})
        head = _SNAPSHOT_HEAD.pack(snapshot.oldest_key, len(counters))
        file = RecordWriter(temporary)
        try:
            file.add(_SNAPSHOT, head, counters, _bytes_of(snapshot.priorities))
            # A second one of what a damage may take from a segment.
            file.add(_HEAD, self._head().encode())
            file.write()
            updates = RecordWriter(_path(self._folder, number, "updates"))
            # Updates are only read together with the snapshots before them.
            temporary.replace(path)
        except OSError:
            file.close()
            temporary.unlink(missing_ok=True)
            raise
        # The snapshot holds what was collected and not written.
        self._updates.discard()
        self._retired += [file, self._updates]
        self._updates, self._number = updates, number
        self._find_obsolete(snapshot.oldest_key)

    @property
    def has_retired(self) -> bool:
        """Return whether there are files to close or to remove after a sync."""
        return bool(self._retired or self._obsolete)

    def begin_sync(self) -> Sync:
        """Return what must be synced and then finished; finish it at once if power may be lost."""
        retired, self._retired = self._retired, []
        obsolete, self._obsolete = self._obsolete, []
        files = [self._segment, self._updates]
        return Sync(files, retired, obsolete, self._folder, self._check)

    def close(self) -> None:
        """Close the files, without what was not written."""
        self.begin_sync().finish()
        self._segment.close()
        self._updates.close()

    def _begun(self) -> RecordWriter:
        """Make the next segment's file, with its head."""
        head = self._head()
        number = self._segments[-1].number + 1 if self._segments else 0
        segment = Segment.named(self._folder, number, head.first_key)
        writer = RecordWriter(segment.path)
        try:
            writer.add(_HEAD, head.encode())
            writer.write()
        except OSError:
            writer.close()
            segment.path.unlink(missing_ok=True)
            raise
        self._segments.append(segment)
        return writer

    def _find_obsolete(self, oldest_key: int) -> None:
        while len(self._segments) > 1 and self._segments[1].first_key <= oldest_key:
            self._obsolete.append(self._segments.pop(0).path)
        for suffix in ("snapshot", "updates"):
            older = (n for n in _numbered(self._folder, suffix) if n < self._number)
            self._obsolete += [_path(self._folder, number, suffix) for number in older]


@dataclass(frozen=True)
class Segment:
    """A segment's file, its place in the order of segments, and its first key."""

    path: Path
    number: int
    first_key: int

    @classmethod
    def named(cls, folder: Path, number: int, first_key: int) -> Segment:
        """Return the segment of this number and first key."""
        return cls(folder / f"{number:012d}-{first_key:020d}.segment", number, first_key)


def segments_of(folder: Path) -> list[Segment]:
    """Find the segments of a folder, in their order."""
    found = []
    for path in folder.glob("*.segment"):
        number, _, first_key = path.stem.partition("-")
        if number.isdecimal() and first_key.isdecimal():
            found.append(Segment(path, int(number), int(first_key)))
    return sorted(found, key=lambda segment: segment.number)


# ---- reading ----


@dataclass
class Damage:
    """Losses of a journal that was read.

    Attributes:
        torn_bytes: bytes of records that a kill had cut short; they were never acknowledged.
        damaged: stretches that hold no whole record, as from a bad disk.
    """

    torn_bytes: int = 0
    damaged: int = 0

    def add(self, contents: Contents) -> None:
        """Count the losses of one file."""
        self.torn_bytes += contents.torn_bytes
        self.damaged += contents.damaged


def read_segment(segment: Segment, damage: Damage) -> list[SegmentHead | Stored | Refused]:
    """Read what a segment holds, in order.

    Raises:
        OSError: the file cannot be read.
        OtherFormatError: another version of this program wrote the journal.
    """
    contents = read_records(segment.path)
    damage.add(contents)
    return [_decoded(record) for record in contents.records]


@dataclass
class Latest:
    """The newest snapshot that is whole, and what follows it.

    Attributes:
        snapshot: the snapshot; None if there is none.
        head: state of the shard at that moment; None if it is not known.
        updates: priority updates since then, in order.
        counts: the newest counts since then; None if there are none.
    """

    snapshot: Snapshot | None = None
    head: SegmentHead | None = None
    updates: list[Update] = field(default_factory=list)
    counts: Counts | None = None


def read_latest(folder: Path, damage: Damage) -> Latest:
    """Read the newest snapshot that is whole, the updates since it, and the newest counts.

    Raises:
        OSError: a file cannot be read.
        OtherFormatError: another version of this program wrote the journal.
    """
    latest, first = Latest(), 0
    for number in sorted(_numbered(folder, "snapshot"), reverse=True):
        contents = read_records(_path(folder, number, "snapshot"))
        if contents.records and contents.records[0].kind == _SNAPSHOT:
            latest.snapshot, first = _snapshot(contents.records[0].payload), number
            if len(contents.records) > 1:
                latest.head = SegmentHead.decode(contents.records[1].payload)
            break
        damage.damaged += 1
    for number in sorted(n for n in _numbered(folder, "updates") if n >= first):
        _read_updates(_path(folder, number, "updates"), latest, damage)
    return latest


def _read_updates(path: Path, latest: Latest, damage: Damage) -> None:
    contents = read_records(path)
    damage.add(contents)
    for record in contents.records:
        if record.kind == _UPDATE:
            latest.updates.append(_update(record.payload))
        else:
            latest.counts = Counts(*_COUNTS_BODY.unpack(record.payload))


def _decoded(record: Record) -> SegmentHead | Stored | Refused:
    if record.kind == _HEAD:
        return SegmentHead.decode(record.payload)
    if record.kind == _STORED:
        first_key, mean = _STORED_HEAD.unpack_from(record.payload)
        return Stored(first_key, _mean(mean), record.payload[_STORED_HEAD.size :])
    actor, incarnation, *rest = _REFUSED_BODY.unpack(record.payload)
    return Refused((actor, incarnation), *rest)


def _update(payload: memoryview) -> Update:
    count, mean = _UPDATE_HEAD.unpack_from(payload)
    keys = np.frombuffer(payload, np.int64, count, _UPDATE_HEAD.size)
    priorities = np.frombuffer(payload, np.float32, count, _UPDATE_HEAD.size + keys.nbytes)
    return Update(keys, priorities, _mean(mean))


def _snapshot(payload: memoryview) -> Snapshot:
    oldest_key, size = _SNAPSHOT_HEAD.unpack_from(payload)
    body = _SNAPSHOT_HEAD.size
    counters = msgpack.unpackb(payload[body : body + size])
    sampler = counters.pop(_SAMPLER, b"")
    priorities = np.frombuffer(payload[body + size :], np.float32)
    return Snapshot(oldest_key, priorities, counters, sampler)


def _path(folder: Path, number: int, suffix: str) -> Path:
    return folder / f"{number:012d}.{suffix}"


def _numbered(folder: Path, suffix: str) -> list[int]:
    return [int(path.stem) for path in folder.glob(f"*.{suffix}") if path.stem.isdecimal()]


def _known(mean: float | None) -> float:
    return math.nan if mean is None else mean


def _mean(known: float) -> float | None:
    return None if math.isnan(known) else known


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(array).data.cast("B")


def _packed(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None, "msgpack returns None only where it packs into a file"
    return packed
