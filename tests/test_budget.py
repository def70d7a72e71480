"""A limit that is handed out to actors ends a run where it should."""

from __future__ import annotations

import random
from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.coordinator.budget import Budget, Budgets


class Fleet:
    """Actors that step batches of environments, report from time to time, and die."""

    def __init__(self, limit: int, actors: int, batch: int, seed: int) -> None:
        self.budget = Budget(limit, batch)
        self.random = random.Random(seed)
        self.batch = batch
        self.done = dict.fromkeys(range(actors), 0)
        self.reported = dict.fromkeys(range(actors), 0)
        self.allowed: dict[int, int] = {}
        self.gone = 0  # reported by the dead
        self.started = actors
        for actor in self.done:
            self.report(actor)

    @property
    def counted(self) -> int:
        return self.gone + sum(self.reported.values())

    def report(self, actor: int) -> None:
        self.reported[actor] = self.done[actor]
        self.allowed[actor] = self.budget.allow(actor, self.done[actor], self.counted)

    def step(self, actor: int) -> None:
        """Step a whole batch or nothing, and report at once when it may not go on, as actors do."""
        if self.done[actor] < self.allowed[actor]:
            self.done[actor] += self.batch
        if self.done[actor] >= self.allowed[actor] or self.random.random() < 0.1:
            self.report(actor)

    def replace(self, actor: int) -> None:
        """Let an actor die; what it reported stays counted."""
        self.gone += self.reported.pop(actor)
        del self.done[actor], self.allowed[actor]
        self.budget.forget(actor)
        self.done[self.started] = self.reported[self.started] = 0
        self.report(self.started)
        self.started += 1


@given(
    limit=st.integers(1, 3000),
    actors=st.integers(1, 20),
    batch=st.integers(1, 16),
    seed=st.integers(0, 1000),
    deaths=st.integers(0, 5),
)
def test_a_run_does_no_less_than_its_limit_and_at_most_a_batch_more(
    limit: int, actors: int, batch: int, seed: int, deaths: int
):
    fleet = Fleet(limit, actors, batch, seed)
    turns = 0
    while fleet.counted < limit:
        fleet.step(fleet.random.choice(list(fleet.done)))
        if deaths and fleet.random.random() < 0.02:
            deaths -= 1
            fleet.replace(fleet.random.choice(list(fleet.done)))
        turns += 1
        assert turns < 100_000, "it never ends"
    assert limit <= fleet.counted < limit + batch


class Summing(Budget):
    """A budget that adds up all outstanding allowances again for every answer."""

    def note(self, actor: Hashable, done: int) -> int:
        allowed = super().note(actor, done)
        self._left = sum(share.left for share in self._shares.values())
        return allowed


_TURNS = st.lists(
    st.tuples(
        st.sampled_from(["is held", "goes on", "stands still", "is gone"]),
        st.integers(0, 3),
        st.integers(0, 90),
        st.integers(0, 300),
    ),
    max_size=60,
)


@given(turns=_TURNS, limit=st.integers(1, 500), batch=st.integers(1, 16))
def test_what_all_may_still_do_is_known_without_adding_it_up(
    turns: list[tuple[str, int, int, int]], limit: int, batch: int
):
    def answer(budget: Budget, what: str, actor: int, done: int, done_by_all: int) -> int | None:
        if what == "is gone":
            return budget.forget(actor)
        if what == "is held":
            return budget.note(actor, done)
        allowed = budget.allow(actor, done, done_by_all)
        return budget.take_back(actor) if what == "stands still" else allowed

    budget, summing = Budget(limit, batch), Summing(limit, batch)
    for turn in turns:
        assert answer(budget, *turn) == answer(summing, *turn)


