"""Rollouts: an environment tells what other actions lead to, and the learner takes it in."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from actors.circle_placement.environment import CirclePlacementEnv, CirclePlacementVectorEnv
from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment
from learner.learner import Learner
from learner.losses import rollout_losses
from pdqn.config import NetworkConfig
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import Model
from pdqn.networks import build_network
from pdqn.policy import Policy
from pdqn.specs import ROLLOUT_ACTIONS, ROLLOUT_RETURNS, EnvironmentSpec, FieldSpec
from replay.samples import SampleLayout

PLACEMENT = "pdqn/CirclePlacement-v0"
HERE = __name__
SPEC = EnvironmentSpec(
    "test/Tells-v0",
    (
        FieldSpec("observation", (4,), "float32"),
        FieldSpec(ROLLOUT_ACTIONS, (2,), "int32"),
        FieldSpec(ROLLOUT_RETURNS, (2,), "float32"),
    ),
    3,
)


class Tells(gymnasium.Env[Any, Any]):
    """A game of one observation that tells of two of its three actions."""

    told: Any = ([0, 2], [1.0, -1.0])

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(0, 1, (4,), np.float32)
        self.action_space: Any = spaces.Discrete(3)

    def _info(self) -> dict[str, Any]:
        return dict(zip((ROLLOUT_ACTIONS, ROLLOUT_RETURNS), self.told, strict=True))

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(4, np.float32), self._info()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return np.zeros(4, np.float32), 0.0, False, False, self._info()


class TellsOfMore(Tells):
    """One with more actions than returns."""

    told = ([0, 1, 2], [1.0, 2.0])


class TellsInWords(Tells):
    """One whose actions have names."""

    told = (["left", "right"], [1.0, 2.0])


class TellsAtFirst(Tells):
    """One that tells something at the start only."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return np.zeros(4, np.float32), 0.0, False, False, {}


# ---- from the environment ----


@pytest.mark.parametrize("name", ["Tells", "TellsAtFirst"])
def test_rollouts_of_the_info_are_observed(name: str):
    spec = describe_environment(f"{HERE}:{name}", {})
    assert [field.name for field in spec.fields] == [
        "observation", ROLLOUT_ACTIONS, ROLLOUT_RETURNS,
    ]  # fmt: skip
    assert spec.rollouts == 2
    batch = VectorEnvironment(spec, {}, 3)
    first = batch.reset([0, 1, 2])
    assert first[ROLLOUT_ACTIONS].tolist() == [[0, 2]] * 3
    assert first[ROLLOUT_RETURNS].tolist() == [[1.0, -1.0]] * 3
    later = batch.step(np.zeros(3, np.int64)).observation
    assert later[ROLLOUT_ACTIONS].tolist() == ([[0, 2]] if name == "Tells" else [[-1, -1]]) * 3
    batch.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("TellsOfMore", r"rollout_actions.* shape \[3\] .*rollout_returns.* \[2\]"),
        ("TellsInWords", r"rollout_actions.*left.*numbers are needed"),
    ],
)
def test_rollouts_that_are_not_two_rows_of_numbers_are_refused(name: str, words: str):
    with pytest.raises(UsageError, match=words):
        describe_environment(f"{HERE}:{name}", {})


def test_networks_do_not_see_rollouts():
    config = NetworkConfig(kind="mlp", hidden=8, layers=1)
    without = EnvironmentSpec(SPEC.id, SPEC.fields[:1], 3)
    sizes = [sum(p.numel() for p in build_network(s, config).parameters()) for s in (SPEC, without)]
    assert sizes[0] == sizes[1]
    assert SPEC.stacked(4).fields[1].stack == 1


def test_a_policy_acts_without_rollouts():
    network = build_network(SPEC, NetworkConfig(kind="mlp", hidden=8, layers=1))
    model = Model(network, SPEC, {}, 0)
    assert 0 <= Policy(model).act(np.zeros(4, np.float32)) < 3


def test_an_environment_that_tells_rollouts_can_be_saved_and_goes_on():
    arguments = {"map_size": 32, "rollouts": 4}
    spec = describe_environment(PLACEMENT, arguments)
    ours, theirs = (VectorEnvironment(spec, arguments, 2) for _ in range(2))
    first = ours.reset([1, 2])
    theirs.reset([3, 4])
    second = ours.step(first[ROLLOUT_ACTIONS][:, 1].astype(np.int64)).observation
    theirs.set_state(ours.get_state())
    actions = second[ROLLOUT_ACTIONS][:, 2].astype(np.int64)
    one, other = ours.step(actions).observation, theirs.step(actions).observation
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    ours.close()
    theirs.close()


# ---- of circle placement ----


