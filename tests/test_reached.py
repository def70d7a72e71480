"""The sentences that a run's summary has about its evaluation."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.console.lines import summary_rows
from launcher.metrics.reached import best_kept, measured, reached
from pdqn.messages import Evaluation

LEVELS = {"random": 0.26, "exact_greedy": 0.4172, "dual_bound": 0.4256, "upper_bound": 0.56}


def placement(mean: float, error: float, **changes: Any) -> Evaluation:
    """An evaluation of circle placement, this much beside exact greedy."""
    score = LEVELS["exact_greedy"] + mean
    differences = {"random": (score - 0.26, 0.002), "exact_greedy": (mean, error)}
    # The nearest of all.
    differences["dual_bound"] = (0.0, 0.0)
    known: dict[str, Any] = {
        "parameter_version": 9156, "episodes": 256, "return_mean": score, "return_error": 0.0012,
        "metrics": {"coverage": score}, "errors": {"coverage": 0.0012}, "baselines": LEVELS,
        "differences": differences,
    }  # fmt: skip
    return Evaluation(**known | changes)


@pytest.mark.parametrize(
    ("mean", "error", "sentence"),
    [
        (0.0026, 0.0003, "the policy covers 0.0026 ± 0.0003 more than exact greedy on 256 held-out "
         "maps: 31% of the provable gap"),
        (0.0012, 0.0006, "the policy covers 0.0012 ± 0.0006 more than exact greedy on 256 held-out "
         "maps: 14% of the provable gap"),
        (0.0011, 0.0006, "the policy is not better than exact greedy yet: +0.0011 ± 0.0006 on 256 "
         "held-out maps; train longer"),
        (-0.0008, 0.0006, "the policy is not better than exact greedy yet: -0.0008 ± 0.0006 on 256 "
         "held-out maps; train longer"),
        (-0.0017, 0.0003, "the policy is worse than exact greedy: -0.0017 ± 0.0003 on 256 held-out "
         "maps; train longer"),
        (0.0, 0.0, "the policy is as good as exact greedy on 256 held-out maps; train longer"),
    ],
)  # fmt: skip
def test_circle_placement_is_compared_with_exact_greedy(mean: float, error: float, sentence: str):
    assert reached(placement(mean, error)) == sentence


def test_without_the_bound_there_is_no_share():
    levels = {"exact_greedy": 0.4172}
    sentence = reached(placement(0.0026, 0.0003, baselines=levels))
    assert sentence.endswith("more than exact greedy on 256 held-out maps")


def test_one_map_has_no_error_and_the_sentence_says_so():
    sentence = reached(placement(0.0026, 0.0, episodes=1, baselines={"exact_greedy": 0.4}))
    assert sentence == (
        "the policy covers 0.00260 more than exact greedy on 1 held-out map, which says little of "
        "others"
    )


def test_episodes_cut_before_their_score_are_not_counted():
    assert "on 6 held-out maps" in reached(placement(0.1, 0.01, episodes=10, unscored=4))


def test_other_environments_are_compared_with_their_nearest_baseline():
    differences = {"random": (12.3, 3.4), "expert": (-80.0, 5.0), "goal_bound": (-1.0, 0.0)}
    evaluation = Evaluation(500, 10, 20.0, 3.0, differences=differences)
    assert reached(evaluation) == (
        "the policy's return is 12 ± 3 above that of random on 10 held-out episodes"
    )


def test_nothing_is_said_without_a_baseline():
    assert reached(Evaluation(500, 10, 20.0, 3.0)) == ""


@pytest.mark.parametrize(
    ("version", "is_first", "sentence"),
    [
        (8000, False, "best_model.pth has the parameters of learner step 8000 (coverage 0.419)"),
        (0, True, "no evaluation was above the first one by two standard errors, so best_model.pth "
         "keeps the first parameters, of learner step 0 (coverage 0.419)"),
        (9156, True, ""),  # the only evaluation
        (None, False, ""),
    ],
)  # fmt: skip
def test_the_summary_says_whose_parameters_are_the_best(
    version: int | None, is_first: bool, sentence: str
):
    best = {"best": 0.419, "best_version": version, "best_is_first": is_first}
    assert best_kept(placement(0.0, 0.0006, **best)) == sentence


def test_the_closing_lines_have_both_sentences():
    told = {"reached": "0.0026 ± 0.0003 more", "best_model": "of step 8"}
    rows = dict(summary_rows({"eval": told}, None))
    assert (rows["reached"], rows["best"]) == ("0.0026 +- 0.0003 more", "of step 8")
    for nothing in ({"eval": {"reached": "", "best_model": ""}}, {"eval": {}}, {"eval": None}):
        assert summary_rows(nothing, None) == summary_rows({}, None)


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.00263, 0.00031, "0.0026 ± 0.0003"),
        (12.34, 3.4, "12 ± 3"),
        (1234.5, 56.7, "1234 ± 57"),
        (0.5, 0.0, "0.500"),
    ],
)
def test_a_mean_has_the_digits_that_its_error_leaves(mean: float, error: float, text: str):
    assert measured(mean, error) == text
    assert measured(mean, error, "+") == "+" + text


def test_an_error_that_begins_with_one_has_two_digits_and_zero_has_no_minus():
    assert measured(-0.000075, 0.00104, "+") == "-0.0001 ± 0.0010"
    assert measured(-0.00001, 0.00104, "+") == "+0.0000 ± 0.0010"
