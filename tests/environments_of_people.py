"""Environments as beginners and odd libraries write them; tests name each by its class."""

from __future__ import annotations

from collections import UserDict
from types import MappingProxyType
from typing import Any
from unittest.mock import Mock

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv


def told(**info: Any) -> dict[str, Any]:
    return info


class Walk(gymnasium.Env[Any, Any]):
    """A walk on a line of five places: 1 at the right end."""

    info: Any = told()

    def __init__(self) -> None:
        self.observation_space: Any = spaces.Box(0, 4, (2,), np.float32)
        self.action_space: Any = spaces.Discrete(2)
        self.place = 2

    def seen(self) -> Any:
        return np.array([self.place, 1], np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 2
        return self.seen(), self.info

    def step(self, action: Any) -> Any:
        self.place += 1 if action == 1 else -1
        return self.seen(), float(self.place == 4), self.place in (0, 4), False, self.info


# ---- old interfaces ----


class StepOfFour(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, info


class WrappedStepOfFour(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper of gymnasium's around the fault, and a fault in the second place."""

    def __init__(self) -> None:
        super().__init__(gymnasium.wrappers.TimeLimit(StepOfFour(), 10))


class OldWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An old wrapper around a new environment."""

    def __init__(self) -> None:
        super().__init__(Walk())

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, info


class StepOfThree(Walk):
    def step(self, action: Any) -> Any:
        return super().step(action)[:3]


class StepOfNone(Walk):
    def step(self, action: Any) -> Any:
        super().step(action)


class StepOnlyReward(Walk):
    def step(self, action: Any) -> Any:
        return 1.0


class ResetOnlyObservation(Walk):
    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0]


class ResetOnlyList(Walk):
    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0].tolist()


class ResetOfNone(Walk):
    def reset(self, **arguments: Any) -> Any:
        super().reset(**arguments)


class ResetOfThree(Walk):
    def reset(self, **arguments: Any) -> Any:
        return (*super().reset(**arguments), False)


class ResetInfoNone(Walk):
    def reset(self, **arguments: Any) -> Any:
        return super().reset(**arguments)[0], None


class StepInfoNone(Walk):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], None)


class ResetWithoutSeed(Walk):
    def reset(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().reset()


class StepWithoutAction(Walk):
    def step(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().step(0)


class NoStep(gymnasium.Env[Any, Any]):
    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 4, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}


# ---- spaces ----


class LazySpaces(Walk):
    def __init__(self) -> None:
        pass

    def reset(self, **arguments: Any) -> Any:
        Walk.__init__(self)
        return super().reset(**arguments)


class LazyInAWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self) -> None:
        super().__init__(LazySpaces())


class NumberOfActions(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = 2


class SpaceAsTuple(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = (2,)


class SpaceAsClass(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete


class WrapperWithoutSuper(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self) -> None:
        self.walk = Walk()


class Continuous(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (1,))


class TwoActionsAtOnce(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.MultiDiscrete([2, 3])


# ---- values ----


class StepRewardNone(Walk):
    def step(self, action: Any) -> Any:
        observation, _, *others = super().step(action)
        return (observation, None, *others)


class StepRewardInWords(Walk):
    def step(self, action: Any) -> Any:
        observation, _, *others = super().step(action)
        return (observation, "good", *others)


class StepTerminatedNone(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, None, truncated, info


class StepTruncatedInWords(Walk):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, "False", info


class ObservesFloats(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 4, (2,), np.uint8)


class ObservesTooMuch(Walk):
    def step(self, action: Any) -> Any:
        return (np.zeros(3, np.float32), *super().step(action)[1:])


class ObservesNone(Walk):
    def seen(self) -> Any:
        return None


class ObservesNoDict(Walk):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"place": spaces.Box(0, 4, (2,), np.float32)})


class ObservesPartOfDict(ObservesNoDict):
    def seen(self) -> Any:
        return {"plaice": super().seen()}


class WrapperObservesTooMuch(gymnasium.ObservationWrapper[Any, Any, Any]):
    def __init__(self) -> None:
        super().__init__(Walk())

    def observation(self, observation: Any) -> Any:
        return np.append(observation, 1).astype(np.float32)


# ---- attributes and infos that are not for pdqn ----


class VectorConstant(Walk):
    vector = np.array([0.0, 1.0])


class VectorMethod(Walk):
    def vector(self) -> Any:
        return self.seen()


class VectorStatic(Walk):
    @staticmethod
    def vector(angle: float) -> Any:
        return np.array([np.cos(angle), np.sin(angle)])


class AnswersEverything(Walk):
    def __getattr__(self, name: str) -> Any:
        return Mock()


class AnswersTrue(Walk):
    def __getattr__(self, name: str) -> Any:
        return True


class RaisesInProperties(Walk):
    @property
    def headline_metric(self) -> str:
        raise RuntimeError("not before the first reset")

    @property
    def circle_placement(self) -> bool:
        raise KeyError("no placement")


class StrangersAttributes(Walk):
    headline_metric = ("return", "coverage")
    circle_placement = "left"
    metadata: Any = None
    spec: Any = told(size=5)
    render_mode: Any = 3
    action_mask = "none"

    def baselines(self) -> list[str]:
        return ["random"]


class ItsOwnInner(Walk):
    """An environment whose attribute env leads to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.env = self


class AdviceInWords(Walk):
    info: Any = told(suggested_action="right")


class AdviceOfManyKinds(Walk):
    info: Any = told(suggested_action=[[0, 1], [1]])


class MaskIsAFunction(Walk):
    @property
    def info(self) -> Any:
        return {"action_mask": lambda: None}


class MaskHasNames(Walk):
    info: Any = told(action_mask=["left", "right"])


class MaskIsABool(Walk):
    info: Any = told(action_mask=True)


class MaskIsTooShort(Walk):
    info: Any = told(action_mask=[1])


class MaskOfIndices(Walk):
    info: Any = told(action_mask=[1, 2])


class MaskChanges(Walk):
    info: Any = told(action_mask=np.ones(2))

    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], {"action_mask": np.ones(3)})


class OddKeys(Walk):
    info: Any = MappingProxyType(
        {0: 1, None: 2, ("a", "b"): 3, "_suggested_action": "x", "final_info": 1, "final_obs": "y",
         "final_observation": None, "episode": {"r": 1}, "environment_failed": True}
    )  # fmt: skip


class UserDictInfo(Walk):
    @property
    def info(self) -> Any:
        return UserDict({"x": object()})


class HeadlineInWords(Walk):
    headline_metric = "progress"
    info: Any = told(progress="half way")


class HeadlineOfTwo(Walk):
    headline_metric = "progress"
    info: Any = told(progress=np.ones(2))


class HeadlineReserved(Walk):
    headline_metric = "final_info"


# ---- factories ----


def returns_nothing() -> None:
    Walk()


def returns_the_class() -> type:
    return Walk


def returns_a_pair() -> Any:
    return Walk(), {}


def returns_a_batch() -> Any:
    return gymnasium.vector.SyncVectorEnv([Walk, Walk])


_ONLY = Walk()


def returns_the_same() -> Any:
    return gymnasium.wrappers.TimeLimit(_ONLY, 5)


class HoldsAPort(Walk):
    """An environment whose simulator listens where the first one listens already."""

    opened = 0

    def __init__(self) -> None:
        super().__init__()
        if HoldsAPort.opened:
            raise OSError("address already in use")
        HoldsAPort.opened += 1

    def close(self) -> None:
        HoldsAPort.opened -= 1


async def waits() -> Any:
    return Walk()


def yields() -> Any:
    yield Walk()


def returns_another_batch() -> Any:
    return gymnasium.make("CartPole-v1")


returns_another_batch.vector = (  # pyright: ignore[reportFunctionMemberAccess]
    lambda num_envs: SyncVectorEnv(
        [returns_another_batch] * (num_envs + 2), autoreset_mode=AutoresetMode.SAME_STEP
    )
)


class MaskIsATensor(Walk):
    info: Any = told(action_mask=torch.tensor([1, 0]))


class HasGradients(Walk):
    """A walk of torch's, whose rewards have gradients."""

    def step(self, action: Any) -> Any:
        observation, reward, *others = super().step(action)
        return observation, torch.tensor(reward, requires_grad=True) * 2, *others


class ObservesGradients(Walk):
    def seen(self) -> Any:
        return torch.tensor(super().seen(), requires_grad=True)


class NotDerived:
    """A class of its own with all methods of an environment."""

    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}


def needs(size: int, *, colour: str = "red") -> Any:
    return Walk()


def takes_nothing() -> Any:
    return Walk()


already_made = Walk()
