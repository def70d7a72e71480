"""Greedy episodes on given seeds, and their numbers beside those of the baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.environments import guard
from actors.environments.describe import describe_environment
from actors.environments.guard import EnvironmentFailedError
from actors.environments.vector import VectorEnvironment
from actors.evaluation import (
    Scores,
    baseline_scores,
    describe,
    dropped_text,
    play,
    random_act,
    standard_error,
)
from pdqn.discs import disc_sums
from pdqn.errors import RunError
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation

CIRCLES = "pdqn/CirclePlacement-v0"
ARGS = {"map_size": 16, "radii": "4,3,2"}
COUNTDOWN = "pdqn-test/Countdown-v0"


class Countdown(gymnasium.Env[Any, Any]):
    """Counts down from 1 + seed % 5 to 0, at most 3 steps; each step is worth the seed.

    Some seeds raise in their first step (``bad``) or in reset (``unborn``). Others (``strange``)
    have a return or an observation that is not finite.

    Later episodes, which have no seed of their own, would be worth a fortune. While somebody else
    has the environment (``busy``), it cannot be made at all. With ``late``, its headline metric is
    known only at the end of an episode.
    """

    headline_metric = "left"
    observation_space = spaces.Box(0, 99, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(
        self,
        bad: Collection[int] = (),
        unborn: Collection[int] = (),
        strange: dict[str, Any] | None = None,
        busy: bool = False,
        late: bool = False,
    ) -> None:
        if busy:
            raise OSError("the license server is busy\nask again")
        self.bad, self.unborn, self.strange = bad, unborn, strange or {}
        self.late = late

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed in self.unborn:
            raise RuntimeError("it is not born")
        self.worth = 1_000_000 if seed is None else seed
        self.left = 1 + self.worth % 5
        self.steps = 0
        return np.array([self.left], np.float32), {}

    def step(self, action: Any) -> Any:
        if self.worth in self.bad:
            raise RuntimeError("it is stuck")
        self.left -= 1
        self.steps += 1
        seen = np.array([self.left], np.float32)
        ended, cut = self.left == 0, self.steps == 3
        worth, left = float(self.worth), float(self.left)
        if self.worth in self.strange.get("seeds", ()):
            worth, left = self.strange.get("worth", worth), self.strange.get("left", left)
        known = ended or cut or not self.late
        return seen, worth, ended, cut, {"left": left} if known else {}

    def baselines(self, seeds: Collection[int]) -> dict[str, np.ndarray]:
        if not self.bad:
            return {"waiting": np.ones(len(seeds))}
        raise ZeroDivisionError


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    made: Any = Countdown
    # Gymnasium's checker would warn of values that are not finite; warnings are errors here.
    gymnasium.register(id=COUNTDOWN, entry_point=made, disable_env_checker=True)
    yield
    gymnasium.registry.pop(COUNTDOWN)


def wait(observation: Observation) -> np.ndarray:
    return np.zeros(len(observation["observation"]), np.int64)


class TestPlay:
    @pytest.mark.parametrize("episodes", [1, 3, 16, 17, 32, 41])
    def test_there_is_one_episode_for_every_seed_in_their_order(self, episodes):
        spec = describe_environment(COUNTDOWN, {})
        seeds = [100 + 7 * k for k in range(episodes)]
        scores = play(wait, spec, {}, seeds)
        assert scores is not None
        lengths = [min(3, 1 + seed % 5) for seed in seeds]
        assert scores.lengths.tolist() == lengths
        assert scores.returns.tolist() == [
            seed * length for seed, length in zip(seeds, lengths, strict=True)
        ]
        assert scores.headline.tolist() == [
            1 + seed % 5 - length for seed, length in zip(seeds, lengths, strict=True)
        ]

    def test_the_same_seeds_have_the_same_scores_in_whatever_company(self):
        spec = describe_environment(CIRCLES, ARGS)

        def first_valid(observation: Observation) -> np.ndarray:
            return observation["action_mask"].argmax(axis=1)

        seeds = list(range(1_000_000, 1_000_020))
        scores = play(first_valid, spec, ARGS, seeds)
        again = play(first_valid, spec, ARGS, seeds)
        alone = [play(first_valid, spec, ARGS, [seed]) for seed in seeds[:3]]
        assert scores is not None
        assert again is not None
        np.testing.assert_array_equal(scores.returns, again.returns)
        np.testing.assert_allclose(scores.returns, scores.headline)
        for k, single in enumerate(alone):
            assert single is not None
            assert single.returns[0] == scores.returns[k]
            assert single.lengths[0] == scores.lengths[k]

    def test_a_random_policy_that_repeats_has_the_same_scores(self):
        spec = describe_environment(CIRCLES, ARGS)
        runs = [
            play(random_act(spec, np.random.default_rng(3)), spec, ARGS, [1, 2, 3])
            for _ in range(2)
        ]
        assert runs[0] is not None
        assert runs[1] is not None
        np.testing.assert_array_equal(runs[0].returns, runs[1].returns)

    @pytest.mark.parametrize("steps_before", [0, 1, 4])
    def test_told_to_stop_it_stops_without_scores(self, steps_before):
        asked = []

        def should_stop() -> bool:
            asked.append(True)
            return len(asked) > steps_before

        spec = describe_environment(COUNTDOWN, {})
        assert play(wait, spec, {}, list(range(40)), should_stop) is None
        assert len(asked) == steps_before + 1

    def test_an_episode_whose_environment_fails_has_no_score_and_the_others_have_theirs(
        self, monkeypatch
    ):
        monkeypatch.setattr(guard.time, "sleep", lambda _: None)
        spec = describe_environment(COUNTDOWN, {})
        seeds = [100 + 7 * k for k in range(41)]
        whole = play(wait, spec, {}, seeds)
        scores = play(wait, spec, {"bad": {107, 121, 310}}, seeds)
        assert whole is not None
        assert scores is not None
        bad = np.isin(seeds, [107, 121, 310])
        assert np.isnan(scores.returns[bad]).all()
        np.testing.assert_array_equal(scores.returns[~bad], whole.returns[~bad])
        np.testing.assert_array_equal(scores.lengths[~bad], whole.lengths[~bad])

    def test_an_episode_whose_reset_fails_is_not_taken_for_another_seeds(self, monkeypatch):
        monkeypatch.setattr(guard.time, "sleep", lambda _: None)
        spec = describe_environment(COUNTDOWN, {})
        scores = play(wait, spec, {"unborn": {107}}, [100, 107, 114])
        assert scores is not None
        assert np.isnan(scores.returns).tolist() == [False, True, False]

    def test_an_environment_that_always_fails_is_an_error_with_its_traceback(self, monkeypatch):
        monkeypatch.setattr(guard.time, "sleep", lambda _: None)
        spec, seeds = describe_environment(COUNTDOWN, {}), list(range(100, 300))
        with pytest.raises(EnvironmentFailedError, match=r"5 times in a row(.|\n)*it is stuck"):
            play(wait, spec, {"bad": set(range(10**6))}, seeds)
        with pytest.raises(RunError, match="none of 2 held-out episodes of pdqn-test/Countdown-v0"):
            play(wait, spec, {"bad": {100, 101}}, [100, 101])

    @pytest.mark.parametrize("what", ["worth", "left"])
    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_what_is_not_finite_is_no_score(self, what, value):
        spec = describe_environment(COUNTDOWN, {})
        strange = {"seeds": {101}, what: value}
        scores = play(wait, spec, {"strange": strange}, [100, 101, 102])
        assert scores is not None
        result = describe(scores, spec, {})
        assert (result["episodes"], result["dropped"]) == (2, 1)
        assert math.isfinite(result["return_mean"])
        with pytest.raises(RunError, match=r"none of 1 .* a score that is finite"):
            play(wait, spec, {"strange": strange}, [101])

    def test_an_environment_that_cannot_be_made_is_an_error_of_one_line(self):
        spec = describe_environment(COUNTDOWN, {})
        expected = f"environment {COUNTDOWN} cannot be made: OSError: the license server is busy"
        with pytest.raises(RunError) as caught:
            play(wait, spec, {"busy": True}, [100, 101])
        assert str(caught.value) == expected

    def test_a_batch_that_fails_in_its_first_reset_is_one_too(self, monkeypatch):
        spec = describe_environment(CIRCLES, ARGS)

        def fail(*_: Any, **__: Any) -> None:
            raise KeyError

        native = "actors.circle_placement.environment.CirclePlacementVectorEnv.reset"
        monkeypatch.setattr(native, fail)
        expected = f"environment {CIRCLES} cannot be reset: KeyError"
        with pytest.raises(RunError) as caught:
            play(wait, spec, ARGS, [100, 101])
        assert str(caught.value) == expected

    def test_what_comes_after_an_episode_is_not_played(self, monkeypatch):
        spec, begun, seeds = describe_environment(COUNTDOWN, {}), [], [*range(100, 120)]
        reset = Countdown.reset

        def noted_reset(env: Countdown, **arguments: Any) -> Any:
            begun.append(arguments["seed"])
            return reset(env, **arguments)

        monkeypatch.setattr(Countdown, "reset", noted_reset)
        scores = play(wait, spec, {}, seeds)
        assert scores is not None
        assert sorted(set(scores.lengths.tolist())) == [1, 2, 3]
        # Seeds of the first batch fill up the second.
        assert begun == [*seeds, *seeds[:12]]

    def test_an_episode_without_end_is_cut_and_counts_as_far_as_it_went(self):
        spec = describe_environment("CliffWalking-v1", {})

        def up_and_down(observation: Observation) -> np.ndarray:
            return np.where(observation["observation"] // 12 == 3, 0, 2)

        scores = play(up_and_down, spec, {}, [1, 2, 3], max_episode_steps=50)
        assert scores is not None
        assert scores.lengths.tolist() == [50, 50, 50]
        assert scores.returns.tolist() == [-50, -50, -50]

    def test_an_episode_that_is_cut_has_the_headline_of_its_last_step(self):
        spec, seeds = describe_environment(COUNTDOWN, {}), [100, 101, 102, 103, 104]
        scores = play(wait, spec, {}, seeds, max_episode_steps=2)
        assert scores is not None
        assert scores.lengths.tolist() == [1, 2, 2, 2, 2]
        assert scores.headline.tolist() == [0, 0, 1, 2, 3]
        assert scores.cut.tolist() == [False, False, True, True, True]
        result = describe(scores, spec, {})
        assert (result["episodes"], result["dropped"]) == (5, 0)
        assert (result["cut"], result["unscored"]) == (3, 0)
        assert result["metrics"] == {"left": pytest.approx(1.2)}
        assert dropped_text(result) == ""

    @pytest.mark.parametrize("seeds", [[100, 102, 101, 104], [102, 103, 104, 107]])
    def test_where_the_headline_comes_at_the_end_only_a_cut_episode_still_counts(self, seeds):
        """Cut half of the episodes, or all of them."""
        spec, args = describe_environment(COUNTDOWN, {}), {"late": True}
        whole = play(wait, spec, {}, seeds, max_episode_steps=2)
        scores = play(wait, spec, args, seeds, max_episode_steps=2)
        assert whole is not None
        assert scores is not None
        np.testing.assert_array_equal(scores.returns, whole.returns)
        np.testing.assert_array_equal(scores.lengths, whole.lengths)
        np.testing.assert_array_equal(scores.cut, whole.cut)
        expected = np.where(whole.cut, np.nan, whole.headline)
        np.testing.assert_array_equal(scores.headline, expected)
        cut = int(whole.cut.sum())
        assert cut in (2, 4)
        result = describe(scores, spec, baseline_scores(spec, args, seeds))
        assert (result["episodes"], result["dropped"]) == (4, 0)
        assert (result["cut"], result["unscored"]) == (cut, cut)
        assert result["length_mean"] == whole.lengths.mean()
        assert set(result["metrics"]) == (set() if cut == 4 else {"left"})

    def test_an_environment_without_a_headline_metric_has_none(self):
        spec = describe_environment("CartPole-v1", {})
        scores = play(wait, spec, {}, [1, 2])
        assert scores is not None
        assert np.isnan(scores.headline).all()
        assert scores.returns.tolist() == scores.lengths.tolist()


class TestBaselines:
    def test_they_are_those_of_the_environment(self):
        spec = describe_environment(COUNTDOWN, {})
        assert baseline_scores(spec, {}, [1, 2, 3])["waiting"].tolist() == [1, 1, 1]
        assert baseline_scores(describe_environment("CartPole-v1", {}), {}, [1, 2]) == {}

    @pytest.mark.parametrize(
        ("env_args", "cause"),
        [
            ({"busy": True}, "OSError: the license server is busy"),
            ({"bad": {1}}, "ZeroDivisionError"),
        ],
    )
    def test_what_they_raise_is_an_error_of_one_line(self, env_args, cause):
        spec = describe_environment(COUNTDOWN, {})
        with pytest.raises(RunError) as caught:
            baseline_scores(spec, env_args, [1, 2])
        expected = f"the baselines of environment {COUNTDOWN} cannot be played: {cause}"
        assert str(caught.value) == expected


class TestRandomPolicy:
    def test_it_takes_valid_actions_only_and_all_of_them(self):
        spec = EnvironmentSpec("x", (FieldSpec("action_mask", (4,), "int8", binary=True),), 4)
        act = random_act(spec, np.random.default_rng(0))
        mask = np.repeat(np.array([[0, 1, 0, 1]], np.int8), 100, axis=0)
        assert set(act({"action_mask": mask}).tolist()) == {1, 3}

    def test_without_a_mask_it_takes_any_action(self):
        spec = EnvironmentSpec("x", (FieldSpec("observation", (2,), "float32"),), 3)
        act = random_act(spec, np.random.default_rng(0))
        assert set(act({"observation": np.zeros((100, 2))}).tolist()) == {0, 1, 2}


def array(*values: float) -> np.ndarray:
    return np.array(values, np.float64)


def scores_of(returns: np.ndarray, lengths: np.ndarray, headline: np.ndarray, *cut: bool) -> Scores:
    own = np.array([{} for _ in returns], object)
    return Scores(returns, lengths, headline, np.array(cut or [False] * len(returns)), own)


class TestNumbers:
    def test_the_standard_error_is_that_of_the_mean(self):
        # Deviations -3, -1, 1, 3: variance 20/3, over 4.
        assert standard_error(array(2, 4, 6, 8)) == pytest.approx(math.sqrt(20 / 12))
        assert standard_error(array(5, 5, 5)) == 0

    def test_an_error_of_the_size_of_rounding_is_none(self):
        # Fifty steps of -0.1, which sum up to a bit more or less than -5.
        returns = array(-0.1 * 50, sum([-0.1] * 50), -5, -5 - 4e-16)
        assert returns.std(ddof=1) > 0
        assert standard_error(returns) == 0
        assert standard_error(array(-5, -5.0001)) == pytest.approx(5e-5)
        result = describe(
            scores_of(returns, np.full(4, 50), np.full(4, np.nan)),
            EnvironmentSpec("x", (), 2),
            {"same": array(-5, -5, -5, -5)},
        )
        assert result["return_error"] == 0
        assert result["differences"]["same"] == [0, 0]

    def test_a_single_value_has_no_error(self):
        assert standard_error(array(7)) == 0

    def test_scores_beside_baselines_worked_by_hand(self):
        spec = EnvironmentSpec("x", (), 2, headline_metric="coverage")
        scores = scores_of(array(2, 4, 6, 8), np.array([1, 2, 3, 6]), array(0.5, 0.7, 0.6, 0.8))
        baselines = {"greedy": array(0.4, 0.4, 0.5, 0.5), "random": array(0.1, 0.3, 0.2, 0.4)}
        result = describe(scores, spec, baselines)
        assert result["episodes"] == 4
        assert result["return_mean"] == 5
        assert result["return_error"] == pytest.approx(math.sqrt(20 / 12))
        assert result["length_mean"] == 3
        assert result["metrics"] == {"coverage": pytest.approx(0.65)}
        # Deviations of -15, 5, -5, 15 percent: variance 0.05/3, over 4.
        assert result["errors"] == {"coverage": pytest.approx(math.sqrt(0.05 / 12))}
        assert result["baselines"] == {
            "greedy": pytest.approx(0.45),
            "random": pytest.approx(0.25),
        }
        # Deviations of 5 percent each: variance 0.01/3, over 4.
        assert result["baseline_errors"]["greedy"] == pytest.approx(math.sqrt(0.01 / 12))
        # 0.1, 0.3, 0.1, 0.3: mean 0.2, deviations of 0.1 each.
        assert result["differences"]["greedy"] == [
            pytest.approx(0.2),
            pytest.approx(math.sqrt(0.04 / 12)),
        ]
        # Always 0.4 better: paired by seed there is no error at all.
        assert result["differences"]["random"] == [pytest.approx(0.4), pytest.approx(0, abs=1e-9)]

    def test_without_a_headline_metric_returns_are_compared(self):
        spec = EnvironmentSpec("x", (), 2)
        scores = scores_of(array(2, 4), np.array([1, 2]), array(math.nan, math.nan))
        result = describe(scores, spec, {"random": array(1, 1)})
        assert result["metrics"] == {}
        assert result["errors"] == {}
        assert result["differences"] == {"random": [2, pytest.approx(1)]}

    def test_what_has_no_score_is_left_out_everywhere(self):
        spec = EnvironmentSpec("x", (), 2)
        scores = scores_of(array(2, math.nan, 6, 9), np.array([1, 7, 3, 4]), array(*[math.nan] * 4))
        result = describe(scores, spec, {"random": array(1, 100, 3, math.nan)})
        assert (result["episodes"], result["dropped"]) == (2, 2)
        assert result["return_mean"] == 4
        assert result["length_mean"] == 2
        assert result["baselines"] == {"random": 2}
        # 1 and 3 better.
        assert result["differences"] == {"random": [2, pytest.approx(1)]}

    def test_where_nothing_is_left_to_average_there_is_no_result(self):
        scores = scores_of(array(2, math.inf), np.array([1, 7]), array(math.nan, math.nan))
        baselines = {"random": array(math.nan, 3)}
        with pytest.raises(RunError, match="none of 2 held-out episodes of x has a score"):
            describe(scores, EnvironmentSpec("x", (), 2), baselines)

    def test_an_episode_that_ended_without_its_headline_is_dropped(self):
        scores = scores_of(array(2, 4), np.array([1, 2]), array(math.nan, 0.5))
        result = describe(scores, EnvironmentSpec("x", (), 2, "coverage"), {})
        assert (result["episodes"], result["dropped"]) == (1, 1)
        assert result["metrics"] == {"coverage": 0.5}

    def test_an_episode_that_was_cut_before_its_headline_counts_with_its_return(self):
        spec, nan = EnvironmentSpec("x", (), 2, "coverage"), math.nan
        scores = scores_of(
            array(2, 4, 6, 8), np.array([1, 2, 50, 50]), array(0.5, 0.7, nan, 0.6),
            False, False, True, True,
        )  # fmt: skip
        result = describe(scores, spec, {"greedy": array(0.4, 0.4, 0.8, 0.4)})
        assert (result["episodes"], result["dropped"]) == (4, 0)
        assert (result["cut"], result["unscored"]) == (2, 1)
        assert result["return_mean"] == 5
        assert result["length_mean"] == 25.75
        assert result["metrics"] == {"coverage": pytest.approx(0.6)}
        assert result["baselines"] == {"greedy": pytest.approx(0.5)}
        # 0.1, 0.3, 0.2 better.
        assert result["differences"]["greedy"][0] == pytest.approx(0.2)
        assert result == json.loads(json.dumps(result, allow_nan=False))

    def test_if_all_were_cut_before_their_headline_the_returns_are_left(self):
        spec, nan = EnvironmentSpec("x", (), 2, "coverage"), math.nan
        scores = scores_of(array(2, 4), np.array([50, 50]), array(nan, nan), True, True)
        result = describe(scores, spec, {"greedy": array(0.4, 0.4)})
        assert (result["episodes"], result["dropped"], result["unscored"]) == (2, 0, 2)
        assert (result["return_mean"], result["length_mean"]) == (3, 50)
        assert result["metrics"] == result["errors"] == {}
        assert result["baselines"] == result["differences"] == {}
        assert "2 of 2 held-out episodes were cut before" in dropped_text(result)

    def test_without_baselines_there_is_nothing_to_compare(self):
        scores = scores_of(array(2, 4), np.array([1, 2]), array(1, 2))
        result = describe(scores, EnvironmentSpec("x", (), 2, "coverage"), {})
        assert result["baselines"] == result["baseline_errors"] == result["differences"] == {}

    def test_the_result_is_plain_data(self):
        scores = scores_of(array(2, 4), np.array([1, 2]), array(1, 2))
        spec = EnvironmentSpec("x", (), 2, "coverage")
        result = describe(scores, spec, {"random": array(1, 1)})
        assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_policy_is_compared_with_the_baselines_on_the_very_same_maps():
    """Play the greedy baseline as a policy: on every map it scores the same as itself."""

    def act(observation: Observation) -> np.ndarray:
        radii = observation["radius"][:, 0].astype(np.int64)
        sums = disc_sums(observation["map"], radii).reshape(len(radii), -1)
        return np.where(observation["action_mask"].astype(bool), sums, -1).argmax(axis=1)

    spec = describe_environment(CIRCLES, ARGS)
    seeds = list(range(1_000_000, 1_000_020))
    env = VectorEnvironment(spec, ARGS, 1)
    baselines = env.baselines(seeds)
    env.close()
    scores = play(act, spec, ARGS, seeds)
    assert scores is not None
    difference, _ = describe(scores, spec, baselines)["differences"]["exact_greedy"]
    # Maps in observations are rounded to float16, and equals may be told apart by that.
    assert difference == pytest.approx(0, abs=2e-3)
