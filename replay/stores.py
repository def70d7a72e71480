"""Stores of frames: flat in memory, or compressed as received.

Frames are numbered 0, 1, 2, ... as they are appended, and evicted in that order, so live frames
form one range of numbers. A number modulo the store's ``frame_capacity`` is the frame's slot in
every array with one entry per frame.

Nothing here is safe to call from several threads at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import zstandard
from numpy.typing import NDArray

from pdqn.specs import EnvironmentSpec, Observation
from pdqn.wire import FrameBlock, compress_block, decompress_block

_CODECS = ("none", "zstd")
# int64 words of the header before a block's body in the arena, and of the table's entries.
_WORD_BYTES = 8
_HEADER_WORDS = 4
_HEADER_BYTES = _HEADER_WORDS * _WORD_BYTES


@dataclass(frozen=True, eq=False)
class Wanted:
    """A request to copy frames into given memory.

    Attributes:
        numbers: int64[n] or [n, stack], numbers of live frames; one may occur repeatedly.
        out: contiguous stored_dtype[*numbers.shape, *stored_shape] of each requested field.
    """

    numbers: NDArray[np.int64]
    out: Observation


class FrameStore(Protocol):
    """A bounded memory of frames, first in, first out.

    Attributes:
        frame_capacity: largest number of frames held.
    """

    frame_capacity: int

    @property
    def live_frames(self) -> range:
        """Numbers of the frames held, oldest first."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Bytes of the live frames."""
        ...

    @property
    def allocated_bytes(self) -> int:
        """Bytes of all arrays; constant."""
        ...

    def check_fits(self, blocks: Sequence[FrameBlock]) -> None:
        """Check that the blocks fit at least into an empty store.

        Raises:
            ValueError: they do not fit; the message gives the limit.
        """
        ...

    def has_room(self, blocks: Sequence[FrameBlock]) -> bool:
        """Return whether the blocks fit next to the present content."""
        ...

    def append(self, blocks: Sequence[FrameBlock]) -> int:
        """Copy the frames of blocks for which there is room; return the first frame's number."""
        ...

    def evict(self, frames: int) -> None:
        """Forget the ``frames`` oldest frames, which must be whole blocks."""
        ...

    def gather(self, wanted: Sequence[Wanted]) -> None:
        """Copy live frames to the requested memory."""
        ...

    def blocks(self, first: int, frames: int) -> list[FrameBlock]:
        """Return live frames, which are whole blocks, as blocks that take the same place again.

        Args:
            first: number of the first frame.
            frames: number of frames.
        """
        ...

    @property
    def cursor(self) -> int:
        """Place for the next frames."""
        ...

    def place_of(self, frame: int) -> int:
        """Return the cursor at which a live frame, the first of its block, was appended."""
        ...

    def begin_at(self, cursor: int) -> None:
        """Put the next frames at another store's cursor, in an empty store of the same size.

        A cursor that this store does not have is ignored.
        """
        ...

    def check_valid(self) -> None:
        """Assert that all records about the frames agree.

        Raises:
            AssertionError: they do not agree.
        """
        ...

    def close(self) -> None:
        """End the store's threads, if it has any; it must not be used any more."""
        ...


