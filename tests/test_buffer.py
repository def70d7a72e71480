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

from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.buffer import (
    PrioritizedBuffer,
    Sample,
    bytes_needed,
    default_frame_capacity,
)

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


def random_columns(transitions: int, frames: int, seed: int) -> dict[str, np.ndarray]:
    """The columns of a TransitionBatch; which frames its transitions share is random."""
    rng = np.random.default_rng(seed)
    return {
        "observation.action_mask": rng.integers(0, 256, (frames, 2), np.uint8),
        "observation.map": rng.random((frames, 2, 3)).astype(np.float16),
        "observation.steps_left": rng.integers(0, 1000, frames, np.int32),
        "action": rng.integers(0, 11, transitions, np.int32),
        "n_step_return": rng.normal(size=transitions).astype(np.float32),
        "discount": rng.choice([0, 0.5, 0.970299], transitions).astype(np.float32),
        "priority": rng.choice([0, 0.25, 1, 9], transitions).astype(np.float32),
        "observation_index": rng.integers(0, frames, transitions, np.int32),
        "bootstrap_index": rng.integers(0, frames, transitions, np.int32),
    }


def with_priorities(*priorities: float) -> dict[str, np.ndarray]:
    columns = random_columns(len(priorities), len(priorities), seed=0)
    columns["priority"] = np.array(priorities, np.float32)
    return columns


def buffer_of(capacity: int, seed: int = 0, **changes: Any) -> PrioritizedBuffer:
    arguments = {"priority_exponent": 0.6, "importance_sampling_exponent": 0.4, **changes}
    return PrioritizedBuffer(SPEC, capacity, rng=np.random.default_rng(seed), **arguments)


