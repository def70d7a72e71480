"""Stacks of frames: by definition, and the same for actors, evaluator and learner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.environments.describe import describe_environment
from actors.evaluation import play
from actors.rollout import Identity, Rollout
from actors.segments import join_segments
from pdqn.config import Config, NetworkConfig
from pdqn.layers import build
from pdqn.networks.fused import FusedNetwork
from pdqn.specs import EnvironmentSpec, FieldSpec, Observation
from pdqn.stacking import FrameStacker
from pdqn.telemetry import Telemetry
from pdqn.wire import TransitionBatch, decode_transitions, encode_transitions

NUMBERED = "pdqn-test/Numbered-v0"
BOOL: Any = np.bool_  # gymnasium accepts this dtype, but does not declare it
FIELDS = (
    FieldSpec("action_mask", (3,), "int8", binary=True),
    FieldSpec("lit", (5,), "bool", binary=True),
    FieldSpec("number", (), "int64"),
)


class Numbered(gymnasium.Env[Any, Any]):
    """An environment that counts up, also in bits, and ends or is truncated at random."""

    observation_space = spaces.Dict(
        {
            "action_mask": spaces.MultiBinary(3),
            "lit": spaces.Box(0, 1, (5,), BOOL),
            "number": spaces.Discrete(10**9),
        }
    )
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self.number = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.number < 0:
            self.number = 10_000 * int(self.np_random.integers(1, 1000))
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        drawn = self.np_random.random()
        return self._seen(), 1.0, bool(drawn < 0.06), bool(drawn > 0.94), {}

    def _seen(self) -> Any:
        self.number += 1
        bits = np.arange(5)
        return {
            "action_mask": np.array([1, self.number % 2, 1], np.int8),
            "lit": (self.number >> bits) % 2 == 1,
            "number": np.int64(self.number),
        }


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    made: Any = Numbered
    gymnasium.register(id=NUMBERED, entry_point=made)
    yield
    gymnasium.registry.pop(NUMBERED)


def naive_stack(frames: list[Any], depth: int) -> np.ndarray:
    """Stack the last frames of an episode, with the first in place of missing ones."""
    return np.stack([frames[max(0, len(frames) - depth + j)] for j in range(depth)])


class TestStacker:
    @settings(deadline=None, max_examples=60)
    @given(
        depth=st.integers(1, 6),
        num_envs=st.integers(1, 4),
        steps=st.integers(0, 15),
        ends=st.floats(0, 1),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_stacks_are_the_last_frames_of_the_episode(self, depth, num_envs, steps, ends, seed):
        rng = np.random.default_rng(seed)
        spec = EnvironmentSpec("x", FIELDS, 3).stacked(depth)

        def drawn(count: int) -> Observation:
            return {
                "action_mask": rng.integers(0, 2, (count, 3), np.int8),
                "lit": rng.integers(0, 2, (count, 5)).astype(bool),
                "number": rng.integers(0, 1000, count),
            }

        def check(stacked: Observation, expected: dict[str, list[list[Any]]]) -> None:
            for field in spec.fields:
                for row, frames in zip(stacked[field.name], expected[field.name], strict=True):
                    naive = naive_stack(frames, depth) if field.stack > 1 else frames[-1]
                    np.testing.assert_array_equal(row, naive)
                    assert row.shape == field.stacked_shape

        stacker = FrameStacker(spec, num_envs)
        frames = drawn(num_envs)
        seen = {name: [[row] for row in array] for name, array in frames.items()}
        earlier = stacker.reset(frames)
        check(earlier, seen)
        for _ in range(steps):
            kept = {name: array.copy() for name, array in earlier.items()}
            ended = np.flatnonzero(rng.random(num_envs) < ends)
            final = drawn(len(ended))
            before = {
                n: [[*seen[n][e], v[i]] for i, e in enumerate(ended)] for n, v in final.items()
            }
            check(stacker.final(final, ended), before)
            frames = drawn(num_envs)
            for name, array in frames.items():
                for env, row in enumerate(array):
                    seen[name][env] = [row] if env in ended else [*seen[name][env], row]
            stacked = stacker.push(frames, np.isin(np.arange(num_envs), ended))
            check(stacked, seen)
            for name, array in earlier.items():
                np.testing.assert_array_equal(array, kept[name], "a later step changed it")
            earlier = stacked

    def test_three_frames_worked_by_hand(self):
        spec = EnvironmentSpec("x", (FieldSpec("number", (), "int64"),), 2).stacked(3)
        stacker = FrameStacker(spec, 2)
        nowhere = np.zeros(2, bool)
        assert stacker.reset({"number": np.array([1, 5])})["number"].tolist() == [[1] * 3, [5] * 3]
        pushed = stacker.push({"number": np.array([2, 6])}, nowhere)
        assert pushed["number"].tolist() == [[1, 1, 2], [5, 5, 6]]
        final = stacker.final({"number": np.array([7])}, np.array([1]))
        assert final["number"].tolist() == [[5, 6, 7]]
        pushed = stacker.push({"number": np.array([3, 9])}, np.array([False, True]))
        assert pushed["number"].tolist() == [[1, 2, 3], [9, 9, 9]]

    def test_without_stacked_fields_observations_pass_as_they_are(self):
        stacker = FrameStacker(EnvironmentSpec("x", FIELDS, 3), 2)
        frames = {"number": np.array([1, 2])}
        assert stacker.reset(frames) is frames
        assert stacker.push(frames, np.zeros(2, bool)) is frames
        assert stacker.final(frames, np.array([0])) is frames


class Watched(FusedNetwork):
    """A network that keeps a copy of every observation that it gets, by its last number."""

    def __init__(self, spec: EnvironmentSpec) -> None:
        super().__init__(spec, NetworkConfig(kind="mlp", hidden=8, layers=1))
        self.shown: dict[int, dict[str, Any]] = {}

    def prepare(self, observation: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        self.shown |= by_number({name: tensor.numpy() for name, tensor in observation.items()})
        return super().prepare(observation)


def by_number(observation: Observation) -> dict[int, dict[str, Any]]:
    """Map the number of a row's newest frame to the row as plain lists."""
    numbers = observation["number"]
    newest = (numbers[:, -1] if numbers.ndim == 2 else numbers).tolist()
    return {
        number: {name: array[row].astype(int).tolist() for name, array in observation.items()}
        for row, number in enumerate(newest)
    }


