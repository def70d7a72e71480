"""The one sentence that says which part of a run limits the others."""

from __future__ import annotations

import pytest

from launcher.metrics.waiting import bottleneck, limiting_stage, replay_waits


def figures_of(
    actors: float, learner: float, inserts: float, samples: float, ratio: float = 0.5
) -> dict[str, float | None]:
    """Return the shares of time for which each waits, and for which the limiter blocks it."""
    return {
        "replay/size": 1000.0,
        "actor/wait_share": actors,
        "learner/wait_share": learner,
        "replay/inserts_blocked_share": inserts,
        "replay/samples_blocked_share": samples,
        "replay/samples_per_insert": ratio,
    }


# What each waits, what the limiter blocks, and the verdict.
CASES = {
    "nothing waits": ((0.0, 0.0, 0.0, 0.0), None, "balanced: nobody waits"),
    "a few per cent": ((0.05, 0.09, 0.04, 0.09), None, "balanced: nobody waits"),
    "a slow learner": ((0.43, 0.02, 0.45, 0.0), "learner", "learner-bound: actors wait 43%"),
    "a slow learner and few actors": ((0.2, 0.01, 0.3, 0.05), "learner", "learner-bound: actors"),
    "a learner behind since it filled": ((0.5, 0.32, 0.74, 0.30), "learner", "learner-bound"),
    "inserts blocked, and windows not full": ((0.0, 0.0, 0.2, 0.0), "learner", "actors wait 20%"),
    "slow actors": ((0.0, 0.89, 0.0, 0.88), "actors", "actor-bound: learner waits 89%"),
    "slow actors, some windows full": ((0.05, 0.5, 0.02, 0.49), "actors", "actor-bound"),
    "actors behind after a pause": ((0.3, 0.6, 0.28, 0.58), "actors", "actor-bound"),
    "a replay that gives slowly": ((0.7, 0.32, 0.74, 0.0), "replay", "replay-bound: actors wait"),
    "a replay that takes slowly": ((0.6, 0.5, 0.0, 0.5), "replay", "replay-bound: actors wait 60%"),
    "a replay that does both slowly": ((0.3, 0.4, 0.0, 0.0), "replay", "learner waits 40%"),
    "a replay too slow for actors": ((0.3, 0.0, 0.02, 0.0), "replay", "replay-bound: actors wait"),
    "a replay too slow for the learner": ((0.0, 0.2, 0.0, 0.01), "replay", "learner waits 20%"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_verdict_is_right(name: str):
    shares, stage, sentence = CASES[name]
    figures = figures_of(*shares)
    assert limiting_stage(figures) == stage
    assert sentence in bottleneck(figures)


def test_a_replay_that_fills_is_not_a_fault_of_the_actors():
    figures = figures_of(0.0, 0.8, 0.0, 0.79, ratio=0.0)
    assert bottleneck(figures) == "filling: learner waits 80%"
    assert replay_waits(figures, 2000) == "samples wait 79% (fills to 2,000)"


@pytest.mark.parametrize("name", CASES)
def test_both_sentences_about_waits_blame_the_same(name: str):
    shares, stage, _ = CASES[name]
    told = replay_waits(figures_of(*shares), 1000)
    blamed = {"learner": "learner is behind", "actors": "actors are", "replay": "replay is"}
    if told and stage is not None:
        assert blamed[stage] in told
