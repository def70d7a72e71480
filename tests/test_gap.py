"""The share of the provable gap that reports show, and the yardsticks behind it."""

from __future__ import annotations

import numpy as np
import pytest

from actors.circle_placement import yardsticks
from actors.circle_placement.baselines import baselines
from actors.circle_placement.environment import CirclePlacementEnv
from actors.circle_placement.problem import Problem
from launcher.console.lines import summary_rows
from launcher.metrics.snapshot import nearest_of
from pdqn.gap import closed_gap, closed_text

KNOWN = {"exact_greedy": 0.4, "dual_bound": 0.6, "random": 0.2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.mark.parametrize(("score", "share"), [(0.4, 0.0), (0.45, 0.25), (0.6, 1.0), (0.35, -0.25)])
def test_the_share_is_the_way_from_exact_greedy_to_the_bound(score, share):
    assert closed_gap(score, KNOWN) == pytest.approx(share)
    in_words = {name.replace("_", " "): value for name, value in KNOWN.items()}
    assert closed_text(score, in_words) == f"{share:.0%} of the provable gap closed"


def test_a_little_below_exact_greedy_is_none_of_the_gap():
    assert closed_text(0.3999, KNOWN) == "0% of the provable gap closed"


@pytest.mark.parametrize("known", [{}, {"exact_greedy": 0.4}, KNOWN | {"dual_bound": 0.4}])
def test_there_is_no_share_without_a_gap(known):
    assert closed_gap(0.4, known) is None
    assert closed_text(0.4, known) == ""


def test_a_bound_is_not_the_nearest_baseline():
    differences = {"dual_bound": (-0.001, 0.0), "exact_greedy": (0.002, 0.001)}
    assert nearest_of(differences) == ("exact greedy", 0.002, 0.001)
    assert nearest_of({"dual_bound": (-0.001, 0.0)}) is None


def test_exact_greedy_is_compared_with_even_if_a_search_is_nearer():
    differences = {"annealing_1s": (-0.001, 0.0), "exact_greedy": (0.002, 0.001)}
    assert nearest_of(differences) == ("exact greedy", 0.002, 0.001)
    assert nearest_of({"annealing_1s": (-0.001, 0.0)}) == ("annealing 1s", -0.001, 0.0)


def test_the_summary_says_the_share():
    scores = {"return_mean": 0.45, "metrics": {"coverage": 0.45}, "baselines": KNOWN}
    rows = dict(summary_rows({"eval": scores}, None))
    assert rows["evaluation"].endswith("; 25% of the provable gap closed")


@pytest.mark.parametrize("radii", ["fixed", "random"])
def test_yardsticks_lie_between_greedy_and_the_heaviest_cells(radii, monkeypatch):
    monkeypatch.setattr(yardsticks, "_ONE_SECOND", 20_000)
    problem, seeds = Problem.parse(32, radii, False), [5, 6, 7]
    env = CirclePlacementEnv(map_size=32, radii=radii)
    greedy, heaviest = (baselines(problem, seeds)[n] for n in ("exact_greedy", "upper_bound"))
    found, bound = env.searches(seeds)["annealing_1s"], env.bounds(seeds)["dual_bound"]
    assert (greedy - 1e-12 <= found).all()
    assert (found <= bound + 1e-12).all()
    assert (bound <= heaviest + 1e-12).all()


def test_yardsticks_are_kept_by_the_map_and_its_circles(monkeypatch):
    problem, other = Problem.parse(32, [5, 4], False), Problem.parse(32, [5, 3], False)
    first = yardsticks.bounds(problem, [5, 6])["dual_bound"]
    monkeypatch.setattr(yardsticks, "dual_bound", lambda *_: 0.125)
    assert np.array_equal(yardsticks.bounds(problem, [5, 6])["dual_bound"], first)
    assert yardsticks.bounds(other, [5])["dual_bound"].tolist() == [0.125]
    assert yardsticks.bounds(problem, [7])["dual_bound"].tolist() == [0.125]


def test_a_kept_value_that_cannot_be_read_is_computed_again(tmp_path):
    problem = Problem.parse(32, [5, 4], False)
    first = yardsticks.bounds(problem, [5])["dual_bound"]
    (kept,) = (tmp_path / "pdqn" / "placement").iterdir()
    for content in ("", "nan", "17", "\xff"):
        kept.write_text(content, "latin-1")
        assert np.array_equal(yardsticks.bounds(problem, [5])["dual_bound"], first)


def test_circles_that_may_overlap_have_no_yardsticks():
    env = CirclePlacementEnv(map_size=32, overlap=True)
    assert env.bounds([5]) == env.searches([5]) == {}
