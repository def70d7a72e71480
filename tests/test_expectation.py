"""The sentences about when circle placement is above exact greedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.prediction import expectation
from launcher.prediction.expectation import about, at_start, steps_above_greedy, time_left
from pdqn.config import Config
from pdqn.layers import build
from pdqn.messages import Evaluation
from pdqn.specs import ROLLOUT_ACTIONS, EnvironmentSpec, FieldSpec

FIELDS = (FieldSpec("map", (128, 128), "float32"), FieldSpec("radius", (1,), "float32"))
SPEC = EnvironmentSpec("pdqn/CirclePlacement-v0", FIELDS, 128 * 128, circle_placement=True)
SETTINGS: dict[str, dict[str, Any]] = {
    "run": {"mode": "parallel", "time_seconds": 600.0},
    "actor": {"n_step": 15, "exploration": "boltzmann"},
    "network": {"kind": "qmap"},
    "learner": {"device": "cpu", "threads": 1, "batch_size": 64},
}


def config_of(**changes: dict[str, Any]) -> Config:
    return build(("test", SETTINGS), ("changes", changes))


def first(best_is_first: bool) -> Evaluation:
    return Evaluation(70, 32, 0.4, 0.01, best=0.4, best_version=0, best_is_first=best_is_first)


# ---- what is expected ----


def test_the_learner_steps_are_those_that_were_measured():
    assert steps_above_greedy(config_of(), SPEC) == 2500
    assert steps_above_greedy(config_of(run={"env_args": {"radii": "random"}}), SPEC) == 4500
    assert steps_above_greedy(config_of(run={"env_args": {"radii": "10..20"}}), SPEC) == 4500
    assert steps_above_greedy(config_of(run={"env_args": {"radii": [20, 17]}}), SPEC) == 2500
    assert steps_above_greedy(config_of(learner={"batch_size": 256}), SPEC) == 625
    told = dataclasses.replace(SPEC, fields=(*FIELDS, FieldSpec(ROLLOUT_ACTIONS, (24,), "int32")))
    assert steps_above_greedy(config_of(), told) == 750
    assert steps_above_greedy(config_of(learner={"rollout_weight": 0}), told) == 2500
    assert steps_above_greedy(config_of(run={"env_args": {"radii": "random"}}), told) == 4500


@pytest.mark.parametrize(
    "changes",
    [
        {"actor": {"n_step": 3}},
        {"actor": {"returns": "lambda"}},
        {"actor": {"exploration": "uniform"}},
        {"network": {"kind": "conv"}},
        {"run": {"env_args": {"overlap": "true"}}},
    ],
)
def test_nothing_is_expected_of_settings_that_were_not_measured(changes: dict[str, Any]):
    assert at_start(config_of(**changes), SPEC) == ""
    assert time_left(config_of(**changes), SPEC, {"learner_steps": 9}, None) == ""


def test_nothing_is_expected_of_other_environments():
    other = dataclasses.replace(SPEC, circle_placement=False)
    assert at_start(config_of(), other) == time_left(config_of(), other, {}, None) == ""


# ---- the first lines ----


def test_the_first_lines_say_what_to_expect_and_when():
    assert at_start(config_of(), SPEC) == (
        "the policy starts level with exact greedy; expect it above after about 3 min on this "
        "machine (2,500 learner steps)"
    )


def test_a_run_that_ends_before_says_how_long_is_enough():
    text = at_start(config_of(run={"time_seconds": 60.0}), SPEC)
    assert text.endswith("which this run does not reach: --time 4m does")


def test_the_prediction_follows_mode_threads_and_map():
    predicted = expectation.step_seconds(config_of(), SPEC)
    assert predicted is not None
    assert 1 / predicted == pytest.approx(15.3, rel=0.02)
    smaller = dataclasses.replace(SPEC, fields=(FieldSpec("map", (64, 64), "float32"),))
    at_64 = expectation.step_seconds(config_of(), smaller)
    assert at_64 is not None
    assert 1 / at_64 == pytest.approx(20, rel=0.02)
    assert expectation.step_seconds(config_of(run={"mode": "single"}), SPEC) == 2 * predicted
    threads = expectation.step_seconds(config_of(learner={"threads": 4}), SPEC)
    assert threads is not None
    assert threads < predicted / 2


def test_on_a_gpu_only_the_steps_are_known():
    text = at_start(config_of(learner={"device": "cuda"}), SPEC)
    assert text.endswith("expect it above from about learner step 2,500 on")


# ---- while the run goes on ----


@pytest.mark.parametrize(
    ("steps", "rate", "text"),
    [
        (700, 15.0, "above exact greedy in ~2 min"),
        (2400, 15.0, "above exact greedy in ~10 s"),
        (2500, 15.0, "not above exact greedy yet"),
        (700, 0.0, ""),  # it stands still
        (700, None, ""),
        (0, 0.0, "above exact greedy in ~3 min"),  # as predicted
        (50, 0.1, "above exact greedy in ~3 min"),
    ],
)
def test_the_console_says_the_time_left_at_the_present_pace(
    steps: int, rate: float | None, text: str
):
    figures = {"learner_steps": steps, "learner/steps_per_second": rate}
    for evaluation in (None, first(best_is_first=True)):
        assert time_left(config_of(), SPEC, figures, evaluation) == text
    assert len(text) <= 32, "the panel has no more columns on a narrow terminal"


def test_on_a_gpu_the_time_left_is_known_once_there_is_a_pace():
    config = config_of(learner={"device": "cuda"})
    figures = {"learner_steps": 0.0, "learner/steps_per_second": 0.0}
    assert time_left(config, SPEC, figures, None) == ""
    figures = {"learner_steps": 500.0, "learner/steps_per_second": 100.0}
    assert time_left(config, SPEC, figures, None) == "above exact greedy in ~20 s"


def test_once_an_evaluation_was_above_the_first_there_is_nothing_left_to_expect():
    figures = {"learner_steps": 700.0, "learner/steps_per_second": 15.0}
    assert time_left(config_of(), SPEC, figures, first(best_is_first=False)) == ""
    unseen = config_of(evaluation={"enabled": False})
    assert time_left(unseen, SPEC, figures, None) == "", "nothing would tell"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3, "10 s"), (44, "40 s"), (84, "80 s"), (90, "2 min"), (5390, "90 min"), (9000, "2.5 h")],
)
def test_estimates_have_few_digits(seconds: float, text: str):
    assert about(seconds) == text
