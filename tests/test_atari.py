"""Atari games through ale-py's vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from actors.environments.factory import VectorEnvironment, describe_environment
from pdqn.errors import UsageError
from pdqn.specs import FieldSpec

pytest.importorskip("ale_py")
BREAKOUT = "ALE/Breakout-v5"


def play(steps: int, **env_args: Any) -> tuple[list[Any], VectorEnvironment]:
    spec = describe_environment(BREAKOUT, env_args)
    env = VectorEnvironment(spec, env_args, 2)
    env.reset([3, 4])
    rng = np.random.default_rng(0)
    return [env.step(rng.integers(spec.num_actions, size=2)) for _ in range(steps)], env


def test_frames_are_single_and_small():
    spec = describe_environment(BREAKOUT, {})
    assert spec.fields == (FieldSpec("observation", (84, 84), "uint8"),)
    assert spec.num_actions == 4
    assert describe_environment(BREAKOUT, {"full_action_space": True}).num_actions == 18


def test_a_game_that_is_cut_short_is_truncated_with_its_own_last_frame():
    steps, env = play(80, max_episode_frames=150, noop_max=1)
    cut = [step for step in steps if step.truncated.any()]
    assert cut
    for step in cut:
        frames = step.final_observation["observation"]
        assert frames.shape == (int((step.truncated & ~step.terminated).sum()), 84, 84)
        assert frames.dtype == np.uint8
        assert not step.failed.any()
    env.close()


def test_with_life_loss_an_episode_ends_with_each_life():
    whole, env = play(400)
    env.close()
    lives, env = play(400, life_loss=True)
    env.close()
    ends = [sum(int(step.terminated.sum()) for step in steps) for steps in (whole, lives)]
    assert ends[1] >= 3 * max(1, ends[0])


def test_one_seed_gives_one_course_of_the_game():
    first, env = play(30)
    env.close()
    second, env = play(30)
    env.close()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.observation["observation"], b.observation["observation"])
        np.testing.assert_array_equal(a.rewards, b.rewards)


@pytest.mark.parametrize(
    ("env_id", "env_args", "words"),
    [
        ("ALE/NoSuchGame-v5", {}, "environment ALE/NoSuchGame-v5"),
        (BREAKOUT, {"colour": True}, "unexpected keyword argument 'colour'"),
    ],
)
def test_what_there_is_not_is_refused(env_id: str, env_args: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        describe_environment(env_id, env_args)
