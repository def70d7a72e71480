"""n-step returns worked by hand, and the recorder against a twin that keeps every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.n_step import Targets, n_step_targets
from actors.segments import Segment, SegmentRecorder, join_segments
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TRANSITION_COLUMNS, TransitionBatch, decode_transitions, encode_transitions

SPEC = EnvironmentSpec(
    "test/Steps-v0",
    (
        FieldSpec("action_mask", (7,), "int8", binary=True),
        FieldSpec("flags", (11,), "int8", binary=True),
        FieldSpec("step", (2,), "float32"),
    ),
    num_actions=7,
)
GAMMA = 0.9


def targets(count: int, n: int, *, terminated: bool) -> Targets:
    """Compute the n-step targets of the rewards 1, 10, 100 with gamma 0.5."""
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


Packed = dict[str, list[int | float]]
Stacked = dict[str, list[Any]]


def stack_of(frames: Sequence[Packed], t: int, spec: EnvironmentSpec) -> Stacked:
    """Stack the last frames up to t, with the episode's first in place of missing ones."""
    return {
        f.name: frames[t][f.name]
        if f.stack == 1
        else [frames[max(0, t - f.stack + 1 + j)][f.name] for j in range(f.stack)]
        for f in spec.fields
    }


@dataclass
class Step:
    """The twin's record of a step beside its frame, copied when the step happened."""

    action: int
    chosen: float
    value: float
    reward: float


@dataclass
class Episode:
    """All steps of one episode, and its end, as far as it is known."""

    frames: list[Packed] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    flushes: list[int] = field(default_factory=list)  # number of steps at each flush
    end: str = "unfinished"
    final_value: float = 0.0

    def shipped(self) -> int:
        """Count the steps that a flush has turned into transitions."""
        # The observation after an unfinished episode's last step is not known.
        return max(0, len(self.steps) - (self.end == "unfinished"))

    def transition(self, t: int, n: int, spec: EnvironmentSpec) -> dict[str, Any]:
        """Compute the n-step transition at step t from the definition."""
        # The first flush that ships a step limits its n-step return to the flush's last frame.
        known = next((m - 1 for m in self.flushes if t < m - 1), len(self.steps))
        k = min(n, known - t)
        terminal = self.end == "terminated" and t + k == len(self.steps)
        if terminal:
            bootstrap, value = t, 0.0
        elif t + k == len(self.steps):
            bootstrap, value = t + k, self.final_value
        else:
            bootstrap, value = t + k, self.steps[t + k].value
        n_step_return = sum(GAMMA**j * self.steps[t + j].reward for j in range(k))
        discount = 0.0 if terminal else GAMMA**k
        return {
            "observation": stack_of(self.frames, t, spec),
            "bootstrap": stack_of(self.frames, bootstrap, spec),
            "action": self.steps[t].action,
            "n_step_return": n_step_return,
            "discount": discount,
            "priority": abs(n_step_return + discount * value - self.steps[t].chosen),
        }


def one(packed: dict[str, np.ndarray], row: int) -> Packed:
    """Copy one observation of a batch into plain lists."""
    return {name: array[row].tolist() for name, array in packed.items()}


