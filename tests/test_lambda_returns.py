"""Lambda returns worked by hand, and against a twin that sums up the returns of all lengths."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from test_segments import SPEC, World, frames_with, number_of, play_one, shipped, transitions

from actors.environments.describe import describe_environment
from actors.lambda_returns import lambda_returns
from actors.rollout import Identity, Rollout
from actors.segments import Segment, SegmentRecorder, recorder_for
from pdqn.config import ActorConfig
from pdqn.layers import build
from pdqn.networks import build_network
from pdqn.policy import action_values
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry

GAMMA = 0.9


def returns_of(values: list[float], decay: float, *, terminated: bool) -> list[float]:
    """Compute the lambda returns of the rewards 1, 10, 100 with gamma 0.5."""
    given_values = np.array(values, np.float32)
    return lambda_returns(
        np.array([1.0, 10, 100]), given_values, 0.5, decay, terminated=terminated
    ).tolist()


class TestByHand:
    """Rewards 1, 10, 100 at observations of the values 1, 2, 3; gamma 0.5."""

    def test_termination_is_worth_nothing_more(self):
        # 100; 10 + 0.5 (0.5 * 3 + 0.5 * 100); 1 + 0.5 (0.5 * 2 + 0.5 * 35.75)
        assert returns_of([1, 2, 3], 0.5, terminated=True) == [10.4375, 35.75, 100]

    def test_what_goes_on_bootstraps_from_the_value_of_the_next_observation(self):
        # 100 + 0.5 * 8; 10 + 0.5 (0.5 * 3 + 0.5 * 104); 1 + 0.5 (0.5 * 2 + 0.5 * 36.75)
        assert returns_of([1, 2, 3, 8], 0.5, terminated=False) == [10.6875, 36.75, 104]

    def test_lambda_0_is_the_one_step_return(self):
        # 1 + 0.5 * 2, 10 + 0.5 * 3, 100 + 0.5 * 8
        assert returns_of([1, 2, 3, 8], 0, terminated=False) == [2, 11.5, 104]

    def test_lambda_1_sums_all_rewards(self):
        assert returns_of([1, 2, 3], 1, terminated=True) == [1 + 5 + 25, 10 + 50, 100]

    def test_other_numbers_of_values_are_an_error(self):
        with pytest.raises(ValueError, match="3 values for 3 rewards, not 4"):
            returns_of([1, 2, 3], 0.5, terminated=False)
        with pytest.raises(ValueError, match="4 values for 3 rewards, not 3"):
            returns_of([1, 2, 3, 8], 0.5, terminated=True)


def small_recorder(segment_length: int = 10, spec: EnvironmentSpec = SPEC) -> SegmentRecorder:
    return SegmentRecorder(
        spec, 1, n_step=1, discount=0.5, segment_length=segment_length, trace_decay=0.5
    )


def assert_complete(segment: Segment, returns: list[float], steps: list[int]) -> None:
    """Check returns and frames of a segment that bootstraps from nothing; Q taken was 0.5."""
    columns = segment.columns
    np.testing.assert_allclose(columns["n_step_return"], returns, rtol=1e-6)
    np.testing.assert_array_equal(columns["discount"], np.zeros(len(returns)))
    np.testing.assert_array_equal(columns["bootstrap_index"], columns["observation_index"])
    np.testing.assert_allclose(columns["priority"], np.array(returns) - 0.5, rtol=1e-6)
    np.testing.assert_array_equal(segment.frames["step"][:, 0], steps)


class TestSegments:
    """The same steps, recorded: the observation with number k has the value k."""

    def test_terminated(self):
        recorder = small_recorder()
        assert play_one(recorder, 1, 1) == play_one(recorder, 2, 10) == []
        (segment,) = play_one(recorder, 3, 100, "terminated")
        assert_complete(segment, [10.4375, 35.75, 100], [1, 2, 3])

    def test_truncated_with_a_final_observation_of_value_8_which_is_not_shipped(self):
        recorder = small_recorder()
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100, "truncated")
        assert_complete(segment, [10.6875, 36.75, 104], [1, 2, 3])

    def test_a_border_in_an_episode_bootstraps_from_the_value_of_the_first_step_behind_it(self):
        recorder = small_recorder(segment_length=2)
        assert play_one(recorder, 1, 1) == play_one(recorder, 2, 10) == []
        (segment,) = play_one(recorder, 3, 100)
        # 10 + 0.5 * 3; 1 + 0.5 (0.5 * 2 + 0.5 * 11.5)
        assert_complete(segment, [4.375, 11.5], [1, 2])
        (segment,) = play_one(recorder, 4, 1000, "terminated")
        # 1000; 100 + 0.5 (0.5 * 4 + 0.5 * 1000)
        assert_complete(segment, [351, 1000], [3, 4])

    def test_an_episode_that_ends_in_the_step_behind_a_full_segment_is_one_segment(self):
        recorder = small_recorder(segment_length=2)
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100, "terminated")
        assert_complete(segment, [10.4375, 35.75, 100], [1, 2, 3])

    def test_flushed_up_to_the_value_of_the_last_frame(self):
        recorder = small_recorder()
        for number, reward in ((1, 1), (2, 10), (3, 100)):
            play_one(recorder, number, reward)
        (segment,) = recorder.flush()
        assert_complete(segment, [4.375, 11.5], [1, 2])

    def test_stacks_have_their_earlier_frames_and_none_behind(self):
        recorder = small_recorder(segment_length=2, spec=SPEC.stacked(3))
        for number in range(1, 5):
            play_one(recorder, number, 0)
        (segment,) = play_one(recorder, 5, 0)
        np.testing.assert_array_equal(segment.frames["step"][:, 0], [1, 2, 3, 4])
        np.testing.assert_array_equal(segment.columns["history"], [0, 1, 2, 2])
        np.testing.assert_array_equal(segment.columns["observation_index"], [2, 3])

    def test_a_step_that_cannot_be_used_ends_a_segment_with_the_value_before_it(self):
        recorder = small_recorder()
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        recorder.record(frames_with(3), np.array([3]), *np.array([[0.5], [3]], np.float32))
        none = np.zeros(1, bool)
        (segment,) = recorder.finish(
            np.array([np.nan]), none, none, {}, np.empty(0, np.float32), ~none
        )
        assert_complete(segment, [4.375, 11.5], [1, 2])

    def test_they_look_one_step_ahead_only(self):
        with pytest.raises(ValueError, match="1 step ahead, not 3"):
            SegmentRecorder(SPEC, 1, n_step=3, discount=1.0, segment_length=4, trace_decay=0.5)


def test_an_actors_settings_make_its_recorder():
    actor = ActorConfig(returns="lambda", n_step=7, trace_decay=0.5, discount=0.5, segment_length=2)
    recorder = recorder_for(actor, SPEC, 1)
    play_one(recorder, 1, 1)
    play_one(recorder, 2, 10)
    (segment,) = play_one(recorder, 3, 100)
    assert_complete(segment, [4.375, 11.5], [1, 2])
    (segment,) = recorder_of_n_steps()
    np.testing.assert_array_equal(segment.columns["discount"], [0.25, 0.25])


def recorder_of_n_steps() -> list[Segment]:
    """Record four steps with returns of two."""
    actor = ActorConfig(n_step=2, trace_decay=0.5, discount=0.5, segment_length=2)
    recorder = recorder_for(actor, SPEC, 1)
    return [s for number in range(1, 6) for s in play_one(recorder, number, 0)][:1]


# ---- the twin ----


def forward_view(
    rewards: list[float], values: list[float], last_value: float, decay: float
) -> list[float]:
    """Mix the n-step returns of each step up to the end, as the definition says.

    Args:
        rewards: of the steps.
        values: of the frame before each step.
        last_value: of the frame after the last step.
        decay: lambda.
    """
    count, following = len(rewards), [*values[1:], last_value]

    def n_step(t: int, n: int) -> float:
        summed = sum(GAMMA**j * rewards[t + j] for j in range(n))
        return summed + GAMMA**n * following[t + n - 1]

    returns = []
    for t in range(count):
        most = count - t
        shorter = sum((1 - decay) * decay ** (n - 1) * n_step(t, n) for n in range(1, most))
        returns.append(shorter + decay ** (most - 1) * n_step(t, most))
    return returns


@settings(deadline=None, max_examples=200)
@given(
    steps=st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=12),
    last_value=st.floats(-100, 100),
    decay=st.floats(0, 1),
    terminated=st.booleans(),
)
def test_returns_equal_the_definition(steps, last_value, decay, terminated):
    rewards, values = [reward for reward, _ in steps], [value for _, value in steps]
    wanted = forward_view(rewards, values, 0.0 if terminated else last_value, decay)
    seen = np.array(values if terminated else [*values, last_value], np.float32)
    found = lambda_returns(np.array(rewards), seen, GAMMA, decay, terminated=terminated)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


@settings(deadline=None, max_examples=80)
@given(
    frame_stack=st.integers(1, 4),
    segment_length=st.integers(1, 12),
    num_envs=st.integers(1, 4),
    steps=st.integers(0, 40),
    end_probability=st.floats(0, 1),
    flush_probability=st.sampled_from([0.0, 0.1, 0.5]),
    decay=st.sampled_from([0.0, 0.65, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_runs_equal_the_twin(
    frame_stack, segment_length, num_envs, steps, end_probability, flush_probability, decay, seed
):
    """Record random episodes; each segment must have the returns up to its own end."""
    spec = SPEC.stacked(frame_stack)
    world = World(num_envs, seed)
    recorder = SegmentRecorder(
        spec, num_envs, n_step=1, discount=GAMMA, segment_length=segment_length, trace_decay=decay
    )
    caused: list[tuple[str, Segment]] = []
    for _ in range(steps):
        caused += world.play(recorder, end_probability)
        if world.rng.random() < flush_probability:
            caused += world.flush(recorder)
    caused += world.flush(recorder)
    where = {
        episode.frames[t]["step"][0]: (episode, t)
        for episodes in world.episodes
        for episode in episodes
        for t in range(len(episode.steps))
    }
    left = {
        episode.frames[t]["step"][0]
        for episodes in world.episodes
        for episode in episodes
        for t in range(episode.shipped())
    }
    for cause, segment in caused:
        assert segment.count <= segment_length + 1
        assert segment.count == segment_length or cause != "cut"
        rows = list(transitions(shipped([segment], spec), spec))
        assert segment.frame_count <= segment.count + frame_stack - 1
        episode, start = where[number_of(rows[0])]
        stop = start + segment.count
        part = episode.steps[start:stop]
        last = 0.0
        if stop < len(episode.steps):
            last = episode.steps[stop].value
        elif episode.end == "truncated":
            last = episode.final_value
        wanted = forward_view([s.reward for s in part], [s.value for s in part], last, decay)
        for row, step, expected in zip(rows, part, wanted, strict=True):
            left.remove(number_of(row))
            assert row["action"] == step.action
            assert row["discount"] == 0
            assert row["bootstrap"] == row["observation"]
            assert row["n_step_return"] == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert row["priority"] == pytest.approx(abs(expected - step.chosen), rel=1e-4, abs=1e-4)
    assert not left


# ---- masks ----


class Masked(gymnasium.Env[Any, Any]):
    """Walks of five steps, of which every other one forbids two of three actions."""

    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._seen()

    def step(self, action: Any) -> Any:
        self._steps += 1
        observation, info = self._seen()
        return observation, float(action), self._steps == 5, False, info

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        mask = np.array([1, 1, 1] if self._steps % 2 else [1, 0, 0], np.int8)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {"action_mask": mask}


def test_an_actor_values_each_frame_by_its_legal_actions():
    actor = {"envs_per_actor": 2, "discount": 0.5, "returns": "lambda", "segment_length": 9}
    config = build(
        (
            "test",
            {
                "run": {"env": "test_lambda_returns:Masked"},
                "actor": {**actor, "epsilon_base": 0.9, "epsilon_alpha": 0},
                "network": {"hidden": 8, "layers": 1},
            },
        )
    )
    torch.manual_seed(0)
    spec = describe_environment(config.run.env, {}, 1)
    network = build_network(spec, config.network)
    with closing(Rollout(config, spec, network, Identity(0, 0))) as rollout:
        segments = [segment for _ in range(10) for segment in rollout.step(Telemetry())]
    assert [segment.count for segment in segments] == [5] * 4
    for segment in segments:
        observation = spec.unpack(segment.frames)
        values = action_values(network, observation)
        assert (values[::2, 1:] == -np.inf).all()
        actions = segment.columns["action"]
        assert np.isfinite(values[np.arange(5), actions]).all()
        wanted = lambda_returns(
            actions.astype(np.float64), values.max(axis=1), 0.5, 0.65, terminated=True
        )
        np.testing.assert_allclose(segment.columns["n_step_return"], wanted, rtol=1e-5)
