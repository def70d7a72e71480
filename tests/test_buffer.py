"""The buffer against a plain list of whole transitions, and its sampling against the paper."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.wire import FrameBlock, compress_block
from replay.buffer import (
    PrioritizedBuffer,
    make_store,
)
from replay.samples import Sample, SampleLayout
from replay.sizes import compressed_bytes, default_frame_capacity, dense_bytes
from replay.stores import CompressedStore, DenseStore, FrameStore

SPEC = EnvironmentSpec(
    "test/Maps-v0",
    (
        FieldSpec("action_mask", (11,), "int8", binary=True),
        FieldSpec("map", (2, 3), "float16"),
        FieldSpec("steps_left", (), "int32"),
    ),
    num_actions=11,
)
FIELDS = tuple(field.name for field in SPEC.fields)
FRAME_BYTES = 2 + 2 * 3 * 2 + 4  # packed mask, float16 map, int32
TRANSITION_BYTES = 4 * 4 + 3 * 8  # int32 and float32 columns, int64 columns
STORES = ("dense", "compressed")


@dataclass
class Batch:
    """The buffer's input from a TransitionBatch, beside the data that it was made from."""

    columns: dict[str, np.ndarray]
    frames: Observation
    starts: list[int]
    """Of every frame, the first frame of its segment."""
    blocks: list[FrameBlock]

    @property
    def frame_count(self) -> int:
        return len(self.starts)


def random_batch(
    transitions: int, segments: list[int], seed: int = 0, stack: int = 1, blocks: int = 1
) -> Batch:
    """Build a batch of segments with these numbers of transitions, over random frames."""
    rng = np.random.default_rng(seed)
    count = sum(segments)
    positions = np.concatenate([np.arange(length) for length in segments])
    frames = {
        "action_mask": rng.integers(0, 256, (count, 2), np.uint8),
        "map": rng.random((count, 2, 3)).astype(np.float16),
        "steps_left": rng.integers(0, 1000, count, np.int32),
    }
    columns = {
        "action": rng.integers(0, 11, transitions, np.int32),
        "n_step_return": rng.normal(size=transitions).astype(np.float32),
        "discount": rng.choice([0, 0.5, 0.970299], transitions).astype(np.float32),
        "priority": rng.choice([0, 0.25, 1, 9], transitions).astype(np.float32),
        "observation_index": rng.integers(0, count, transitions, np.int32),
        "bootstrap_index": rng.integers(0, count, transitions, np.int32),
    }
    if stack > 1:
        columns["history"] = np.minimum(positions, stack - 1).astype(np.uint8)
    cuts = sorted({0, count, *rng.integers(0, count, blocks - 1).tolist()})
    return Batch(
        columns,
        frames,
        (np.arange(count) - positions).tolist(),
        [
            compress_block({name: array[a:b] for name, array in frames.items()}, SPEC)
            for a, b in itertools.pairwise(cuts)
        ],
    )


