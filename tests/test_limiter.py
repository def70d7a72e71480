"""The rate limiter's invariant, its freedom from deadlock, and its refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build
from replay.limiter import RateLimiter, make_limiter

targets = st.floats(0.01, 100)


@st.composite
def limiters(draw: st.DrawFn) -> tuple[RateLimiter, dict[str, Any]]:
    batch_size = draw(st.integers(1, 100))
    settings = {
        "samples_per_insert": draw(targets),
        "tolerance": batch_size / 2 + draw(st.floats(0, 300)),
        "min_size": draw(st.integers(1, 200)),
        "batch_size": batch_size,
    }
    return RateLimiter(**settings), settings


def limiter_of(**changes: Any) -> RateLimiter:
    """Build a limiter: two samples per insert within 8, from 10 transitions on, batches of 4."""
    settings = {"samples_per_insert": 2, "tolerance": 8, "min_size": 10, "batch_size": 4}
    return RateLimiter(**{**settings, **changes})


def step(limiter: RateLimiter, prefer_insert: bool, insert: int, batch_size: int) -> None:
    """Let the preferred side act if it may, or else the other one, which must be free."""
    if prefer_insert and limiter.can_insert():
        limiter.inserted(insert)
    elif limiter.can_sample(batch_size):
        limiter.sampled(batch_size)
    else:
        assert limiter.can_insert(), "both sides are blocked"
        limiter.inserted(insert)


@given(limiters(), st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=300))
def test_any_interleaving_keeps_the_invariant_and_never_blocks_both(
    made: tuple[RateLimiter, dict[str, Any]], steps: list[tuple[bool, int]]
):
    limiter, settings = made
    sigma, tolerance = settings["samples_per_insert"], settings["tolerance"]
    for prefer_insert, insert in steps:
        step(limiter, prefer_insert, insert, settings["batch_size"])
        balance = sigma * (limiter.num_inserted - settings["min_size"]) - limiter.num_sampled
        assert limiter.balance == pytest.approx(balance, abs=1e-6)
        if limiter.num_inserted < settings["min_size"]:
            assert limiter.num_sampled == 0
        else:
            assert -tolerance <= limiter.balance <= tolerance + sigma * 50 + 1e-6


@given(
    limiters(),
    st.lists(st.tuples(st.booleans(), st.integers(1, 50), targets | st.none()), max_size=200),
)
def test_changing_the_target_while_running_never_blocks_both(
    made: tuple[RateLimiter, dict[str, Any]], steps: list[tuple[bool, int, float | None]]
):
    limiter, settings = made
    for prefer_insert, insert, target in steps:
        step(limiter, prefer_insert, insert, settings["batch_size"])
        if target is not None:
            limiter.set_samples_per_insert(target)


@given(limiters(), st.booleans())
def test_a_side_that_always_wants_to_act_is_stopped_near_the_target(
    made: tuple[RateLimiter, dict[str, Any]], greedy_insert: bool
):
    limiter, settings = made
    for _ in range(2000):
        step(limiter, greedy_insert, 5, settings["batch_size"])
    due = settings["samples_per_insert"] * (limiter.num_inserted - settings["min_size"])
    allowed = settings["tolerance"] + 5 * settings["samples_per_insert"]
    assert limiter.num_sampled == pytest.approx(due, abs=allowed + 1e-6)


def test_sampling_starts_at_min_size_and_inserting_stops_at_the_tolerance():
    limiter = limiter_of()
    assert limiter.blocked == "sample"
    limiter.inserted(9)
    assert limiter.can_insert()
    assert not limiter.can_sample(1)
    limiter.inserted(1)
    assert limiter.balance == 0
    assert limiter.can_sample(8)
    assert not limiter.can_sample(9)
    limiter.inserted(4)  # 2 x 4 = 8 samples due: exactly the tolerance
    assert limiter.can_insert()
    assert limiter.blocked is None
    limiter.inserted(1)
    assert not limiter.can_insert()
    assert limiter.blocked == "insert"
    limiter.sampled(4)
    assert limiter.balance == 6
    assert limiter.blocked is None


def test_sampling_stops_at_the_tolerance():
    limiter = limiter_of()
    limiter.inserted(10)
    limiter.sampled(4)
    limiter.sampled(4)
    assert limiter.balance == -8
    assert limiter.blocked == "sample"
    limiter.inserted(2)
    assert limiter.can_sample(4)


def test_the_ratio_so_far_counts_from_min_size():
    limiter = limiter_of()
    assert limiter.samples_per_insert == 0
    limiter.inserted(14)
    limiter.sampled(6)
    assert limiter.samples_per_insert == 1.5
    assert limiter.target == 2


def test_a_new_target_makes_nothing_due_at_once():
    limiter = limiter_of()
    limiter.inserted(10_010)
    limiter.sampled(20_000)
    for target in (0.5, 50, 2):
        limiter.set_samples_per_insert(target)
        assert limiter.target == target
        assert limiter.balance == 0
        assert limiter.blocked is None
    limiter.set_samples_per_insert(8)
    limiter.inserted(1)
    assert limiter.balance == 8


def test_a_new_target_before_min_size_leaves_the_start_as_it_was():
    limiter = limiter_of()
    limiter.inserted(3)
    limiter.set_samples_per_insert(5)
    limiter.inserted(8)
    assert limiter.balance == 5


def test_the_state_of_a_limiter_makes_an_equal_one():
    limiter, copy = limiter_of(), limiter_of()
    limiter.inserted(12)
    limiter.set_samples_per_insert(3)
    limiter.sampled(4)
    copy.set_samples_per_insert(3)
    copy.set_state(limiter.get_state())
    for side in (limiter, copy):
        side.inserted(2)
    assert copy.get_state() == limiter.get_state()
    assert (copy.num_inserted, copy.num_sampled, copy.balance) == (14, 4, 6)


def test_a_state_from_before_min_size_makes_an_equal_one():
    limiter = limiter_of()
    limiter.set_state({"num_inserted": 4, "num_sampled": 0, "balance": -12.0})
    assert limiter.blocked == "sample"
    limiter.inserted(6)
    assert limiter.balance == 0


def test_a_state_from_a_run_with_a_larger_tolerance_does_not_stop_the_sampling():
    limiter = limiter_of(tolerance=500)
    limiter.inserted(10)
    limiter.sampled(400)
    restored = limiter_of(tolerance=8)
    restored.set_state(limiter.get_state())
    assert restored.balance == -8


def test_a_state_from_a_run_with_a_larger_min_size_does_not_stop_the_sampling():
    limiter = limiter_of(min_size=5000)
    limiter.inserted(1000)
    restored = limiter_of(min_size=10)
    restored.set_state(limiter.get_state())
    assert restored.balance == -8


def test_a_state_from_a_run_with_a_smaller_min_size_waits_for_the_new_one():
    limiter = limiter_of()
    limiter.inserted(1000)
    limiter.sampled(1900)
    restored = limiter_of(min_size=1010)
    restored.set_state(limiter.get_state())
    assert restored.blocked == "sample"
    restored.inserted(10)
    assert restored.balance == 0
    assert restored.blocked is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tolerance": 1.9}, r"1\.9, less than half of the batch size 4.*at least 2\.0"),
        ({"tolerance": 0}, "less than half"),
        ({"tolerance": -1}, "less than half"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tolerance": math.inf}, "tolerance is inf"),
        ({"samples_per_insert": 0}, "samples_per_insert is 0: it must be a positive number"),
        ({"samples_per_insert": -2}, "samples_per_insert is -2"),
        ({"samples_per_insert": math.nan}, "samples_per_insert is nan"),
        ({"samples_per_insert": math.inf}, "samples_per_insert is inf"),
        ({"min_size": 0}, "min_size is 0"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"capacity": 9}, "min_size is 10, but the buffer holds only 9"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_a_sentence(changes: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        limiter_of(**changes)


def test_the_least_accepted_settings_work():
    limiter = limiter_of(tolerance=2, min_size=1, capacity=1)
    for _ in range(100):
        step(limiter, prefer_insert=True, insert=1, batch_size=4)
    assert limiter.samples_per_insert == pytest.approx(2, abs=0.2)


def test_a_tolerance_below_half_a_batch_would_indeed_block_both_sides():
    limiter = limiter_of(tolerance=2)
    limiter._tolerance = 1.9  # a value that the constructor refuses
    limiter.inserted(11)
    assert limiter.balance == 2
    assert not limiter.can_insert()
    assert not limiter.can_sample(4)


def test_a_new_target_must_be_positive():
    limiter = limiter_of()
    with pytest.raises(UsageError, match="positive"):
        limiter.set_samples_per_insert(0)
    assert limiter.target == 2


def test_counts_cannot_be_negative():
    limiter = limiter_of()
    with pytest.raises(ValueError, match="-1 transitions"):
        limiter.inserted(-1)
    with pytest.raises(ValueError, match="-1 transitions"):
        limiter.sampled(-1)


# ---- several shards ----


def test_following_takes_counts_and_balance_over_as_they_are():
    limiter = limiter_of()
    limiter.follow(100, 300, -50.0)  # below the tolerance: several shards granted samples at once
    assert (limiter.num_inserted, limiter.num_sampled, limiter.balance) == (100, 300, -50)
    limiter.inserted(5)
    limiter.sampled(4)
    assert limiter.balance == -50 + 2 * 5 - 4
    assert not limiter.can_sample(1)
    assert limiter.can_insert()


def test_following_below_the_minimum_size_makes_nothing_due():
    limiter = limiter_of()
    limiter.follow(6, 0, 1e6)
    assert not limiter.filled
    assert not limiter.can_sample(1)
    limiter.inserted(4)
    assert limiter.filled
    assert limiter.balance == 0


@given(limiters(), st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=100))
def test_a_limiter_that_follows_goes_on_as_the_one_that_it_follows(
    made: tuple[RateLimiter, dict[str, Any]], steps: list[tuple[bool, int]]
):
    limiter, settings = made
    follower = RateLimiter(**settings)
    for prefer_insert, insert in steps:
        step(limiter, prefer_insert, insert, settings["batch_size"])
        follower.follow(limiter.num_inserted, limiter.num_sampled, limiter.balance)
        assert follower.can_insert() == limiter.can_insert()
        assert follower.can_sample(1) == limiter.can_sample(1)
        assert follower.blocked == limiter.blocked


# ---- messages about the balance ----


def test_it_says_how_much_there_is_of_what_the_first_sample_needs():
    limiter = limiter_of()
    limiter.inserted(7)
    assert limiter.why_not_sample(4) == "fills: 7 of 10 before the first batch"
    assert limiter.why_not_insert() == ""


def test_it_says_what_actors_wait_for():
    limiter = limiter_of()
    limiter.inserted(15)
    assert limiter.why_not_insert() == (
        "actors wait for the learner: 10 samples due, at most 8 may be"
    )
    assert limiter.why_not_sample(4) == ""


def test_it_says_what_the_learner_waits_for():
    limiter = limiter_of()
    limiter.inserted(10)
    limiter.sampled(8)
    assert limiter.why_not_sample(4) == (
        "learner waits for the actors: 12 samples ahead, at most 8 may be"
    )
    assert limiter.why_not_insert() == ""


# ---- from a configuration ----


def replay_config(**replay: Any) -> Config:
    settings = {
        "capacity": 100,
        "min_size": 10,
        "samples_per_insert": 2.0,
        "samples_per_insert_tolerance": 8.0,
        **replay,
    }
    return build(("test", {"replay": settings, "learner": {"batch_size": 4}}))


def test_a_configuration_describes_the_limiter_of_all_shards():
    limiter = make_limiter(replay_config(shards=4))
    assert limiter.target == 2
    assert limiter.min_size == 10
    limiter.inserted(14)
    assert limiter.can_insert()
    limiter.inserted(1)
    assert not limiter.can_insert()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"min_size": 101}, "min_size is 101, but the buffer holds only 100"),
        ({"samples_per_insert_tolerance": 1.9}, "less than half of the batch size"),
    ],
)
def test_a_configuration_with_which_the_run_would_stand_still_is_refused(
    change: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        make_limiter(replay_config(**change))