@pytest.mark.parametrize("radii", ["fixed", "random", [9, 5, 5, 3]])
def test_a_rollout_is_what_the_environment_gives_for_its_action_and_greedy_ones(radii: Any):
    env = CirclePlacementEnv(map_size=48, radii=radii, rollouts=9)
    twin = CirclePlacementEnv(map_size=48, radii=radii)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        taken: list[int] = []
        while True:
            told = info[ROLLOUT_ACTIONS]
            actions = told[told >= 0].tolist()
            assert len(set(actions)) >= min(3, len(actions))
            assert actions[0] == env.exact_greedy(), "greedy's own choice is among them"
            for action, found in zip(actions, info[ROLLOUT_RETURNS].tolist(), strict=False):
                twin.reset(seed=seed)
                for earlier in taken:
                    twin.step(earlier)
                _, total, ended, _, _ = twin.step(action)
                while not ended:
                    _, reward, ended, _, _ = twin.step(twin.exact_greedy())
                    total += reward
                assert found == pytest.approx(total, abs=1e-6)
            taken.append(actions[len(actions) // 2])
            _, _, ended, _, info = env.step(taken[-1])
            if ended:
                assert (info[ROLLOUT_ACTIONS] == -1).all()
                break


def test_both_forms_of_the_environment_tell_the_same_rollouts():
    arguments: dict[str, Any] = {"map_size": 32, "rollouts": 6}
    batch, one = CirclePlacementVectorEnv(2, **arguments), CirclePlacementEnv(**arguments)
    _, infos = batch.reset(seed=[3, 4])
    _, info = one.reset(seed=4)
    for _ in range(4):
        for name in (ROLLOUT_ACTIONS, ROLLOUT_RETURNS):
            np.testing.assert_array_equal(infos[name][1], info[name])
        actions = infos[ROLLOUT_ACTIONS][:, 1]
        *_, infos = batch.step(actions.astype(np.int64))
        *_, info = one.step(int(actions[1]))


def test_auto_is_a_number_of_rollouts_unless_circles_may_overlap():
    _, info = CirclePlacementEnv(map_size=32, rollouts="auto").reset(seed=1)
    assert info[ROLLOUT_ACTIONS].shape == (24,)
    _, info = CirclePlacementEnv(map_size=32, rollouts="auto", overlap=True).reset(seed=1)
    assert ROLLOUT_ACTIONS not in info


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rollouts": 300}, "rollouts = 300; expected auto or a whole number from 0 to 256"),
        ({"rollouts": 4, "overlap": True}, "rollouts need circles that do not overlap"),
    ],
)
def test_rollouts_that_cannot_be_are_refused(arguments: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        CirclePlacementEnv(map_size=32, **arguments)


def test_the_values_of_several_places_are_those_of_all():
    spec = describe_environment(PLACEMENT, {"map_size": 32})
    network = build_network(spec, build(("test", {"network": {"kind": "qmap"}})).network)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    env = CirclePlacementVectorEnv(2, map_size=32)
    observation, _ = env.reset(seed=1)
    given = {name: torch.from_numpy(np.asarray(values)) for name, values in observation.items()}
    given["action_mask"] = given["action_mask"].bool()
    prepared = network.prepare(given)
    actions = torch.tensor([[5, 100, 1023], [500, 0, 77]])
    with torch.no_grad():
        every = network(*prepared)
        torch.testing.assert_close(
            network.chosen_each(actions, *prepared), every.gather(1, actions)
        )


# ---- in the loss ----


def test_the_loss_of_rollouts_by_hand():
    """Two returns with mean 0 and spread 1: the odds are e : 1/e."""
    returns, told = torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]])
    first = np.e / (np.e + 1 / np.e)
    exact = rollout_losses(returns, returns, told)
    assert exact.tolist() == [0.0]
    shifted = rollout_losses(returns + 0.5, returns, told)
    np.testing.assert_allclose(shifted, 0.5 * 0.1 * 0.25, rtol=1e-6)
    # Errors of 1 and 0: their weighted mean is the first one's weight.
    wrong = rollout_losses(returns + torch.tensor([[1.0, 0.0]]), returns, told)
    within = first * (1 - first) ** 2 + (1 - first) * first**2
    np.testing.assert_allclose(wrong, 0.5 * (within + 0.1 * first**2), rtol=1e-6)


def test_an_action_that_is_not_told_and_a_state_without_any_count_nothing():
    values, returns = torch.tensor([[1.0, 99.0], [5.0, 7.0]]), torch.zeros(2, 2)
    told = torch.tensor([[True, False], [False, False]])
    np.testing.assert_allclose(rollout_losses(values, returns, told), [0.05, 0.0], rtol=1e-6)


@pytest.mark.parametrize("distribution", ["none", "categorical", "quantile", "hl_gauss"])
def test_the_learner_takes_the_values_of_actions_from_rollouts(distribution: str):
    settings = {"learning_rate": 1e-2, "device": "cpu", "precision": "float32", "batch_size": 8}
    network = {"hidden": 16, "layers": 1, "distribution": distribution, "kind": "mlp"}
    learner = Learner(build(("test", {"learner": settings, "network": network})), SPEC)
    assert not learner.computes_on_arrays
    layout = SampleLayout(SPEC, 8)
    sample = layout.view(bytearray(layout.nbytes))
    sample.observation[ROLLOUT_ACTIONS][:] = [0, 2]
    sample.observation[ROLLOUT_RETURNS][:] = [1.0, -1.0]
    sample.observation["observation"][:] = 1.0
    sample.action[:], sample.sampling_priority[:] = 1, 1.0
    for _ in range(300):
        learner.step(learner.tensors(sample))
    with torch.no_grad():
        prepared = learner.online.prepare(learner.tensors(sample).observation)
        values = learner.online(*prepared)[0]
    assert values[0] - values[2] == pytest.approx(2.0, abs=0.1)
    assert values[1] == pytest.approx(0.0, abs=0.1), "the action taken, by its own return"