class DenseStore:
    """A store of flat frames, in one ring for each field: sampling decodes nothing.

    The arrays are allocated at once, but the system commits their memory only when it is first
    written. Once the rings have been filled, memory does not grow any more.
    """

    def __init__(self, spec: EnvironmentSpec, frame_capacity: int) -> None:
        if frame_capacity < 1:
            raise ValueError(f"a store for {frame_capacity} frames")
        self.frame_capacity = frame_capacity
        self._spec = spec
        self._rings: dict[str, NDArray[Any]] = {
            field.name: np.empty((frame_capacity, *field.stored_shape), field.stored_dtype)
            for field in spec.fields
        }
        self._oldest = self._next = 0

    @property
    def live_frames(self) -> range:
        """See ``FrameStore.live_frames``."""
        return range(self._oldest, self._next)

    @property
    def stored_bytes(self) -> int:
        """See ``FrameStore.stored_bytes``."""
        return (self._next - self._oldest) * self._spec.observation_bytes

    @property
    def allocated_bytes(self) -> int:
        """See ``FrameStore.allocated_bytes``."""
        return sum(ring.nbytes for ring in self._rings.values())

    def check_fits(self, blocks: Sequence[FrameBlock]) -> None:
        """See ``FrameStore.check_fits``."""
        _check_frames(frames_in(blocks), self.frame_capacity)

    def has_room(self, blocks: Sequence[FrameBlock]) -> bool:
        """See ``FrameStore.has_room``."""
        return self._next - self._oldest + frames_in(blocks) <= self.frame_capacity

    def append(self, blocks: Sequence[FrameBlock]) -> int:
        """See ``FrameStore.append``."""
        assert self.has_room(blocks)
        first = self._next
        for block in blocks:
            for name, ring in self._rings.items():
                write_ring(ring, self._next, block.fields[name])
            self._next += block.count
        return first

    def evict(self, frames: int) -> None:
        """See ``FrameStore.evict``."""
        self._oldest += frames

    def gather(self, wanted: Sequence[Wanted]) -> None:
        """See ``FrameStore.gather``."""
        for item in wanted:
            slots = item.numbers % self.frame_capacity
            for name, out in item.out.items():
                # Measured: this copies frames at the speed of memory; compiled loops over their
                # bytes reach a third of it. Other modes would gather into another array first.
                self._rings[name].take(slots, axis=0, out=out, mode="clip")

    def blocks(self, first: int, frames: int) -> list[FrameBlock]:
        """See ``FrameStore.blocks``: one block, whatever they came in."""
        fields = {name: read_ring(ring, first, frames) for name, ring in self._rings.items()}
        return [compress_block(fields, self._spec)]

    @property
    def cursor(self) -> int:
        """See ``FrameStore.cursor``: always 0, since any place is as good as another."""
        return 0

    def place_of(self, frame: int) -> int:
        """See ``FrameStore.place_of``."""
        return 0

    def begin_at(self, cursor: int) -> None:
        """See ``FrameStore.begin_at``."""

    def check_valid(self) -> None:
        """See ``FrameStore.check_valid``."""
        assert 0 <= self._next - self._oldest <= self.frame_capacity, "more frames than room"

    def close(self) -> None:
        """See ``FrameStore.close``."""


class _Target(NamedTuple):
    """The destination and the source of one field's requested frames."""

    out: memoryview
    frame_bytes: int
    # Bytes of one frame of all earlier fields: a block holds field after field.
    bytes_before: int


class _Header(NamedTuple):
    """The int64 header before a block's body in the arena."""

    first: int
    frames: int
    body_bytes: int
    codec: int


