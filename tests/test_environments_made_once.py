"""The number of instances made: one where one suffices, and one native batch beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from actors.environments import making
from actors.environments.describe import describe_environment, examine_environment
from actors.environments.vector import VectorEnvironment
from launcher.console.console import SilentConsole
from launcher.interrupts import Interrupts
from launcher.plan.prepare import prepare
from launcher.run.session import Session
from launcher.run.single import SingleRun
from launcher.rundir import RunDirectory
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import build

made: Counter[str] = Counter()
open_now: Counter[str] = Counter()
ENVIRONMENTS = 3
ONE = {"single": 1}
ONE_OF_EACH = {"single": 1, "batch": 1}


@pytest.fixture(autouse=True)
def _uncounted() -> None:
    made.clear()
    open_now.clear()


class Plain(gymnasium.Env[Any, Any]):
    """Three steps, with a mask in the info, and on request a suggestion."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, suggest: bool = False, length: int = 3) -> None:
        self._info: dict[str, Any] = {"action_mask": np.ones(2, np.int8)}
        self._info |= {"suggested_action": 1} if suggest else {}
        self._length = length

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(2, np.float32), self._info

    def step(self, action: Any) -> Any:
        self._steps += 1
        return np.ones(2, np.float32), 1.0, self._steps == self._length, False, self._info


class Single(Plain):
    """An environment that counts its instances."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        made["single"] += 1
        open_now["single"] += 1

    def close(self) -> None:
        open_now["single"] -= 1


class Batch(SyncVectorEnv):
    """A native batch; its parts are not counted."""

    def __init__(self, num_envs: int, mode: AutoresetMode, **arguments: Any) -> None:
        super().__init__([lambda: Plain(**arguments)] * num_envs, autoreset_mode=mode)
        made["batch"] += 1
        open_now["batch"] += 1

    def close(self, **arguments: Any) -> None:
        open_now["batch"] -= 1


def alone(**arguments: Any) -> Single:
    return Single(**arguments)


def native(**arguments: Any) -> Single:
    return Single(**arguments)


def unfit(**arguments: Any) -> Single:
    return Single(**arguments)


def batches(num_envs: int = 1, **arguments: Any) -> VectorEnv:
    return Batch(num_envs, AutoresetMode.SAME_STEP, **arguments)


native.vector = batches  # type: ignore[attr-defined]
unfit.vector = lambda num_envs, **arguments: Batch(  # type: ignore[attr-defined]
    num_envs, AutoresetMode.NEXT_STEP, **arguments
)

HERE = __name__
FORMS = [("alone", ONE), ("native", ONE_OF_EACH), ("unfit", ONE_OF_EACH)]
forms = pytest.mark.parametrize(("name", "counts"), FORMS)


def config_of(name: str, **sections: dict[str, Any]) -> Config:
    env_args = sections.pop("env_args", {})
    layer = {
        "run": {"env": f"{HERE}:{name}", "env_args": env_args, "mode": "single", "steps": 12},
        "actor": {"envs_per_actor": ENVIRONMENTS},
        "replay": {"capacity": 1000, "min_size": 64},
        "learner": {"batch_size": 16, "device": "cpu"},
        "evaluation": {"enabled": False},
        "system": {"pictures": False},
    }
    return build(("test", layer), ("given", sections))


@forms
def test_describing_makes_one_and_its_own_batch_if_there_is_one(name: str, counts: dict[str, int]):
    assert describe_environment(f"{HERE}:{name}", {}).masked
    assert made == counts
    assert not +open_now, "they are closed again"
    assert not -open_now, "once each"


def test_where_batches_are_the_only_way_describing_makes_one(monkeypatch: pytest.MonkeyPatch):
    only = making.Makers(None, batches)
    monkeypatch.setattr("actors.environments.describe.makers", lambda *_: only)
    assert describe_environment(f"{HERE}:batches", {}).masked
    assert made == {"batch": 1}
    assert open_now["batch"] == 0


@forms
def test_checking_a_configuration_makes_no_more(name: str, counts: dict[str, int]):
    prepare(config_of(name))
    assert made == counts


@forms
def test_nor_does_guidance(name: str, counts: dict[str, int]):
    guidance = {"guidance": 0.5}
    prepare(config_of(name, actor=guidance, env_args={"suggest": True}))
    assert made == counts
    with pytest.raises(UsageError, match=r'gives no info\["suggested_action"\] to follow'):
        prepare(config_of(name, actor=guidance))
    assert examine_environment(f"{HERE}:{name}", {"suggest": True}).suggests
    assert not examine_environment(f"{HERE}:{name}", {}).suggests


def test_other_arguments_for_evaluation_are_another_environment():
    prepare(config_of("native", evaluation={"env_args": {"length": 5}}))
    assert made == {"single": 2, "batch": 2}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("alone", {"single": 1 + ENVIRONMENTS}),
        ("native", {"single": 1, "batch": 1 + 1}),
        ("unfit", {"single": 1 + ENVIRONMENTS, "batch": 1 + 1}),
    ],
)
def test_a_run_in_one_process_makes_what_it_steps_beside(
    name: str, counts: dict[str, int], tmp_path: Path
):
    config = config_of(name)
    spec, _, plan = prepare(config)
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(plan.config, config)
    run = SingleRun(Session(plan.config, spec, directory, SilentConsole(), Interrupts()))
    assert made == counts
    assert run.execute() == 0
    assert made == counts


def test_a_batch_of_several_makes_each_once():
    spec = describe_environment(f"{HERE}:alone", {})
    made.clear()
    VectorEnvironment(spec, {}, 5).close()
    assert made == {"single": 5}


def broken(what: type[Exception]) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise what("not today")

    return raises


@pytest.mark.parametrize(("where", "form"), [("reset", Single), ("step", Single), ("reset", Batch)])
def test_one_that_is_refused_is_closed_once(
    where: str, form: type, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(form, where, broken(RuntimeError), raising=False)
    with pytest.raises(UsageError, match="RuntimeError: not today"):
        describe_environment(f"{HERE}:native" if form is Batch else f"{HERE}:alone", {})
    assert made == (ONE_OF_EACH if form is Batch else ONE)
    assert not +open_now
    assert not -open_now


def test_a_factory_that_makes_a_batch_unasked_is_refused():
    with pytest.raises(UsageError, match=rf"environment {HERE}:batches: .*gymnasium\.Env"):
        describe_environment(f"{HERE}:batches", {})