def config_of(frame_stack: int, segment_length: int) -> Config:
    layer = {
        "run": {"env": NUMBERED, "frame_stack": frame_stack, "seed": 4},
        "actor": {
            "envs_per_actor": 3,
            "discount": 0.9,
            "segment_length": segment_length,
            "batch_transitions": 16,
            "n_step": 2,
        },
    }
    return build(("test", layer))


def shipped_stacks(
    batch: TransitionBatch, spec: EnvironmentSpec
) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return the stacks of all observations and of all bootstraps, by frames and history."""
    frames = spec.unpack(
        {
            field.name: np.concatenate([block.fields[field.name] for block in batch.blocks])
            for field in spec.fields
        }
    )
    history = batch.columns.get("history", np.zeros(batch.frames, np.uint8))

    def stacks(indices: np.ndarray) -> dict[int, dict[str, Any]]:
        stacked: Observation = {}
        for field in spec.fields:
            array, depth = frames[field.name], field.stack
            back = [np.minimum(history[indices], depth - 1 - j) for j in range(depth)]
            gathered = np.stack([array[indices - b] for b in back], axis=1)
            stacked[field.name] = gathered if depth > 1 else gathered[:, 0]
        return by_number(stacked)

    bootstrapped = batch.columns["discount"] > 0
    return (
        stacks(batch.columns["observation_index"]),
        stacks(batch.columns["bootstrap_index"][bootstrapped]),
    )


@pytest.mark.parametrize("frame_stack", [1, 2, 4])
@pytest.mark.parametrize("segment_length", [1, 3, 8])
def test_the_network_acted_on_the_stacks_that_the_learner_is_given(frame_stack, segment_length):
    torch.manual_seed(0)
    spec = describe_environment(NUMBERED, {}, frame_stack)
    network = Watched(spec)
    config = config_of(frame_stack, segment_length)
    rollout = Rollout(config, spec, network, Identity(0, 0))
    telemetry = Telemetry()
    segments = [segment for _ in range(60) for segment in rollout.step(telemetry)]
    segments += rollout.flush()
    rollout.close()
    columns, blocks = join_segments(segments, spec)
    data = encode_transitions(TransitionBatch("run", 0, 0, 0, 0, columns, blocks))
    batch = decode_transitions(data, spec, "run")
    observations, bootstraps = shipped_stacks(batch, spec)
    assert len(observations) == batch.count > 150
    for shipped in (observations, bootstraps):
        for number, stack in shipped.items():
            assert stack == network.shown[number]
    # Some are only bootstrapped from: the final observations at truncation.
    assert len(bootstraps.keys() - observations.keys()) > 5
    assert len(next(iter(observations.values()))["lit"]) == (5 if frame_stack == 1 else frame_stack)


@pytest.mark.parametrize("frame_stack", [1, 4])
def test_episodes_are_evaluated_on_stacks_of_their_own_frames(frame_stack):
    spec = describe_environment(NUMBERED, {}, frame_stack)
    shown: list[list[dict[str, Any]]] = [[] for _ in range(3)]

    def act(observation: Observation) -> np.ndarray:
        for rows, row in zip(shown, by_number(observation).values(), strict=True):
            rows.append(row)
        return np.zeros(3, np.int64)

    scores = play(act, spec, {}, [1, 2, 3])
    assert scores is not None
    assert scores.lengths.max() > 4
    for rows, length in zip(shown, scores.lengths.tolist(), strict=True):
        # Numbers go up by one; the first stands for the frames before it.
        newest = np.array([np.ravel(row["number"])[-1] for row in rows[:length]])
        assert (np.diff(newest) == 1).all()
        for t, row in enumerate(rows[:length]):
            if frame_stack == 1:
                assert row["number"] == newest[t]
            else:
                assert row["number"] == naive_stack(newest[: t + 1].tolist(), 4).tolist()


def test_an_evaluated_stack_does_not_reach_into_the_episode_before():
    spec = describe_environment(NUMBERED, {}, 4)
    stacks: list[list[int]] = []

    def act(observation: Observation) -> np.ndarray:
        stacks.extend(observation["number"].tolist())
        return np.zeros(len(observation["number"]), np.int64)

    # More episodes than environments: they are played in turns.
    assert play(act, spec, {}, list(range(40))) is not None
    # An episode's final observation has a number, but no action follows it.
    assert all(np.isin(np.diff(stack), [0, 1]).all() for stack in stacks)
    assert sum(stack[0] == stack[3] for stack in stacks) >= 40