def test_parts_last_for_a_few_reports_and_become_small_in_the_end():
    budget = Budget(1000, batch=10)
    assert budget.note("a", 0) == budget.note("b", 0) == 0, "nothing before all are there"
    assert budget.allow("a", 0, 0) == 40, "the pace is not known yet: four batches"
    assert budget.allow("b", 0, 0) == 40
    # Four times the steps since the last report, but at most a quarter of the rest.
    assert budget.allow("a", 40, 40) == 40 + 160
    assert budget.allow("a", 200, 200) == 200 + 190
    # An early report of few steps halves the pace at most.
    assert budget.allow("a", 201, 201) == 390
    budget.forget("b")
    assert budget.allow("a", 390, 390) == 390 + 300


def test_what_an_actor_that_stands_still_has_not_done_is_for_the_others():
    budget = Budget(80, batch=10)
    assert budget.allow("a", 0, 0) == 40
    assert budget.allow("b", 0, 0) == 10
    assert budget.take_back("a") == 0
    assert budget.allow("b", 10, 10) == 10 + 10
    assert budget.allow("b", 20, 20) == 20 + 10


@pytest.mark.parametrize(("actors", "slow"), [(2, 0), (8, 0), (32, 0), (8, 1)])
def test_actors_share_the_work_by_their_pace(actors: int, slow: int):
    """Let every actor step once a round, and the slow one in every tenth round."""
    limit, batch = 32_000, 8
    budget = Budget(limit, batch)
    done, allowed = dict.fromkeys(range(actors), 0), {}
    for actor in done:
        budget.note(actor, 0)
    for actor in done:
        allowed[actor] = budget.allow(actor, 0, 0)
    rounds = 0
    while sum(done.values()) < limit:
        rounds += 1
        for actor in done:
            if done[actor] < allowed[actor] and (actor >= slow or rounds % 10 == 0):
                done[actor] += batch
            if rounds % 20 == 0 or done[actor] >= allowed[actor]:
                allowed[actor] = budget.allow(actor, done[actor], sum(done.values()))
    pace = actors - 0.9 * slow
    assert rounds <= 1.1 * limit / (batch * pace) + 20


@pytest.mark.parametrize("limit", [1, 7, 8, 9])
def test_a_limit_below_a_batch_is_one_actors(limit: int):
    budget = Budget(limit, batch=8)
    assert budget.allow("a", 0, 0) == min(limit, 8)
    assert budget.allow("b", 0, 0) == limit - min(limit, 8)


@given(
    episodes=st.integers(1, 400),
    length=st.integers(1, 12),
    excess=st.integers(-20, 20),
    actors=st.integers(1, 8),
    batch=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
def test_two_limits_that_nearly_coincide_do_not_wait_for_each_other(
    episodes: int, length: int, excess: int, actors: int, batch: int, seed: int
):
    limits = {"episodes": episodes, "steps": max(1, episodes * length + excess)}
    budgets, chance = Budgets(limits, batch), random.Random(seed)
    done = {actor: {"episodes": 0, "steps": 0} for actor in range(actors)}
    for actor in done:
        budgets.note(actor, done[actor])
    allowed = {actor: budgets.note(actor, done[actor]) for actor in done}

    def totals() -> dict[str, int]:
        return {name: sum(d[name] for d in done.values()) for name in limits}

    turns = 0
    while all(totals()[name] < limits[name] for name in limits):
        actor = chance.randrange(actors)
        mine = done[actor]
        if all(mine[name] < allowed[actor][name] for name in limits):
            mine["steps"] += batch
            # All environments of a batch end their episodes together.
            mine["episodes"] = mine["steps"] // (length * batch) * batch
        if chance.random() < 0.2 or any(mine[n] >= allowed[actor][n] for n in limits):
            allowed[actor] = budgets.allow(actor, mine, totals())
        turns += 1
        assert turns < 200_000, "they wait for each other"
    assert all(totals()[name] < limits[name] + batch for name in limits)


def test_without_limits_nobody_is_held():
    budgets = Budgets({"episodes": None, "steps": None}, batch=8)
    done = {"episodes": 5, "steps": 50}
    assert budgets.note("a", done) == {}
    assert budgets.allow("a", done, done) == {}
