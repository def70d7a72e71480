"""Search on circle placement's tables, compared with naive twins and the real environment."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.circle_placement.annealing import anneal, begin_walk
from actors.circle_placement.baselines import baselines
from actors.circle_placement.completion import (
    BLOCKED,
    FREE,
    absent,
    best_centre,
    greedy,
    loss_at,
    state_of_block,
    weight_of,
)
from actors.circle_placement.environment import CirclePlacementEnv
from actors.circle_placement.problem import Problem
from actors.circle_placement.search import Budget, Placement, beam_search, solve
from actors.circle_placement.tables import (
    NEVER,
    Tables,
    make_tables,
    sort_block,
    tables_of,
    unpacked,
)

PROBLEMS = [
    Problem.parse(32, "fixed", False),
    Problem.parse(48, "random", False),
    Problem.parse(24, [4] * 20, False),  # never room for all of them
    Problem.parse(17, [8, 2, 5], False),  # not largest first; a single centre for the first
    Problem.parse(128, [40, 12, 3], False),
]


def disc(shape: tuple[int, ...], x: int, y: int, radius: int) -> NDArray[np.bool_]:
    i, j = np.ogrid[: shape[0], : shape[1]]
    return (i - x) ** 2 + (j - y) ** 2 <= radius * radius


def replayed(problem: Problem, seed: int, placement: Placement) -> float:
    """The coverage that the environment gives for a placement, which must end its episode."""
    radii = list(problem.radii) if isinstance(problem.radii, tuple) else "random"
    env = CirclePlacementEnv(map_size=problem.map_size, radii=radii)
    env.reset(seed=seed)
    info, terminated = {}, False
    for x, y in placement.centres.tolist():
        assert not terminated
        _, _, terminated, _, info = env.step(x * problem.map_size + y)
    assert terminated
    return info["coverage"]


class Naive:
    """Rules of a map with forbidden cells, placed circles and a gap, one centre at a time."""

    def __init__(self, weights, radii, rules: dict[str, Any]):
        self.weights, self.radii = np.array(weights, float), list(radii)
        self.gap, self.allowed = rules.get("gap", 0.0), rules.get("allowed", {})
        self.placed = [tuple(circle) for circle in rules.get("placed", ())]
        self.total = np.nansum(self.weights)

    def is_valid(self, x, y, radius, others):
        height, width = self.weights.shape
        if min(x, y) < radius or x >= height - radius or y >= width - radius:
            return False
        if not self.allowed.get(radius, np.ones((height, width), bool))[x, y]:
            return False
        if np.isnan(self.weights[disc((height, width), x, y, radius)]).any():
            return False
        return all(
            np.hypot(x - a, y - b) >= radius + r + self.gap - 1e-9
            for a, b, r in [*self.placed, *others]
        )

    def weight(self, circles):
        covered = np.zeros(self.weights.shape, bool)
        for circle in circles:
            covered |= disc(covered.shape, circle[0], circle[1], circle[2])
        for circle in self.placed:
            covered &= ~disc(covered.shape, circle[0], circle[1], circle[2])
        return np.nansum(self.weights[covered])

    def greedy(self):
        circles = []
        for radius in self.radii:
            best, choice = -1.0, None
            for x, y in np.ndindex(*self.weights.shape):
                if self.is_valid(x, y, radius, circles):
                    weight = self.weight([*circles, (x, y, radius)])
                    if weight > best + 1e-9:
                        best, choice = weight, (x, y, radius)
            if choice is None:
                break
            circles.append(choice)
        return circles


def peculiar_maps():
    """Maps with everything that people's own maps have."""
    rng = np.random.default_rng(3)
    for shape, gap in (((12, 19), 0.0), ((21, 13), 1.5), ((16, 16), 2.0)):
        weights = rng.random(shape)
        weights[rng.random(shape) < 0.02] = np.nan
        allowed = {2: rng.random(shape) < 0.7}
        yield weights, [3, 2, 2, 1], {"placed": [(4, 5, 2)], "gap": gap, "allowed": allowed}
    yield np.ones((11, 14)), [2, 2, 1], {}
    yield np.zeros((9, 9)), [2, 1], {}