class World:
    """Environments with random episodes, whose one array of observations is changed in place."""

    def __init__(self, num_envs: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.packed = {
            field.name: np.zeros((num_envs, *field.stored_shape), field.stored_dtype)
            for field in SPEC.fields
        }
        self.number = 0
        self.episodes = [[Episode()] for _ in range(num_envs)]
        for env in range(num_envs):
            self.show(env)

    def show(self, env: int) -> None:
        """Replace an environment's observation by a new, distinct one."""
        self.number += 1
        self.packed["step"][env] = self.number, -self.number
        self.packed["flags"][env] = self.rng.integers(0, 256, 2)
        self.packed["action_mask"][env] = self.rng.integers(0, 256)

    def play(self, recorder: SegmentRecorder, end_probability: float) -> list[tuple[str, Segment]]:
        """Take one step as an actor does; return the segments, each with the cause of its cut."""
        actions = self.rng.integers(0, SPEC.num_actions, self.num_envs)
        chosen, values = self.rng.normal(size=(2, self.num_envs)).astype(np.float32)
        recorder.record(self.packed, actions, chosen, values)
        rewards = self.rng.normal(size=self.num_envs)
        for env, episodes in enumerate(self.episodes):
            episodes[-1].frames.append(one(self.packed, env))
            scalars = (float(array[env]) for array in (chosen, values, rewards))
            episodes[-1].steps.append(Step(int(actions[env]), *scalars))
            self.show(env)
        ended = self.rng.random(self.num_envs) < end_probability
        terminated = ended & (self.rng.random(self.num_envs) < 0.5)
        truncated = ended & (~terminated | (self.rng.random(self.num_envs) < 0.2))
        final_values = self.rng.normal(size=self.num_envs).astype(np.float32)
        bootstrapped = np.flatnonzero(truncated & ~terminated)
        final_packed = {name: array[bootstrapped] for name, array in self.packed.items()}
        ends: list[str] = []
        for env in np.flatnonzero(ended).tolist():
            episode = self.episodes[env][-1]
            episode.end = "terminated" if terminated[env] else "truncated"
            ends.append(episode.end)
            episode.frames.append(one(self.packed, env))
            episode.final_value = float(final_values[env])
            self.episodes[env].append(Episode())
            self.show(env)
        if len(bootstrapped) == 0:
            final_packed = {}  # in the environments' own format
        segments = recorder.finish(
            rewards, terminated, truncated, final_packed, final_values[bootstrapped]
        )
        for array in (*final_packed.values(), actions, chosen, values, rewards, final_values):
            array[...] = 99  # a reference to it would show
        causes = [*ends, *["cut"] * (len(segments) - len(ends))]
        return list(zip(causes, segments, strict=True))

    def flush(self, recorder: SegmentRecorder) -> list[tuple[str, Segment]]:
        """Ship every recorded step that can become a transition."""
        for episodes in self.episodes:
            episodes[-1].flushes.append(len(episodes[-1].steps))
        return [("flushed", segment) for segment in recorder.flush()]

    def transitions(self, n: int, spec: EnvironmentSpec) -> list[dict[str, Any]]:
        """List all transitions that must have been shipped by a flush."""
        return [
            episode.transition(t, n, spec)
            for episodes in self.episodes
            for episode in episodes
            for t in range(episode.shipped())
        ]


def shipped(segments: Sequence[Segment], spec: EnvironmentSpec) -> TransitionBatch:
    """Build the batch of segments that replay gets."""
    columns, blocks = join_segments(segments, spec)
    data = encode_transitions(TransitionBatch("run", 0, 0, 0, 0, columns, blocks))
    return decode_transitions(data, spec, "run")


def transitions(batch: TransitionBatch, spec: EnvironmentSpec) -> Iterator[dict[str, Any]]:
    """Yield whole transitions, with the stacks that frames and history of a batch define."""
    columns = batch.columns
    frames = [one(block.fields, i) for block in batch.blocks for i in range(block.count)]
    history = columns.get("history", np.zeros(len(frames), np.uint8)).tolist()

    def stacked(f: int) -> Stacked:
        begin = f - history[f]
        return stack_of(frames[begin : f + 1], history[f], spec)

    for i in range(batch.count):
        yield {
            "observation": stacked(int(columns["observation_index"][i])),
            "bootstrap": stacked(int(columns["bootstrap_index"][i])),
            **{
                name: columns[name][i].item()
                for name in ("action", "n_step_return", "discount", "priority")
            },
        }


def number_of(row: dict[str, Any]) -> float:
    """Return the distinct number of a transition's newest frame."""
    step = row["observation"]["step"]
    return step[-1][0] if isinstance(step[-1], list) else step[0]


def assert_same(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("observation", "bootstrap", "action"):
        assert actual[name] == expected[name], name
    for name in ("n_step_return", "discount", "priority"):
        assert actual[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def check_overhead(cause: str, segment: Segment, n_step: int, spec: EnvironmentSpec) -> None:
    """Check the number of frames: context, one for each transition, and those after the last."""
    context = int(segment.columns["observation_index"][0])
    beyond = {"terminated": 0, "truncated": 1, "flushed": 1, "cut": n_step}[cause]
    assert context <= spec.frame_stack - 1
    assert segment.frame_count == context + segment.count + beyond


def check_run(
    n_step: int,
    frame_stack: int,
    segment_length: int,
    *,
    num_envs: int = 3,
    steps: int = 30,
    end_probability: float = 0.1,
    flush_probability: float = 0.0,
    seed: int = 0,
) -> None:
    """Record random episodes, ship them, and compare every transition with its definition."""
    spec = SPEC.stacked(frame_stack)
    world = World(num_envs, seed)
    recorder = SegmentRecorder(
        spec, num_envs, n_step=n_step, discount=GAMMA, segment_length=segment_length
    )
    caused: list[tuple[str, Segment]] = []
    for _ in range(steps):
        caused += world.play(recorder, end_probability)
        if world.rng.random() < flush_probability:
            caused += world.flush(recorder)
    caused += world.flush(recorder)
    assert recorder.flush() == []
    for cause, segment in caused:
        assert segment.count <= segment_length + n_step
        check_overhead(cause, segment, n_step, spec)
    by_number: dict[float, dict[str, Any]] = {}
    segments = [segment for _, segment in caused]
    while segments:
        together = int(world.rng.integers(1, 9))
        for row in transitions(shipped(segments[:together], spec), spec):
            assert number_of(row) not in by_number, "a step came twice"
            by_number[number_of(row)] = row
        segments = segments[together:]
    for expected in world.transitions(n_step, spec):
        assert_same(by_number.pop(number_of(expected)), expected)
    assert not by_number


@pytest.mark.parametrize("n_step", range(1, 6))
@pytest.mark.parametrize("frame_stack", range(1, 5))
@pytest.mark.parametrize("segment_length", [1, 2, 3, 4, 7, 16])
def test_every_step_becomes_exactly_one_transition_as_defined(n_step, frame_stack, segment_length):
    for seed, (end, flush) in enumerate([(0, 0), (0.05, 0), (0.3, 0), (1, 0), (0.1, 0.2)]):
        run = {"end_probability": end, "flush_probability": flush, "seed": seed}
        check_run(n_step, frame_stack, segment_length, **run)


@settings(deadline=None, max_examples=80)
@given(
    n_step=st.integers(1, 8),
    frame_stack=st.integers(1, 6),
    segment_length=st.integers(1, 12),
    num_envs=st.integers(1, 4),
    steps=st.integers(0, 40),
    end_probability=st.floats(0, 1),
    flush_probability=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_runs_equal_the_twin(n_step, frame_stack, segment_length, **run):
    check_run(n_step, frame_stack, segment_length, **run)


def frames_with(number: int) -> dict[str, np.ndarray]:
    return {
        "action_mask": np.zeros((1, 1), np.uint8),
        "flags": np.zeros((1, 2), np.uint8),
        "step": np.full((1, 2), number, np.float32),
    }


def play_one(recorder: SegmentRecorder, number: int, reward: float, end: str = "") -> list[Segment]:
    """Take one step of a single environment at observation ``number``, with Q values by number."""
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


def small_recorder(
    n_step: int, segment_length: int = 10, spec: EnvironmentSpec = SPEC
) -> SegmentRecorder:
    return SegmentRecorder(spec, 1, n_step=n_step, discount=0.5, segment_length=segment_length)


class TestWorkedExamples:
    """Rewards 1, 10, 100 at the observations 1, 2, 3, whose values are 1, 2, 3; gamma 0.5."""

    def test_terminated(self):
        recorder = small_recorder(2)
        assert play_one(recorder, 1, 1) == play_one(recorder, 2, 10) == []
        (segment,) = play_one(recorder, 3, 100, "terminated")
        np.testing.assert_array_equal(segment.frames["step"][:, 0], [1, 2, 3])
        np.testing.assert_array_equal(segment.columns["action"], [1, 2, 3])
        np.testing.assert_array_equal(segment.columns["n_step_return"], [6, 60, 100])
        np.testing.assert_array_equal(segment.columns["discount"], [0.25, 0, 0])
        # |1 + 5 + 0.25 * 3 - 0.5|, |10 + 50 - 0.5|, |100 - 0.5|
        np.testing.assert_array_equal(segment.columns["priority"], [6.25, 59.5, 99.5])

    def test_truncated_with_a_final_observation_of_value_8(self):
        recorder = small_recorder(2)
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100, "truncated")
        np.testing.assert_array_equal(segment.frames["step"][:, 0], [1, 2, 3, 4])
        np.testing.assert_array_equal(segment.columns["n_step_return"], [6, 60, 100])
        np.testing.assert_array_equal(segment.columns["discount"], [0.25, 0.25, 0.5])
        np.testing.assert_array_equal(segment.columns["bootstrap_index"], [2, 3, 3])
        # |6 + 0.25 * 3 - 0.5|, |60 + 0.25 * 8 - 0.5|, |100 + 0.5 * 8 - 0.5|
        np.testing.assert_array_equal(segment.columns["priority"], [6.25, 61.5, 103.5])

    def test_cut_in_the_middle_and_gone_on_with_frames_repeated(self):
        recorder = small_recorder(2, segment_length=1)
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 10)
        (segment,) = play_one(recorder, 3, 100)
        np.testing.assert_array_equal(segment.frames["step"][:, 0], [1, 2, 3])
        np.testing.assert_array_equal(segment.columns["n_step_return"], [6])
        np.testing.assert_array_equal(segment.columns["bootstrap_index"], [2])
        (following,) = play_one(recorder, 4, 1000, "terminated")
        np.testing.assert_array_equal(following.frames["step"][:, 0], [2, 3, 4])
        np.testing.assert_array_equal(following.columns["n_step_return"], [60, 600, 1000])
        np.testing.assert_array_equal(following.columns["discount"], [0.25, 0, 0])

    def test_flushed_with_one_reward_less_than_steps(self):
        recorder = small_recorder(2)
        for number, reward in ((1, 1), (2, 10), (3, 100)):
            play_one(recorder, number, reward)
        (segment,) = recorder.flush()
        np.testing.assert_array_equal(segment.columns["n_step_return"], [6, 10])
        np.testing.assert_array_equal(segment.columns["discount"], [0.25, 0.5])
        np.testing.assert_array_equal(segment.columns["bootstrap_index"], [2, 2])

    def test_an_episode_of_one_step(self):
        (segment,) = play_one(small_recorder(3), 1, 5, "terminated")
        np.testing.assert_array_equal(segment.columns["n_step_return"], [5])
        np.testing.assert_array_equal(segment.columns["discount"], [0])
        assert len(segment.frames["step"]) == 1


class TestStackedExamples:
    """Observations 1, 2, 3, ... of one episode in stacks of three, cut after two steps."""

    def recorder(self) -> SegmentRecorder:
        return small_recorder(1, segment_length=2, spec=SPEC.stacked(3))

    def test_a_segment_in_mid_episode_begins_with_the_frames_that_its_stacks_need(self):
        recorder = self.recorder()
        assert play_one(recorder, 1, 1) == play_one(recorder, 2, 1) == []
        (first,) = play_one(recorder, 3, 1)
        assert first.frames["step"][:, 0].tolist() == [1, 2, 3]
        assert first.columns["history"].tolist() == [0, 1, 2]
        assert first.columns["observation_index"].tolist() == [0, 1]
        assert play_one(recorder, 4, 1) == []
        (second,) = play_one(recorder, 5, 1)
        assert second.frames["step"][:, 0].tolist() == [1, 2, 3, 4, 5]
        assert second.columns["history"].tolist() == [0, 1, 2, 2, 2]
        assert second.columns["observation_index"].tolist() == [2, 3]
        assert second.columns["bootstrap_index"].tolist() == [3, 4]

    def test_no_frame_is_taken_from_the_episode_before(self):
        recorder = self.recorder()
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 1, "terminated")
        (segment,) = play_one(recorder, 3, 1, "truncated")
        assert segment.frames["step"][:, 0].tolist() == [3, 4]
        assert segment.columns["history"].tolist() == [0, 1]

    def test_after_a_flush_stacks_go_on_with_the_frames_of_before(self):
        recorder = self.recorder()
        play_one(recorder, 1, 1)
        play_one(recorder, 2, 1)
        (flushed,) = recorder.flush()
        assert flushed.frames["step"][:, 0].tolist() == [1, 2]
        assert flushed.count == 1
        (segment,) = play_one(recorder, 3, 1, "terminated")
        assert segment.frames["step"][:, 0].tolist() == [1, 2, 3]
        assert segment.columns["observation_index"].tolist() == [1, 2]

    def test_without_stacks_there_is_no_history(self):
        (segment,) = play_one(small_recorder(1), 1, 1, "terminated")
        assert segment.columns.keys() == TRANSITION_COLUMNS.keys()


def test_frames_are_shipped_once_but_for_the_borders_of_segments():
    spec = SPEC.stacked(4)
    recorder = small_recorder(3, segment_length=20, spec=spec)
    segments = [segment for t in range(199) for segment in play_one(recorder, t, 1)]
    segments += play_one(recorder, 199, 1, "truncated")
    _, blocks = join_segments(segments, spec)
    # Nine segments are cut when three more steps are known; the last one has the remaining 20.
    assert [segment.count for segment in segments] == [20] * 10
    # Three frames of context for all but the first, three to bootstrap from for all but the last.
    assert sum(block.count for block in blocks) == 200 + 9 * 3 + 9 * 3 + 1


def some_segments(seed: int = 0, frame_stack: int = 1) -> list[Segment]:
    world = World(3, seed)
    spec = SPEC.stacked(frame_stack)
    recorder = SegmentRecorder(spec, 3, n_step=3, discount=GAMMA, segment_length=4)
    caused = [pair for _ in range(25) for pair in world.play(recorder, 0.15)]
    return [segment for _, segment in (*caused, *world.flush(recorder))]


class TestJoining:
    @pytest.mark.parametrize("frame_stack", [1, 3])
    @pytest.mark.parametrize("seed", range(5))
    def test_joined_segments_are_the_same_transitions_one_after_another(self, seed, frame_stack):
        spec = SPEC.stacked(frame_stack)
        segments = some_segments(seed, frame_stack)
        single = [row for s in segments for row in transitions(shipped([s], spec), spec)]
        assert list(transitions(shipped(segments, spec), spec)) == single

    def test_joining_changes_no_segment(self):
        segments = some_segments()
        before = [segment.columns["bootstrap_index"].copy() for segment in segments]
        join_segments(segments, SPEC)
        for segment, indices in zip(segments, before, strict=True):
            np.testing.assert_array_equal(segment.columns["bootstrap_index"], indices)

    def test_joined_segments_have_the_columns_and_types_of_the_wire(self):
        columns, _ = join_segments(some_segments(frame_stack=2), SPEC.stacked(2))
        dtypes = {name: array.dtype for name, array in columns.items()}
        assert dtypes == {**TRANSITION_COLUMNS, "history": np.uint8}

    def test_small_segments_share_a_block(self):
        segments = some_segments()
        _, (block,) = join_segments(segments, SPEC)
        assert block.count == sum(segment.frame_count for segment in segments)

    def test_blocks_are_whole_segments_of_64_kib_together(self):
        spec = EnvironmentSpec("x", (FieldSpec("map", (10_000,), "uint8"),), 2)
        recorder = SegmentRecorder(spec, 1, n_step=1, discount=1.0, segment_length=2)
        zero = np.zeros(1, np.float32)
        segments: list[Segment] = []
        for number in range(17):
            frame = {"map": np.full((1, 10_000), number, np.uint8)}
            recorder.record(frame, np.zeros(1), zero, zero)
            segments += recorder.finish(np.zeros(1), zero > 0, zero > 0, {}, zero[:0])
        assert [segment.frame_count for segment in segments] == [3] * 8
        columns, blocks = join_segments(segments, spec)
        # The 60,000 bytes of two segments are too few; the 90,000 of three suffice.
        assert [block.count for block in blocks] == [9, 9, 6]
        numbers = np.concatenate([block.fields["map"][:, 0] for block in blocks])
        assert numbers[columns["observation_index"]].tolist() == list(range(16))
        assert numbers[columns["bootstrap_index"]].tolist() == list(range(1, 17))
