"""The value of a figure at which a run ends."""

from __future__ import annotations

import pytest

from launcher.metrics.counters import MemberKey
from launcher.metrics.goal import Goal
from launcher.metrics.metrics import RunMetrics
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import Episode, Evaluation, Report
from pdqn.stop_at import lacks_figure, parse_target


def reported(*scores: float, evaluation: float | None = None, loss: float = 0.0) -> RunMetrics:
    """Metrics after these episodes."""
    metrics = RunMetrics("coverage")
    episodes = tuple(Episode(score, 10, score / 2) for score in scores)
    metrics.ingest(
        MemberKey("actor", 0, 0), Report(counters={"episodes": len(scores)}, episodes=episodes), 1.0
    )
    if evaluation is not None:
        result = Evaluation(3, 1, 9.0, 0.1, {"coverage": evaluation}, {"coverage": 0.1})
        metrics.ingest(MemberKey("evaluator", 0, 0), Report(evaluation=result), 1.0)
    learner = {"learning_rate": loss}
    metrics.ingest(MemberKey("learner", 0, 0), Report(gauges=learner), 1.0)
    return metrics


def reason(text: str | None, metrics: RunMetrics, headline: str | None = "coverage") -> str:
    goal = Goal(text, headline)
    goal.look(metrics)
    return goal.reason


def test_a_run_ends_once_a_figure_is_reached_from_its_side():
    metrics = reported(*[5.0] * 100, evaluation=0.5, loss=0.25)
    reached = ["return=5", "return >= 4", "rollout/coverage=2.5", "evaluation=0.5",
               "eval/return_mean=9", "train/learning_rate<=0.25", "episodes=100"]  # fmt: skip
    missed = ["return=5.1", "return<=4", "evaluation=0.6", "train/learning_rate<=0.2"]
    assert [text for text in reached if reason(text, metrics) != "stop_at"] == []
    assert [text for text in missed if reason(text, metrics)] == []
    assert reason(None, metrics) == ""


def test_luck_in_the_first_episodes_is_not_the_end():
    assert reason("return=5", reported(*[9.0] * 99)) == ""
    assert reason("return=5", reported(*[9.0] * 100)) == "stop_at"
    # What is not known yet is not reached.
    assert reason("evaluation<=5", reported()) == ""
    assert reason("train/q_mean<=5", reported()) == ""


def test_an_evaluation_is_compared_by_its_headline_or_else_by_its_return():
    metrics = reported(evaluation=0.5)
    assert reason("evaluation=5", metrics) == ""
    assert reason("evaluation=5", metrics, headline=None) == "stop_at"


def test_a_program_ends_a_run_once():
    goal = Goal(None, None)
    goal.finish()
    assert goal.reason == "stop_when"


@pytest.mark.parametrize("text", ["return", "return=", "=3", "retrn=3", "return=x", "return=nan",
                                  "train/los<=1", "return==3"])  # fmt: skip
def test_what_is_no_target_is_refused(text: str):
    with pytest.raises(
        UsageError, match=r"x: run\.stop_at = .*; expected FIGURE=VALUE: return=475"
    ):
        build(("x", {"run": {"stop_at": text}}))


def test_a_target_that_an_environment_has_no_figure_for_is_found_before_the_run():
    names = {
        "return=1": (False, False),
        "evaluation=1": (False, False),
        "rollout/coverage=1": (False, True),
        "eval/coverage=1": (False, True),
        "rollout/speed=1": (True, True),
        "eval/baseline/greedy=1": (False, False),
        "time/fps=1": (False, False),
    }
    found = {
        text: (lacks_figure(parse_target(text), "coverage"), lacks_figure(parse_target(text), None))
        for text in names
    }
    assert found == names