def keys_of(*keys: int) -> np.ndarray:
    return np.array(keys, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def rows_of(sample: Sample) -> list[dict[str, Any]]:
    """One plain map for each sampled transition, without its key and importance weight."""
    scalars = ("action", "n_step_return", "discount", "parameter_version")
    return [
        {
            **{name: getattr(sample, name)[i].item() for name in scalars},
            **{f"observation.{f}": sample.observation[f][i].tolist() for f in FIELDS},
            **{f"bootstrap.{f}": sample.bootstrap_observation[f][i].tolist() for f in FIELDS},
        }
        for i in range(len(sample.keys))
    ]


@dataclass
class TwinSegment:
    frames: int
    transitions: dict[int, dict[str, Any]]


class TwinBuffer:
    """A buffer that keeps every transition whole, with observations of its own, in plain maps."""

    def __init__(self, capacity: int, frame_capacity: int, next_key: int) -> None:
        self.capacity = capacity
        self.frame_capacity = frame_capacity
        self.next_key = next_key
        self.segments: list[TwinSegment] = []
        self.priorities: dict[int, float] = {}
        self.ignored_evicted = 0
        self.ignored_invalid = 0

    @property
    def transitions(self) -> dict[int, dict[str, Any]]:
        return {k: row for segment in self.segments for k, row in segment.transitions.items()}

    @property
    def frame_count(self) -> int:
        return sum(segment.frames for segment in self.segments)

    def insert(self, columns: dict[str, np.ndarray], parameter_version: int) -> list[int]:
        segment = TwinSegment(len(columns["observation.map"]), {})
        for i in range(len(columns["action"])):
            row: dict[str, Any] = {"parameter_version": parameter_version}
            for name in ("action", "n_step_return", "discount"):
                row[name] = columns[name][i].item()
            for field, end in itertools.product(FIELDS, ("observation", "bootstrap")):
                frame = columns[f"{end}_index"][i]
                row[f"{end}.{field}"] = columns[f"observation.{field}"][frame].tolist()
            segment.transitions[self.next_key] = row
            self.priorities[self.next_key] = columns["priority"][i].item()
            self.next_key += 1
        self.segments.append(segment)
        while len(self.transitions) > self.capacity or self.frame_count > self.frame_capacity:
            for key in self.segments.pop(0).transitions:
                del self.priorities[key]
        return list(segment.transitions)

    def update_priorities(self, updates: list[tuple[int, float]]) -> int:
        applied = 0
        for key, priority in updates:
            if key not in self.priorities:
                self.ignored_evicted += 1
            elif not 0 <= priority < np.inf:
                self.ignored_invalid += 1
            else:
                self.priorities[key] = priority
                applied += 1
        return applied

    def importance_weights(self, keys: list[int], alpha: float, beta: float) -> list[float]:
        """Equation by equation, Schaul et al. 2016, sections 3.3 and 3.4."""
        scaled = {key: max(p, 1e-6) ** alpha for key, p in self.priorities.items()}
        probabilities = {key: p / sum(scaled.values()) for key, p in scaled.items()}
        weights = [(len(scaled) * probabilities[key]) ** -beta for key in keys]
        return [weight / max(weights) for weight in weights]


odd_priorities = st.sampled_from([0.0, 0.5, 2.0, 3e38, -1.0, np.nan, np.inf, -np.inf])


class BufferAndTwin(RuleBasedStateMachine):
    """Whatever is done to both, they hold and yield the same."""

    @initialize(
        capacity=st.integers(1, 24),
        frame_capacity=st.integers(1, 32),
        alpha=st.sampled_from([0.0, 0.6, 1.0]),
        first_key=st.sampled_from([0, 5, 10**12]),
    )
    def make(self, capacity: int, frame_capacity: int, alpha: float, first_key: int) -> None:
        self.arguments = {"frame_capacity": frame_capacity, "priority_exponent": alpha}
        self.buffer = buffer_of(capacity, first_key=first_key, **self.arguments)
        self.twin = TwinBuffer(capacity, frame_capacity, first_key)
        self.alpha = alpha

    @rule(
        transitions=st.integers(1, 10),
        frames=st.integers(1, 12),
        seed=st.integers(0, 2**32),
        parameter_version=st.integers(0, 2**40),
    )
    def insert(self, transitions: int, frames: int, seed: int, parameter_version: int) -> None:
        columns = random_columns(transitions, frames, seed)
        if transitions > self.twin.capacity or frames > self.twin.frame_capacity:
            with pytest.raises(ValueError, match="does not fit"):
                self.buffer.insert(columns, parameter_version)
            return
        keys = self.buffer.insert(columns, parameter_version)
        assert list(keys) == self.twin.insert(columns, parameter_version)
        for column in columns.values():
            column.fill(77)  # the caller may use its arrays again

    @rule(batch_size=st.integers(1, 40))
    def sample(self, batch_size: int) -> None:
        if self.buffer.size == 0:
            with pytest.raises(ValueError, match="empty buffer"):
                self.buffer.sample(batch_size)
            return
        sample = self.buffer.sample(batch_size)
        keys = sample.keys.tolist()
        assert len(keys) == batch_size
        assert rows_of(sample) == [self.twin.transitions[key] for key in keys]
        expected = self.twin.importance_weights(keys, self.alpha, 0.4)
        np.testing.assert_allclose(sample.importance_weight, expected, rtol=1e-5)
        sample.observation["map"].fill(77)  # so may the one who sampled

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

    @rule(more=st.integers(0, 5), used=st.integers(0, 30))
    def restore_the_state_into_another_buffer(self, more: int, used: int) -> None:
        state = self.buffer.get_state()
        self.twin.capacity += more
        self.buffer = buffer_of(self.twin.capacity, seed=1, **self.arguments)
        for seed in range(used):
            self.buffer.insert(random_columns(1, 1, seed), 0)
        self.buffer.set_state(state)

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


TestBufferAndTwin = BufferAndTwin.TestCase
TestBufferAndTwin.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_transitions_are_sampled_in_proportion_to_their_scaled_priority(exponent: float):
    priorities = (1, 2, 3, 4, 9, 16, 25, 100)
    buffer = buffer_of(8, priority_exponent=exponent)
    buffer.insert(with_priorities(*priorities), 0)
    # One at a time: within a stratified batch the draws would not be independent.
    counts = Counter(int(buffer.sample(1).keys[0]) for _ in range(4000))
    scaled = np.array(priorities, float) ** exponent
    expected = 4000 * scaled / scaled.sum()
    chi_squared = sum((counts[key] - expected[key]) ** 2 / expected[key] for key in range(8))
    assert chi_squared < 24.3  # exceeded with probability 0.001, 7 degrees of freedom


def test_a_stratified_batch_takes_one_transition_of_every_equal_piece():
    buffer = buffer_of(100, priority_exponent=0)
    buffer.insert(random_columns(100, 1, seed=0), 0)
    assert buffer.sample(100).keys.tolist() == list(range(100))


def test_updated_priorities_change_what_is_sampled():
    buffer = buffer_of(4, priority_exponent=1)
    buffer.insert(with_priorities(1, 1, 1, 1), 0)
    buffer.update_priorities(keys_of(0, 1, 2, 3), floats(0, 0, 1, 0))
    assert set(buffer.sample(1000).keys.tolist()) == {2}
    buffer.update_priorities(keys_of(1), floats(3))
    counts = Counter(buffer.sample(1000).keys.tolist())
    assert counts[1] == pytest.approx(750, abs=2)
    assert counts[2] == pytest.approx(250, abs=2)


def test_a_transition_of_zero_priority_is_still_sampled_as_one_of_the_minimum():
    buffer = buffer_of(2, priority_exponent=1, minimum_priority=0.25)
    buffer.insert(with_priorities(0, 0.75), 0)
    counts = Counter(buffer.sample(1000).keys.tolist())
    assert counts[0] == pytest.approx(250, abs=2)


def test_importance_weights_are_those_computed_by_hand():
    # N = 2, P = 1/5 and 4/5: (2/5)^-0.5 = 1.581 and (8/5)^-0.5 = 0.791, over the larger one.
    buffer = buffer_of(2, priority_exponent=1, importance_sampling_exponent=0.5)
    buffer.insert(with_priorities(1, 4), 0)
    sample = buffer.sample(10)
    assert sample.keys.tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert sample.importance_weight.tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert sample.importance_weight.dtype == np.float32


def test_full_correction_weighs_by_the_inverse_of_the_probability():
    # With both exponents 1: priorities 1, 2, 4 give weights 1, 1/2, 1/4.
    buffer = buffer_of(3, priority_exponent=1, importance_sampling_exponent=1)
    buffer.insert(with_priorities(1, 2, 4), 0)
    sample = buffer.sample(7)
    assert sample.importance_weight.tolist() == [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_without_correction_all_importance_weights_are_one():
    buffer = buffer_of(3, importance_sampling_exponent=0)
    buffer.insert(with_priorities(0, 1, 100), 0)
    assert set(buffer.sample(50).importance_weight.tolist()) == {1}


def test_an_update_that_comes_after_eviction_does_not_hit_the_slots_new_owner():
    buffer = buffer_of(4)
    first = buffer.insert(with_priorities(1, 1, 1, 1), 0)
    second = buffer.insert(with_priorities(2, 2, 2, 2), 0)
    assert buffer.update_priorities(keys_of(*first), floats(9, 9, 9, 9)) == 0
    assert buffer.ignored_evicted == 4
    assert buffer.live_keys == second
    assert buffer.priorities().tolist() == [2, 2, 2, 2]


def test_of_several_updates_of_one_key_the_last_valid_one_stays():
    buffer = buffer_of(4)
    buffer.insert(with_priorities(1, 1), 0)
    applied = buffer.update_priorities(keys_of(0, 1, 0, 0), floats(5, 6, 7, np.nan))
    assert applied == 3
    assert buffer.priorities().tolist() == [7, 6]
    assert buffer.ignored_invalid == 1


def test_updates_must_have_as_many_priorities_as_keys():
    with pytest.raises(ValueError, match="priorities for"):
        buffer_of(4).update_priorities(keys_of(0, 1), floats(1))


def test_segments_are_evicted_whole():
    buffer = buffer_of(10)
    for transitions in (4, 4, 3):
        buffer.insert(random_columns(transitions, 2, seed=transitions), 0)
    assert buffer.live_keys == range(4, 11)
    assert buffer.frame_count == 4
    assert buffer.evicted == 4


def test_when_frames_run_out_first_the_oldest_segments_are_evicted_just_the_same():
    buffer = buffer_of(1000, frame_capacity=10)
    for _ in range(3):
        buffer.insert(random_columns(2, 4, seed=0), 0)
    assert buffer.live_keys == range(2, 6)
    assert buffer.frame_count == 8


@pytest.mark.parametrize(("transitions", "frames"), [(5, 3), (3, 9), (4, 1)])
def test_a_batch_as_large_as_the_buffer_replaces_all_of_it(transitions: int, frames: int):
    buffer = buffer_of(5, frame_capacity=9)
    buffer.insert(random_columns(3, 3, seed=1), 0)
    keys = buffer.insert(random_columns(transitions, frames, seed=2), 0)
    assert buffer.live_keys == keys


@pytest.mark.parametrize(
    ("transitions", "frames", "words"),
    [
        (6, 3, "6 transitions over 3 frames .* does not fit"),
        (3, 10, "3 transitions over 10 frames .* does not fit"),
        (0, 3, "no TransitionBatch"),
    ],
)
def test_a_batch_that_cannot_be_stored_is_refused_and_evicts_nothing(
    transitions: int, frames: int, words: str
):
    buffer = buffer_of(5, frame_capacity=9)
    buffer.insert(random_columns(5, 9, seed=1), 0)
    with pytest.raises(ValueError, match=words):
        buffer.insert(random_columns(transitions, frames, seed=2), 0)
    assert buffer.live_keys == range(5)


def test_read_only_columns_as_the_wire_delivers_them_are_accepted():
    columns = random_columns(3, 3, seed=0)
    for column in columns.values():
        column.flags.writeable = False
    buffer = buffer_of(5)
    buffer.insert(columns, 0)
    buffer.check_valid()


def test_samples_have_the_documented_shapes_and_dtypes():
    buffer = buffer_of(8)
    buffer.insert(random_columns(5, 6, seed=0), 2**40)
    sample = buffer.sample(7)
    for observation in (sample.observation, sample.bootstrap_observation):
        assert {name: (a.dtype.name, a.shape) for name, a in observation.items()} == {
            "action_mask": ("uint8", (7, 2)),
            "map": ("float16", (7, 2, 3)),
            "steps_left": ("int32", (7,)),
        }
    dtypes = {
        "keys": np.int64,
        "action": np.int32,
        "n_step_return": np.float32,
        "discount": np.float32,
        "importance_weight": np.float32,
        "parameter_version": np.int64,
    }
    for name, dtype in dtypes.items():
        assert getattr(sample, name).dtype == dtype
        assert getattr(sample, name).shape == (7,)
    assert set(sample.parameter_version.tolist()) == {2**40}


def test_a_restored_buffer_continues_with_the_same_samples():
    buffer, copy = buffer_of(50, seed=3), buffer_of(50, seed=3)
    for seed in range(9):
        buffer.insert(random_columns(8, 9, seed), parameter_version=seed)
    copy.set_state(buffer.get_state())
    for seed in range(9, 15):
        a, b = buffer.sample(16), copy.sample(16)
        np.testing.assert_array_equal(a.keys, b.keys)
        np.testing.assert_array_equal(a.importance_weight, b.importance_weight)
        assert rows_of(a) == rows_of(b)
        for side in (buffer, copy):
            side.update_priorities(a.keys, a.discount + seed)
            side.insert(random_columns(5, 5, seed), seed)


def test_a_state_shares_no_memory_with_the_buffer():
    buffer = buffer_of(50)
    buffer.insert(random_columns(8, 9, seed=0), 0)
    before, scratch = buffer.get_state(), buffer.get_state()
    for value in scratch.values():
        if isinstance(value, np.ndarray):
            value.fill(77)
    after = buffer.get_state()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_the_state_of_an_empty_buffer_keeps_the_keys_going_on():
    buffer, copy = buffer_of(4, first_key=123), buffer_of(4)
    copy.set_state(buffer.get_state())
    assert copy.insert(random_columns(2, 2, seed=0), 0) == range(123, 125)


def test_a_state_that_does_not_fit_is_refused():
    buffer = buffer_of(9)
    buffer.insert(random_columns(9, 5, seed=0), 0)
    for changes in ({"capacity": 8}, {"capacity": 9, "frame_capacity": 4}):
        small = buffer_of(**changes)
        with pytest.raises(ValueError, match=r"9 transitions over 5 frames .* do not fit"):
            small.set_state(buffer.get_state())
        assert small.size == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": 0},
        {"frame_capacity": 0},
        {"priority_exponent": -1},
        {"importance_sampling_exponent": -1},
        {"minimum_priority": 0},
        {"first_key": -1},
    ],
)
def test_a_buffer_that_cannot_work_is_refused(changes: dict[str, Any]):
    with pytest.raises(ValueError, match=r"buffer for|negative|must be positive"):
        buffer_of(**{"capacity": 4, **changes})


