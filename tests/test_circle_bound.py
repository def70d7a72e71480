"""The dual bound of circle placement, which no placement exceeds."""

from __future__ import annotations

import numpy as np
import pytest

from actors.circle_placement.baselines import baselines
from actors.circle_placement.bound import dual_bound
from actors.circle_placement.completion import absent, best_centre, greedy
from actors.circle_placement.problem import Problem
from actors.circle_placement.search import solve
from actors.circle_placement.tables import NEVER, Tables, make_tables, tables_of


def optimum_of_two(tables: Tables) -> float:
    """The best coverage of two circles, of which the second may remain without a place."""
    best = 0.0
    kinds = tables.kinds
    for x, y in np.argwhere(tables.sums[kinds[0]] > NEVER):
        rows, columns = absent(tables), absent(tables)
        rows[0], columns[0] = x, y
        second = best_centre(tables, rows, columns, kinds[1], 0, 0.0)[0]
        weight = float(tables.sums[kinds[0], x, y]) + max(0.0, second)
        best = max(best, weight / tables.total)
    return best


@pytest.mark.parametrize(
    ("size", "radii"), [(16, [4, 3]), (20, [3, 3]), (32, [10, 6]), (17, [8, 2])]
)
def test_the_bound_is_never_below_the_optimum_and_often_equal_to_it(size, radii):
    problem = Problem.parse(size, radii, False)
    for seed in range(6):
        tables = tables_of(problem, seed)
        optimum = optimum_of_two(tables)
        for known in (optimum, greedy(tables)[0] / tables.total, 0.0, 1.0):
            for iterations in (1, 10, 800):
                bound = dual_bound(tables, known, iterations)
                assert bound >= optimum - 1e-12
        assert dual_bound(tables, optimum) <= optimum * 1.1


def test_the_bound_follows_the_rules_of_peoples_own_maps():
    rng = np.random.default_rng(2)
    for gap in (0.0, 1.5):
        weights = rng.random((15, 22))
        weights[3, 16] = weights[12, 2] = np.nan
        tables = make_tables(weights, [4, 2], gap=gap, placed=[(7, 3, 2)])
        optimum = optimum_of_two(tables)
        assert optimum - 1e-12 <= dual_bound(tables, optimum) <= optimum * 1.1
    nothing = make_tables(np.full((9, 9), np.nan), [2, 1])
    assert dual_bound(nothing, 0.0) == 0.0


@pytest.mark.parametrize("radii", ["fixed", "random"])
def test_the_bound_is_far_below_the_heaviest_cells_and_above_what_a_search_finds(radii):
    problem = Problem.parse(48, radii, False)
    seeds = list(range(100, 104))
    heaviest = baselines(problem, seeds)["upper_bound"]
    for seed, cells in zip(seeds, heaviest, strict=True):
        tables = tables_of(problem, seed)
        found = solve(tables, steps=30_000).coverage
        bound = dual_bound(tables, found)
        assert found <= bound + 1e-12
        assert bound - found < 0.5 * (cells - found)
