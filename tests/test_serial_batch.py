"""Our batch of environments that are stepped one after another, beside gymnasium's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.environments.describe import describe_environment
from actors.environments.guard import GuardedEnvironment
from actors.environments.serial import SerialBatch
from actors.environments.vector import Transition, VectorEnvironment

SPACES: dict[str, spaces.Space[Any]] = {
    "image": spaces.Box(0, 1, (3, 4, 2), np.uint8),
    "bits": spaces.MultiBinary(5),
    "choices": spaces.MultiDiscrete([3, 4]),
    "number": spaces.Box(-1, 1, (), np.float32),
    "choice": spaces.Discrete(4),
    "several": spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}),
    "pair": spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (1,), np.float64))),
}


class Walk(gymnasium.Env[Any, Any]):
    """Random walks that end in both ways, and tell things now and then."""

    action_space = spaces.Discrete(3)

    def __init__(self, kind: str) -> None:
        self.observation_space = copy.deepcopy(SPACES[kind])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(1 << 30)))
        return self.observation_space.sample(), self._info()

    def step(self, action: Any) -> Any:
        terminated, truncated = (bool(x) for x in self.np_random.random(2) < 0.15)
        reward = float(action) + float(self.np_random.random())
        return self.observation_space.sample(), reward, terminated, truncated, self._info()

    def _info(self) -> dict[str, Any]:
        return {"suggested_action": 1} if self.np_random.random() < 0.3 else {}


def both(kind: str) -> tuple[VectorEnvironment, VectorEnvironment]:
    """Make the same environments in our batch and in gymnasium's."""
    name, arguments = "test_serial_batch:Walk", {"kind": kind}
    spec = describe_environment(name, arguments, 1)
    ours, theirs = (VectorEnvironment(spec, arguments, 4) for _ in range(2))
    makers: list[Callable[[], GuardedEnvironment]] = [
        partial(lambda env: env, env) for env in theirs._guarded
    ]
    theirs._env = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)
    return ours, theirs


def assert_equal(ours: Transition, theirs: Transition) -> None:
    for name, expected in vars(theirs).items():
        found = getattr(ours, name)
        pairs = (
            [(found[key], expected[key]) for key in expected]
            if isinstance(expected, dict)
            else [(found, expected)]
        )
        for one, other in pairs:
            np.testing.assert_array_equal(one, other, err_msg=name)
            assert getattr(one, "dtype", None) == getattr(other, "dtype", None), name


@pytest.mark.parametrize("kind", SPACES)
def test_it_gives_what_gymnasiums_batch_gives(kind: str):
    ours, theirs = both(kind)
    assert isinstance(ours._env, SerialBatch)
    rng, ends = np.random.default_rng(0), 0
    with closing(ours), closing(theirs):
        first, expected = ours.reset(range(4)), theirs.reset(range(4))
        for name in expected:
            np.testing.assert_array_equal(first[name], expected[name])
        for _ in range(40):
            actions = rng.integers(0, 3, 4)
            step = ours.step(actions)
            assert_equal(step, theirs.step(actions))
            ends += int(step.began.sum())
    assert ends > 20


def test_what_it_gave_stays_as_it_is():
    ours, theirs = both("image")
    with closing(ours), closing(theirs):
        ours.reset(range(4))
        step = ours.step(np.zeros(4, np.int64))
        before = {name: values.copy() for name, values in step.observation.items()}
        ours.step(np.zeros(4, np.int64))
        for name, values in before.items():
            np.testing.assert_array_equal(step.observation[name], values)
