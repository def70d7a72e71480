"""The actor's recording of failing environments, of an expert's advice, and of large rewards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from failing_environments import LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.environments import guard
from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from actors.exploration import Guide, epsilon_greedy, guidance_at
from actors.rollout import Identity, Rollout
from actors.segments import Segment, SegmentRecorder
from launcher.plan.prepare import prepare
from pdqn import seeds
from pdqn.config import ActorConfig, Config
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.telemetry import Telemetry

TRAP = "failing_environments:broken"
PLACEMENT = "pdqn/CirclePlacement-v0"
NUMBER = EnvironmentSpec("test/Number-v0", (FieldSpec("observation", (1,), "float32"),), 2)


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.time, "sleep", lambda _: None)


def config_of(run: dict[str, Any], **actor: Any) -> Config:
    fixed = {"envs_per_actor": 3, "discount": 0.5, "segment_length": 16, "n_step": 2}
    network = {"channels": 4} if run["env"] == PLACEMENT else {"hidden": 8, "layers": 1}
    return build(("test", {"run": run, "actor": {**fixed, **actor}, "network": network}))


def rollout_of(config: Config) -> Rollout:
    torch.manual_seed(0)
    spec = describe_environment(config.run.env, config.run.env_args, config.run.frame_stack or 1)
    return Rollout(config, spec, build_network(spec, config.network), Identity(0, 0))


def shipped(rollout: Rollout, steps: int, telemetry: Telemetry | None = None) -> list[Segment]:
    telemetry = telemetry or Telemetry()
    return [segment for _ in range(steps) for segment in rollout.step(telemetry)]


# ---- environments that fail ----


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_nothing_of_a_broken_episode_is_shipped_and_nothing_of_the_others_is_missing(
    frame_stack: int,
):
    bad = seeds.environment_seeds(0, 0, 3, 0)[1]
    run = {"env": TRAP, "env_args": {"bad_seeds": (bad,)}, "frame_stack": frame_stack}
    rollout, telemetry = rollout_of(config_of(run)), Telemetry()
    segments = shipped(rollout, 4 * LENGTH, telemetry)
    rollout.close()
    assert telemetry.counters["environment_failures"] == 1
    episodes = [segment.frames["observation"][:, 0] for segment in segments]
    assert all(len(set(seed.tolist())) == 1 for seed in episodes)
    assert bad not in {seed[0] for seed in episodes}
    # Episodes of five steps: 20 steps are four episodes, except the one that lost three steps.
    assert [segment.count for segment in segments] == [LENGTH] * 11
    assert telemetry.counters["episodes"] == 11
    assert telemetry.counters["environment_steps"] == 60


def test_a_reset_that_fails_is_counted_like_a_step_that_does():
    bad = seeds.environment_seeds(0, 0, 3, 0)[1]
    run = {"env": TRAP, "env_args": {"how": "reset", "bad_seeds": (bad,)}}
    rollout, telemetry = rollout_of(config_of(run)), Telemetry()
    shipped(rollout, LENGTH, telemetry)
    rollout.close()
    assert telemetry.counters["environment_failures"] == 1
    assert telemetry.counters["episodes"] == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_recorder_that_drops_ships_what_one_without_the_failed_episodes_ships(data: Any):
    """Play two environments at random, some failing, beside a twin that keeps whole episodes."""
    settings_of = {"n_step": 2, "discount": 0.5, "segment_length": 4}
    recorder = SegmentRecorder(NUMBER, 2, **settings_of)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kept: list[list[float]] = []
    open_episodes: list[list[float]] = [[], []]
    got: list[float] = []
    for number in range(60):
        observation = np.array([[number], [number + 1000]], np.float32)
        recorder.record({"observation": observation}, *(np.zeros(2, np.float32) for _ in range(3)))
        ended, failed = rng.random(2) < 0.2, rng.random(2) < 0.1
        ended &= ~failed
        for env in range(2):
            open_episodes[env].append(float(observation[env, 0]))
            if failed[env]:
                open_episodes[env] = []
            elif ended[env]:
                kept.append(open_episodes[env])
                open_episodes[env] = []
        recorder.drop(failed)
        none = np.zeros(2, bool)
        segments = recorder.finish(np.ones(2), ended, none, {}, np.empty(0, np.float32))
        got += [
            float(s.frames["observation"][i, 0])
            for s in segments
            for i in s.columns["observation_index"]
        ]
    wanted = {step for episode in kept for step in episode}
    assert wanted <= set(got)
    assert len(got) == len(set(got))


# ---- an expert's advice ----


def test_the_share_of_guidance_goes_on_a_straight_line_to_its_end():
    actor = ActorConfig(guidance=0.8, guidance_final=0.2, guidance_decay_steps=100)
    assert [guidance_at(actor, step) for step in (0, 50, 100, 900)] == pytest.approx(
        [0.8, 0.5, 0.2, 0.2]
    )


def test_only_exploring_environments_follow_and_only_valid_advice():
    values = np.array([[3.0, 1, 2, -np.inf]] * 4000, np.float32)
    suggested = np.tile([1, 3, -1, 2], 1000)
    guide = Guide(suggested, share=1.0)
    rng = np.random.default_rng(0)
    greedy = epsilon_greedy(values, np.zeros(4000), rng, guide)
    assert (greedy.actions == 0).all()
    actions = epsilon_greedy(values, np.ones(4000), rng, guide).actions.reshape(-1, 4)
    assert (actions[:, 0] == 1).all()
    assert (actions[:, 3] == 2).all()
    # Masked or missing advice: uniform over the three valid actions.
    for column in (1, 2):
        assert set(actions[:, column]) == {0, 1, 2}


def test_a_share_of_the_explorers_follows():
    values = np.zeros((20_000, 10), np.float32)
    guide = Guide(np.full(20_000, 7), share=0.5)
    actions = epsilon_greedy(values, np.ones(20_000), np.random.default_rng(0), guide).actions
    assert (actions == 7).mean() == pytest.approx(0.5 + 0.05, abs=0.02)


@pytest.mark.parametrize("radii", ["fixed", "random"])
def test_following_circle_placements_advice_is_exact_greedy(radii: str):
    env_args = {"map_size": 32, "radii": radii, "suggest": True}
    spec = describe_environment(PLACEMENT, env_args)
    env = VectorEnvironment(spec, env_args, 4)
    held_out = seeds.held_out_seeds(4)
    env.reset(held_out)
    covered = np.full(4, np.nan)
    while np.isnan(covered).any():
        assert env.suggested is not None
        transition = env.step(env.suggested)
        first = transition.terminated & np.isnan(covered)
        covered[first] = transition.headline[first]
    np.testing.assert_allclose(covered, env.baselines(held_out)["exact_greedy"], rtol=1e-6)
    env.close()


def test_both_forms_of_the_environment_suggest_the_same():
    env_args = {"map_size": 32, "suggest": True}
    spec = describe_environment(PLACEMENT, env_args)
    batch = VectorEnvironment(spec, env_args, 2)
    batch.reset([5, 6])
    from actors.circle_placement.environment import CirclePlacementEnv

    single = CirclePlacementEnv(**env_args)
    _, info = single.reset(seed=6)
    for _ in range(5):
        assert batch.suggested is not None
        assert info["suggested_action"] == batch.suggested[1]
        batch.step(batch.suggested)
        _, _, _, _, info = single.step(info["suggested_action"])
    batch.close()


def test_guidance_without_advice_is_refused_before_anything_starts():
    layer = {"run": {"env": "CartPole-v1"}, "actor": {"guidance": 0.5}}
    with pytest.raises(UsageError, match=r"actor\.guidance = 0\.5: CartPole-v1 gives no info"):
        prepare(build(("test", layer)))


def test_with_guidance_a_rollout_follows_until_it_has_decayed():
    run = {"env": PLACEMENT, "env_args": {"map_size": 32, "suggest": True}}
    guided = {"guidance": 1.0, "guidance_decay_steps": 10, "epsilon_base": 1.0, "epsilon_alpha": 0}
    rollout, telemetry = rollout_of(config_of(run, **guided)), Telemetry()
    shipped(rollout, 13, telemetry)
    followed = telemetry.report().episodes
    rollout.set_learner_steps(10)
    assert rollout.guidance == 0.0
    shipped(rollout, 13, telemetry)
    alone = telemetry.report().episodes
    rollout.close()
    assert min(e.headline or 0.0 for e in followed) > max(e.headline or 0.0 for e in alone)


# ---- the softmax of values ----


def test_boltzmann_exploration_is_by_the_values_of_the_network():
    run = {"env": PLACEMENT, "env_args": {"map_size": 32}}
    explored = {"epsilon_base": 1.0, "epsilon_alpha": 0}
    coverages = []
    for changes in ({}, {"exploration": "boltzmann", "temperature": 1e-6}):
        rollout, telemetry = rollout_of(config_of(run, **explored, **changes)), Telemetry()
        shipped(rollout, 13, telemetry)
        coverages.append([episode[2] for episode in telemetry.report().episodes])
        rollout.close()
    # Without training, the network plays exact greedy, and so does a softmax at this temperature.
    assert max(coverages[0]) < min(coverages[1])


# ---- rewards ----


def test_rewards_are_clipped_for_learning_and_not_for_the_score():
    run = {"env": "MountainCar-v0", "env_args": {"max_episode_steps": 8}}
    rollout, telemetry = rollout_of(config_of(run, reward_clip=0.25)), Telemetry()
    segments = shipped(rollout, 8, telemetry)
    rollout.close()
    # Two steps of reward -1, clipped to -0.25: -0.25 - 0.5 x 0.25.
    assert segments[0].columns["n_step_return"][0] == pytest.approx(-0.375)
    assert {episode[0] for episode in telemetry.report().episodes} == {-8.0}


# ---- noise ----


def test_noisy_layers_take_the_place_of_epsilon():
    config = build(
        ("test", {"run": {"env": "CartPole-v1"}, "network": {"noisy": True, "hidden": 8}}),
        ("more", {"actor": {"envs_per_actor": 2, "discount": 0.9, "segment_length": 8}}),
    )
    rollout = rollout_of(config)
    rollout.set_slot(0, 4)
    assert rollout.epsilons.tolist() == [0.0, 0.0]
    first = [parameter.clone() for parameter in rollout._network.buffers()]
    shipped(rollout, 1)
    second = list(rollout._network.buffers())
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    rollout.close()
