"""States of environments: another one goes on from them as the first would."""

from __future__ import annotations

import io
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from rich.console import Console

from actors.environments.describe import describe_environment
from actors.environments.states import StateError, set_state, state_of
from actors.environments.vector import VectorEnvironment
from launcher.plan.prepare import prepare
from launcher.plan.report import as_json, report
from pdqn import plain
from pdqn.layers import build
from pdqn.specs import ACTION_MASK

PLACEMENT = ("pdqn/CirclePlacement-v0", {"map_size": 16, "radii": [3, 2, 1], "suggest": True})


def random_actions(env: VectorEnvironment, observation: Any, rng: np.random.Generator) -> Any:
    if ACTION_MASK not in observation:
        return rng.integers(env.spec.num_actions, size=env.num_envs)
    return np.array([rng.choice(np.flatnonzero(row)) for row in observation[ACTION_MASK]])


def played(env: VectorEnvironment, observation: Any, steps: int, seed: int) -> list[Any]:
    """Return the transitions of random actions."""
    rng, transitions = np.random.default_rng(seed), []
    for _ in range(steps):
        transitions.append(env.step(random_actions(env, observation, rng)))
        observation = transitions[-1].observation
    return transitions


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize(
    ("env_id", "env_args"),
    [("CartPole-v1", {}), ("MountainCar-v0", {}), ("Acrobot-v1", {}), PLACEMENT],
    ids=["cartpole", "mountain_car", "acrobot", "placement"],
)
def test_an_environment_goes_on_from_the_state_of_another(
    env_id: str, env_args: dict[str, Any], steps: int
):
    spec = describe_environment(env_id, env_args)
    first, twin = (VectorEnvironment(spec, env_args, 3) for _ in range(2))
    before = played(first, first.reset([1, 2, 3]), steps, seed=0)
    twin.reset([4, 5, 6])
    twin.set_state(plain.unpack(plain.pack(first.get_state())))
    observation = before[-1].observation
    for one, other in zip(
        *(played(env, observation, 250, seed=1) for env in (first, twin)), strict=True
    ):
        for name, part in vars(one).items():
            np.testing.assert_equal(getattr(other, name), part)
    for env in (first, twin):
        env.close()


@pytest.mark.parametrize(("env_id", "can"), [("CartPole-v1", True), ("CliffWalking-v1", False)])
def test_the_plan_tells_whether_an_environment_can_be_saved(env_id: str, can: bool):
    _, here, plan = prepare(build(("test", {"run": {"env": env_id}})))
    row = as_json(here, plan)["plan"]["environment_state"]
    assert row.startswith("can be saved") == can
    assert ("CliffWalkingEnv has no methods get_state() and set_state()" in row) != can
    console = Console(file=io.StringIO(), width=200, color_system=None)
    with console.capture() as shown:
        console.print(report(here, plan))
    assert row in shown.get()


@pytest.mark.parametrize("placed", [0, 1, 3])
def test_one_placement_goes_on_from_the_state_of_another(placed: int):
    env_id, arguments = PLACEMENT
    first, twin = (gymnasium.make(env_id, **arguments) for _ in range(2))
    _, info = first.reset(seed=5)
    for _ in range(placed):
        *_, info = first.step(info["suggested_action"])
    twin.reset(seed=6)
    set_state(twin, state_of(first))
    assert state_of(twin) == state_of(first)
    if placed < 3:
        one, other = (env.step(info["suggested_action"]) for env in (first, twin))
        np.testing.assert_equal(other, one)
    np.testing.assert_equal(twin.reset()[0], first.reset()[0])


class Odd(gymnasium.Env[Any, Any]):
    """An environment whose state is not plain data."""

    def get_state(self) -> Any:
        return {"random": [1.0, self.np_random]}

    def set_state(self, state: Any) -> None:
        raise RuntimeError("the simulator does not answer")


class Hiding(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A person's wrapper, which may have a state of its own."""


def test_a_state_that_is_not_plain_data_is_refused_with_its_place():
    with pytest.raises(StateError, match=r"Odd.get_state\(\)\['random'\]\[1\] is of"):
        state_of(Odd())


def test_a_wrapper_without_the_methods_is_named():
    with pytest.raises(StateError, match="Hiding has no methods get_state"):
        state_of(Hiding(gymnasium.make("CartPole-v1")))


def test_a_method_that_raises_is_named_with_its_error():
    with pytest.raises(StateError, match=r"Odd.set_state\(\) failed: RuntimeError: the simulator"):
        set_state(Odd(), plain.pack({"elapsed": [], "own": plain.pack(None)}))


def test_a_placement_refuses_a_state_of_another_map():
    small, large = (
        gymnasium.make(PLACEMENT[0], map_size=size, radii=[3, 2, 1]) for size in (16, 32)
    )
    _, info = large.reset(seed=0)
    large.step(np.flatnonzero(info["action_mask"])[-1])
    small.reset(seed=0)
    with pytest.raises(StateError, match=r"out of bounds|a cell of the map"):
        set_state(small, state_of(large))


class Walk(gymnasium.Env[Any, Any]):
    """A walk whose place is not a number in the fifth step of the environment with an odd seed."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    place, steps, odd = 0.0, 0, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.normal()), 0
        self.odd = self.odd if seed is None else bool(seed % 2)
        return np.array([self.place]), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.place += float(action) + float(self.np_random.normal())
        is_bad = self.odd and self.steps == 5
        return np.array([np.nan if is_bad else self.place]), 1.0, self.steps == 20, False, {}

    def get_state(self) -> Any:
        state = {"place": self.place, "steps": self.steps, "odd": self.odd}
        return {**state, "random": self.np_random.bit_generator.state}

    def set_state(self, state: Any) -> None:
        self.place, self.steps, self.odd = (state[name] for name in ("place", "steps", "odd"))
        self.np_random.bit_generator.state = state["random"]


def test_environments_beside_one_that_begins_again_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "walks", sys.modules[__name__])
    spec = describe_environment("walks:Walk", {})
    first, twin = (VectorEnvironment(spec, {}, 2) for _ in range(2))
    before = played(first, first.reset([1, 2]), 4, seed=0)
    twin.reset([4, 6])
    twin.set_state(plain.unpack(plain.pack(first.get_state())))
    observation = before[-1].observation
    expected, given = (played(env, observation, 8, seed=1) for env in (first, twin))
    assert sum(bool(step.faults) for step in expected) > 0
    for one, other in zip(expected, given, strict=True):
        for name, part in vars(one).items():
            np.testing.assert_equal(getattr(other, name), part)
