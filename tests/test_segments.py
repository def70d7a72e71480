"""n-step returns worked by hand, and the recorder against a twin that keeps every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.segments import Columns, NStep, SegmentRecorder, join_segments, n_step_targets
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TRANSITION_COLUMNS, TransitionBatch, decode_transitions, encode_transitions

SPEC = EnvironmentSpec(
    "test/Steps-v0",
    (FieldSpec("mask", (11,), "int8", binary=True), FieldSpec("step", (2,), "float32")),
    num_actions=7,
)


def targets(count: int, n: int, *, terminated: bool) -> NStep:
    """Of the rewards 1, 10, 100 with gamma 0.5."""
    return n_step_targets(np.array([1.0, 10, 100]), count, n, 0.5, terminated=terminated)


@pytest.mark.parametrize(
    ("n", "returns", "discounts", "bootstrap"),
    [
        (1, [1, 10, 100], [0.5, 0.5, 0], [1, 2, 2]),
        (2, [1 + 5, 10 + 50, 100], [0.25, 0, 0], [2, 1, 2]),
        (3, [1 + 5 + 25, 10 + 50, 100], [0, 0, 0], [0, 1, 2]),
        (9, [1 + 5 + 25, 10 + 50, 100], [0, 0, 0], [0, 1, 2]),
    ],
)
def test_an_episode_that_terminates_is_worth_its_rewards(n, returns, discounts, bootstrap):
    target = targets(3, n, terminated=True)
    np.testing.assert_array_equal(target.returns, returns)
    np.testing.assert_array_equal(target.discounts, discounts)
    np.testing.assert_array_equal(target.bootstrap, bootstrap)


@pytest.mark.parametrize(
    ("n", "returns", "discounts", "bootstrap"),
    [
        (1, [1, 10, 100], [0.5, 0.5, 0.5], [1, 2, 3]),
        (2, [1 + 5, 10 + 50, 100], [0.25, 0.25, 0.5], [2, 3, 3]),
        (3, [1 + 5 + 25, 10 + 50, 100], [0.125, 0.25, 0.5], [3, 3, 3]),
        (9, [1 + 5 + 25, 10 + 50, 100], [0.125, 0.25, 0.5], [3, 3, 3]),
    ],
)
def test_an_episode_that_is_truncated_bootstraps_from_its_last_frame(
    n, returns, discounts, bootstrap
):
    target = targets(3, n, terminated=False)
    np.testing.assert_array_equal(target.returns, returns)
    np.testing.assert_array_equal(target.discounts, discounts)
    np.testing.assert_array_equal(target.bootstrap, bootstrap)


@pytest.mark.parametrize(
    ("n", "count", "returns", "discounts", "bootstrap"),
    [
        (1, 2, [1, 10], [0.5, 0.5], [1, 2]),
        (2, 2, [1 + 5, 10 + 50], [0.25, 0.25], [2, 3]),
        (3, 1, [1 + 5 + 25], [0.125], [3]),
    ],
)
def test_a_cut_episode_looks_past_the_cut(n, count, returns, discounts, bootstrap):
    target = targets(count, n, terminated=False)
    np.testing.assert_array_equal(target.returns, returns)
    np.testing.assert_array_equal(target.discounts, discounts)
    np.testing.assert_array_equal(target.bootstrap, bootstrap)


@settings(deadline=None, max_examples=200)
@given(
    rewards=st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    n=st.integers(1, 6),
    discount=st.floats(0, 1),
    terminated=st.booleans(),
    data=st.data(),
)
def test_targets_equal_the_definition(rewards, n, discount, terminated, data):
    count = data.draw(st.integers(1, len(rewards)))
    target = n_step_targets(np.array(rewards), count, n, discount, terminated=terminated)
    for t in range(count):
        k = min(n, len(rewards) - t)
        at_end = terminated and t + k == len(rewards)
        expected = sum(discount**j * rewards[t + j] for j in range(k))
        assert target.returns[t] == pytest.approx(expected, rel=1e-5, abs=1e-4)
        assert target.discounts[t] == pytest.approx(0 if at_end else discount**k)
        assert target.bootstrap[t] == (t if at_end else t + k)


@dataclass
class Step:
    """What the twin keeps of one step, as copies taken when it happened."""

    observation: dict[str, Any]
    action: int
    chosen: float
    value: float
    reward: float


@dataclass
class Episode:
    """All steps of one episode, and what is known of its end."""

    steps: list[Step] = field(default_factory=list)
    end: str = "unfinished"
    final: dict[str, Any] = field(default_factory=dict)
    final_value: float = 0.0

    def transition(self, t: int, n: int, gamma: float, known: int) -> dict[str, Any]:
        """The n-step transition at step t by definition, when ``known`` rewards are known."""
        k = min(n, known - t)
        terminal = self.end == "terminated" and t + k == len(self.steps)
        if terminal:
            bootstrap, value = self.steps[t].observation, 0.0
        elif t + k == len(self.steps):
            bootstrap, value = self.final, self.final_value
        else:
            bootstrap, value = self.steps[t + k].observation, self.steps[t + k].value
        n_step_return = sum(gamma**j * self.steps[t + j].reward for j in range(k))
        discount = 0.0 if terminal else gamma**k
        return {
            "observation": self.steps[t].observation,
            "bootstrap": bootstrap,
            "action": self.steps[t].action,
            "n_step_return": n_step_return,
            "discount": discount,
            "priority": abs(n_step_return + discount * value - self.steps[t].chosen),
        }


def one(packed: dict[str, np.ndarray], row: int) -> dict[str, Any]:
    """A copy of one observation of a batch, as plain lists."""
    return {name: array[row].tolist() for name, array in packed.items()}


class World:
    """Environments with random episodes, whose one array of observations is changed in place."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.packed = {
            "mask": np.zeros((num_envs, 2), np.uint8),
            "step": np.zeros((num_envs, 2), np.float32),
        }
        self.number = 0
        self.episodes = [[Episode()] for _ in range(num_envs)]
        for env in range(num_envs):
            self.show(env)

    def show(self, env: int) -> None:
        """Put a fresh observation, unlike all others, where the last one was."""
        self.number += 1
        self.packed["step"][env] = self.number, -self.number
        self.packed["mask"][env] = self.rng.integers(0, 256, 2)

    def play(self, recorder: SegmentRecorder, end_probability: float) -> list[Columns]:
        """One step of everything, in the order in which an actor does it."""
        actions = self.rng.integers(0, SPEC.num_actions, self.num_envs)
        chosen, values = self.rng.normal(size=(2, self.num_envs)).astype(np.float32)
        recorder.record(self.packed, actions, chosen, values)
        rewards = self.rng.normal(size=self.num_envs)
        for env, episodes in enumerate(self.episodes):
            observation = one(self.packed, env)
            scalars = (float(array[env]) for array in (chosen, values, rewards))
            episodes[-1].steps.append(Step(observation, int(actions[env]), *scalars))
            self.show(env)
        ended = self.rng.random(self.num_envs) < end_probability
        terminated = ended & (self.rng.random(self.num_envs) < 0.5)
        truncated = ended & (~terminated | (self.rng.random(self.num_envs) < 0.2))
        final_values = self.rng.normal(size=self.num_envs).astype(np.float32)
        bootstrapped = np.flatnonzero(truncated & ~terminated)
        final_packed = {name: array[bootstrapped] for name, array in self.packed.items()}
        for env in np.flatnonzero(ended).tolist():
            episode = self.episodes[env][-1]
            episode.end = "terminated" if terminated[env] else "truncated"
            episode.final, episode.final_value = one(self.packed, env), float(final_values[env])
            self.episodes[env].append(Episode())
            self.show(env)
        if len(bootstrapped) == 0:
            final_packed = {}  # as the environments have it
        segments = recorder.finish(
            rewards, terminated, truncated, final_packed, final_values[bootstrapped]
        )
        for array in (*final_packed.values(), actions, chosen, values, rewards, final_values):
            array[...] = 99  # nothing of it may have been kept by reference
        return segments


