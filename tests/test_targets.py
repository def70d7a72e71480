"""Targets: a whole network, its last layer alone, or none."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from launcher.plan.prepare import prepare
from learner.learner import Learner
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.specs import EnvironmentSpec, FieldSpec
from replay.samples import Sample

ROWS = 4
SPEC = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (3,), "float32"),), 2)
BOARD = EnvironmentSpec("test/Board-v0", (FieldSpec("observation", (8, 8), "float32"),), 64)
LAST = {"head.advantage.weight", "head.advantage.bias", "head.value.weight", "head.value.bias"}


def learner_of(
    target: str, spec: EnvironmentSpec = SPEC, network: dict[str, Any] | None = None, **changes: Any
) -> Learner:
    fixed = {"learning_rate": 1e-2, "device": "cpu", "precision": "float32", "batch_size": ROWS}
    learner = {**fixed, "target_update_period": 3, "target": target, **changes}
    return Learner(build(("test", {"learner": learner, "network": network or {}})), spec)


def sample_of(seed: int = 0, spec: EnvironmentSpec = SPEC, **changes: Any) -> Sample:
    rng = np.random.default_rng(seed)
    shape = (ROWS, *spec.fields[0].shape)
    values: dict[str, Any] = {
        "keys": np.arange(ROWS),
        "observation": {"observation": rng.normal(size=shape).astype(np.float32)},
        "bootstrap_observation": {"observation": rng.normal(size=shape).astype(np.float32)},
        "action": rng.integers(0, 2, ROWS, np.int32),
        "n_step_return": rng.normal(size=ROWS).astype(np.float32),
        "discount": np.full(ROWS, 0.9, np.float32),
        "sampling_priority": np.ones(ROWS),
        "parameter_version": np.zeros(ROWS, np.int64),
    }
    return Sample(**{**values, **changes})


def learn(learner: Learner, *seeds: int) -> None:
    for seed in seeds:
        sample = sample_of(seed, learner._spec)
        assert not learner.step(learner.tensors(sample)).skipped


def differing(learner: Learner) -> set[str]:
    """Name the parameters in which the target differs from the online network."""
    theirs = learner.target.state_dict()
    ours = learner.online.state_dict()
    return {name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])}


@pytest.mark.parametrize("update", ["periodic", "soft"])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_last_layer_alone_stays_behind(update: str, layers: int):
    learner = learner_of("last_layer", network={"layers": layers}, target_update=update)
    assert differing(learner) == set()
    learn(learner, 0, 1)
    assert differing(learner) == LAST
    learn(learner, 2)
    assert differing(learner) == (set() if update == "periodic" else LAST)


def test_a_soft_last_layer_follows_by_its_rate_and_nothing_else_moves_twice():
    settings = {"target_update": "soft", "target_update_rate": 0.25}
    learner = learner_of("last_layer", **settings)
    whole = learner_of("network", **settings)
    before = {name: copy.deepcopy(learner.target.get_parameter(name)) for name in LAST}
    learn(learner, 0)
    learn(whole, 0)
    for name in LAST:
        old, new = before[name], learner.online.get_parameter(name)
        followed = learner.target.get_parameter(name)
        torch.testing.assert_close(followed.data, (old + 0.25 * (new - old)).data)
    # The first step is that of a whole target, which is still the same.
    for name, tensor in learner.online.state_dict().items():
        torch.testing.assert_close(tensor, whole.online.state_dict()[name])


def test_the_last_layer_of_a_network_for_places_is_its_advantages_and_value():
    learner = learner_of("last_layer", BOARD)
    learn(learner, 0, 1)
    # The bias that all places share has no gradient: dueling takes off their mean.
    assert differing(learner) == {"advantage.weight", "value.weight", "value.bias"}


def test_without_a_target_the_online_network_values_what_follows():
    """Worked by hand: values of 1 and 3 everywhere, and a return of 2."""
    for target, value in (("none", 3.0), ("last_layer", 1.0), ("network", 1.0)):
        learner = learner_of(target, network={"layers": 0, "dueling": False}, double=False)
        with torch.no_grad():
            for network, values in ((learner.target, [1.0, 1.0]), (learner.online, [1.0, 3.0])):
                network.get_parameter("head.advantage.weight").zero_()
                network.get_parameter("head.advantage.bias").copy_(torch.tensor(values))
        returns = np.full(ROWS, 2.0, np.float32)
        sample = sample_of(n_step_return=returns, action=np.zeros(ROWS, np.int32))
        found = learner.step(learner.tensors(sample)).priorities
        np.testing.assert_allclose(found, 2.0 + 0.9 * value - 1.0, rtol=1e-6)


def test_no_gradient_flows_through_what_follows():
    """Return, discount and value are known: only the value of the observation itself moves."""
    network = {"layers": 0, "dueling": False}
    for target in ("none", "last_layer"):
        for micro in (ROWS, 1):  # without autograd, and with it
            learner = learner_of(target, network=network, micro_batch_size=micro, huber_delta=1e9)
            sample = sample_of(3)
            batch = learner.tensors(sample)
            values = learner.online(batch.observation["observation"]).detach()
            following = learner.online(batch.bootstrap_observation["observation"]).detach()
            actions = torch.arange(ROWS), batch.action
            errors = values[actions] - batch.n_step_return - 0.9 * following.amax(dim=1)
            wanted = torch.zeros(2).index_add(0, batch.action, errors / ROWS)
            learner.step(batch)
            bias = learner.online.get_parameter("head.advantage.bias")
            torch.testing.assert_close(bias.grad, wanted)


@pytest.mark.parametrize("target", ["last_layer", "none"])
def test_a_run_with_a_whole_target_goes_on_without_it(target: str):
    whole, other = learner_of("network"), learner_of(target)
    learn(whole, 0, 1)
    other.set_state(copy.deepcopy(whole.get_state()))
    for name, tensor in other.online.state_dict().items():
        assert torch.equal(tensor, whole.online.state_dict()[name]), name
    assert differing(other) == (LAST if target == "last_layer" else set())
    learn(other, 2, 3)


def test_a_run_without_a_target_goes_on_with_one():
    first, second = learner_of("none"), learner_of("network")
    learn(first, 0, 1)
    second.set_state(copy.deepcopy(first.get_state()))
    assert differing(second) == set()
    learn(second, 2)
    for name, tensor in second.target.state_dict().items():
        assert torch.equal(tensor, second.online.state_dict()[name]), name


@pytest.mark.parametrize("env_args", [{"map_size": 16}])
def test_a_q_map_has_no_last_layer_to_copy(env_args: dict[str, Any]):
    run = {"env": "pdqn/CirclePlacement-v0", "env_args": env_args}
    config = build(("test", {"run": run, "learner": {"target": "last_layer"}}))
    with pytest.raises(UsageError, match=r"learner\.target = last_layer: a network of kind qmap"):
        prepare(config)
