"""Observations and rewards that are not finite: which transitions are stored, and which are not."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from actors.environments import guard, vector
from actors.environments.describe import describe_environment
from actors.environments.guard import EnvironmentFailedError
from actors.environments.vector import VectorEnvironment
from actors.evaluation import play
from actors.rollout import Identity, Rollout
from actors.segments import Segment, join_segments
from pdqn import seeds, wire
from pdqn.layers import build
from pdqn.networks import build_network
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry

LENGTH, BAD_STEP, NUM_ENVS, SPOILT = 10, 6, 8, 3
SEEDS = seeds.environment_seeds(0, 0, NUM_ENVS, 0)
BAD_SEED = SEEDS[SPOILT]
NAN, INF = float("nan"), float("inf")
Number = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class Sensor(gymnasium.Env[Any, Any]):
    """Episodes of ten steps with reward 1, which show their seed and step, and may have faults.

    Args:
        where: place of the fault: ``reward``, ``observation``, or a first one, ``reset``.
        value: value there.
        faulty: seeds whose episodes have it, in step 6.
        every: number of steps between two faults instead, whatever the seed.
        cut: whether episodes are truncated, rather than terminated.
    """

    def __init__(
        self,
        where: str = "reward",
        value: float = NAN,
        faulty: tuple[int, ...] = (),
        every: int = 0,
        cut: bool = False,
    ) -> None:
        self.observation_space: Any = Number
        self.action_space = spaces.Discrete(2)
        self._where, self._value, self._faulty = where, value, faulty
        self._every, self._cut = every, cut
        self._seed = self._step = self._steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = self._seed + 1000 if seed is None else seed
        self._step = 0
        return self._observed(), {"suggested_action": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        self._steps += 1
        reward = self._value if self._is_faulty("reward") else 1.0
        ended = self._step == LENGTH
        info = {"suggested_action": self._step % 2}
        return self._observed(), reward, ended and not self._cut, ended and self._cut, info

    def _is_faulty(self, where: str) -> bool:
        if where != self._where:
            return False
        if self._every:
            return self._steps % self._every == 0
        return self._seed in self._faulty and self._step == (0 if where == "reset" else BAD_STEP)

    def _observed(self) -> Any:
        is_faulty = self._is_faulty("observation" if self._step else "reset")
        return np.array([self._seed, self._value if is_faulty else self._step], np.float32)


class Rich(Sensor):
    """The same with a picture, a number in float64, a category and a mask."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.observation_space = spaces.Dict(
            {
                "action_mask": spaces.MultiBinary(2),
                "kind": spaces.Discrete(3),
                "number": spaces.Box(-np.inf, np.inf, (1,), np.float64),
                "observation": Number,
                "picture": spaces.Box(0, 1, (4, 4), np.float16),
            }
        )

    def _observed(self) -> Any:
        place = "picture" if np.isnan(self._value) else "number"
        is_faulty = self._is_faulty("observation" if self._step else "reset")
        shown = {"picture": 0.5, "number": 0.5, **({place: self._value} if is_faulty else {})}
        return {
            "action_mask": np.ones(2, np.int8),
            "kind": 1,
            "number": np.array([shown["number"]]),
            "observation": np.array([self._seed, self._step], np.float32),
            "picture": np.full((4, 4), shown["picture"], np.float16),
        }


class SensorBatch(VectorEnv[Any, Any, Any]):
    """A native batch of sensors, of which nobody else can reset a single one."""

    def __init__(self, num_envs: int, **arguments: Any) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self._envs = [Sensor(**arguments) for _ in range(num_envs)]
        self.single_observation_space = Number
        self.single_action_space = self._envs[0].action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        assert options is None
        return np.stack([env.reset(seed=s)[0] for env, s in zip(self._envs, seed, strict=True)]), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        given = [env.step(action) for env, action in zip(self._envs, actions, strict=True)]
        observations, rewards, terminated, truncated, _ = map(list, zip(*given, strict=True))
        final = np.full(self.num_envs, None, object)
        for i, env in enumerate(self._envs):
            if terminated[i] or truncated[i]:
                final[i], (observations[i], _) = observations[i], env.reset()
        infos = {"final_obs": final, "final_info": {}}
        ends = np.array(terminated), np.array(truncated)
        return (np.stack(observations), np.array(rewards), *ends, infos)


def batch(**arguments: Any) -> Sensor:
    """Build one sensor; several are a native batch."""
    return Sensor(**arguments)


batch.vector = SensorBatch  # type: ignore[attr-defined]

SENSOR, RICH, NATIVE = f"{__name__}:Sensor", f"{__name__}:Rich", f"{__name__}:batch"


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.time, "sleep", lambda _: None)


