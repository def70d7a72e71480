"""What becomes of a batch when one of its environments raises."""

from __future__ import annotations

from typing import Any

import failing_environments
import gymnasium
import numpy as np
import pytest
from failing_environments import LENGTH, Trap
from gymnasium.vector import AutoresetMode

from actors.environments import guard
from actors.environments.factory import VectorEnvironment, describe_environment
from actors.environments.guard import EnvironmentFailedError, FailureRecord
from pdqn import seeds
from pdqn.errors import UsageError

TRAP = "failing_environments:broken"
ACTIONS = np.zeros(3, np.int64)


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.time, "sleep", lambda _: None)


def trap_of(allowed: int, **env_args: Any) -> VectorEnvironment:
    spec = describe_environment(TRAP, env_args)
    return VectorEnvironment(spec, env_args, 3, failures_allowed=allowed)


def test_only_the_environment_that_raised_loses_its_episode():
    env = trap_of(2, bad_seeds=(11,))
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(LENGTH)]
    assert [step.failed.tolist() for step in steps[:3]] == [
        [False] * 3,
        [False] * 3,
        [False, True, False],
    ]
    # It has begun anew; that is neither an end nor a truncation to bootstrap from.
    failed = steps[2]
    assert not failed.terminated.any()
    assert not failed.truncated.any()
    assert failed.final_observation == {}
    assert failed.rewards.tolist() == [1.0, 0.0, 1.0]
    assert failed.observation["observation"][:, 1].tolist() == [3.0, 0.0, 3.0]
    assert steps[4].terminated.tolist() == [True, False, True]
    assert env.failures == 1
    env.close()


def test_it_is_made_anew_with_another_seed():
    env = trap_of(2, bad_seeds=(11,))
    env.reset([10, 11, 12])
    before = Trap.made
    transition = [env.step(ACTIONS) for _ in range(3)][-1]
    assert Trap.made == before + 1
    assert transition.observation["observation"][1, 0] == seeds.rebuilt_seed(11, 1)
    env.close()


def test_an_environment_that_raises_in_reset_is_made_anew_too():
    env = trap_of(2, how="reset", bad_seeds=(11,))
    observation = env.reset([10, 11, 12])["observation"]
    assert observation[:, 0].tolist() == [10.0, seeds.rebuilt_seed(11, 1), 12.0]
    assert env.failures == 1
    env.close()


def steps_of(env: VectorEnvironment, number: int) -> None:
    for _ in range(number):
        env.step(ACTIONS)


def test_too_many_failures_in_a_row_end_it_with_the_first_traceback():
    env = trap_of(3)
    env.reset([10, 11, 12])
    with pytest.raises(EnvironmentFailedError, match=r"4 times in a row(.|\n)*is upset") as caught:
        steps_of(env, 100)
    assert "failing_environments.py" in str(caught.value)
    env.close()


def test_a_finished_episode_begins_a_new_row():
    record = FailureRecord(allowed=2)
    for _ in range(5):
        assert record.failed("first") == pytest.approx(0.1)
        assert record.failed("second") == pytest.approx(0.2)
        record.finished()
    assert record.total == 10


def test_waits_double_up_to_a_bound():
    record = FailureRecord(allowed=10)
    waits = [record.failed("") for _ in range(8)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0])


def test_without_an_allowance_the_first_failure_is_the_last():
    env = trap_of(0)
    env.reset([1, 2, 3])
    with pytest.raises(EnvironmentFailedError, match="failed once"):
        steps_of(env, 3)
    env.close()


class TrapBatch(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A native batch that raises at its third step, once."""

    failed_before = False

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        one = Trap()
        self.single_observation_space = one.observation_space
        self.single_action_space = one.action_space
        self._steps = 0

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return np.stack([seed, np.zeros(self.num_envs)], 1).astype(np.float32), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        self._steps += 1
        if self._steps == 3 and not TrapBatch.failed_before:
            TrapBatch.failed_before = True
            raise RuntimeError("all at once")
        no = np.zeros(self.num_envs, bool)
        return np.zeros((self.num_envs, 2), np.float32), np.ones(self.num_envs), no, no.copy(), {}


def test_a_native_batch_fails_and_begins_anew_as_a_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failing_environments.broken, "vector", TrapBatch, raising=False)
    env = trap_of(1)
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(4)]
    assert [step.failed.all() for step in steps] == [False, False, True, False]
    expected = [seeds.rebuilt_seed(seed, 1) for seed in (10, 11, 12)]
    assert steps[2].observation["observation"][:, 0].tolist() == expected
    assert steps[2].rewards.tolist() == [0.0, 0.0, 0.0]
    env.close()


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("no_such_module:thing", "no_such_module:thing: No module named"),
        ("failing_environments:nothing", "has no function nothing, and registers no environment"),
    ],
)
def test_a_factory_that_is_not_there_is_refused_in_one_line(env_id: str, words: str):
    with pytest.raises(UsageError, match=words):
        describe_environment(env_id, {})


def test_a_factory_gets_the_arguments():
    spec = describe_environment(TRAP, {"how": "hang"})
    assert spec.id == TRAP
    assert spec.num_actions == 2
    with pytest.raises(UsageError, match="unexpected keyword argument 'colour'"):
        describe_environment(TRAP, {"colour": 1})