class CompressedStore:
    """A store of compressed blocks, which are decoded when their frames are sampled.

    The blocks lie one after another in one arena, each behind a header, in the order of arrival. A
    block that would cross the arena's end goes to its start instead. Nothing can fragment,
    therefore, and the memory is exactly as requested. A table holds the position of each frame's
    block.

    In addition to these arrays, each thread keeps the memory into which it decodes. It is as large
    as the thread's largest block, which is at most ``pdqn.wire.MAX_TRANSITION_BYTES``.

    Args:
        spec: spec of the environment.
        frame_capacity: largest number of frames held.
        memory_bytes: bytes of arena and table together; rounded down to a multiple of 8.
        threads: number of threads that decode at once, including the caller of ``gather``.
    """

    def __init__(
        self, spec: EnvironmentSpec, frame_capacity: int, memory_bytes: int, threads: int
    ) -> None:
        arena_words = (memory_bytes - self.table_bytes(frame_capacity)) // _WORD_BYTES
        if frame_capacity < 1 or threads < 1:
            raise ValueError(f"a store for {frame_capacity} frames with {threads} threads")
        if arena_words <= _HEADER_WORDS:
            raise ValueError(f"{memory_bytes} bytes for a table of {frame_capacity} frames")
        self.frame_capacity = frame_capacity
        self._spec = spec
        self._words = np.empty(arena_words, np.int64)
        self._arena = self._words.view(np.uint8)
        self._block_of = np.empty(frame_capacity, np.int64)
        self._oldest = self._next = 0
        # In the arena: the start of the oldest block, and the end of the newest.
        self._tail = self._head = 0
        self._stored_bytes = 0
        self._decoders = [_Decoder(spec.observation_bytes) for _ in range(threads)]
        # The threads start when they are first needed, and end with the store.
        self._pool = ThreadPoolExecutor(max(1, threads - 1), "decode")

    @staticmethod
    def table_bytes(frame_capacity: int) -> int:
        """Compute the bytes of memory outside the arena."""
        return frame_capacity * _WORD_BYTES

    @property
    def live_frames(self) -> range:
        """See ``FrameStore.live_frames``."""
        return range(self._oldest, self._next)

    @property
    def stored_bytes(self) -> int:
        """See ``FrameStore.stored_bytes``: bytes of blocks with their headers, and of the table."""
        return self._stored_bytes + self.table_bytes(self._next - self._oldest)

    @property
    def allocated_bytes(self) -> int:
        """See ``FrameStore.allocated_bytes``."""
        return self._arena.nbytes + self._block_of.nbytes

    def check_fits(self, blocks: Sequence[FrameBlock]) -> None:
        """See ``FrameStore.check_fits``."""
        self._check_sizes(frames_in(blocks), (len(block.body) for block in blocks))

    def has_room(self, blocks: Sequence[FrameBlock]) -> bool:
        """See ``FrameStore.has_room``."""
        if self._next - self._oldest + frames_in(blocks) > self.frame_capacity:
            return False
        sizes = [len(block.body) for block in blocks]
        if self._oldest == self._next and self._place(sizes) is None:
            self._tail = self._head = 0  # as after the eviction of the last block
        return self._place(sizes) is not None

    def append(self, blocks: Sequence[FrameBlock]) -> int:
        """See ``FrameStore.append``."""
        offsets = self._place([len(block.body) for block in blocks])
        assert offsets is not None
        first = self._next
        if self._oldest == self._next:
            self._tail = offsets[0]
        for block, offset in zip(blocks, offsets, strict=True):
            codec = _CODECS.index(block.codec)
            self._write(offset, block.count, codec, np.frombuffer(block.body, np.uint8))
        return first

    def evict(self, frames: int) -> None:
        """See ``FrameStore.evict``."""
        beyond = self._oldest + frames
        while self._oldest < beyond:
            header = self._header(self._tail)
            self._oldest += header.frames
            self._stored_bytes -= _footprint(header.body_bytes)
            if self._oldest < self._next:
                self._tail = self.place_of(self._oldest)
            else:
                self._tail = self._head = 0
        assert self._oldest == beyond, "a block was evicted in part"

    def gather(self, wanted: Sequence[Wanted]) -> None:
        """See ``FrameStore.gather``: every block is decoded once, for all requests together."""
        jobs = self._jobs(wanted)
        targets = [self._targets(item) for item in wanted]
        workers = min(len(self._decoders), len(jobs))
        # All workers take jobs from one iterator, so they end at about the same time.
        turns = iter(jobs)
        others = [
            self._pool.submit(self._copy_jobs, decoder, turns, targets)
            for decoder in self._decoders[1:workers]
        ]
        self._copy_jobs(self._decoders[0], turns, targets)
        for other in others:
            other.result()

    def blocks(self, first: int, frames: int) -> list[FrameBlock]:
        """See ``FrameStore.blocks``: as they were appended, to the byte."""
        found = []
        for number in self._starts(first, first + frames):
            header = self._header(offset := self.place_of(number))
            body = self._body(offset, header.body_bytes).tobytes()
            codec = _CODECS[header.codec]
            fields = decompress_block(codec, body, header.frames, self._spec)
            found.append(FrameBlock(fields, codec, body))
        return found

    @property
    def cursor(self) -> int:
        """See ``FrameStore.cursor``: an offset in the arena, in bytes."""
        return self._head

    def place_of(self, frame: int) -> int:
        """See ``FrameStore.place_of``."""
        return int(self._block_of[frame % self.frame_capacity])

    def begin_at(self, cursor: int) -> None:
        """See ``FrameStore.begin_at``."""
        assert self._oldest == self._next, "the store is not empty"
        if 0 <= cursor <= self._arena.nbytes and cursor % _WORD_BYTES == 0:
            self._tail = self._head = cursor

    def check_valid(self) -> None:
        """See ``FrameStore.check_valid``."""
        number, stored, spans = self._oldest, 0, []
        for first in self._starts(self._oldest, self._next):
            header = self._header(offset := self.place_of(first))
            assert header.first == number, "a block does not follow the one before it"
            assert header.frames > 0, "a block is empty"
            slots = np.arange(number, number + header.frames) % self.frame_capacity
            assert (self._block_of[slots] == offset).all(), "a frame is in another block"
            end = offset + _footprint(header.body_bytes)
            spans.append((offset, end))
            number, stored = number + header.frames, stored + end - offset
        assert number == self._next <= self._oldest + self.frame_capacity, "frames and table differ"
        assert stored == self._stored_bytes <= self._arena.nbytes, "the stored bytes differ"
        end = spans[-1][1] if spans else self._tail
        assert self._head == end, "the last block ends elsewhere"
        spans.sort()
        overlapping = any(a[1] > b[0] for a, b in pairwise(spans))
        assert not overlapping, "two blocks overlap"

    def close(self) -> None:
        """See ``FrameStore.close``."""
        self._pool.shutdown()

    def _check_sizes(self, frames: int, body_bytes: Sequence[int] | Iterator[int]) -> None:
        _check_frames(frames, self.frame_capacity)
        needed = sum(map(_footprint, body_bytes))
        if needed > self._arena.nbytes:
            raise ValueError(
                f"{needed} bytes do not fit: the store has room for {self._arena.nbytes}"
            )

    def _place(self, body_bytes: Sequence[int]) -> list[int] | None:
        """Return offsets for the headers of such blocks after the newest; None without room."""
        head, offsets = self._head, []
        wrapped = self._oldest < self._next and head <= self._tail
        for size in body_bytes:
            needed = _footprint(size)
            if not wrapped and head + needed > self._arena.nbytes:
                head, wrapped = 0, True
            if head + needed > (self._tail if wrapped else self._arena.nbytes):
                return None
            offsets.append(head)
            head += needed
        return offsets

    def _write(self, offset: int, frames: int, codec: int, body: NDArray[np.uint8]) -> None:
        """Write a block as the newest."""
        header = _Header(self._next, frames, len(body), codec)
        self._words[offset // _WORD_BYTES :][:_HEADER_WORDS] = header
        self._body(offset, len(body))[:] = body
        for start, stop in slot_ranges(self._next, frames, self.frame_capacity):
            self._block_of[start:stop] = offset
        self._next += frames
        self._head = offset + _footprint(len(body))
        self._stored_bytes += _footprint(len(body))

    def _header(self, offset: int) -> _Header:
        return _Header(*self._words[offset // _WORD_BYTES :][:_HEADER_WORDS].tolist())

    def _body(self, offset: int, body_bytes: int) -> NDArray[np.uint8]:
        return self._arena[offset + _HEADER_BYTES :][:body_bytes]

    def _starts(self, first: int, beyond: int) -> Iterator[int]:
        """Yield the first frame of each of the blocks that hold these live frames."""
        while first < beyond:
            yield first
            first += self._header(self.place_of(first)).frames

    def _jobs(self, wanted: Sequence[Wanted]) -> list[list[tuple[int, int, int]]]:
        """List the copies of every requested block: (frame, index of the request, row there)."""
        numbers = np.concatenate([item.numbers.reshape(-1) for item in wanted])
        who = np.repeat(np.arange(len(wanted)), [item.numbers.size for item in wanted])
        rows = np.concatenate([np.arange(item.numbers.size) for item in wanted])
        blocks = self._block_of.take(numbers % self.frame_capacity)
        order = np.argsort(blocks, kind="stable")
        copies = list(zip(*(a[order].tolist() for a in (numbers, who, rows)), strict=True))
        borders = [0, *(np.flatnonzero(np.diff(blocks[order])) + 1).tolist(), len(copies)]
        return [copies[a:b] for a, b in pairwise(borders) if a < b]

    def _targets(self, item: Wanted) -> list[_Target]:
        targets: list[_Target] = []
        bytes_before = 0
        for field in self._spec.fields:
            if field.name in item.out:
                out = item.out[field.name]
                assert out.flags.c_contiguous, "the memory would be that of a copy"
                flat = out.reshape(-1).view(np.uint8).data
                targets.append(_Target(flat, field.stored_bytes, bytes_before))
            bytes_before += field.stored_bytes
        return targets

    def _copy_jobs(
        self,
        decoder: _Decoder,
        turns: Iterator[list[tuple[int, int, int]]],
        targets: Sequence[list[_Target]],
    ) -> None:
        """Copy frames; runs in several threads at once, each with its own decoder."""
        for copies in turns:
            offset = int(self._block_of[copies[0][0] % self.frame_capacity])
            header = self._header(offset)
            raw = decoder.decode(self._body(offset, header.body_bytes).data, header)
            for number, who, row in copies:
                place = number - header.first
                for out, size, bytes_before in targets[who]:
                    start = bytes_before * header.frames + place * size
                    out[row * size : (row + 1) * size] = raw[start : start + size]


class _Decoder:
    """A decoder of one block after another into the same memory."""

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._zstd = zstandard.ZstdDecompressor()
        self._scratch = bytearray()

    def decode(self, body: memoryview, header: _Header) -> memoryview:
        """Decode the bytes of a block, field after field; valid until the next call."""
        if _CODECS[header.codec] == "none":
            return body
        raw_bytes = header.frames * self._frame_bytes
        if len(self._scratch) < raw_bytes:
            self._scratch = bytearray(raw_bytes)
        raw = memoryview(self._scratch)[:raw_bytes]
        # Measured as fast as decompressing into fresh memory, which would grow with the threads.
        with self._zstd.stream_reader(body) as reader:
            if reader.readinto(raw) != raw_bytes:
                raise RuntimeError(f"a stored block is shorter than its {header.frames} frames")
        return raw


def frames_in(blocks: Sequence[FrameBlock]) -> int:
    """Count the frames of all blocks."""
    return sum(block.count for block in blocks)


def slot_ranges(first: int, count: int, capacity: int) -> Iterator[tuple[int, int]]:
    """Yield the slots of the numbers first .. first + count - 1, as one or two (start, stop)."""
    start = first % capacity
    head = min(count, capacity - start)
    yield start, start + head
    if head < count:
        yield 0, count - head


def write_ring(ring: NDArray[Any], first: int, values: NDArray[Any]) -> None:
    """Copy ``values`` into the slots of the numbers first, first + 1, ..."""
    offset = 0
    for start, stop in slot_ranges(first, len(values), len(ring)):
        ring[start:stop] = values[offset : offset + stop - start]
        offset += stop - start


def read_ring(ring: NDArray[Any], first: int, count: int) -> NDArray[Any]:
    """Copy the contents of the slots of the numbers first .. first + count - 1."""
    ranges = slot_ranges(first, count, len(ring))
    return np.concatenate([ring[start:stop] for start, stop in ranges])


def _footprint(body_bytes: int) -> int:
    """Compute a block's bytes in the arena: header and body, up to the next whole word."""
    return _HEADER_BYTES + -(-body_bytes // _WORD_BYTES) * _WORD_BYTES


def _check_frames(frames: int, capacity: int) -> None:
    if frames > capacity:
        raise ValueError(f"{frames} frames do not fit: the store has room for {capacity}")
