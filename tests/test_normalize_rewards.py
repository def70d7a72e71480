"""Rewards in units of the returns' standard deviation, which is part of the parameters."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_learner_options import SPEC, config_of, learn, parameters, sample_of

from actors.environments.describe import describe_environment
from actors.n_step import n_step_targets
from launcher.plan.prepare import check_combinations
from learner.learner import Learner
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import load_model, save_model
from pdqn.networks import QNetwork, build_network
from pdqn.networks.array_network import has_arrays
from pdqn.networks.scaling import ReturnScale
from pdqn.networks.sizes import check_network, network_sizes
from pdqn.policy import Policy, action_values, greedy
from pdqn.specs import ROLLOUT_ACTIONS, ROLLOUT_RETURNS, EnvironmentSpec, FieldSpec
from replay.samples import Sample

STATES = 5
CHAIN = EnvironmentSpec("test/Chain-v0", (FieldSpec("observation", (STATES,), "float32"),), 2)
TELLS = EnvironmentSpec(
    "test/Tells-v0",
    (
        *SPEC.fields,
        FieldSpec(ROLLOUT_ACTIONS, (2,), "int32"),
        FieldSpec(ROLLOUT_RETURNS, (2,), "float32"),
    ),
    3,
)


def unit_of(network: QNetwork) -> float:
    assert network.return_scale is not None
    return network.return_scale().item()


def seen(scale: ReturnScale, returns: Any, discounts: Any, weights: Any = None) -> float:
    """Return the unit after one more batch."""
    weights = np.ones(len(returns)) if weights is None else weights
    scale.observe(
        *(torch.tensor(each, dtype=torch.float32) for each in (returns, discounts, weights))
    )
    return scale().item()


def test_the_unit_of_a_batch_worked_by_hand():
    # E[R^2] = (9 + 16) / 2 = 12.5 and E[d^2] = (0.5 + 0) / 2 = 0.25: V = 12.5 / 0.75.
    assert seen(ReturnScale(), [3, -4], [0.5**0.5, 0]) == pytest.approx((12.5 / 0.75) ** 0.5)
    # The first counts three times as much: E[R^2] = (3 * 9 + 16) / 4, E[d^2] = 3 * 0.5 / 4.
    weighted = seen(ReturnScale(), [3, -4], [0.5**0.5, 0], [3, 1])
    assert weighted == pytest.approx((10.75 / 0.625) ** 0.5)


def test_the_statistics_are_those_of_all_transitions_however_they_came():
    rng = np.random.default_rng(0)
    returns, discounts = rng.normal(7.0, 300.0, 500), np.where(rng.random(500) < 0.1, 0.0, 0.97)
    scale = ReturnScale()
    for part in np.array_split(np.arange(500), [1, 3, 64, 300]):
        seen(scale, returns[part], discounts[part])
    twin = (np.mean(returns**2) / (1 - np.mean(discounts**2))) ** 0.5
    assert scale().item() == pytest.approx(twin, rel=1e-5)
    assert scale.count.item() == 500


@pytest.mark.parametrize("n", [1, 3])
def test_it_is_the_standard_deviation_of_discounted_returns_where_rewards_are_independent(n: int):
    rewards, discount = np.random.default_rng(n).normal(0.0, 2.0, 20_000), 0.9
    targets = n_step_targets(rewards, len(rewards) - n, n, discount, terminated=False)
    running, returns = 0.0, []
    for reward in rewards:  # as gymnasium's NormalizeReward does
        running = discount * running + reward
        returns.append(running)
    unit = seen(ReturnScale(), targets.returns, targets.discounts)
    assert unit == pytest.approx(np.std(returns), rel=0.02)


def test_before_the_first_reward_it_is_one_and_a_batch_that_is_not_finite_is_left_out():
    scale = ReturnScale()
    assert scale().item() == 1.0
    assert seen(scale, [0, 0], [0.5, 0.5]) == 1.0
    before = seen(scale, [1e30, -1e30], [0, 0])
    assert before == pytest.approx(1e30 * 0.5**0.5 / (1 - 0.125) ** 0.5, rel=1e-5)
    for wrong in (np.nan, np.inf):
        assert seen(scale, [1, wrong], [0.5, 0.5]) == before
    assert scale.count.item() == 4


def test_returns_that_never_end_and_are_not_discounted_have_a_unit():
    assert seen(ReturnScale(), [2, 2], [1, 1]) == pytest.approx(200.0)


def scaled(sample: Sample, factor: float) -> Sample:
    """Return the sample with its rewards, and the returns of other actions, times a factor."""

    def rewarded(observation: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        told = observation.get(ROLLOUT_RETURNS)
        return observation if told is None else observation | {ROLLOUT_RETURNS: told * factor}

    return dataclasses.replace(
        sample,
        observation=rewarded(sample.observation),
        n_step_return=(sample.n_step_return * factor).astype(np.float32),
    )


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "compiled loops": ({}, {}),
    "without a target": ({"target": "none"}, {}),
    "autograd in parts": ({"micro_batch_size": 3}, {}),
    "munchausen": ({"munchausen": True}, {}),
    "noise and observations": ({}, {"noisy": True, "normalize": True}),
    "histograms in compiled loops": ({}, {"distribution": "hl_gauss"}),
    "histograms": ({"micro_batch_size": 3}, {"distribution": "hl_gauss"}),
    "atoms": ({}, {"distribution": "categorical"}),
    "quantiles": ({}, {"distribution": "quantile"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_rewards_in_another_unit_give_the_same_parameters_and_values_in_that_unit(way: str):
    learner, network = WAYS[way]
    _compare(SPEC, learner, network, sample_of)


def test_so_do_returns_of_other_actions_that_the_environment_tells():
    def telling(seed: int) -> Sample:
        sample, rng = sample_of(seed), np.random.default_rng(seed)
        told = {
            ROLLOUT_ACTIONS: np.tile(np.array([0, 2], np.int32), (8, 1)),
            ROLLOUT_RETURNS: rng.normal(size=(8, 2)).astype(np.float32),
        }
        both = (sample.observation | told, sample.bootstrap_observation | told)
        return dataclasses.replace(sample, observation=both[0], bootstrap_observation=both[1])

    _compare(TELLS, {}, {}, telling)


def _compare(spec: EnvironmentSpec, settings: dict[str, Any], network: Any, sample: Any) -> None:
    """Learn the same from rewards and from 1024 times as large ones, exact in binary."""
    config = config_of(settings, normalize_rewards=True, **network)
    one, other = Learner(config, spec), Learner(config, spec)
    first = parameters(one)
    for seed in range(5):
        ours, theirs = learn(one, sample(seed)), learn(other, scaled(sample(seed), 1024.0))
        np.testing.assert_array_equal(1024 * ours.priorities, theirs.priorities)
        assert theirs.q_mean == 1024 * ours.q_mean
        assert theirs.loss == ours.loss
        assert not theirs.skipped
    mine, its = parameters(one), parameters(other)
    ours, theirs = (each.pop("return_scale.roots") for each in (mine, its))
    assert torch.equal(theirs, ours * torch.tensor([1024.0, 1.0], device=ours.device))
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    changed = {name for name in mine if not torch.equal(first[name], mine[name])}
    assert any(name.endswith("weight") for name in changed)


def test_compiled_loops_and_autograd_agree():
    settings: tuple[dict[str, Any], ...] = (
        {"device": "cpu"},
        {"device": "cpu", "micro_batch_size": 3},
    )
    loops, autograd = (Learner(config_of(each, normalize_rewards=True), SPEC) for each in settings)
    assert has_arrays(loops.online)
    assert loops.computes_on_arrays
    assert not autograd.computes_on_arrays
    for seed in range(3):
        ours, theirs = (learn(each, scaled(sample_of(seed), 50)) for each in (loops, autograd))
        np.testing.assert_allclose(ours.priorities, theirs.priorities, rtol=1e-4)
        assert ours.q_mean == pytest.approx(theirs.q_mean, rel=1e-4)
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_priorities_are_errors_of_the_values_with_which_actors_act():
    config = config_of({"target": "none", "learning_rate": 1e-20}, normalize_rewards=True)
    learner, sample = Learner(config, SPEC), scaled(sample_of(), 300)
    priorities = learn(learner, sample).priorities
    online = learner.online.cpu()
    here, there = (
        action_values(online, SPEC.unpack(each))
        for each in (sample.observation, sample.bootstrap_observation)
    )
    following = np.where(sample.discount > 0, there.max(axis=1), 0.0)
    # The last row has no valid action, so that the value of its action is not told.
    error = sample.n_step_return + sample.discount * following - here[:, 0]
    np.testing.assert_allclose(priorities[:-1], np.abs(error)[:-1], rtol=1e-4)
    assert unit_of(online) > 100


def test_a_learner_that_goes_on_has_the_same_statistics():
    config = config_of(normalize_rewards=True)
    first = Learner(config, SPEC)
    for seed in range(3):
        learn(first, scaled(sample_of(seed), 7))
    second = Learner(config, SPEC)
    second.set_state(copy.deepcopy(first.get_state()))
    for seed in range(3, 6):
        learn(first, scaled(sample_of(seed), 7))
        learn(second, scaled(sample_of(seed), 7))
    ours, theirs = parameters(first), parameters(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ours["return_scale.count"].item() == 6 * 8


def test_a_model_file_gives_values_in_the_environments_units(tmp_path: Path):
    config = config_of(normalize_rewards=True)
    learner = Learner(config, SPEC)
    learn(learner, scaled(sample_of(1), 1000))
    path = tmp_path / "model.pth"
    save_model(path, config, SPEC, learner.online, learner.learner_steps)
    policy = Policy(load_model(path))
    observation, online = np.ones((2, 4), np.float32), learner.online.cpu()
    mask = torch.ones(2, 3, dtype=torch.bool)
    prepared = online.prepare({"observation": torch.from_numpy(observation), "action_mask": mask})
    values = policy.values({"observation": observation, "action_mask": mask.numpy()})
    assert unit_of(online) > 500
    expected = online(*prepared).detach().numpy() * unit_of(online)
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def chain_sample(seed: int, reward: float) -> Sample:
    """Return steps on a chain: 0 ends it without a reward, 1 goes on to the reward at its end."""
    rng = np.random.default_rng(seed)
    state, action = rng.integers(0, STATES, 32), rng.integers(0, 2, 32)
    last = state == STATES - 1
    eye = np.eye(STATES, dtype=np.float32)
    return Sample(
        keys=np.arange(32),
        observation={"observation": eye[state]},
        bootstrap_observation={"observation": eye[np.minimum(state + 1, STATES - 1)]},
        action=action.astype(np.int32),
        n_step_return=np.where(action == 1, np.where(last, reward, 0.0), 0.1 * reward).astype(
            np.float32
        ),
        discount=np.where((action == 1) & ~last, 0.8, 0.0).astype(np.float32),
        sampling_priority=np.ones(32),
        parameter_version=np.zeros(32, np.int64),
    )


def chain_values(reward: float, *, normalized: bool) -> NDArray[np.float32]:
    """Learn the chain; return the values of its states, in units of the reward."""
    settings = {"batch_size": 32, "target_update_period": 25}
    learner = Learner(config_of(settings, normalize_rewards=normalized), CHAIN)
    for seed in range(600):
        assert not learn(learner, chain_sample(seed, reward)).skipped
    online, observation = learner.online.cpu(), {"observation": np.eye(STATES, dtype=np.float32)}
    values = action_values(online, observation)
    np.testing.assert_array_equal(greedy(online, observation), values.argmax(axis=1))
    return values / np.float32(reward)


def test_rewards_of_thousands_are_learned_as_those_of_one():
    true = np.stack([np.full(STATES, 0.1), 0.8 ** np.arange(STATES - 1, -1, -1)], axis=1)
    small, large = (chain_values(reward, normalized=True) for reward in (1.0, 1000.0))
    np.testing.assert_allclose(small, true, atol=0.03)
    np.testing.assert_allclose(large, true, atol=0.03)
    # In their own unit they are out of reach of as many steps.
    assert np.abs(chain_values(1000.0, normalized=False) - true).max() > 0.3


def test_lambda_returns_are_refused_with_the_reason():
    config = config_of(normalize_rewards=True)
    mixed = dataclasses.replace(config, actor=dataclasses.replace(config.actor, returns="lambda"))
    check_combinations(config)
    with pytest.raises(UsageError, match=r"normalize_rewards = true with actor\.returns = lambda"):
        check_combinations(mixed)


def test_a_map_of_exact_rewards_is_refused():
    spec = describe_environment("pdqn/CirclePlacement-v0", {"map_size": 16}, 1)
    config = build(("test", {"network": {"normalize_rewards": True}})).network
    with pytest.raises(UsageError, match="normalize_rewards = true: the Q-map"):
        check_network(spec, network_sizes(spec, config))
    dense = dataclasses.replace(config, kind="mlp")
    assert build_network(spec, dense).return_scale is not None
