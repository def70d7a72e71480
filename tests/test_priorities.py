"""The upper bound of priorities: no single transition takes over what is sampled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import compress_block
from replay.buffer import PrioritizedBuffer, make_buffer, make_store
from replay.priorities import PriorityScale

SPEC = EnvironmentSpec("test/Numbers-v0", (FieldSpec("observation", (2,), "float32"),), 3)
SIZE = 10_000


def buffer_of(capacity: int = SIZE, **changes: Any) -> PrioritizedBuffer:
    return PrioritizedBuffer(
        SPEC,
        capacity,
        store=make_store("dense", SPEC, capacity, None, 1),
        rng=np.random.default_rng(0),
        **{"priority_exponent": 0.6, "priority_max": 1000.0, **changes},
    )


def floats(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def insert(buffer: PrioritizedBuffer, priorities: Any) -> range:
    priorities = floats(priorities)
    count = len(priorities)
    frames = {"observation": np.zeros((1, 2), np.float32)}
    columns = {
        "action": np.zeros(count, np.int32),
        "n_step_return": np.zeros(count, np.float32),
        "discount": np.ones(count, np.float32),
        "priority": priorities,
        "observation_index": np.zeros(count, np.int32),
        "bootstrap_index": np.zeros(count, np.int32),
    }
    return buffer.insert(columns, [compress_block(frames, SPEC)], 0)


def ordinary_errors(count: int = SIZE) -> np.ndarray:
    return np.abs(np.random.default_rng(1).normal(size=count)).astype(np.float32)


def share(buffer: PrioritizedBuffer, key: int, batches: int = 100) -> float:
    drawn = np.concatenate([buffer.sample(64).keys for _ in range(batches)])
    return float((drawn == key).mean())


def test_without_a_bound_one_error_takes_over_what_is_sampled():
    buffer = buffer_of(priority_max=np.inf)
    keys = insert(buffer, ordinary_errors())
    buffer.update_priorities(np.array([keys[77]]), floats([1e6]))
    assert share(buffer, keys[77]) > 0.3


@pytest.mark.parametrize("comes", ["by an update", "with its transition", "first of all"])
def test_one_error_of_a_million_does_not_take_over_what_is_sampled(comes: str):
    """Let the error come either way; training finds the same error whenever it is sampled."""
    errors, buffer = ordinary_errors(), make_buffer(config_of(), SPEC)
    wanted = 7 if comes == "first of all" else 5077
    if comes != "by an update":
        errors[wanted] = 1e6
    for part in np.split(errors, 100):
        insert(buffer, part)
    if comes == "by an update":
        errors[wanted] = 1e6
        buffer.update_priorities(np.array([wanted]), errors[[wanted]])
    assert buffer.size == SIZE
    if comes != "first of all":  # its bound is that of the first training
        # 63 times the average transition, of which there are 10,000.
        assert share(buffer, wanted) < 0.01
    for _ in range(200):
        keys = buffer.sample(64).keys
        buffer.update_priorities(keys, errors[keys])
    assert share(buffer, wanted) < 0.01
    assert buffer.priorities().max() < 1e4
    assert buffer.priorities_clipped >= 1
    buffer.check_valid()


def config_of(**replay: Any) -> Any:
    settings = {"capacity": SIZE, "store": "dense", **replay}
    return build(("test", {"replay": settings}))


def test_the_setting_reaches_the_buffer():
    buffer = make_buffer(config_of(priority_max=2.0, priority_exponent=1.0), SPEC)
    insert(buffer, np.ones(4))
    insert(buffer, [1, 3, 5, 2])
    assert buffer.priorities().tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
    assert buffer.priorities_clipped == 2


def test_repeating_a_huge_error_does_not_raise_the_bound():
    buffer = buffer_of(1000, priority_exponent=1.0, priority_max=10.0)
    insert(buffer, np.ones(1000))
    for _ in range(500):
        buffer.update_priorities(np.zeros(64, np.int64), np.full(64, 1e30, np.float32))
    # Ten times the mean, which the clipped one raises by about a hundredth.
    assert buffer.priorities()[0] < 11
    assert buffer.priorities_clipped == 500 * 64


def test_nothing_is_clipped_where_sampling_is_uniform():
    buffer = buffer_of(8, priority_exponent=0.0, priority_max=1.0)
    insert(buffer, [1, 2, 3e38, 0])
    assert buffer.update_priorities(np.array([0]), floats([3e38])) == 1
    assert buffer.priorities_clipped == 0


def test_with_the_mean_of_that_time_a_priority_is_clipped_as_it_was_then():
    buffer, other = buffer_of(8), buffer_of(8)
    insert(buffer, np.ones(4))
    insert(other, np.full(4, 100))
    mean = buffer.mean_priority
    for side in (buffer, other):
        side.update_priorities(np.array([0]), floats([1e9]), mean)
    assert other.priorities()[0] == buffer.priorities()[0] < 1e9
    assert other.priorities_clipped == 1
    other.forget_counts()
    assert other.priorities_clipped == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((-1.0, 1e-6, 10.0), "priority_exponent"), ((0.6, 0.0, 10.0), "minimum_priority")]
    + [((0.6, 1e-6, most), "priority_max") for most in (0.5, -1.0, np.nan)],
)
def test_a_scale_that_makes_no_sense_is_refused(arguments: tuple[float, ...], words: str):
    with pytest.raises(ValueError, match=words):
        PriorityScale(*arguments)


priorities = st.lists(
    st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0, 7.0, 1e6, 3e38]), min_size=1, max_size=8
)
updates = st.lists(st.tuples(st.integers(0, 200), st.floats(0, 2.0**100, width=32)), max_size=8)


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(st.one_of(priorities, updates), max_size=12),
    exponent=st.sampled_from([0.3, 0.6, 1.0]),
    most=st.sampled_from([1.0, 3.0, 1000.0]),
)
def test_every_priority_is_bounded_by_the_mean_of_those_stored_before(
    steps: list[Any], exponent: float, most: float
):
    """Compare with a twin that keeps a list, and computes the mean from it each time."""
    buffer = buffer_of(16, priority_exponent=exponent, priority_max=most)
    live: dict[int, float] = {}
    batches: list[range] = []
    clipped = 0

    def lowered(values: list[float]) -> list[float]:
        nonlocal clipped
        stored = list(live.values()) or values
        mean = np.mean([max(value, 1e-6) ** exponent for value in stored])
        bound = most * float(mean) ** (1 / exponent)
        clipped += sum(value > bound * (1 + 1e-9) for value in values)
        return [min(value, bound) for value in values]

    for step in steps:
        if step and isinstance(step[0], tuple):
            known = [(key, value) for key, value in step if key in live]
            keys = np.array([key for key, _ in step], np.int64)
            assert buffer.update_priorities(keys, floats([v for _, v in step])) == len(known)
            if known:
                values = lowered([value for _, value in known])
                live.update(zip([key for key, _ in known], values, strict=True))
        elif step:
            step = floats(step).tolist()
            while len(live) + len(step) > 16:
                for key in batches.pop(0):
                    del live[key]
            batches.append(insert(buffer, step))
            live.update(zip(batches[-1], lowered(step), strict=True))
        np.testing.assert_allclose(buffer.priorities(), list(live.values()), rtol=1e-4)
        buffer.check_valid()
    assert abs(buffer.priorities_clipped - clipped) <= len(steps) * (most == 1.0) * 8