def footprint(batch: Batch) -> int:
    """Count the bytes of an arena that the batch takes: headers, and bodies in whole words."""
    return sum(32 + -(-len(block.body) // 8) * 8 for block in batch.blocks)


def insert(buffer: PrioritizedBuffer, batch: Batch, parameter_version: int = 0) -> range:
    return buffer.insert(batch.columns, batch.blocks, parameter_version)


def with_priorities(*priorities: float) -> Batch:
    batch = random_batch(len(priorities), [len(priorities)])
    batch.columns["priority"] = np.array(priorities, np.float32)
    return batch


def store_of(kind: str, frame_capacity: int, arena_bytes: int = 1 << 16) -> FrameStore:
    if kind == "dense":
        return DenseStore(SPEC, frame_capacity)
    table = CompressedStore.table_bytes(frame_capacity)
    return CompressedStore(SPEC, frame_capacity, table + arena_bytes, 2)


def buffer_of(
    capacity: int,
    *,
    kind: str = "dense",
    frame_capacity: int = 1000,
    arena_bytes: int = 1 << 16,
    stack: int = 1,
    seed: int = 0,
    **changes: Any,
) -> PrioritizedBuffer:
    return PrioritizedBuffer(
        SPEC.stacked(stack),
        capacity,
        store=store_of(kind, frame_capacity, arena_bytes),
        rng=np.random.default_rng(seed),
        **{"priority_exponent": 0.6, **changes},
    )


def keys_of(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def rows_of(sample: Sample) -> list[dict[str, Any]]:
    """Build one plain map for each sampled transition, without its key and priority."""
    scalars = ("action", "n_step_return", "discount", "parameter_version")
    return [
        {
            **{name: getattr(sample, name)[i].item() for name in scalars},
            **{f"observation.{f}": sample.observation[f][i].tolist() for f in FIELDS},
            **{f"bootstrap.{f}": sample.bootstrap_observation[f][i].tolist() for f in FIELDS},
        }
        for i in range(sample.count)
    ]


class TwinBuffer:
    """A buffer of plain maps in which every transition keeps its own observations.

    It does not know the capacity of a store: the caller says how many of its oldest batches to
    drop.
    """

    def __init__(self, stack: int, next_key: int) -> None:
        self.stack = stack
        self.next_key = next_key
        self.batches: list[tuple[Batch, dict[int, dict[str, Any]]]] = []
        self.priorities: dict[int, float] = {}
        self.expired: set[int] = set()
        self.oldest_version = 0
        self.ignored_evicted = 0
        self.ignored_invalid = 0

    @property
    def transitions(self) -> dict[int, dict[str, Any]]:
        return {key: row for _, rows in self.batches for key, row in rows.items()}

    @property
    def frame_count(self) -> int:
        return sum(batch.frame_count for batch, _ in self.batches)

    def insert(self, batch: Batch, parameter_version: int) -> list[int]:
        rows: dict[int, dict[str, Any]] = {}
        for i in range(len(batch.columns["action"])):
            row: dict[str, Any] = {"parameter_version": parameter_version}
            for name in ("action", "n_step_return", "discount"):
                row[name] = batch.columns[name][i].item()
            for field, end in itertools.product(FIELDS, ("observation", "bootstrap")):
                frame = batch.columns[f"{end}_index"][i].item()
                row[f"{end}.{field}"] = self.stacked(batch, field, frame)
            rows[self.next_key] = row
            self.priorities[self.next_key] = batch.columns["priority"][i].item()
            self.next_key += 1
        self.batches.append((batch, rows))
        return list(rows)

    def stacked(self, batch: Batch, field: str, last: int) -> Any:
        """Stack the last frames, oldest first; the segment's first replaces those before it."""
        frames = batch.frames[field].tolist()
        if self.stack == 1 or field == "action_mask":
            return frames[last]
        first = batch.starts[last]
        return [frames[max(first, last - back)] for back in reversed(range(self.stack))]

    def drop_oldest(self) -> None:
        for key in self.batches.pop(0)[1]:
            del self.priorities[key]
            self.expired.discard(key)

    def expire(self, oldest_version: int) -> int:
        # What has expired stays so, even if a learner goes back to an earlier step.
        self.oldest_version = max(self.oldest_version, oldest_version)
        before = len(self.expired)
        for key, row in self.transitions.items():
            if row["parameter_version"] < oldest_version:
                self.expired.add(key)
        found = len(self.expired) - before
        while self.batches and self.expired.issuperset(self.batches[0][1]):
            self.drop_oldest()
        return found

    def update_priorities(self, updates: list[tuple[int, float]]) -> int:
        applied = 0
        for key, priority in updates:
            valid = 0 <= priority < np.inf
            if key not in self.priorities or (valid and key in self.expired):
                self.ignored_evicted += 1
            elif not valid:
                self.ignored_invalid += 1
            else:
                self.priorities[key] = priority
                applied += 1
        return applied


odd_priorities = st.sampled_from([0.0, 0.5, 2.0, 3e38, -1.0, np.nan, np.inf, -np.inf])


class BufferAndTwin(RuleBasedStateMachine):
    """A buffer and its twin hold and yield the same after every operation."""

    @initialize(
        kind=st.sampled_from(STORES),
        capacity=st.integers(1, 24),
        frame_capacity=st.integers(1, 40),
        arena_bytes=st.integers(80, 1500),
        stack=st.integers(1, 4),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        first_key=st.sampled_from([0, 5, 10**12]),
    )
    def make(
        self,
        kind: str,
        capacity: int,
        frame_capacity: int,
        arena_bytes: int,
        stack: int,
        alpha: float,
        first_key: int,
    ) -> None:
        self.arguments = {
            "kind": kind,
            "frame_capacity": frame_capacity,
            "arena_bytes": arena_bytes,
            "stack": stack,
            "priority_exponent": alpha,
        }
        self.buffer = buffer_of(capacity, first_key=first_key, **self.arguments)
        self.twin = TwinBuffer(stack, first_key)

    @rule(
        transitions=st.integers(1, 10),
        segments=st.lists(st.integers(1, 6), min_size=1, max_size=3),
        blocks=st.integers(1, 3),
        seed=st.integers(0, 2**32),
        parameter_version=st.sampled_from([0, 1, 2, 3, 2**40]),
    )
    def insert(
        self,
        transitions: int,
        segments: list[int],
        blocks: int,
        seed: int,
        parameter_version: int,
    ) -> None:
        batch = random_batch(transitions, segments, seed, self.twin.stack, blocks)
        if not self.fits(batch):
            live = self.buffer.live_keys
            with pytest.raises(ValueError, match="do not fit"):
                insert(self.buffer, batch, parameter_version)
            assert self.buffer.live_keys == live
            return
        keys = insert(self.buffer, batch, parameter_version)
        assert list(keys) == self.twin.insert(batch, parameter_version)
        while self.overfull():
            self.twin.drop_oldest()
        # Only an arena may have room for less than that.
        while (
            self.arguments["kind"] == "compressed" and len(self.twin.priorities) > self.buffer.size
        ):
            self.twin.drop_oldest()

    def fits(self, batch: Batch) -> bool:
        return (
            len(batch.columns["action"]) <= self.buffer.capacity
            and batch.frame_count <= self.arguments["frame_capacity"]
            and (
                self.arguments["kind"] == "dense"
                or footprint(batch) <= self.arguments["arena_bytes"] // 8 * 8
            )
        )

    def overfull(self) -> bool:
        return (
            len(self.twin.priorities) > self.buffer.capacity
            or self.twin.frame_count > self.arguments["frame_capacity"]
        )

    @rule(batch_size=st.integers(1, 40))
    def sample(self, batch_size: int) -> None:
        if self.buffer.size == 0:
            with pytest.raises(ValueError, match="empty buffer"):
                self.buffer.sample(batch_size)
            return
        sample = self.buffer.sample(batch_size)
        keys = sample.keys.tolist()
        assert len(keys) == batch_size
        transitions = self.twin.transitions
        assert rows_of(sample) == [transitions[key] for key in keys]
        assert self.twin.expired.isdisjoint(keys)
        alpha = self.arguments["priority_exponent"]
        expected = [max(self.twin.priorities[key], 1e-6) ** alpha for key in keys]
        np.testing.assert_allclose(sample.sampling_priority, expected, rtol=1e-12)
        sample.observation["map"].fill(77)  # the caller may change its sample as it likes

    @rule(updates=st.lists(st.tuples(st.integers(-40, 40), odd_priorities), max_size=12))
    def update_priorities(self, updates: list[tuple[int, float]]) -> None:
        updates = [
            (offset + self.buffer.live_keys.stop, floats(priority).item())
            for offset, priority in updates
        ]
        keys = keys_of(*(key for key, _ in updates))
        priorities = floats(*(priority for _, priority in updates))
        applied = self.buffer.update_priorities(keys, priorities)
        assert applied == self.twin.update_priorities(updates)

    @rule(oldest_version=st.integers(1, 3))
    def expire(self, oldest_version: int) -> None:
        expired = self.buffer.expire(oldest_version)
        assert expired == self.twin.expire(oldest_version)
        young = [p for key, p in self.twin.priorities.items() if key not in self.twin.expired]
        alpha = self.arguments["priority_exponent"]
        scaled = [max(priority, 1e-6) ** alpha for priority in young]
        expected = pytest.approx(np.mean(scaled), rel=1e-9) if scaled else None
        assert self.buffer.mean_priority == expected

    @rule(more=st.integers(0, 5))
    def continue_in_another_buffer(self, more: int) -> None:
        self.expire(self.twin.oldest_version)
        former = self.buffer
        self.buffer = buffer_of(former.capacity + more, seed=1, **self.arguments)
        self.buffer.begin_at(former.evicted, getattr(former.store, "_tail", 0))
        for batch, rows in self.twin.batches:
            insert(self.buffer, batch, next(iter(rows.values()))["parameter_version"])
        self.buffer.set_priorities(former.evicted, former.priorities())
        self.buffer.expire(self.twin.oldest_version)
        assert self.buffer.total_priority == pytest.approx(former.total_priority, rel=1e-12)
        former.close()
        self.twin.ignored_evicted = self.twin.ignored_invalid = 0

    @invariant()
    def they_agree(self) -> None:
        self.buffer.check_valid()
        assert list(self.buffer.live_keys) == list(self.twin.transitions)
        assert self.buffer.priorities().tolist() == list(self.twin.priorities.values())
        assert self.buffer.inserted == self.twin.next_key
        assert self.buffer.evicted == self.twin.next_key - self.buffer.size
        assert self.buffer.frame_count == self.twin.frame_count
        assert self.buffer.ignored_evicted == self.twin.ignored_evicted
        assert self.buffer.ignored_invalid == self.twin.ignored_invalid

    def teardown(self) -> None:
        if hasattr(self, "buffer"):
            self.buffer.close()


TestBufferAndTwin = BufferAndTwin.TestCase
TestBufferAndTwin.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("kind", STORES)
def test_stacks_are_put_together_from_single_frames(kind: str):
    # Segments of 5 frames and of 2: frame 5 replaces the missing ones before 5 and 6.
    buffer = buffer_of(7, kind=kind, stack=4)
    batch = random_batch(7, [5, 2], stack=4)
    batch.columns["observation_index"] = np.arange(7, dtype=np.int32)
    batch.columns["bootstrap_index"] = np.arange(7, dtype=np.int32)[::-1]
    insert(buffer, batch)
    buffer.update_priorities(keys_of(*range(7)), np.ones(7, np.float32))
    sample = buffer.sample(7)
    assert sample.keys.tolist() == [0, 1, 2, 3, 4, 5, 6]
    stacks = [
        [0, 0, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 1, 2],
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [5, 5, 5, 5],
        [5, 5, 5, 6],
    ]
    for field in ("map", "steps_left"):
        expected = batch.frames[field][np.array(stacks)]
        np.testing.assert_array_equal(sample.observation[field], expected)
        np.testing.assert_array_equal(sample.bootstrap_observation[field], expected[::-1])
    np.testing.assert_array_equal(sample.observation["action_mask"], batch.frames["action_mask"])


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_transitions_are_sampled_in_proportion_to_their_scaled_priority(exponent: float, kind: str):
    priorities = (1, 2, 3, 4, 9, 16, 25, 100)
    buffer = buffer_of(8, kind=kind, priority_exponent=exponent)
    insert(buffer, with_priorities(*priorities))
    # One draw at a time: the draws of a stratified batch are not independent.
    counts = Counter(int(buffer.sample(1).keys[0]) for _ in range(4000))
    scaled = np.array(priorities, float) ** exponent
    expected = 4000 * scaled / scaled.sum()
    chi_squared = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in range(8))
    assert chi_squared < 24.3  # exceeded with probability 0.001, 7 degrees of freedom


def test_the_total_is_the_sum_of_all_scaled_priorities():
    buffer = buffer_of(3, priority_exponent=0.5)
    assert buffer.total_priority == 0
    insert(buffer, with_priorities(4, 9))
    assert buffer.total_priority == 5
    insert(buffer, with_priorities(16, 25))
    assert buffer.total_priority == 9
    assert Counter(buffer.sample(9).sampling_priority.tolist()) == {4: 4, 5: 5}


def test_uniform_sampling_gives_every_transition_the_same_priority():
    buffer = buffer_of(100, priority_exponent=0)
    insert(buffer, with_priorities(0, 1, 50, 3e38))
    assert buffer.total_priority == 4
    assert buffer.sample(8).sampling_priority.tolist() == [1] * 8


def test_a_stratified_batch_takes_one_transition_of_every_equal_piece():
    buffer = buffer_of(100, priority_exponent=0)
    insert(buffer, random_batch(100, [1]))
    assert buffer.sample(100).keys.tolist() == list(range(100))


def test_each_of_several_batches_takes_one_transition_of_every_equal_piece_of_its_own_size():
    buffer = buffer_of(64)
    insert(buffer, random_batch(64, [64]))
    buffer.update_priorities(keys_of(*range(64)), np.ones(64, np.float32))
    layout = SampleLayout(SPEC, 32)
    sample = layout.view(bytearray(layout.nbytes))
    buffer.sample_into(sample, batches=4)
    for start in range(0, 32, 8):
        batch = sample.rows(start, start + 8)
        assert (batch.keys // 8).tolist() == list(range(8))


def test_updated_priorities_change_what_is_sampled():
    buffer = buffer_of(4, priority_exponent=1)
    insert(buffer, with_priorities(1, 1, 1, 1))
    buffer.update_priorities(keys_of(0, 1, 2, 3), floats(0, 0, 1, 0))
    assert set(buffer.sample(1000).keys.tolist()) == {2}
    buffer.update_priorities(keys_of(1), floats(3))
    counts = Counter(buffer.sample(1000).keys.tolist())
    assert counts[1] == pytest.approx(750, abs=2)
    assert counts[2] == pytest.approx(250, abs=2)


def test_a_transition_of_zero_priority_is_still_sampled_as_one_of_the_minimum():
    buffer = buffer_of(2, priority_exponent=1, minimum_priority=0.25)
    insert(buffer, with_priorities(0, 0.75))
    counts = Counter(buffer.sample(1000).keys.tolist())
    assert counts[0] == pytest.approx(250, abs=2)


def test_an_update_that_comes_after_eviction_does_not_hit_the_slots_new_owner():
    buffer = buffer_of(4)
    first = insert(buffer, with_priorities(1, 1, 1, 1))
    second = insert(buffer, with_priorities(2, 2, 2, 2))
    assert buffer.update_priorities(keys_of(*first), floats(9, 9, 9, 9)) == 0
    assert buffer.ignored_evicted == 4
    assert buffer.live_keys == second
    assert buffer.priorities().tolist() == [2, 2, 2, 2]


def test_of_several_updates_of_one_key_the_last_valid_one_stays():
    buffer = buffer_of(4)
    insert(buffer, with_priorities(1, 1))
    applied = buffer.update_priorities(keys_of(0, 1, 0, 0), floats(5, 6, 7, np.nan))
    assert applied == 3
    assert buffer.priorities().tolist() == [7, 6]
    assert buffer.ignored_invalid == 1


def test_updates_must_have_as_many_priorities_as_keys():
    with pytest.raises(ValueError, match="priorities for"):
        buffer_of(4).update_priorities(keys_of(0, 1), floats(1))


@pytest.mark.parametrize("kind", STORES)
def test_batches_are_evicted_whole(kind: str):
    buffer = buffer_of(10, kind=kind)
    for transitions in (4, 4, 3):
        insert(buffer, random_batch(transitions, [2], seed=transitions))
    assert buffer.live_keys == range(4, 11)
    assert buffer.frame_count == 4
    assert buffer.evicted == 4


@pytest.mark.parametrize("kind", STORES)
def test_when_frames_run_out_first_the_oldest_batches_are_evicted_just_the_same(kind: str):
    buffer = buffer_of(1000, kind=kind, frame_capacity=10)
    for _ in range(3):
        insert(buffer, random_batch(2, [4]))
    assert buffer.live_keys == range(2, 6)
    assert buffer.frame_count == 8


def test_when_the_arena_is_full_the_oldest_batches_are_evicted_just_the_same():
    batch = random_batch(2, [4])
    buffer = buffer_of(1000, kind="compressed", arena_bytes=2 * footprint(batch) + 40)
    for _ in range(3):
        insert(buffer, batch)
    assert buffer.live_keys == range(2, 6)


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize(("transitions", "frames"), [(5, 3), (3, 9), (4, 1)])
def test_a_batch_as_large_as_the_buffer_replaces_all_of_it(
    transitions: int, frames: int, kind: str
):
    buffer = buffer_of(5, kind=kind, frame_capacity=9)
    insert(buffer, random_batch(3, [3], seed=1))
    keys = insert(buffer, random_batch(transitions, [frames], seed=2))
    assert buffer.live_keys == keys


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize(
    ("transitions", "frames", "words"),
    [
        (6, 3, "6 transitions do not fit: the buffer has room for 5"),
        (3, 10, "10 frames do not fit: the store has room for 9"),
        (0, 3, "not a TransitionBatch"),
    ],
)
def test_a_batch_that_cannot_be_stored_is_refused_and_evicts_nothing(
    transitions: int, frames: int, words: str, kind: str
):
    buffer = buffer_of(5, kind=kind, frame_capacity=9)
    insert(buffer, random_batch(5, [9], seed=1))
    with pytest.raises(ValueError, match=words):
        insert(buffer, random_batch(transitions, [frames], seed=2))
    assert buffer.live_keys == range(5)


@pytest.mark.parametrize("kind", STORES)
def test_read_only_columns_and_memory_that_is_used_again_are_accepted(kind: str):
    batch = random_batch(3, [3], stack=2)
    for column in batch.columns.values():
        column.flags.writeable = False
    buffer = buffer_of(5, kind=kind, stack=2)
    insert(buffer, batch)
    before = rows_of(buffer.sample(5))
    for array in (*batch.columns.values(), *batch.frames.values()):
        array.flags.writeable = True
        array.fill(0)
    buffer.check_valid()
    assert all(row in before for row in rows_of(buffer.sample(5)))


@pytest.mark.parametrize("stack", [1, 3])
def test_samples_have_the_documented_shapes_and_dtypes(stack: int):
    buffer = buffer_of(8, stack=stack)
    insert(buffer, random_batch(5, [6], stack=stack), 2**40)
    sample = buffer.sample(7)
    stacked = () if stack == 1 else (stack,)
    for observation in (sample.observation, sample.bootstrap_observation):
        assert {name: (a.dtype.name, a.shape) for name, a in observation.items()} == {
            "action_mask": ("uint8", (7, 2)),
            "map": ("float16", (7, *stacked, 2, 3)),
            "steps_left": ("int32", (7, *stacked)),
        }
    dtypes = {
        "keys": np.int64,
        "action": np.int32,
        "n_step_return": np.float32,
        "discount": np.float32,
        "sampling_priority": np.float64,
        "parameter_version": np.int64,
    }
    for name, dtype in dtypes.items():
        assert getattr(sample, name).dtype == dtype
        assert getattr(sample, name).shape == (7,)
    assert set(sample.parameter_version.tolist()) == {2**40}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("stack", [1, 3])
def test_rows_of_a_larger_sample_are_filled_and_no_others(kind: str, stack: int):
    spec = SPEC.stacked(stack)
    buffer, same = (buffer_of(50, kind=kind, stack=stack, seed=3) for _ in range(2))
    for side in (buffer, same):
        insert(side, random_batch(20, [9, 13], stack=stack))
    layout = SampleLayout(spec, 10)
    slab = np.full(layout.nbytes, 77, np.uint8)
    whole = layout.view(slab)
    buffer.sample_into(whole.rows(3, 8))
    assert rows_of(whole.rows(3, 8)) == rows_of(same.sample(5))
    untouched = rows_of(layout.view(np.full(layout.nbytes, 77, np.uint8)).rows(0, 3))
    assert rows_of(whole.rows(0, 3)) == untouched


@pytest.mark.parametrize("kind", STORES)
def test_a_buffer_that_continues_another_one_gives_the_same_samples(kind: str):
    buffer, copy = (buffer_of(50, kind=kind, stack=2, seed=3) for _ in range(2))
    for seed in range(9):
        insert(buffer, random_batch(8, [4, 5], seed, stack=2), parameter_version=seed)
    updated = keys_of(*range(30, 60))
    buffer.update_priorities(updated, updated.astype(np.float32))
    assert buffer.live_keys == range(24, 72)
    copy.begin_at(16, 0)  # its oldest batch is evicted again
    for seed in range(2, 9):
        insert(copy, random_batch(8, [4, 5], seed, stack=2), parameter_version=seed)
    copy.set_priorities(24, buffer.priorities())
    assert copy.total_priority == buffer.total_priority
    for seed in range(9, 15):
        a, b = buffer.sample(16), copy.sample(16)
        np.testing.assert_array_equal(a.keys, b.keys)
        np.testing.assert_array_equal(a.sampling_priority, b.sampling_priority)
        assert rows_of(a) == rows_of(b)
        for side in (buffer, copy):
            side.update_priorities(a.keys, a.discount + seed)
            insert(side, random_batch(5, [5], seed, stack=2), seed)


def test_the_priorities_that_a_buffer_returns_are_a_copy():
    buffer = buffer_of(50)
    insert(buffer, with_priorities(1, 2, 3))
    buffer.priorities().fill(77)
    assert buffer.priorities().tolist() == [1, 2, 3]


def test_priorities_of_keys_that_are_not_alive_are_skipped():
    buffer = buffer_of(4)
    for _ in range(3):
        insert(buffer, with_priorities(1, 1))
    buffer.set_priorities(0, floats(*range(10, 30)))  # 2 to 5 are alive
    assert buffer.priorities().tolist() == [12, 13, 14, 15]
    buffer.check_valid()


@pytest.mark.parametrize("kind", STORES)
def test_only_an_empty_buffer_continues_another_one(kind: str):
    buffer = buffer_of(4, kind=kind)
    buffer.begin_at(123, 64)
    assert insert(buffer, random_batch(2, [2])) == range(123, 125)
    buffer.check_valid()
    with pytest.raises(ValueError, match="the buffer holds 2 transitions"):
        buffer.begin_at(200, 0)


@pytest.mark.parametrize(
    "changes",
    [{"capacity": 0}, {"priority_exponent": -1}, {"minimum_priority": 0}, {"first_key": -1}],
)
def test_a_buffer_that_cannot_work_is_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"buffer for|negative|must be positive"):
        buffer_of(**{"capacity": 4, **changes})


def made_buffer(
    kind: Any, capacity: int, stack: int, memory_bytes: int | None
) -> PrioritizedBuffer:
    spec = SPEC.stacked(stack)
    store = make_store(kind, spec, capacity, memory_bytes, 1)
    rng = np.random.default_rng(0)
    return PrioritizedBuffer(spec, capacity, store=store, priority_exponent=0.6, rng=rng)


@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("capacity", [1, 100, 1025])
def test_the_bytes_planned_are_the_bytes_allocated(capacity: int, stack: int):
    spec = SPEC.stacked(stack)
    dense = made_buffer("dense", capacity, stack, None)
    assert dense.allocated_bytes == dense_bytes(spec, capacity)
    planned = compressed_bytes(spec, capacity, 41.3)
    compressed = made_buffer("compressed", capacity, stack, planned)
    assert compressed.allocated_bytes == planned


def test_a_buffer_of_the_bytes_planned_holds_as_many_transitions():
    batch = random_batch(10, [10])
    buffer = made_buffer("compressed", 200, 1, compressed_bytes(SPEC, 200, footprint(batch) / 10))
    for _ in range(50):
        insert(buffer, batch)
    assert buffer.size == 200


def test_memory_that_the_columns_alone_take_is_refused():
    spec = SPEC.stacked(4)
    least = compressed_bytes(spec, 1000, 0)
    with pytest.raises(
        UsageError, match=rf"replay\.memory is {least} bytes.* replay\.capacity 1000 "
    ):
        make_store("compressed", spec, 1000, least, 1)
    make_store("compressed", spec, 1000, least + 64, 1).close()


def test_a_compressed_store_without_memory_is_refused():
    with pytest.raises(UsageError, match=r"replay\.memory is not set"):
        make_store("compressed", SPEC, 1000, None, 1)


@pytest.mark.parametrize("stack", [1, 3])
def test_the_bytes_stored_are_those_of_live_frames_and_transitions(stack: int):
    buffer = buffer_of(10, stack=stack)
    assert buffer.stored_bytes == 0
    insert(buffer, random_batch(5, [7], stack=stack))
    history = 7 if stack > 1 else 0
    assert buffer.stored_bytes == 7 * FRAME_BYTES + 5 * TRANSITION_BYTES + history


def test_a_made_store_has_room_for_the_last_and_first_frames_of_segments():
    assert default_frame_capacity(100) == 100 + 25 + 64 + 32
    buffer = made_buffer("dense", 100, 4, None)
    for _ in range(10):
        insert(buffer, random_batch(12, [12 + 3 + 3], stack=4))
    assert buffer.size == 96


def test_check_valid_sees_a_damaged_buffer():
    buffer = buffer_of(10, stack=3)
    insert(buffer, random_batch(5, [7], stack=3))
    buffer._rows["bootstrap_frame"][2] = 7
    with pytest.raises(AssertionError, match="bootstrap_frame lies after its batch"):
        buffer.check_valid()
    buffer._rows["bootstrap_frame"][2] = 0
    buffer._history[1] = 2
    with pytest.raises(AssertionError, match="a stack is cut off"):
        buffer.check_valid()
    buffer._history[1] = 1
    buffer._rows["priority"][2] += 1
    with pytest.raises(AssertionError, match="other priorities"):
        buffer.check_valid()


@pytest.mark.parametrize("kind", STORES)
def test_complete_returns_are_sampled_without_a_second_frame(kind: str):
    batch = random_batch(6, [6])
    batch.columns["discount"][:] = 0.0
    layout = SampleLayout(SPEC, 4)
    samples = []
    for complete in (True, False):
        buffer = buffer_of(100, kind=kind, complete_returns=complete)
        insert(buffer, batch)
        samples.append(layout.view(bytearray(layout.nbytes)))
        buffer.sample_into(samples[-1])
        buffer.close()
    without, both = samples
    np.testing.assert_array_equal(without.keys, both.keys)
    for name in FIELDS:
        np.testing.assert_array_equal(without.observation[name], both.observation[name])
        assert not without.bootstrap_observation[name].any()
    assert both.bootstrap_observation["map"].any()