def transitions(columns: Columns) -> list[dict[str, Any]]:
    """Whole transitions, with the observations that they point to."""
    rows = []
    for i in range(len(columns["action"])):
        row: dict[str, Any] = {
            name: columns[name][i].item()
            for name in ("action", "n_step_return", "discount", "priority")
        }
        for end in ("observation", "bootstrap"):
            at = columns[f"{end}_index"][i]
            row[end] = {f.name: columns[f"observation.{f.name}"][at].tolist() for f in SPEC.fields}
        rows.append(row)
    return rows


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("observation", "bootstrap", "action"):
        assert actual[name] == expected[name], name
    for name in ("n_step_return", "discount", "priority"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def number_of(row: dict[str, Any]) -> float:
    """Every observation has a number of its own."""
    return row["observation"]["step"][0]


def check_run(
    n_step: int, segment_length: int, num_envs: int, steps: int, end_probability: float, seed: int
) -> None:
    """Record random episodes, and compare every transition with its definition."""
    world = World(num_envs, seed)
    recorder = SegmentRecorder(
        SPEC, num_envs, n_step=n_step, discount=0.9, segment_length=segment_length
    )
    finished = [segment for _ in range(steps) for segment in world.play(recorder, end_probability)]
    flushed = recorder.flush()
    assert all(len(segment["action"]) <= segment_length + n_step for segment in finished)
    by_number: dict[float, dict[str, Any]] = {}
    for row in (row for segment in (*finished, *flushed) for row in transitions(segment)):
        assert number_of(row) not in by_number, "a step came twice"
        by_number[number_of(row)] = row
    for episodes in world.episodes:
        for episode in episodes:
            # Of an unfinished episode's last step, what followed is not known.
            known = len(episode.steps) - (episode.end == "unfinished")
            for t in range(max(0, known)):
                expected = episode.transition(t, n_step, 0.9, known)
                assert_same(by_number.pop(number_of(expected)), expected)
    assert not by_number
    assert recorder.flush() == []


@pytest.mark.parametrize("n_step", range(1, 6))
@pytest.mark.parametrize("segment_length", range(1, 8))
def test_every_step_becomes_exactly_one_transition_as_defined(n_step, segment_length):
    for end_probability in (0.0, 0.05, 0.3, 1.0):
        check_run(n_step, segment_length, 3, 30, end_probability, seed=n_step * 10 + segment_length)


@settings(deadline=None, max_examples=60)
@given(
    n_step=st.integers(1, 8),
    segment_length=st.integers(1, 12),
    num_envs=st.integers(1, 4),
    steps=st.integers(0, 40),
    end_probability=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_runs_equal_the_twin(n_step, segment_length, num_envs, steps, end_probability, seed):
    check_run(n_step, segment_length, num_envs, steps, end_probability, seed)


def frames_with(number: int) -> dict[str, np.ndarray]:
    return {"mask": np.zeros((1, 2), np.uint8), "step": np.full((1, 2), number, np.float32)}


def play_one(recorder: SegmentRecorder, number: int, reward: float, end: str = "") -> list[Columns]:
    """One step of a single environment at observation ``number``, with Q values by number."""
    chosen, value = np.array([[0.5], [number]], np.float32)
    recorder.record(frames_with(number), np.array([number % 7]), chosen, value)
    truncated = end == "truncated"
    return recorder.finish(
        np.array([reward]),
        np.array([end == "terminated"]),
        np.array([truncated]),
        frames_with(number + 1) if truncated else {},
        np.array([8.0] if truncated else [], np.float32),
    )


def small_recorder(n_step: int, segment_length: int = 10) -> SegmentRecorder:
    return SegmentRecorder(SPEC, 1, n_step=n_step, discount=0.5, segment_length=segment_length)


class TestWorkedExamples:
    """Rewards 1, 10, 100 at the observations 1, 2, 3, whose values are 1, 2, 3; gamma 0.5."""

    def test_terminated(self):
        recorder = small_recorder(2)
        assert play_one(recorder, 1, 1) == play_one(recorder, 2, 10) == []
        (segment,) = play_one(recorder, 3, 100, "terminated")
        np.testing.assert_array_equal(segment["observation.step"][:, 0], [1, 2, 3])
        np.testing.assert_array_equal(segment["action"], [1, 2, 3])
        np.testing.assert_array_equal(segment["n_step_return"], [6, 60, 100])
        np.testing.assert_array_equal(segment["discount"], [0.25, 0, 0])
        # |1 + 5 + 0.25 * 3 - 0.5|, |10 + 50 - 0.5|, |100 - 0.5|
        np.testing.assert_array_equal(segment["priority"], [6.25, 59.5, 99.5])

    def test_truncated_with_a_final_observation_of_value_8(self):
        recorder = small_recorder(2)
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100, "truncated")
        np.testing.assert_array_equal(segment["observation.step"][:, 0], [1, 2, 3, 4])
        np.testing.assert_array_equal(segment["n_step_return"], [6, 60, 100])
        np.testing.assert_array_equal(segment["discount"], [0.25, 0.25, 0.5])
        np.testing.assert_array_equal(segment["bootstrap_index"], [2, 3, 3])
        # |6 + 0.25 * 3 - 0.5|, |60 + 0.25 * 8 - 0.5|, |100 + 0.5 * 8 - 0.5|
        np.testing.assert_array_equal(segment["priority"], [6.25, 61.5, 103.5])

    def test_cut_in_the_middle_and_gone_on_with_frames_repeated(self):
        recorder = small_recorder(2, segment_length=1)
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100)
        np.testing.assert_array_equal(segment["observation.step"][:, 0], [1, 2, 3])
        np.testing.assert_array_equal(segment["n_step_return"], [6])
        np.testing.assert_array_equal(segment["bootstrap_index"], [2])
        (following,) = play_one(recorder, 4, 1000, "terminated")
        np.testing.assert_array_equal(following["observation.step"][:, 0], [2, 3, 4])
        np.testing.assert_array_equal(following["n_step_return"], [60, 600, 1000])
        np.testing.assert_array_equal(following["discount"], [0.25, 0, 0])

    def test_flushed_with_one_reward_less_than_steps(self):
        recorder = small_recorder(2)
        for number, reward in ((1, 1), (2, 10), (3, 100)):
            play_one(recorder, number, reward)
        (segment,) = recorder.flush()
        np.testing.assert_array_equal(segment["n_step_return"], [6, 10])
        np.testing.assert_array_equal(segment["discount"], [0.25, 0.5])
        np.testing.assert_array_equal(segment["bootstrap_index"], [2, 2])

    def test_an_episode_of_one_step(self):
        (segment,) = play_one(small_recorder(3), 1, 5, "terminated")
        np.testing.assert_array_equal(segment["n_step_return"], [5])
        np.testing.assert_array_equal(segment["discount"], [0])
        assert len(segment["observation.step"]) == 1


