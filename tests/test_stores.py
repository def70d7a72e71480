"""Both stores of frames against a plain list, and the mistakes that only one can make."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.wire import FrameBlock, compress_block
from replay import stores
from replay.stores import CompressedStore, DenseStore, FrameStore, Wanted

# The odd number of mask bytes leaves all later fields of a block unaligned.
SPEC = EnvironmentSpec(
    "test/Maps-v0",
    (
        FieldSpec("action_mask", (19,), "int8", binary=True),
        FieldSpec("map", (2, 3), "float32"),
        FieldSpec("steps_left", (), "int64"),
    ),
    num_actions=19,
)
FRAME_BYTES = 3 + 24 + 8
HEADER_BYTES = 32
STORES = ("dense", "compressed")


def frames_of(count: int, seed: int = 0, *, noisy: bool = True) -> Observation:
    rng = np.random.default_rng(seed)
    shape = (count, 2, 3)
    return {
        "action_mask": rng.integers(0, 256, (count, 3), np.uint8),
        "map": (rng.random(shape) if noisy else np.full(shape, seed)).astype(np.float32),
        "steps_left": rng.integers(0, 1000, count, np.int64),
    }


def block_of(count: int, seed: int = 0, *, noisy: bool = True) -> FrameBlock:
    return compress_block(frames_of(count, seed, noisy=noisy), SPEC)


def compressed(frame_capacity: int, arena_bytes: int, threads: int = 1) -> CompressedStore:
    table = CompressedStore.table_bytes(frame_capacity)
    return CompressedStore(SPEC, frame_capacity, table + arena_bytes, threads)


def store_of(kind: str, frame_capacity: int, arena_bytes: int = 1 << 16) -> FrameStore:
    if kind == "dense":
        return DenseStore(SPEC, frame_capacity)
    return compressed(frame_capacity, arena_bytes)


def wanted(numbers: Any) -> Wanted:
    """Return a request for all fields of frames, with memory that holds other values."""
    array = np.array(numbers, np.int64)
    out = {
        field.name: np.full((*array.shape, *field.stored_shape), 77, field.stored_dtype)
        for field in SPEC.fields
    }
    return Wanted(array, out)


def gathered(store: FrameStore, numbers: Any) -> Observation:
    item = wanted(numbers)
    store.gather([item])
    return item.out


def frames(observation: Observation) -> list[dict[str, Any]]:
    """Build one plain map for each frame."""
    names = list(observation)
    columns = [observation[name].tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class StoreAndTwin(RuleBasedStateMachine):
    """A store and a list of all frames ever appended, equal after every operation."""

    @initialize(
        kind=st.sampled_from(STORES),
        frame_capacity=st.integers(1, 24),
        arena_bytes=st.integers(80, 1200),
        threads=st.integers(1, 3),
    )
    def make(self, kind: str, frame_capacity: int, arena_bytes: int, threads: int) -> None:
        self.arguments = (kind, frame_capacity, arena_bytes, threads)
        self.store = self.new_store()
        self.twin: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.live_blocks: list[list[FrameBlock]] = []
        self.oldest = 0

    def new_store(self) -> FrameStore:
        kind, frame_capacity, arena_bytes, threads = self.arguments
        if kind == "dense":
            return DenseStore(SPEC, frame_capacity)
        return compressed(frame_capacity, arena_bytes, threads)

    @rule(
        counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
        seed=st.integers(0, 2**32),
        noisy=st.booleans(),
    )
    def append(self, counts: Sequence[int], seed: int, noisy: bool) -> None:
        blocks = [block_of(c, seed + i, noisy=noisy) for i, c in enumerate(counts)]
        try:
            self.store.check_fits(blocks)
        except ValueError:
            assert not self.store.has_room(blocks)
            return
        while not self.store.has_room(blocks):
            self.evict()
        assert self.store.append(blocks) == len(self.twin)
        for block in blocks:
            self.twin += frames(block.fields)
        self.batches.append(sum(counts))
        self.live_blocks.append(blocks)

    @precondition(lambda self: self.batches)
    @rule()
    def evict(self) -> None:
        evicted = self.batches.pop(0)
        del self.live_blocks[0]
        self.store.evict(evicted)
        self.oldest += evicted

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def gather(self, data: st.DataObject) -> None:
        number = st.integers(self.oldest, len(self.twin) - 1)
        flat = data.draw(st.lists(number, max_size=20))
        stacked = data.draw(st.lists(st.lists(number, min_size=3, max_size=3), max_size=9))
        items = [wanted(flat), wanted(np.reshape(stacked, (-1, 3)))]
        self.store.gather(items)
        assert frames(items[0].out) == [self.twin[n] for n in flat]
        for stack, numbers in zip(range(len(stacked)), stacked, strict=True):
            one = {name: array[stack] for name, array in items[1].out.items()}
            assert frames(one) == [self.twin[n] for n in numbers]

    @rule()
    def begin_another_store_at_the_same_place(self) -> None:
        former, self.store = self.store, self.new_store()
        self.store.begin_at(getattr(former, "_tail", 0))  # where its oldest block lies
        for blocks in self.live_blocks:
            assert self.store.has_room(blocks)
            self.store.append(blocks)
        assert self.store.cursor == former.cursor
        former.close()
        self.twin = self.twin[self.oldest :]
        self.oldest = 0

    @invariant()
    def they_agree(self) -> None:
        self.store.check_valid()
        assert self.store.live_frames == range(self.oldest, len(self.twin))
        assert self.store.stored_bytes <= self.store.allocated_bytes

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


TestStoreAndTwin = StoreAndTwin.TestCase
TestStoreAndTwin.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("kind", STORES)
def test_frames_come_back_as_they_went_in(kind: str):
    store = store_of(kind, 10)
    first, second = frames_of(4, seed=1), frames_of(3, seed=2)
    assert store.append([compress_block(first, SPEC), compress_block(second, SPEC)]) == 0
    assert frames(gathered(store, [3, 4, 0, 4])) == [
        frames(first)[3], frames(second)[0], frames(first)[0], frames(second)[0],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", STORES)
def test_only_the_fields_that_are_wanted_are_copied(kind: str):
    store = store_of(kind, 10)
    block = block_of(4)
    store.append([block])
    out = {"steps_left": np.zeros(2, np.int64)}
    store.gather([Wanted(np.array([3, 1]), out)])
    assert out["steps_left"].tolist() == block.fields["steps_left"][[3, 1]].tolist()


@pytest.mark.parametrize("kind", STORES)
def test_a_store_is_full_when_it_holds_its_most_frames(kind: str):
    store = store_of(kind, 10)
    store.append([block_of(6)])
    assert store.has_room([block_of(3), block_of(1)])
    assert not store.has_room([block_of(3), block_of(2)])
    store.evict(6)
    assert store.has_room([block_of(10)])


@pytest.mark.parametrize("kind", STORES)
def test_blocks_that_never_fit_are_refused(kind: str):
    with pytest.raises(ValueError, match="11 frames do not fit: the store has room for 10"):
        store_of(kind, 10).check_fits([block_of(6), block_of(5)])


def test_a_dense_store_allocates_its_frames_and_stores_the_live_ones():
    store = store_of("dense", 10)
    store.append([block_of(4)])
    store.append([block_of(3)])
    store.evict(4)
    assert store.allocated_bytes == 10 * FRAME_BYTES
    assert store.stored_bytes == 3 * FRAME_BYTES


def footprint(block: FrameBlock) -> int:
    return HEADER_BYTES + -(-len(block.body) // 8) * 8


def test_a_compressed_store_takes_exactly_the_memory_that_it_is_given():
    store = CompressedStore(SPEC, 10, 10 * 8 + 800, 1)
    assert store.allocated_bytes == 880
    block = block_of(4)
    store.append([block])
    assert store.stored_bytes == footprint(block) + 4 * 8


def test_compressed_frames_stay_as_small_as_they_came():
    block = block_of(200, noisy=False)
    assert block.codec == "zstd"
    store = compressed(200, 1 << 16)
    store.append([block])
    assert store.stored_bytes - 200 * 8 == footprint(block) < block.raw_bytes / 3
    assert frames(gathered(store, [199, 0])) == [frames(block.fields)[i] for i in (199, 0)]


def test_a_block_that_would_cross_the_end_of_the_arena_goes_to_its_start():
    blocks = [block_of(3, seed) for seed in range(4)]
    size = footprint(blocks[0])
    store = compressed(100, 3 * size + size // 2)
    store.append(blocks[:3])
    assert not store.has_room(blocks[3:])
    store.evict(3)
    store.append(blocks[3:])
    store.check_valid()
    assert not store.has_room(blocks[:1])
    expected = [row for block in blocks[1:] for row in frames(block.fields)]
    assert frames(gathered(store, range(3, 12))) == expected


def test_the_whole_arena_can_be_used_again_and_again():
    blocks = [block_of(3, seed) for seed in range(4)]
    store = compressed(12, sum(map(footprint, blocks)))
    for _ in range(5):
        store.append(blocks)
        store.check_valid()
        assert store.stored_bytes == store.allocated_bytes
        store.evict(12)
        assert store.stored_bytes == 0


def test_blocks_larger_than_the_arena_are_refused():
    block = block_of(5)
    store = compressed(100, footprint(block) - 8)
    with pytest.raises(ValueError, match=f"{footprint(block)} bytes do not fit"):
        store.check_fits([block])


@pytest.mark.parametrize("cursor", [-8, 4, 1 << 20])
def test_a_cursor_that_a_store_does_not_have_is_ignored(cursor: int):
    store = store_of("compressed", 10)
    store.begin_at(cursor)
    store.append([block_of(4)])
    store.check_valid()
    assert store.cursor == footprint(block_of(4))


def test_blocks_are_evicted_whole():
    store = store_of("compressed", 10)
    store.append([block_of(4)])
    with pytest.raises(AssertionError, match="in part"):
        store.evict(3)


def test_a_block_is_decoded_once_for_all_who_want_frames_of_it(monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    decode = stores._Decoder.decode

    def counted(decoder: stores._Decoder, body: memoryview, header: stores._Header) -> memoryview:
        decoded.append(header.first)
        return decode(decoder, body, header)

    monkeypatch.setattr(stores._Decoder, "decode", counted)
    store = store_of("compressed", 20)
    store.append([block_of(5, 1), block_of(5, 2), block_of(5, 3)])
    store.gather([wanted([0, 4, 0, 11]), wanted([[1, 2, 3], [12, 13, 14]])])
    assert sorted(decoded) == [0, 10]


def test_a_corrupt_block_is_noticed_when_it_is_decoded():
    store = store_of("compressed", 300)
    block = block_of(200, noisy=False)
    store.append([FrameBlock(frames_of(201), block.codec, block.body)])
    with pytest.raises(RuntimeError, match="shorter than its 201 frames"):
        gathered(store, [0])


def decoding_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("decode")]


def used_store_with_threads() -> CompressedStore:
    store = compressed(100, 1 << 16, threads=3)
    blocks = [block_of(4, seed, noisy=False) for seed in range(20)]
    store.append(blocks)
    expected = [row for block in blocks for row in frames(block.fields)]
    assert frames(gathered(store, range(80))) == expected
    assert 1 <= len(decoding_threads()) <= 2
    return store


def test_closing_a_store_ends_its_threads():
    used_store_with_threads().close()
    assert decoding_threads() == []


def test_a_store_that_is_collected_leaves_no_thread(eventually: Callable[..., Any]):
    used_store_with_threads()
    gc.collect()
    eventually(lambda: decoding_threads() == [])


def test_a_single_thread_decodes_in_the_thread_that_asks():
    store = compressed(100, 1 << 16, threads=1)
    store.append([block_of(4, seed) for seed in range(20)])
    gathered(store, range(80))
    assert decoding_threads() == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DenseStore(SPEC, 0), "store for 0 frames"),
        (lambda: compressed(0, 1000), "store for 0 frames"),
        (lambda: compressed(10, 1000, threads=0), "10 frames with 0 threads"),
        (lambda: compressed(10, HEADER_BYTES), "112 bytes for a table of 10 frames"),
        (lambda: CompressedStore(SPEC, 10, 5, 1), "5 bytes for a table of 10 frames"),
    ],
)
def test_a_store_that_cannot_work_is_refused(make: Callable[[], FrameStore], words: str):
    with pytest.raises(ValueError, match=words):
        make()