def circles_of(tables: Tables, centres: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    return [(x, y, r) for (x, y), r in zip(centres.tolist(), tables.radii.tolist(), strict=False)]


@pytest.mark.parametrize("problem", PROBLEMS)
def test_greedy_on_the_tables_is_exact_greedy(problem):
    seeds = list(range(50, 58))
    expected = baselines(problem, seeds)["exact_greedy"]
    for seed, coverage in zip(seeds, expected, strict=True):
        tables = tables_of(problem, seed)
        weight, centres = greedy(tables)
        assert weight / tables.total == pytest.approx(coverage, abs=1e-12)
        placement = Placement(weight / tables.total, centres)
        assert replayed(problem, seed, placement) == pytest.approx(coverage, abs=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_environment_collects_what_a_search_promises_and_never_less_than_greedy(problem):
    for seed in range(60, 63):
        tables = tables_of(problem, seed)
        least = greedy(tables)[0] / tables.total
        for found in (beam_search(tables, 3, 6), *(solve(tables, steps=s) for s in (1, 20_000))):
            assert replayed(problem, seed, found) == pytest.approx(found.coverage, abs=1e-12)
            assert found.coverage >= least - 1e-12


def test_greedy_follows_all_rules_of_peoples_own_maps():
    for weights, radii, rules in peculiar_maps():
        tables, naive = make_tables(weights, radii, **rules), Naive(weights, radii, rules)
        expected = naive.greedy()
        weight, centres = greedy(tables)
        assert circles_of(tables, centres) == expected
        assert weight == pytest.approx(naive.weight(expected), abs=1e-9)


def test_searches_follow_all_rules_of_peoples_own_maps():
    for weights, radii, rules in peculiar_maps():
        tables, naive = make_tables(weights, radii, **rules), Naive(weights, radii, rules)
        for found in (beam_search(tables, 4, 8), solve(tables, steps=30_000, seed=5)):
            circles = circles_of(tables, found.centres)
            for k, (x, y, radius) in enumerate(circles):
                assert naive.is_valid(x, y, radius, circles[:k])
            share = naive.weight(circles) / (naive.total or 1.0)
            assert found.coverage == pytest.approx(share, abs=1e-12)


def test_searches_find_the_best_of_all_placements_of_two_circles():
    for seed in range(4):
        problem = Problem.parse(16, [3, 2], False)
        tables = tables_of(problem, seed)
        best = 0.0
        for x, y in np.argwhere(tables.sums[0] > NEVER):
            rows, columns = absent(tables), absent(tables)
            rows[0], columns[0] = x, y
            value = best_centre(tables, rows, columns, 1, 0, 0.0)[0]
            best = max(best, (tables.sums[0, x, y] + value) / tables.total)
        for found in (beam_search(tables, 8, 100), solve(tables, steps=200_000)):
            assert found.coverage == pytest.approx(best, abs=1e-12)


def test_the_weight_of_touching_circles_counts_their_cell_once():
    rng = np.random.default_rng(0)
    weights = rng.random((30, 30))
    tables, naive = make_tables(weights, [5, 3, 3, 2, 1]), Naive(weights, [5, 3, 3, 2, 1], {})
    touching = 0
    for _ in range(3000):
        rows, columns = rng.integers(5, 25, 5), rng.integers(5, 25, 5)
        if rng.random() < 0.5:  # circle 1 touches circle 0
            rows[1], columns[1] = (rows[0] + 8) % 30, columns[0]
        circles = circles_of(tables, np.stack([rows, columns], 1))
        valid = all(
            naive.is_valid(circle[0], circle[1], circle[2], circles[:k])
            for k, circle in enumerate(circles)
        )
        weight = weight_of(tables, rows, columns)
        assert weight == (pytest.approx(naive.weight(circles), abs=1e-9) if valid else -1.0)
        touching += (
            weight > 0.0 and loss_at(tables, rows, columns, 1, rows[1], columns[1], 0, 1) > 0.0
        )
    assert touching > 0


def test_blocks_hold_each_allowed_centre_once_and_are_in_order():
    for weights, radii, rules in peculiar_maps():
        tables, naive = make_tables(weights, radii, **rules), Naive(weights, radii, rules)
        for kind, radius in enumerate(tables.kind_radii.tolist()):
            length = int(tables.lengths[kind])
            for rank in range(length):
                sort_block(tables, kind, rank)
            held = tables.values[kind, :length] > NEVER
            packed = tables.centres[kind, :length][held]
            cells = {tuple(map(int, unpacked(centre))) for centre in packed}
            valid = {
                cell for cell in np.ndindex(*naive.weights.shape)
                if naive.is_valid(cell[0], cell[1], radius, [])
            }  # fmt: skip
            assert len(packed) == len(cells)
            assert cells == valid
            tops = tables.tops[kind, :length].tolist()
            assert all(a >= b for a, b in pairwise(tops))
            assert tables.values[kind, :length, 0].tolist() == tops
            values = tables.values[kind, :length]
            assert (values[:, 1:] <= values[:, :-1]).all()


def test_tables_in_the_memory_of_others_are_the_same_tables():
    rng = np.random.default_rng(2)
    spare, shared = None, 0
    for radii in ([6, 4, 2], [5, 3, 1], [5, 3], [4, 2]):
        weights = rng.random((40, 33))
        fresh = make_tables(weights, radii)
        tables = make_tables(weights, radii, spare=spare)
        shared += spare is not None and tables.sums is spare.sums
        assert solve(tables, steps=300).coverage == solve(fresh, steps=300).coverage
        assert np.array_equal(tables.sums, fresh.sums)
        spare = tables
    assert shared == 2


def test_a_block_is_blocked_or_free_only_if_all_its_centres_are():
    rng = np.random.default_rng(1)
    tables = make_tables(rng.random((40, 33)), [6, 4, 2])
    seen = set()
    for _ in range(2000):
        rows, columns = absent(tables), absent(tables)
        rows[:2], columns[:2] = rng.integers(0, 33, 2), rng.integers(0, 33, 2)
        x, y = rng.integers(0, 16, 2) * tables.side
        state = state_of_block(tables, rows, columns, 2, x << 16 | y, 0, 3)
        losses = [
            loss_at(tables, rows, columns, 2, i, j, 0, 3)
            for i in range(x, x + tables.side) for j in range(y, y + tables.side)
        ]  # fmt: skip
        assert state != BLOCKED or max(losses) < 0.0
        assert state != FREE or losses == [0.0] * len(losses)
        seen.add(state)
    assert len(seen) == 3


def test_annealing_keeps_account_of_its_weight():
    for weights, radii, rules in peculiar_maps():
        tables = make_tables(weights, radii, **rules)
        rows, columns = absent(tables), absent(tables)
        weight, centres = greedy(tables)
        rows[: len(centres)], columns[: len(centres)] = centres.T
        walk = begin_walk(tables, weight, rows, columns, seed=7)
        for temperature in (0.3, 0.1, 0.01):
            for _ in range(20):
                anneal(tables, walk, 200, temperature)
                present = weight_of(tables, walk.rows, walk.columns)
                assert walk.weight[0] == pytest.approx(present, abs=1e-9)
        best = weight_of(tables, walk.best_rows, walk.best_columns)
        assert walk.best_weight[0] == pytest.approx(best, abs=1e-9)
        assert best >= weight


def test_steps_and_a_seed_decide_what_is_found():
    tables = tables_of(Problem.parse(128, "fixed", False), 1)
    first, again = (solve(tables, steps=20_000, seed=2) for _ in range(2))
    assert first.coverage == again.coverage
    assert first.centres.tolist() == again.centres.tolist()
    others = {solve(tables, steps=20_000, seed=seed).centres.tobytes() for seed in range(5)}
    assert len(others) > 1


def test_a_limit_in_seconds_follows_its_clock():
    ticks = iter(range(10**9))
    budget = Budget(4.0, None, clock=lambda: next(ticks))
    assert [budget.used for _ in range(3)] == [0.25, 0.5, 0.75]
    tables = tables_of(PROBLEMS[0], 1)
    ticks = iter(range(10**9))
    found = solve(tables, seconds=60.0, clock=lambda: next(ticks))
    assert 60 <= next(ticks) <= 70
    assert found.coverage > greedy(tables)[0] / tables.total


def test_a_search_is_never_below_its_start():
    tables = tables_of(PROBLEMS[0], 1)
    good = solve(tables, steps=100_000)
    assert solve(tables, steps=1, start=good.centres).coverage >= good.coverage - 1e-12
    with pytest.raises(ValueError, match="start is not a valid placement"):
        solve(tables, steps=1, start=np.array([[9, 9], [9, 10]]))


def test_arguments_that_are_no_map_are_refused():
    grid = np.ones((9, 9))
    with pytest.raises(ValueError, match=r"weights of shape \[9\]"):
        make_tables(np.ones(9), [1])
    with pytest.raises(ValueError, match="neither negative nor infinite"):
        make_tables(-grid, [1])
    with pytest.raises(ValueError, match="whole numbers >= 1"):
        make_tables(grid, [2, 0])
    with pytest.raises(ValueError, match=r"gap=-1\.0"):
        make_tables(grid, [2], gap=-1.0)
    with pytest.raises(ValueError, match="expected one of them"):
        solve(make_tables(grid, [2]))