def test_dropping_tells_how_many_steps_are_lost():
    world = World(3, seed=0)
    recorder = SegmentRecorder(SPEC, 3, n_step=2, discount=0.9, segment_length=10)
    for _ in range(4):
        world.play(recorder, end_probability=0.0)
    assert recorder.drop() == 12
    assert recorder.drop() == 0
    assert recorder.flush() == []


def test_after_dropping_nothing_of_before_appears():
    recorder = small_recorder(2)
    play_one(recorder, 1, 1)
    recorder.drop()
    (segment,) = play_one(recorder, 3, 100, "terminated")
    np.testing.assert_array_equal(segment["observation.step"][:, 0], [3])
    np.testing.assert_array_equal(segment["n_step_return"], [100])


def some_segments(seed: int = 0) -> list[Columns]:
    world = World(3, seed)
    recorder = SegmentRecorder(SPEC, 3, n_step=3, discount=0.9, segment_length=4)
    segments = [segment for _ in range(25) for segment in world.play(recorder, 0.15)]
    return [*segments, *recorder.flush()]


@pytest.mark.parametrize("seed", range(5))
def test_joined_segments_are_the_same_transitions_one_after_another(seed):
    segments = some_segments(seed)
    joined = join_segments(segments)
    assert transitions(joined) == [row for segment in segments for row in transitions(segment)]
    assert len(joined["observation.step"]) == sum(len(s["observation.step"]) for s in segments)


def test_a_single_segment_joins_to_itself():
    segment = some_segments()[0]
    joined = join_segments([segment])
    assert joined.keys() == segment.keys()
    for name, array in segment.items():
        np.testing.assert_array_equal(joined[name], array)


def test_joined_segments_have_the_columns_and_types_of_the_wire():
    joined = join_segments(some_segments())
    for name, dtype in TRANSITION_COLUMNS.items():
        assert joined[name].dtype == dtype
    data = encode_transitions(TransitionBatch("run", 0, 0, 0, 0, joined))
    decoded = decode_transitions(data, SPEC, "run")
    assert transitions(decoded.columns) == transitions(joined)
