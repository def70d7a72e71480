"""The documentation's recipe for envpool, run with a stand-in for envpool."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from actors.environments.describe import describe_environment
from actors.environments.vector import VectorEnvironment

DOCUMENT = Path(__file__).parents[1] / "docs" / "environments.md"
STEPS = 120


class Pool:
    """A batch like envpool's, which resets ended environments in the next step or on request."""

    def __init__(self, task: str, num_envs: int, seed: list[int]) -> None:
        self._envs = [gymnasium.make(task, max_episode_steps=15) for _ in range(num_envs)]
        self._seeds: list[int | None] = list(seed)
        self._ended = np.zeros(num_envs, bool)
        self.observation_space = self._envs[0].observation_space
        self.action_space = self._envs[0].action_space

    def reset(self, which: Any = None) -> tuple[Any, dict[str, Any]]:
        ids = range(len(self._envs)) if which is None else which
        return np.stack([self._reset_one(i) for i in ids]), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        assert actions.dtype == np.int32
        rows = [self._step_one(i, int(action)) for i, action in enumerate(actions)]
        observation, rewards, terminated, truncated = map(np.stack, zip(*rows, strict=True))
        self._ended = terminated | truncated
        return observation, rewards, terminated, truncated, {}

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _reset_one(self, index: int) -> Any:
        seed, self._seeds[index] = self._seeds[index], None
        self._ended[index] = False
        return self._envs[index].reset(seed=seed)[0]

    def _step_one(self, index: int, action: int) -> tuple[Any, float, bool, bool]:
        if self._ended[index]:
            return self._reset_one(index), 0.0, False, False
        return self._envs[index].step(action)[:4]  # type: ignore[return-value]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Provide the documentation's module, importable by its name."""
    text = DOCUMENT.read_text(encoding="utf-8")
    code = "# my_batches.py" + text.partition("```python\n# my_batches.py")[2].partition("```")[0]
    (tmp_path / "my_batches.py").write_text(code, encoding="utf-8")
    envpool = ModuleType("envpool")
    envpool.make_gymnasium = Pool  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "envpool", envpool)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_batches", raising=False)
    return "my_batches:make"


def test_the_recipe_does_the_same_as_environments_one_after_another(recipe: str):
    rng, seeds = np.random.default_rng(0), [3, 4, 5]
    spec = describe_environment(recipe, {"task": "CartPole-v1"})
    assert spec.num_actions == 2
    batch = VectorEnvironment(spec, {"task": "CartPole-v1"}, 3)
    plain_args = {"max_episode_steps": 15}
    plain = VectorEnvironment(describe_environment("CartPole-v1", plain_args), plain_args, 3)
    assert not batch._guarded, "the batch is used as it is"
    np.testing.assert_array_equal(
        batch.reset(seeds)["observation"], plain.reset(seeds)["observation"]
    )
    truncated = 0
    for _ in range(STEPS):
        actions = rng.integers(2, size=3)
        ours, theirs = batch.step(actions), plain.step(actions)
        for name in ("rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        np.testing.assert_array_equal(
            ours.observation["observation"], theirs.observation["observation"]
        )
        truncated += len(theirs.final_observation.get("observation", ()))
        if theirs.final_observation:
            final = ours.final_observation["observation"]
            np.testing.assert_array_equal(final, theirs.final_observation["observation"])
    assert truncated > 0
    batch.close()
    plain.close()
