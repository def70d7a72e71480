"""Any environment as a batch: what is refused, and that a batch plays what single ones play."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from actors.environments.baselines import random_valid_actions
from actors.environments.circle_placement import CirclePlacementVectorEnv
from actors.environments.factory import VectorEnvironment, describe_environment
from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec, FieldSpec

CIRCLES = "pdqn/CirclePlacement-v0"
WALK = "pdqn-test/Walk-v0"
DICT_WALK = "pdqn-test/DictWalk-v0"
SPACES = "pdqn-test/Spaces-v0"
STEPS = 5


class Walk(gymnasium.Env[Any, Any]):
    """A step to the left (action 3) or right (4); from the start, drawn by the seed, to 4 or -4.

    The array that holds the place is always the same one.
    """

    headline_metric = "distance"

    def __init__(self, *, start: int = 3, goal: int = 4) -> None:
        assert goal > 0, "goal must be above 0"
        self.observation_space: Any = spaces.Box(-99, 99, (2,), np.float32)
        self.action_space: Any = spaces.Discrete(2, start=start)
        self._start = start
        self._goal = goal
        self._place = np.zeros(2, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._place[:] = self.np_random.integers(-1, 2), self.np_random.random()
        return self._seen(), {}

    def step(self, action: Any) -> Any:
        assert action - self._start in (0, 1)
        self._place[0] += 2 * (action - self._start) - 1
        ended = bool(abs(self._place[0]) >= self._goal)
        distance = float(abs(self._place[0]))
        return self._seen(), distance, ended, False, {"distance": distance}

    def _seen(self) -> Any:
        return self._place


class DictWalk(Walk):
    """The same with several fields."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.observation_space = spaces.Dict(
            {
                "place": spaces.Box(-99, 99, (2,), np.float32),
                "count": spaces.Box(0, 99, (), np.int64),
                "action_mask": spaces.MultiBinary(2),
            }
        )

    def _seen(self) -> Any:
        mask = np.ones(2, np.int8)
        return {"place": self._place, "count": np.array(7), "action_mask": mask}


class AnySpaces(gymnasium.Env[Any, Any]):
    """An environment of whatever spaces."""

    def __init__(self, *, observation: Any = None, action: Any = None) -> None:
        self.observation_space = observation or spaces.Box(0, 1, (2,), np.float32)
        self.action_space = action or spaces.Discrete(2)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    made: dict[str, tuple[Any, int | None]] = {
        WALK: (Walk, STEPS),
        DICT_WALK: (DictWalk, STEPS),
        SPACES: (AnySpaces, None),
    }
    for name, (entry, steps) in made.items():
        gymnasium.register(id=name, entry_point=entry, max_episode_steps=steps)
    yield
    for name in made:
        gymnasium.registry.pop(name)


class TestDescription:
    def test_a_plain_observation_is_one_field(self):
        spec = describe_environment("CartPole-v1", {})
        assert spec == EnvironmentSpec(
            "CartPole-v1", (FieldSpec("observation", (4,), "float32"),), num_actions=2
        )
        assert not spec.masked

    def test_the_fields_of_a_dict_are_sorted_and_masks_are_binary(self):
        spec = describe_environment(DICT_WALK, {})
        assert spec.fields == (
            FieldSpec("action_mask", (2,), "int8", binary=True),
            FieldSpec("count", (), "int64"),
            FieldSpec("place", (2,), "float32"),
        )
        assert spec.masked
        assert spec.headline_metric == "distance"

    def test_circle_placement_is_as_documented(self):
        spec = describe_environment(CIRCLES, {"map_size": "16"})
        assert spec.num_actions == 256
        assert spec.headline_metric == "coverage"
        assert [field.name for field in spec.fields if field.binary] == ["action_mask", "placed"]
        assert next(f for f in spec.fields if f.name == "map") == FieldSpec(
            "map", (16, 16), "float16"
        )

    def test_an_id_may_name_the_module_that_registers_it(self):
        env_id = f"actors.environments.registration:{CIRCLES}"
        spec = describe_environment(env_id, {"map_size": 16})
        assert spec.id == env_id
        env = VectorEnvironment(spec, {"map_size": 16}, 2)
        assert isinstance(env._env, CirclePlacementVectorEnv)
        env.close()