@pytest.mark.parametrize(("capacity", "frame_capacity"), [(1, 1), (100, 37), (1000, None)])
def test_the_bytes_needed_are_the_bytes_allocated(capacity: int, frame_capacity: int | None):
    buffer = buffer_of(capacity, frame_capacity=frame_capacity)
    assert bytes_needed(SPEC, capacity, frame_capacity) == buffer.allocated_bytes


def test_the_bytes_stored_are_those_of_live_frames_and_columns():
    buffer = buffer_of(10)
    assert buffer.stored_bytes == 0
    buffer.insert(random_columns(5, 7, seed=0), 0)
    frame = 2 + 2 * 3 * 2 + 4  # packed mask, float16 map, int32
    transition = 4 * 4 + 3 * 8  # int32 and float32 columns, int64 columns
    assert buffer.stored_bytes == 7 * frame + 5 * transition


def test_by_default_a_full_buffer_has_room_for_the_last_frames_of_its_segments():
    buffer = buffer_of(100)
    assert buffer.frame_capacity == default_frame_capacity(100) == 189
    for _ in range(10):
        buffer.insert(random_columns(12, 12 + 3, seed=0), 0)
    assert buffer.size == 96


def test_check_valid_sees_a_damaged_buffer():
    buffer = buffer_of(10)
    buffer.insert(random_columns(5, 7, seed=0), 0)
    buffer._columns["bootstrap_frame"][2] = 7
    with pytest.raises(AssertionError, match="bootstrap_frame lies after its segment"):
        buffer.check_valid()
    buffer._columns["bootstrap_frame"][2] = 0
    buffer._columns["priority"][2] += 1
    with pytest.raises(AssertionError, match="other priorities"):
        buffer.check_valid()
