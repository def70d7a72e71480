"""Measurements of how well frames compress, on real environments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.environments.describe import describe_environment
from launcher.plan import inspector, probe
from launcher.plan.inspector import Inspector
from pdqn.config import Config
from pdqn.errors import RunError
from pdqn.layers import build

PLACEMENT = "pdqn/CirclePlacement-v0"


class Pictures(gymnasium.Env[Any, Any]):
    """Episodes of five steps that show noise, or nothing."""

    def __init__(self, noise: bool, truncates: bool = False) -> None:
        self.observation_space = spaces.Box(0, 255, (84, 84), np.uint8)
        self.action_space = spaces.Discrete(3, start=2)
        self._noise, self._truncates = noise, truncates
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._steps = 0
        return self._picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(int(action))
        self._steps += 1
        ends = self._steps == 5
        return self._picture(), 1.0, ends and not self._truncates, ends and self._truncates, {}

    def _picture(self) -> Any:
        if self._noise:
            return self.np_random.integers(0, 256, (84, 84), np.uint8)
        return np.zeros((84, 84), np.uint8)


gymnasium.register("test/Pictures-v0", lambda **arguments: Pictures(**arguments))


def planned(env: str, frame_stack: int = 1, **env_args: Any) -> Config:
    run = {"env": env, "env_args": env_args, "frame_stack": frame_stack}
    actor = {"segment_length": 16, "discount": 0.99}
    return build(("test", {"run": run, "actor": actor}))


def measured(config: Config) -> float:
    run = config.run
    spec = describe_environment(run.env, run.env_args, run.frame_stack or 1)
    return probe.measure(config, spec)


def test_noise_takes_what_it_is_and_nothing_takes_next_to_nothing() -> None:
    # One frame for each of an episode's five transitions, and none beyond the terminal one.
    assert measured(planned("test/Pictures-v0", noise=True)) == 84 * 84
    assert measured(planned("test/Pictures-v0", noise=False)) < 84 * 84 / 50


def test_frames_that_are_only_bootstrapped_from_are_counted() -> None:
    # Six frames for five transitions.
    assert measured(planned("test/Pictures-v0", noise=True, truncates=True)) == 84 * 84 * 6 / 5


def test_stacked_frames_are_sent_once() -> None:
    assert measured(planned("test/Pictures-v0", frame_stack=4, noise=True)) == 84 * 84


@pytest.mark.parametrize("map_size", [32, 128])
def test_maps_with_masks_compress_well(map_size: int) -> None:
    config = planned(PLACEMENT, map_size=map_size)
    spec = describe_environment(PLACEMENT, config.run.env_args, 1)
    assert 10 < probe.measure(config, spec) < spec.observation_bytes / 2


FRAIL = "failing_environments:broken"


@pytest.fixture
def frail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe's process import these environments."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


def measured_apart(timeout_seconds: float, **env_args: Any) -> float | None:
    config = planned(FRAIL, **env_args)
    patient = {
        "system": {"heartbeat_timeout_seconds": timeout_seconds},
        "actor": {"environment_failures": 1},
    }
    config = build(("first", config.to_map()), ("then", patient))
    with Inspector(config.system) as process:
        return process.measure(config, describe_environment(FRAIL, env_args))


@pytest.mark.usefixtures("frail")
def test_a_process_of_its_own_finds_the_same() -> None:
    config = planned(FRAIL, bad_seeds=[-1])
    assert measured_apart(30.0, bad_seeds=[-1]) == measured(config)


@pytest.mark.usefixtures("frail")
@pytest.mark.parametrize("how", ["segfault", "hang"])
def test_an_environment_that_ends_or_keeps_its_process_is_not_measured(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that ends is to be found out long before this.
    monkeypatch.setattr(inspector, "_MEASURE_SECONDS", 2.0 if how == "hang" else 30.0)
    assert measured_apart(1.0 if how == "hang" else 60.0, how=how) is None


@pytest.mark.usefixtures("frail")
def test_an_environment_that_always_raises_is_told_at_once() -> None:
    with pytest.raises(RunError, match="the simulator is upset"):
        measured_apart(30.0, how="raise")


def test_two_measurements_are_the_same() -> None:
    config = planned(PLACEMENT, map_size=32)
    assert measured(config) == measured(config)
