"""Atari games through ale-py's vector environment."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.environments import atari
from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from launcher.plan.machine import detect
from launcher.plan.plan import plan
from launcher.results.films import record_film
from pdqn import load_policy
from pdqn.config import Config, RunConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import load_model, save_model
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

pytest.importorskip("ale_py")
BREAKOUT = "ALE/Breakout-v5"
SCREEN = EnvironmentSpec(BREAKOUT, (FieldSpec("observation", (84, 84), "uint8"),), 4)


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


def test_a_policy_is_filmed_and_acts_on_the_frames_that_it_was_trained_on(tmp_path: Path):
    spec = describe_environment(BREAKOUT, {}, 4)
    env_args = {"max_episode_frames": 60}
    config = Config(run=RunConfig(env=BREAKOUT, env_args=env_args))
    path = tmp_path / "m.pth"
    save_model(path, config, spec, build_network(spec, config.network), 7)
    frames, whole = record_film(load_model(path), tmp_path / "policy.gif", episodes=1)
    assert whole
    assert 5 <= frames <= 60 // 4 + 1
    # The same as in docs/environments.md.
    env = atari.make_vector(BREAKOUT, 1)
    policy = load_policy(path)
    observations, _ = env.reset(seed=0)
    for _ in range(3):
        observations, *_ = env.step([policy.act(observations[0])])
    env.close()


def test_a_lost_life_does_not_begin_a_new_game():
    env = atari.make_vector(BREAKOUT, 2, life_loss=True)
    every: Any = [3, 4]  # the base class declares a single int
    _, infos = env.reset(seed=every)
    rng, lives, seen = np.random.default_rng(0), infos["lives"], set()
    frames = infos["episode_frame_number"]
    for _ in range(600):
        _, _, terminated, truncated, infos = env.step(rng.integers(4, size=2))
        left, began = infos["lives"], infos["episode_frame_number"] < frames
        assert not truncated.any()
        for i in np.flatnonzero(terminated):
            # Either one life is gone, or the game is over and has all its lives again.
            assert left[i] == (5 if began[i] else lives[i] - 1)
            assert began[i] == (lives[i] == 1)
            seen.add(int(lives[i]))
        assert not (began & ~terminated).any()
        lives, frames = left, infos["episode_frame_number"]
    assert seen == {5, 4, 3, 2, 1}, "the last lives were played, too"
    env.close()


@pytest.mark.parametrize(
    ("env_args", "evaluation", "expected"),
    [
        ({"life_loss": True}, {}, {"life_loss": False}),
        ({"life_loss": True, "noop_max": 1}, {"frame_skip": 2}, {"life_loss": False}),
        ({"life_loss": True}, {"life_loss": True}, {"life_loss": True}),
        ({}, {}, {}),
    ],
)
def test_evaluations_play_whole_games_unless_told_otherwise(
    env_args: dict[str, Any], evaluation: dict[str, Any], expected: dict[str, Any]
):
    layer = {
        "run": {"env": BREAKOUT, "env_args": env_args},
        "evaluation": {"env_args": evaluation},
    }
    planned = plan(detect(), build(("test", layer)), SCREEN).config
    assert planned.evaluation_env_args == {**env_args, **evaluation, **expected}
    assert planned.run.env_args == env_args


def test_rewards_are_clipped_for_learning_only_in_atari():
    for spec, clip in ((SCREEN, 1.0), (dataclasses.replace(SCREEN, id="my:game"), 0.0)):
        planned = plan(detect(), build(("test", {})), spec).config
        assert planned.actor.reward_clip == clip


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
