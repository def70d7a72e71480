"""Evaluations that differ from those of training: other seeds, arguments, and episodes to watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from launcher.evaluation.evaluate import Circumstances, evaluate
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.model import save_model
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec, FieldSpec

NAME = f"{__name__}:Shown"
SPEC = EnvironmentSpec(NAME, (FieldSpec("observation", (2,), "float32"),), 2)


class Shown(gymnasium.Env[Any, Any]):
    """An environment of one step, whose return is its bonus; it notes who plays it how."""

    metadata = {"render_modes": ["human"]}  # noqa: RUF012 - as gymnasium has it
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    played: list[tuple[str | None, int]] = []  # noqa: RUF012

    def __init__(self, bonus: float = 1.0, size: int = 2, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self._bonus, self.render_mode = bonus, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            Shown.played.append((self.render_mode, seed))
        return np.zeros(self.observation_space.shape or (), np.float32), {}

    def step(self, action: Any) -> Any:
        shape = self.observation_space.shape or ()
        return np.zeros(shape, np.float32), self._bonus, True, False, {}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    Shown.played.clear()
    torch.manual_seed(0)
    config = build(("test", {"run": {"env": NAME}, "network": {"kind": "mlp", "hidden": 4}}))
    save_model(tmp_path / "m.pth", config, SPEC, build_network(SPEC, config.network), 7)
    return tmp_path / "m.pth"


def played(
    model: Path, capsys: pytest.CaptureFixture[str], **differs: Any
) -> tuple[dict[str, Any], list[tuple[str | None, int]]]:
    from launcher.results.models import Permission

    options: Any = {"permission": Permission(everything=True), "as_json": True, "quick": True}
    assert evaluate(model, 3, differs=Circumstances(**differs), **options) == 0
    return json.loads(capsys.readouterr().out), Shown.played


def test_seeds_may_be_named(model: Path, capsys: pytest.CaptureFixture[str]):
    _, seeds = played(model, capsys, seed=70)
    assert {seed for _, seed in seeds} >= {70, 71, 72}
    assert max(seed for _, seed in seeds) < 1000, "none of them is a held-out one"


def test_arguments_of_the_environment_may_differ(model: Path, capsys: pytest.CaptureFixture[str]):
    result, _ = played(model, capsys)
    assert result["return_mean"] == 1.0
    result, _ = played(model, capsys, env_args={"bonus": 5.0})
    assert result["return_mean"] == 5.0
    assert result["baselines"]["random"] == 5.0


def test_arguments_that_make_another_environment_are_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(UsageError, match=r"--env-arg: with them .* is another environment"):
        played(model, capsys, env_args={"size": 3})


def test_the_policys_episodes_are_shown_one_after_another(
    model: Path, capsys: pytest.CaptureFixture[str]
):
    result, seeds = played(model, capsys, render="human", seed=5)
    shown = [seed for mode, seed in seeds if mode == "human"]
    assert [seed for seed in shown if seed in (5, 6, 7)] == [5, 6, 7]
    assert {seed for mode, seed in seeds if mode is None} >= {5, 6, 7}, "the others are not"
    assert result["episodes"] == 3