class Played:
    """Transitions that a rollout of eight environments ships, after replay's own checks.

    Attributes:
        stored: number of transitions by seed and step of their observation.
        targets: n-step return, discount and step of the bootstrap observation, by the same.
        telemetry: the actor's figures.
        not_finite: steps left out, by kind.
    """

    def __init__(self, env: str, steps: int, *, stack: int = 1, clip: float = 0.0, **env_args: Any):
        actor = {
            "envs_per_actor": NUM_ENVS, "discount": 0.5, "segment_length": 16, "n_step": 2,
            **({"reward_clip": clip} if clip else {}),
        }  # fmt: skip
        run = {"env": env, "env_args": env_args}
        network = {"hidden": 8, **({} if env == RICH else {"layers": 1})}
        config = build(("test", {"run": run, "actor": actor, "network": network}))
        spec = describe_environment(env, {}, stack)
        torch.manual_seed(0)
        rollout = Rollout(config, spec, build_network(spec, config.network), Identity(0, 0))
        self.telemetry = Telemetry()
        segments = [s for _ in range(steps) for s in rollout.step(self.telemetry)]
        segments += rollout.flush()
        rollout.close()
        self.stored: Counter[tuple[int, int]] = Counter()
        self.targets: dict[tuple[int, int], tuple[float, float, int]] = {}
        for segment in segments:
            self._take(segment, spec)
        kinds = self.telemetry.counters.items()
        self.not_finite = {k[11:]: int(n) for k, n in kinds if k.startswith("not_finite/")}

    def _take(self, segment: Segment, spec: EnvironmentSpec) -> None:
        columns, blocks = join_segments([segment], spec)
        wire.check_columns(columns, spec, [block.count for block in blocks])
        for block in blocks:
            wire.check_frames(block.fields, spec, "it")
        shown = segment.frames["observation"]
        assert len(set(shown[:, 0].tolist())) == 1, "frames of one episode"
        for i, index in enumerate(columns["observation_index"]):
            seed, step = map(int, shown[index])
            self.stored[seed, step] += 1
            bootstrap = int(shown[columns["bootstrap_index"][i], 1])
            returned, discount = columns["n_step_return"][i], columns["discount"][i]
            self.targets[seed, step] = float(returned), float(discount), bootstrap

    def steps_of(self, seed: int) -> list[int]:
        """List the steps of an episode that are stored."""
        return sorted(step for of, step in self.stored.elements() if of == seed)


WHOLE = list(range(LENGTH))
FAULTS = [
    (SENSOR, "reward", NAN, "reward"),
    (SENSOR, "reward", INF, "reward"),
    (SENSOR, "reward", -INF, "reward"),
    (SENSOR, "reward", 3e38, "reward"),
    (SENSOR, "reward", 1e300, "reward"),
    (SENSOR, "observation", NAN, "observation"),
    (SENSOR, "observation", -INF, "observation"),
    (RICH, "observation", NAN, "picture"),
    (RICH, "observation", 1e39, "number"),
]


@pytest.mark.parametrize(("env", "where", "value", "kind"), FAULTS)
def test_it_costs_its_step_and_the_rest_of_the_episode_and_nothing_of_the_others(
    env: str, where: str, value: float, kind: str
):
    played = Played(env, 20, where=where, value=value, faulty=(BAD_SEED,))
    for number, seed in enumerate(SEEDS):
        if number != SPOILT:
            assert played.steps_of(seed) == played.steps_of(seed + 1000) == WHOLE
    # The sixth step, from the observation of step 5, is left out, and the episode ends there.
    assert played.steps_of(BAD_SEED) == [0, 1, 2, 3, 4]
    assert played.targets[BAD_SEED, 3] == (1.5, 0.25, 5)
    assert played.targets[BAD_SEED, 4] == (1.0, 0.5, 5), "not the reward after that observation"
    # Fourteen steps are left: another episode, and four steps, of which the last is still open.
    assert played.steps_of(BAD_SEED + 1000) == WHOLE
    assert played.steps_of(BAD_SEED + 2000) == [0, 1, 2]
    assert played.stored.total() == 7 * 20 + 5 + 10 + 3
    assert played.not_finite == {kind: 1}
    counters = played.telemetry.counters
    assert counters["steps_not_finite"] == 1
    assert counters["environment_failures"] == 0
    assert counters["environment_steps"] == 160
    report = played.telemetry.report()
    assert [(e.score, e.length) for e in report.episodes] == [(10.0, 10)] * (7 * 2 + 1)
    (text,) = [text for kind_of_note, text in report.notes if kind_of_note == "not_finite"]
    assert text.startswith(f"an environment's {kind} has the value {value:g}: that step is left")


@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize(
    ("where", "steps"),
    [("reward", [0, 1, 2, 3, 4, 6, 7, 8, 9]), ("observation", [0, 1, 2, 3, 4, 7, 8, 9])],
)
def test_in_a_native_batch_the_episode_goes_on_after_it(where: str, steps: list[int], stack: int):
    played = Played(NATIVE, 20, stack=stack, where=where, faulty=(BAD_SEED,))
    for number, seed in enumerate(SEEDS):
        assert played.steps_of(seed) == (steps if number == SPOILT else WHOLE)
        assert played.steps_of(seed + 1000) == WHOLE
    assert played.targets[BAD_SEED, 4] == (1.0, 0.5, 5)
    assert played.not_finite == {where: 20 - 10 - len(steps)}
    # The episode has ended, but its score is not known.
    counters = played.telemetry.counters
    assert (counters["episodes"], counters["episode_details_dropped"]) == (16, 1)
    assert {episode.score for episode in played.telemetry.report().episodes} == {10.0}