@pytest.mark.parametrize(
    ("env_id", "env_args", "words"),
    [
        ("Nonsense-v7", {}, r"environment Nonsense-v7: .*Nonsense"),
        ("no_such_module:CartPole-v1", {}, r"environment no_such_module:CartPole-v1: .*no_such"),
        ("not an id", {}, r"environment not an id: "),
        ("CartPole-v1", {"colour": "red"}, r"environment CartPole-v1: .*colour"),
        ("Pendulum-v1", {}, r"environment Pendulum-v1 has actions Box.*Discrete is supported"),
        ("Taxi-v4", {}, r"Taxi-v4 has the observation observation: Discrete.*MultiBinary"),
        (WALK, {"goal": -1}, rf"environment {WALK}: goal must be above 0"),
        (CIRCLES, {"map_size": 3}, r"map_size=3: expected a whole number >= 16"),
        (CIRCLES, {"map_size": "big"}, r"map_size='big': expected a whole number >= 16"),
        (SPACES, {"action": spaces.MultiDiscrete([2, 2])}, r"MultiDiscrete.*Discrete is supported"),
        (SPACES, {"observation": spaces.Text(3)}, r"Box and MultiBinary"),
        (
            SPACES,
            {"observation": spaces.Dict({"inner": spaces.Dict({"a": spaces.MultiBinary(2)})})},
            r"has the observation inner: Dict",
        ),
        (
            SPACES,
            {"observation": spaces.Dict({"action_mask": spaces.MultiBinary(3)})},
            r"action_mask of shape \[3\]; one value for each of its 2 actions is needed",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium's checker on the odd spaces
def test_what_cannot_be_used_is_refused_in_one_line(env_id, env_args, words):
    with pytest.raises(UsageError, match=words) as caught:
        describe_environment(env_id, env_args)
    assert "\n" not in str(caught.value)


class Single:
    """One environment, reset by hand where an episode ends: what a batch must equal."""

    def __init__(self, env_id: str, seed: int, **env_args: Any) -> None:
        self.env = gymnasium.make(env_id, **env_args)
        assert isinstance(self.env.action_space, spaces.Discrete)
        self.start = int(self.env.action_space.start)
        self.observation = copy_of(self.env.reset(seed=seed)[0])

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self.env.step(action + self.start)
        final = copy_of(observation)
        self.observation = final
        if terminated or truncated:
            self.observation = copy_of(self.env.reset()[0])
        return final, float(reward), terminated, truncated, info


def copy_of(observation: Any) -> dict[str, np.ndarray]:
    named = observation if isinstance(observation, dict) else {"observation": observation}
    return {name: np.array(value, copy=True) for name, value in named.items()}


def assert_row(batch: dict[str, np.ndarray], row: int, single: dict[str, np.ndarray]) -> None:
    assert batch.keys() == single.keys()
    for name, value in single.items():
        np.testing.assert_array_equal(batch[name][row], value)


def play_alike(env_id: str, steps: int, **env_args: Any) -> dict[str, int]:
    """Step a batch and single environments alike, compare all; how many episodes ended how."""
    seeds = [5, 6, 7]
    spec = describe_environment(env_id, env_args)
    batch = VectorEnvironment(spec, env_args, 3)
    singles = [Single(env_id, seed, **env_args) for seed in seeds]
    rng = np.random.default_rng(0)
    ends = {"terminated": 0, "truncated": 0}
    observation = batch.reset(seeds)
    earlier: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for _ in range(steps):
        for i, single in enumerate(singles):
            assert_row(observation, i, single.observation)
        earlier.append((observation, copy_of(observation)))
        actions = rng.integers(0, spec.num_actions, 3)
        transition = batch.step(actions)
        observation = transition.observation
        bootstrapped = 0
        for i, single in enumerate(singles):
            final, reward, terminated, truncated, info = single.step(int(actions[i]))
            assert transition.rewards[i] == reward
            assert transition.terminated[i] == terminated
            assert transition.truncated[i] == truncated
            if truncated and not terminated:
                assert_row(transition.final_observation, bootstrapped, final)
                bootstrapped += 1
            if spec.headline_metric is not None and (terminated or truncated):
                assert transition.headline[i] == info[spec.headline_metric]
            else:
                assert np.isnan(transition.headline[i])
            ends["terminated"] += terminated
            ends["truncated"] += truncated and not terminated
        rows = {len(array) for array in transition.final_observation.values()}
        assert rows == ({bootstrapped} if bootstrapped else set())
    for kept, copied in earlier:
        for name, array in copied.items():
            np.testing.assert_array_equal(kept[name], array)
    batch.close()
    for single in singles:
        single.env.close()
    return ends


class TestBatch:
    @pytest.mark.filterwarnings("ignore:.*share an object")  # they do, to make it hard
    @pytest.mark.parametrize("env_id", [WALK, DICT_WALK])
    @pytest.mark.parametrize("start", [0, 3, -2])
    def test_a_batch_plays_what_single_environments_play(self, env_id, start):
        ends = play_alike(env_id, 150, start=start)
        assert ends["terminated"] > 5
        assert ends["truncated"] > 5

    def test_so_does_cart_pole(self):
        assert play_alike("CartPole-v1", 150)["terminated"] > 5

    def test_so_does_cart_pole_cut_short_with_its_own_final_observations(self):
        assert play_alike("CartPole-v1", 80, max_episode_steps=6)["truncated"] > 20

    def test_rewards_are_float64_whatever_the_environment_gives(self):
        env = VectorEnvironment(describe_environment("CartPole-v1", {}), {}, 2)
        env.reset([1, 2])
        assert env.step(np.zeros(2, np.int64)).rewards.dtype == np.float64
        env.close()

    def test_environments_without_baselines_have_none(self):
        env = VectorEnvironment(describe_environment(WALK, {}), {}, 1)
        assert env.baselines([1, 2]) == {}
        env.close()


class TestCirclePlacement:
    def test_it_uses_the_batch_native_form(self):
        spec = describe_environment(CIRCLES, {"map_size": 16})
        env = VectorEnvironment(spec, {"map_size": 16}, 3)
        assert isinstance(env._env.unwrapped, CirclePlacementVectorEnv)
        env.close()

    def test_the_headline_is_the_coverage_at_the_end_of_each_episode(self):
        args = {"map_size": 16, "radii": "4,3,2"}
        env = VectorEnvironment(describe_environment(CIRCLES, args), args, 4)
        observation = env.reset([1, 2, 3, 4])
        rng = np.random.default_rng(0)
        returns = np.zeros(4)
        ended = 0
        for _ in range(12):
            transition = env.step(random_valid_actions(observation["action_mask"], rng))
            observation = transition.observation
            returns += transition.rewards
            for i in np.flatnonzero(transition.terminated):
                assert transition.headline[i] == pytest.approx(returns[i])
                returns[i] = 0
                ended += 1
            assert np.isnan(transition.headline[~transition.terminated]).all()
            assert transition.final_observation == {}
        assert ended >= 16
        env.close()

    def test_its_baselines_are_those_of_its_settings(self):
        args = {"map_size": 16, "radii": "4,3,2"}
        env = VectorEnvironment(describe_environment(CIRCLES, args), args, 1)
        scores = env.baselines([1_000_000, 1_000_001])
        assert scores.keys() == {"random", "exact_greedy", "upper_bound"}
        assert all(values.shape == (2,) for values in scores.values())
        assert (scores["random"] <= scores["exact_greedy"]).all()
        assert (scores["exact_greedy"] <= scores["upper_bound"]).all()
        env.close()
