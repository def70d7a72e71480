"""The environment that takes time and no processor, and the benchmark that shows what it is for."""

from __future__ import annotations

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env

from actors.environments import latency
from actors.environments.describe import describe_environment
from actors.environments.latency import LatencyEnv
from actors.environments.registration import LATENCY_ID
from benchmarks.scaling import growth, saturated
from pdqn.errors import UsageError

LATENCY = 0.5


class Clock:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "time", clock)
    return clock


def test_steps_end_at_equal_intervals_whatever_their_actor_does_meanwhile(clock: Clock):
    env = LatencyEnv(LATENCY, episode_length=2)
    ends = []
    for busy in (0.0, 0.1, 0.4, 0.0):
        env.reset(seed=0)
        clock.now += busy
        env.step(1)
        ends.append(clock.now)
    assert ends == pytest.approx([100.5, 101.0, 101.5, 102.0])


def test_a_step_that_is_asked_for_too_late_ends_at_once_and_lost_time_is_not_made_up(clock: Clock):
    env = LatencyEnv(LATENCY)
    env.reset(seed=0)
    env.step(0)
    clock.now += 3.0
    ends = []
    for _ in range(2):
        env.step(0)
        ends.append(clock.now)
    assert ends == pytest.approx([103.5, 104.0])


def test_without_a_latency_nobody_sleeps(clock: Clock):
    env = LatencyEnv(0.0)
    env.reset(seed=0)
    for _ in range(3):
        env.step(0)
    assert clock.now == 100.0


def test_an_episode_ends_after_its_length_and_pays_the_actions(clock: Clock):
    env = LatencyEnv(LATENCY, observation_size=5, episode_length=3)
    observation, _ = env.reset(seed=7)
    assert observation.shape == (5,)
    results = [env.step(action) for action in (1, 0, 1)]
    assert [reward for _, reward, *_ in results] == [1.0, 0.0, 1.0]
    assert [truncated for *_, truncated, _ in results] == [False, False, True]
    assert not any(terminated for _, _, terminated, *_ in results)
    assert (env.reset(seed=7)[0] == observation).all()


@pytest.mark.parametrize(
    "bad", [{"latency_seconds": -1.0}, {"observation_size": 0}, {"episode_length": 0}]
)
def test_an_argument_outside_its_range_is_named(bad: dict[str, float]):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} = .*: expected"):
        LatencyEnv(**bad)  # pyright: ignore[reportArgumentType]


def test_it_is_made_by_its_id_and_gymnasium_finds_no_fault():
    spec = describe_environment(LATENCY_ID, {"latency_seconds": 0.0, "observation_size": 3})
    assert [field.shape for field in spec.fields] == [(3,)]
    check_env(gymnasium.make(LATENCY_ID, latency_seconds=0.0).unwrapped, skip_render_check=True)
    with pytest.raises(UsageError, match="latency"):
        describe_environment(LATENCY_ID, {"latency_seconds": -1.0})


# ---- the benchmark ----


def test_a_rate_is_the_slope_of_the_counted_steps():
    lines = [{"time_seconds": t, "environment_steps": 40 + 200 * t} for t in (3.0, 4.5, 5.0)]
    assert growth(lines, "environment_steps") == pytest.approx(200.0)
    assert growth([{"time_seconds": 1.0, "actor/cpu_seconds": None}], "actor/cpu_seconds") == 0.0


@pytest.mark.parametrize(
    ("used", "machine", "waits", "name"),
    [
        ({}, 0.3, 0.0, ""),
        ({}, 0.99, 0.0, "cores"),
        ({"replay": 0.97}, 0.99, 0.5, "replay"),
        ({"learner": 1.0}, 0.5, 0.99, "learner"),
        ({}, 0.5, 0.99, "limiter"),
    ],
)
def test_what_keeps_a_run_from_growing_has_a_name(
    used: dict[str, float], machine: float, waits: float, name: str
):
    idle = dict.fromkeys(("replay", "learner", "launcher"), 0.1)
    assert saturated({**idle, **used}, machine, waits) == name