@pytest.mark.parametrize("env", [SENSOR, RICH, NATIVE])
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_at_one_in_33_steps_no_more_than_these_steps_are_missing(env: str, where: str):
    played = Played(env, 330, where=where, every=33)
    # A native batch goes on, and has no use for the step from such an observation either. The tenth
    # fault ends its episodes, whose last observation does not matter.
    missing = 8 * 9 * 2 if (env, where) == (NATIVE, "observation") else 8 * 10
    assert played.stored.total() == 8 * 330 - missing
    assert max(played.stored.values()) == 1
    assert list(played.not_finite.values()) == [missing]


@pytest.mark.parametrize("where", ["reward", "observation"])
def test_a_last_step_that_is_cut_off_and_not_finite_is_left_out_alone(where: str):
    for env in (SENSOR, NATIVE):
        played = Played(env, 20, where=where, every=LENGTH, cut=True)
        for seed in SEEDS:
            assert played.steps_of(seed) == played.steps_of(seed + 1000) == WHOLE[:-1]
        assert played.not_finite == {where: 16}
        assert played.telemetry.counters["episodes"] == 0


def test_an_observation_after_the_end_does_not_matter():
    for env in (SENSOR, NATIVE):
        played = Played(env, 20, where="observation", every=LENGTH)
        assert played.stored.total() == 8 * 20
        assert played.not_finite == {}


@pytest.mark.parametrize("env", [SENSOR, NATIVE])
def test_an_episode_that_begins_with_it_is_not_played_before_it_is_finite(env: str):
    played = Played(env, 20, where="reset", faulty=(BAD_SEED, SEEDS[0] + 1000))
    for seed in SEEDS[1:]:
        if seed != BAD_SEED:
            assert played.steps_of(seed) == played.steps_of(seed + 1000) == WHOLE
    assert played.steps_of(SEEDS[0]) == WHOLE
    if env == NATIVE:
        assert played.steps_of(BAD_SEED) == played.steps_of(SEEDS[0] + 1000) == WHOLE[1:]
    else:
        assert played.steps_of(BAD_SEED) == played.steps_of(SEEDS[0] + 1000) == []
        assert played.steps_of(BAD_SEED + 1000) == played.steps_of(SEEDS[0] + 2000) == WHOLE


def test_a_reward_of_any_size_can_be_clipped():
    played = Played(SENSOR, 20, clip=1.0, where="reward", value=INF, faulty=(BAD_SEED,))
    assert played.stored.total() == 8 * 20
    assert played.targets[BAD_SEED, 5] == (1.5, 0.25, 7)
    assert played.not_finite == {}


def test_after_it_the_suggestion_is_that_of_the_new_episode():
    spec = describe_environment(SENSOR, {})
    with closing(VectorEnvironment(spec, {"faulty": (11,)}, 3)) as env:
        env.reset([10, 11, 12])
        steps = [env.step(np.zeros(3, np.int64)) for _ in range(7)]
    suggested = [None if step.suggested is None else step.suggested.tolist() for step in steps[4:]]
    assert suggested == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
    assert [step.began.tolist() for step in steps[5:]] == [[False, True, False], [False] * 3]
    assert steps[5].observation["observation"].tolist() == [[10, 6], [1011, 0], [12, 6]]


def test_in_an_evaluation_that_episode_has_no_score():
    spec = describe_environment(SENSOR, {})
    for where in ("reward", "observation"):
        arguments = {"where": where, "faulty": (1,)}
        scores = play(lambda _: np.zeros(3, np.int64), spec, arguments, range(3))
        assert scores is not None
        np.testing.assert_array_equal(scores.returns, [10.0, NAN, 10.0])


@pytest.mark.parametrize("env_id", [SENSOR, NATIVE])
@pytest.mark.parametrize("where", ["reward", "observation"])
def test_one_that_gives_nothing_finite_any_more_has_failed(
    env_id: str, where: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(vector, "_MOST_FAULTS_IN_A_ROW", 30)
    spec = describe_environment(env_id, {})
    arguments = {"where": where, "every": 1}
    with closing(VectorEnvironment(spec, arguments, 2, failures_allowed=1)) as env:
        env.reset([10, 11])
        for _ in range(59):
            env.step(np.zeros(2, np.int64))
        assert set(env.failures_each.tolist()) == {1}
        with pytest.raises(EnvironmentFailedError, match=f"the {where} was not finite in 30 steps"):
            env.step(np.zeros(2, np.int64))
