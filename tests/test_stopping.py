"""Waits at the end of a run: bounded, and shorter for a person who does not want to wait."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from launcher.run.stopping import Deadline


def never() -> bool:
    return False


def always() -> bool:
    return True


def seconds_waited(deadline: Deadline, goes_on: Callable[[], bool] = never) -> int:
    """Count the whole seconds, from 100 on, after which the wait is over."""
    return next(n for n in itertools.count() if deadline.is_over(100.0 + n, goes_on))


def test_a_wait_lasts_as_long_as_it_may():
    assert seconds_waited(Deadline(100.0, 15.0, is_hurried=False)) == 15


def test_what_is_worth_waiting_for_is_waited_for_and_has_a_bound_of_its_own():
    assert seconds_waited(Deadline(100.0, 15.0, is_hurried=False), always) == 315


def test_a_person_who_does_not_want_to_wait_waits_a_second_more_once():
    deadline = Deadline(100.0, 15.0, is_hurried=False)
    deadline.hurry(103.0)
    deadline.hurry(103.5)
    assert seconds_waited(deadline) == 4


def test_hurrying_makes_no_wait_longer():
    deadline = Deadline(100.0, 2.0, is_hurried=False)
    deadline.hurry(101.5)
    assert seconds_waited(deadline) == 2


def test_a_wait_that_began_in_a_hurry_is_not_shortened_again():
    deadline = Deadline(100.0, 3.0, is_hurried=True)
    deadline.hurry(100.0)
    assert seconds_waited(deadline) == 3


def test_a_learner_that_saves_is_waited_for_in_a_hurry_as_well():
    deadline = Deadline(100.0, 2.0, is_hurried=False)
    deadline.hurry(100.0)
    assert seconds_waited(deadline, always) == 302
