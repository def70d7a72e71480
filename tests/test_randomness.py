"""The random states of a process: distinct for each role, unchanged by evaluations."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from actors import process
from actors.environments import randomness
from actors.environments.describe import describe_environment
from pdqn.layers import build
from pdqn.messages import Welcome
from pdqn.telemetry import Telemetry


def drawn() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


@pytest.fixture(autouse=True)
def _left_alone() -> Any:
    with randomness.kept():
        yield


def test_each_incarnation_of_each_role_draws_its_own():
    draws = []
    for key in ((1, "actor", 0, 0), (1, "actor", 0, 1), (1, "actor", 1, 0), (2, "actor", 0, 0),
                (1, "evaluator", 0, 0)):  # fmt: skip
        randomness.seed(*key)
        draws.append(drawn())
        randomness.seed(*key)
        assert drawn() == draws[-1]
    for each in zip(*draws, strict=True):
        assert len(set(each)) == len(draws)


def test_what_is_drawn_in_between_is_not_noticed():
    randomness.seed(1, "actor", 0, 0)
    expected = drawn()
    randomness.seed(1, "actor", 0, 0)
    with randomness.kept():
        assert drawn() == expected
    with pytest.raises(AttributeError), randomness.kept():
        drawn().unknown()  # type: ignore[attr-defined]
    assert drawn() == expected


class Lottery(gymnasium.Env[Any, Any]):
    """An environment that shows its random numbers and ignores its seed."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)
    drawn: list[float] = []  # noqa: RUF012 - shared by all instances

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        Lottery.drawn.append(float(np.random.rand()))
        return np.array(Lottery.drawn[-1:]), {}

    def step(self, action: Any) -> Any:
        return np.zeros(1), 0.0, True, False, {}


class Stopped:
    """Everything that a role talks to; the run ends before the role's first step."""

    stopping, parameter_version = True, 0
    telemetry: Any = Telemetry()

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_actors_draw_differently_though_they_are_forked_from_one_process(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "lottery", sys.modules[__name__])
    monkeypatch.setattr(process, "ParameterFollower", lambda *_: Stopped())
    monkeypatch.setattr(process, "Shipper", lambda *_: Stopped())
    monkeypatch.setattr(process.Rollout, "note_seeds", lambda *_: None)
    run = {"env": "lottery:Lottery"}
    config = build(("test", {"run": run, "actor": {"envs_per_actor": 1, "segment_length": 4,
                                                   "discount": 0.9}}))  # fmt: skip
    spec = describe_environment("lottery:Lottery", {})
    monkeypatch.setattr(Lottery, "drawn", [])
    link: Any = Stopped()
    for index, incarnation in ((0, 0), (1, 0), (0, 1), (0, 0)):
        with randomness.kept():
            process.act(link, link, Welcome("r", index, incarnation, config, spec, "", ""))
    first, *others, again = Lottery.drawn
    assert first == again
    assert len({first, *others}) == 3
