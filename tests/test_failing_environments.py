"""A batch of which one environment raises."""

from __future__ import annotations

from typing import Any

import failing_environments
import gymnasium
import numpy as np
import pytest
from failing_environments import LENGTH, MALFORMED, Trap
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from actors.environments import guard
from actors.environments.describe import describe_environment
from actors.environments.guard import EnvironmentFailedError, FailureRecord
from actors.environments.vector import VectorEnvironment
from pdqn import seeds
from pdqn.errors import UsageError

TRAP = "failing_environments:broken"
ACTIONS = np.zeros(3, np.int64)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record every wait, and let none of them take time."""
    waited: list[float] = []
    monkeypatch.setattr(guard.time, "sleep", waited.append)
    return waited


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
    # The environment starts over, which is neither an end nor a truncation to bootstrap from.
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


@pytest.mark.parametrize("how", ["exit", *MALFORMED])
def test_what_nobody_could_use_costs_the_same_as_what_raises(how: str):
    env = trap_of(2, how=how, bad_seeds=(11,))
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(3)]
    assert steps[-1].failed.tolist() == [False, True, False]
    assert steps[-1].rewards.tolist() == [1.0, 0.0, 1.0]
    assert env.failures == 1
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


def test_environments_that_fail_in_the_same_step_wait_together(waits: list[float]):
    env = trap_of(4)
    env.reset([10, 11, 12])
    slept = []
    for _ in range(9):
        waits.clear()
        env.step(ACTIONS)
        slept.append(sum(waits))
    assert slept == pytest.approx([0, 0, 0.1, 0, 0, 0.2, 0, 0, 0.4])
    env.close()


def test_resets_that_fail_share_the_longest_wait(waits: list[float]):
    env = trap_of(2, how="reset", bad_seeds=(10, 11, 12))
    env.reset([10, 11, 12])
    assert sum(waits) == pytest.approx(0.1)
    assert env.failures_each.tolist() == [1, 1, 1]
    env.close()


def test_each_of_an_environments_own_resets_waits_longer(waits: list[float]):
    spec = describe_environment(TRAP, {"bad_seeds": (99,)})
    env = VectorEnvironment(spec, {"how": "reset"}, 2, failures_allowed=5)
    with pytest.raises(EnvironmentFailedError, match="6 times in a row"):
        env.reset([10, 11])
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    env.close()


def test_somebody_else_may_wait_in_its_stead(waits: list[float]):
    spec, paused = describe_environment(TRAP, {}), list[float]()
    env = VectorEnvironment(spec, {}, 3, failures_allowed=1, pause=paused.append)
    env.reset([10, 11, 12])
    steps_of(env, 3)
    assert paused == [pytest.approx(0.1)]
    assert waits == []
    env.close()


def test_one_that_rests_is_left_alone_until_it_is_reset():
    spec = describe_environment(TRAP, {})
    env = VectorEnvironment(spec, {"bad_seeds": (11,)}, 3, failures_allowed=1, rests=True)
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(LENGTH + 4)]
    assert [step.failed.any() for step in steps] == [n == 2 for n in range(LENGTH + 4)]
    assert [step.terminated.any() for step in steps] == [n == LENGTH - 1 for n in range(LENGTH + 4)]
    # The first observation of its episode.
    assert steps[-1].observation["observation"].tolist() == [[10, 0], [11, 0], [12, 0]]
    assert env.reset([20, 21, 22])["observation"][:, 0].tolist() == [20, 21, 22]
    assert env.step(ACTIONS).observation["observation"][:, 1].tolist() == [1, 1, 1]
    env.close()


class Port(Trap):
    """An exclusive resource, held until it is closed; a broken one also raises when closed."""

    held = 0

    def __init__(self, **arguments: Any) -> None:
        assert Port.held < 3, "address already in use"
        super().__init__(**arguments)
        Port.held += 1

    def close(self) -> None:
        Port.held -= 1
        if self._step == 3:
            raise BrokenPipeError("the simulator is gone")


def test_a_broken_environment_is_closed_before_another_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    spec = describe_environment(TRAP, {})
    monkeypatch.setattr(failing_environments, "Trap", Port)
    env = VectorEnvironment(spec, {"bad_seeds": (11,)}, 3, failures_allowed=1)
    env.reset([10, 11, 12])
    assert [env.step(ACTIONS).failed.any() for _ in range(4)] == [False, False, True, False]
    assert "the simulator is gone" in caplog.text
    env.close()
    assert Port.held == 0


class Talkative(Trap):
    """An environment whose info changes its types at every step."""

    headline_metric = "score"

    def step(self, action: Any) -> Any:
        *result, _ = super().step(action)
        told: dict[str, Any] = {"winner": None if self._seed % 2 else 1, "score": float(self._seed)}
        told["legal"] = np.zeros(1 + self._seed % 3)
        if self._seed == 12:
            told["score"] = None
        return (*result, told)


def test_what_nobody_reads_of_the_info_may_be_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failing_environments, "Trap", Talkative)
    env = trap_of(0, bad_seeds=(99,))
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(LENGTH)]
    np.testing.assert_array_equal(steps[-1].headline, [10.0, 11.0, np.nan])
    assert env.failures == 0
    env.close()


def test_without_an_allowance_the_first_failure_is_the_last():
    env = trap_of(0)
    env.reset([1, 2, 3])
    with pytest.raises(EnvironmentFailedError, match="failed once"):
        steps_of(env, 3)
    env.close()


class TrapBatch(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """A native batch that raises once, at its third step."""

    failed_before = False
    broken_makers = 0

    def __init__(self, num_envs: int) -> None:
        if TrapBatch.failed_before and TrapBatch.broken_makers:
            TrapBatch.broken_makers -= 1
            raise ConnectionRefusedError("the simulator is not up yet")
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

    def close(self, **arguments: Any) -> None:
        if TrapBatch.failed_before and self._steps == 3:
            raise BrokenPipeError("the simulator is gone")


@pytest.mark.parametrize("broken_makers", [0, 2])
def test_a_native_batch_fails_and_begins_anew_as_a_whole(
    monkeypatch: pytest.MonkeyPatch, broken_makers: int
):
    monkeypatch.setattr(failing_environments.broken, "vector", TrapBatch, raising=False)
    monkeypatch.setattr(TrapBatch, "failed_before", False)
    monkeypatch.setattr(TrapBatch, "broken_makers", broken_makers)
    env = trap_of(1 + broken_makers)
    env.reset([10, 11, 12])
    steps = [env.step(ACTIONS) for _ in range(4)]
    assert [step.failed.all() for step in steps] == [False, False, True, False]
    assert env.failures == 1 + broken_makers
    expected = [seeds.rebuilt_seed(seed, env.failures) for seed in (10, 11, 12)]
    assert steps[2].observation["observation"][:, 0].tolist() == expected
    assert steps[2].rewards.tolist() == [0.0, 0.0, 0.0]
    env.close()


class MaskBatch(TrapBatch):
    """A batch whose info says that only action 1 is valid, or at the end action 0."""

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, _ = super().reset(seed=seed)
        return observation, {"action_mask": self._rows(1)}

    def step(self, actions: Any) -> tuple[Any, ...]:
        observation, rewards, no, _, _ = super().step(actions)
        infos: dict[str, Any] = {"action_mask": self._rows(1)}
        cut = np.full(self.num_envs, self._steps == 2)
        if cut.any():
            infos["final_obs"] = np.full((self.num_envs, 2), 7, np.float32)
            infos["final_info"] = {"action_mask": self._rows(0)}
        return observation, rewards, no, cut, infos

    def _rows(self, action: int) -> np.ndarray:
        return np.tile(np.eye(2, dtype=np.int8)[action], (self.num_envs, 1))


def mask_batch(num_envs: int = 1) -> MaskBatch:
    """Build a native batch; this factory cannot build a single environment."""
    return MaskBatch(num_envs)


mask_batch.vector = MaskBatch  # type: ignore[attr-defined]


def test_masks_that_a_native_batch_tells_in_its_info_are_part_of_what_it_shows(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(TrapBatch, "failed_before", True)  # healthy from now on
    env_id = "test_failing_environments:mask_batch"
    spec = describe_environment(env_id, {})
    assert [field.name for field in spec.fields] == ["action_mask", "observation"]
    env = VectorEnvironment(spec, {}, 3)
    assert env.reset([10, 11, 12])["action_mask"].tolist() == [[0, 1]] * 3
    first, second = env.step(ACTIONS), env.step(ACTIONS)
    assert first.observation["action_mask"].tolist() == [[0, 1]] * 3
    assert second.truncated.all()
    assert second.final_observation["action_mask"].tolist() == [[1, 0]] * 3
    assert second.final_observation["observation"].tolist() == [[7, 7]] * 3
    env.close()


def test_a_batch_that_shows_something_else_than_a_single_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(failing_environments.broken, "vector", OtherBatch, raising=False)
    with pytest.raises(
        UsageError, match=r"its batch has the observations observation float32\[4\]"
    ):
        describe_environment(TRAP, {})


class OtherBatch(TrapBatch):
    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.single_observation_space = spaces.Box(-1, 1, (4,), np.float32)


def test_a_batch_that_cannot_be_made_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failing_environments.broken, "vector", TrapBatch, raising=False)
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'how'"):
        describe_environment(TRAP, {"how": "raise"})
    with pytest.raises(UsageError, match=r"unexpected keyword argument 'max_episode_steps'"):
        describe_environment("pdqn/CirclePlacement-v0", {"max_episode_steps": 5})


def test_what_an_environment_raises_when_it_is_looked_at_is_one_line_with_its_place():
    words = r"RuntimeError: the reset went wrong \(.*failing_environments\.py:\d+\)"
    with pytest.raises(UsageError, match=words):
        describe_environment(TRAP, {"how": "reset"})


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
