"""A witness of what replay acknowledged, in a file that outlives any kill of its process.

It stores the buffer's state before each turn is written to the journal. It stores every
acknowledgement before it is sent. A process that takes over has a file of its own, which
begins with what it recovered. Comparing both tells what was lost, without trust in the journal.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import setproctitle

Stream = tuple[int, int]

_HEAD = struct.Struct("<dQQQ")  # seconds, updates of priorities, entries of both tables
_STATE = struct.Struct("<qqqd")  # number, inserted, size, sum of priorities
_ENTRY = struct.Struct("<QQq")  # actor, incarnation, next sequence number
_MOST_STREAMS = 4096
_STATES_AT, _RECOVERED_AT = 64, 256
_ACKNOWLEDGED_AT = _RECOVERED_AT + _MOST_STREAMS * _ENTRY.size
_FILE_BYTES = _ACKNOWLEDGED_AT + _MOST_STREAMS * _ENTRY.size


@dataclass(frozen=True)
class State:
    """A buffer in memory at one moment.

    Attributes:
        number: number of the turn, from 0.
        inserted: transitions inserted so far.
        size: transitions stored.
        priority_sum: sum of the sum tree.
    """

    number: int
    inserted: int
    size: int
    priority_sum: float


@dataclass(frozen=True)
class Testimony:
    """A process of replay as its witness saw it.

    Attributes:
        shard: index of the replay.
        seconds: monotonic time at which it began to serve.
        updates: messages with new priorities so far: one for each learner step that went on.
        began: state that it took over.
        last: states at the last two turns, older first; the last may not be in the journal yet.
        recovered: next sequence numbers that it took over.
        acknowledged: next sequence numbers that it told the actors.
    """

    shard: int
    seconds: float
    updates: int
    began: State
    last: tuple[State, State]
    recovered: dict[Stream, int] = field(default_factory=dict)
    acknowledged: dict[Stream, int] = field(default_factory=dict)


class Witness:
    """The file of one process.

    Args:
        path: the file, which does not exist.
    """

    def __init__(self, path: Path) -> None:
        with path.open("wb+") as file:
            file.truncate(_FILE_BYTES)
            self._map = mmap.mmap(file.fileno(), _FILE_BYTES)
        self._turn = 0
        self._updates = 0
        self._counts = [0, 0]
        self._places: dict[Stream, int] = {}

    def begin(self, state: tuple[int, int, float], streams: dict[Stream, int]) -> None:
        """Note what the process took over."""
        for place in range(3):
            _STATE.pack_into(self._map, _STATES_AT + place * _STATE.size, 0, *state)
        entries = list(streams.items())[-_MOST_STREAMS:]
        for place, (stream, expected) in enumerate(entries):
            _ENTRY.pack_into(self._map, _RECOVERED_AT + place * _ENTRY.size, *stream, expected)
        self._counts[0] = len(entries)
        self._began = time.monotonic()
        self._write_head()

    def note(self, state: tuple[int, int, float]) -> None:
        """Note the state that the next turn of the journal will have."""
        self._turn += 1
        place = 1 + self._turn % 2
        _STATE.pack_into(self._map, _STATES_AT + place * _STATE.size, self._turn, *state)

    def acknowledge(self, stream: Stream, expected: int) -> None:
        """Note an acknowledgement that is sent next."""
        place = self._places.setdefault(stream, len(self._places) % _MOST_STREAMS)
        _ENTRY.pack_into(self._map, _ACKNOWLEDGED_AT + place * _ENTRY.size, *stream, expected)
        if place >= self._counts[1]:
            self._counts[1] = place + 1
            self._write_head()

    def count_update(self) -> None:
        """Count new priorities from the learner."""
        self._updates += 1
        self._write_head()

    def _write_head(self) -> None:
        _HEAD.pack_into(self._map, 0, self._began, self._updates, *self._counts)


def read_testimonies(folder: Path) -> list[Testimony]:
    """Read the testimonies in a folder, in the order in which the processes began to serve."""
    found = []
    for path in folder.iterdir():
        data = path.read_bytes()
        shard = path.name.partition("-")[0]
        if len(data) == _FILE_BYTES and shard.isdecimal():
            found.append(_testimony(int(shard), data))
    return sorted(found, key=lambda testimony: testimony.seconds)


def _testimony(shard: int, data: bytes) -> Testimony:
    seconds, updates, recovered, acknowledged = _HEAD.unpack_from(data)
    states = [State(*_STATE.unpack_from(data, _STATES_AT + n * _STATE.size)) for n in range(3)]
    older, newer = sorted(states[1:], key=lambda state: state.number)
    return Testimony(
        shard,
        seconds,
        updates,
        states[0],
        (older, newer),
        dict(_entries(data, _RECOVERED_AT, recovered)),
        dict(_entries(data, _ACKNOWLEDGED_AT, acknowledged)),
    )


def _entries(data: bytes, offset: int, count: int) -> Iterator[tuple[Stream, int]]:
    for place in range(count):
        actor, incarnation, expected = _ENTRY.unpack_from(data, offset + place * _ENTRY.size)
        if expected >= 0:  # it answers the hello of an actor that has sent nothing
            yield (actor, incarnation), expected


def install(module: ModuleType, folder: str) -> None:
    """Have the keepers of ``replay.keeper`` tell a witness what they do."""
    keeper: Any = module.__dict__["Keeper"]
    init, write, settled, update = keeper.__init__, keeper.write, keeper.settled, keeper.update

    def state(self: Any) -> tuple[int, int, float]:
        buffer = self._contents.buffer
        return buffer.inserted, buffer.size, buffer.total_priority

    def observed_init(self: Any, contents: Any, *arguments: Any, **more: Any) -> None:
        init(self, contents, *arguments, **more)
        shard = setproctitle.getproctitle().rpartition(" ")[2]
        self._witness = Witness(Path(folder) / f"{shard}-{time.monotonic_ns()}-{os.getpid()}")
        self._witness.begin(state(self), dict(contents.sequences.all()))

    def observed_write(self: Any) -> Any:
        self._witness.note(state(self))
        return write(self)

    def observed_settled(self: Any) -> Any:
        receipts = settled(self)
        for receipt in receipts:
            self._witness.acknowledge(receipt.stream, receipt.expected)
        return receipts

    def observed_update(self: Any, *arguments: Any) -> Any:
        self._witness.count_update()
        return update(self, *arguments)

    keeper.__init__, keeper.write = observed_init, observed_write
    keeper.settled, keeper.update = observed_settled, observed_update
