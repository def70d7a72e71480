"""MinAtar's games, by their gymnasium ids."""

from __future__ import annotations

import numpy as np
import pytest

from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from pdqn.config import NetworkConfig
from pdqn.networks import network_sizes
from pdqn.specs import FieldSpec

pytest.importorskip("minatar")
BREAKOUT = "MinAtar/Breakout-v1"


def test_a_game_is_binary_planes_with_the_actions_that_it_uses():
    spec = describe_environment(BREAKOUT, {})
    assert spec.fields == (FieldSpec("observation", (10, 10, 4), "bool", binary=True),)
    assert spec.num_actions == 3


def test_its_network_is_that_of_minatars_authors():
    sizes = network_sizes(describe_environment(BREAKOUT, {}), NetworkConfig())
    assert (sizes.kind, sizes.channels, sizes.hidden, sizes.layers) == ("conv", 16, 128, 1)


def test_one_seed_gives_one_course_of_the_game_and_another_seed_another():
    spec = describe_environment("MinAtar/Asterix-v1", {})

    def course(seeds: list[int]) -> np.ndarray:
        env = VectorEnvironment(spec, {}, 2)
        frames = [env.reset(seeds)["observation"]]
        rng = np.random.default_rng(0)
        for _ in range(100):
            step = env.step(rng.integers(spec.num_actions, size=2))
            frames.append(step.observation["observation"])
        env.close()
        return np.array(frames)

    np.testing.assert_array_equal(course([3, 4]), course([3, 4]))
    assert (course([3, 4]) != course([5, 4])).any()


def test_a_limit_on_steps_truncates():
    arguments = {"max_episode_steps": 3}
    spec = describe_environment("MinAtar/SpaceInvaders-v1", arguments)
    env = VectorEnvironment(spec, arguments, 1)
    env.reset([0])
    steps = [env.step(np.zeros(1, np.int64)) for _ in range(3)]
    env.close()
    assert [bool(step.truncated[0]) for step in steps] == [False, False, True]
    assert steps[2].final_observation["observation"].shape == (1, 10, 10, 6)
