"""Any environment as a batch: refusals, and the same play as single environments."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.circle_placement.baselines import random_valid_actions
from actors.circle_placement.environment import CirclePlacementVectorEnv
from actors.environments.describe import describe_environment, examine_environment
from actors.environments.vector import Transition, VectorEnvironment
from actors.segments import SegmentRecorder, join_segments
from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TransitionBatch, decode_transitions, encode_transitions

CIRCLES = "pdqn/CirclePlacement-v0"
WALK = "pdqn-test/Walk-v0"
DICT_WALK = "pdqn-test/DictWalk-v0"
NESTED_WALK = "pdqn-test/NestedWalk-v0"
TUPLE_WALK = "pdqn-test/TupleWalk-v0"
SPACES = "pdqn-test/Spaces-v0"
STEPS = 5
BOOL: Any = np.bool_  # gymnasium accepts this dtype, but does not declare it


class Walk(gymnasium.Env[Any, Any]):
    """A walk to the left (action 3) or right (4), from a cell drawn by the seed to 4 or -4.

    All its observations are the same array, changed in place.
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

    def baselines(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"standing still": np.array([0.1 * seed for seed in seeds])}

    def _seen(self) -> Any:
        return self._place


class DictWalk(Walk):
    """The walk with several fields."""

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


class NestedWalk(Walk):
    """The walk with every kind of space, in Dicts and Tuples."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Dict(
                    {
                        "left": spaces.Box(0, 255, (3, 4), np.uint8),
                        "lit": spaces.Box(0, 1, (5,), BOOL),
                        "lens": spaces.Tuple([spaces.Discrete(9, start=-4)]),
                    }
                ),
                "parts": spaces.Tuple(
                    [
                        spaces.MultiDiscrete([300, 4]),
                        spaces.Dict({"on": spaces.MultiBinary((2, 5))}),
                    ]
                ),
                "place": spaces.Box(-99, 99, (2,), np.float32),
                "action_mask": spaces.MultiBinary(2),
            }
        )
        self._left = np.zeros((3, 4), np.uint8)

    def _seen(self) -> Any:
        place = int(self._place[0])
        self._left[:] = 40 + place
        return {
            "camera": {
                "left": self._left,
                "lit": np.arange(5) < place,
                "lens": (place,),
            },
            "parts": (
                np.array([place + 150, 3]),
                {"on": (np.arange(10).reshape(2, 5) == place).astype(np.int8)},
            ),
            "place": self._place,
            "action_mask": np.array([1, 1], np.int8),
        }


class TupleWalk(Walk):
    """The walk with a pair as its observation."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.observation_space = spaces.Tuple(
            [self.observation_space, spaces.Dict({"near": spaces.Discrete(2)})]
        )

    def _seen(self) -> Any:
        return self._place, {"near": np.int64(abs(self._place[0]) < 2)}


class AnySpaces(gymnasium.Env[Any, Any]):
    """An environment with any spaces."""

    def __init__(self, *, observation: Any = None, action: Any = None) -> None:
        plain = spaces.Box(0, 1, (2,), np.float32)
        self.observation_space = plain if observation is None else observation
        self.action_space = action or spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        sample = self.observation_space.sample()
        # A Box without dimensions samples a number, but an observation must be an array.
        return np.asarray(sample) if isinstance(self.observation_space, spaces.Box) else sample, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], 0.0, False, False, {}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    made: dict[str, tuple[Any, int | None]] = {
        WALK: (Walk, STEPS),
        DICT_WALK: (DictWalk, STEPS),
        NESTED_WALK: (NestedWalk, STEPS),
        TUPLE_WALK: (TupleWalk, STEPS),
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

    def test_nested_spaces_are_fields_with_dotted_names(self):
        assert describe_environment(NESTED_WALK, {}).fields == (
            FieldSpec("action_mask", (2,), "int8", binary=True),
            FieldSpec("camera.left", (3, 4), "uint8"),
            FieldSpec("camera.lens.0", (), "int64", categories=(9,), start=(-4,)),
            FieldSpec("camera.lit", (5,), "bool", binary=True),
            FieldSpec("parts.0", (2,), "int64", categories=(300, 4), start=(0, 0)),
            FieldSpec("parts.1.on", (2, 5), "int8", binary=True),
            FieldSpec("place", (2,), "float32"),
        )
        assert describe_environment(TUPLE_WALK, {}).fields == (
            FieldSpec("0", (2,), "float32"),
            FieldSpec("1.near", (), "int64", categories=(2,), start=(0,)),
        )

    @pytest.mark.parametrize(
        ("space", "field"),
        [
            (
                spaces.Discrete(7, start=3),
                FieldSpec("observation", (), "int64", categories=(7,), start=(3,)),
            ),
            (
                spaces.MultiDiscrete(np.array([[2, 3]])),
                FieldSpec("observation", (1, 2), "int64", categories=(2, 3), start=(0, 0)),
            ),
            (spaces.MultiBinary(9), FieldSpec("observation", (9,), "int8", binary=True)),
            (spaces.Box(0, 1, (3,), BOOL), FieldSpec("observation", (3,), "bool", binary=True)),
            (spaces.Box(0, 9, (), np.uint16), FieldSpec("observation", (), "uint16")),
        ],
    )
    def test_a_plain_space_keeps_its_name(self, space, field):
        assert describe_environment(SPACES, {"observation": space}).fields == (field,)

    def test_only_a_mask_at_the_top_is_the_mask(self):
        mask = spaces.Box(0, 1, (9,), np.int8)
        space = spaces.Dict({"inner": spaces.Dict({"action_mask": mask})})
        spec = describe_environment(SPACES, {"observation": space})
        assert spec.fields == (FieldSpec("inner.action_mask", (9,), "int8"),)
        assert not spec.masked

    def test_keys_may_hold_dots_while_names_differ(self):
        number = spaces.Discrete(2)
        space = spaces.Dict({"a.b": number, "a": spaces.Dict({"c": number})})
        fields = describe_environment(SPACES, {"observation": space}).fields
        assert [field.name for field in fields] == ["a.b", "a.c"]

    def test_all_fields_but_the_mask_are_stacked(self):
        spec = describe_environment(NESTED_WALK, {}, frame_stack=4)
        assert spec == describe_environment(NESTED_WALK, {}).stacked(4)
        assert {field.name: field.stack for field in spec.fields}["action_mask"] == 1
        assert spec.frame_stack == 4

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
        (
            "Pendulum-v1",
            {},
            r"environment Pendulum-v1 has the actions Box.*only Discrete is supported",
        ),
        (WALK, {"goal": -1}, rf"environment {WALK}: goal must be above 0"),
        (CIRCLES, {"map_size": 3}, r"map_size=3: expected a whole number >= 16"),
        (CIRCLES, {"map_size": "big"}, r"map_size='big': expected a whole number >= 16"),
        (
            SPACES,
            {"action": spaces.MultiDiscrete([2, 2])},
            r"MultiDiscrete.*only Discrete is supported",
        ),
        (SPACES, {"observation": spaces.Text(3)}, r"observation: Text.*Box, MultiBinary, Discrete"),
        (
            SPACES,
            {"observation": spaces.Dict({"inner": spaces.Tuple([spaces.Text(3)])})},
            r"has the observation inner\.0: Text.*alone or in Dict and Tuple, are supported",
        ),
        (
            SPACES,
            {
                "observation": spaces.Dict(
                    {"a.0": spaces.Discrete(2), "a": spaces.Tuple([spaces.Discrete(2)])}
                )
            },
            r"has 2 observations of the name a\.0; keys of Dict spaces may contain dots only if",
        ),
        (
            SPACES,
            {"observation": spaces.Tuple([spaces.Box(0, 1, (0, 3), np.float32)])},
            r"one that holds values is needed",
        ),
        (
            SPACES,
            {"observation": spaces.Dict({"action_mask": spaces.MultiBinary(3)})},
            r"action_mask of shape \[3\]; one value for each of its 2 actions is needed",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # gymnasium's checker warns of the odd spaces
def test_what_cannot_be_used_is_refused_in_one_line(env_id, env_args, words):
    with pytest.raises(UsageError, match=words) as caught:
        describe_environment(env_id, env_args)
    assert "\n" not in str(caught.value)


class Single:
    """One environment that is reset by hand when an episode ends: a batch must equal it."""

    def __init__(self, env_id: str, seed: int, **env_args: Any) -> None:
        self.env = gymnasium.make(env_id, **env_args)
        assert isinstance(self.env.action_space, spaces.Discrete)
        self.start = int(self.env.action_space.start)
        self.observation = with_mask(*self.env.reset(seed=seed))

    def step(self, action: int) -> tuple[Any, float, bool, bool, Any]:
        observation, reward, terminated, truncated, info = self.env.step(action + self.start)
        final = with_mask(observation, info)
        self.observation = final
        if terminated or truncated:
            self.observation = with_mask(*self.env.reset())
        return final, float(reward), terminated, truncated, info


def with_mask(observation: Any, info: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the observation as a batch shows it: a mask in the info becomes a field."""
    copied = copy_of(observation)
    if "action_mask" in info and "action_mask" not in copied:
        copied["action_mask"] = np.array(info["action_mask"])
    return copied


def copy_of(observation: Any, name: str = "") -> dict[str, np.ndarray]:
    if isinstance(observation, dict | tuple):
        parts = observation.items() if isinstance(observation, dict) else enumerate(observation)
        prefix = f"{name}." if name else ""
        return {
            inner: value
            for key, part in parts
            for inner, value in copy_of(part, f"{prefix}{key}").items()
        }
    return {name or "observation": np.array(observation)}


def assert_row(batch: dict[str, np.ndarray], row: int, single: dict[str, np.ndarray]) -> None:
    assert batch.keys() == single.keys()
    for name, value in single.items():
        np.testing.assert_array_equal(batch[name][row], value)


def play_alike(env_id: str, steps: int, **env_args: Any) -> dict[str, int]:
    """Step a batch and single environments together, compare everything, and count the ends."""
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
    @pytest.mark.filterwarnings("ignore:.*share an object")  # they share one on purpose
    @pytest.mark.parametrize("env_id", [WALK, DICT_WALK, NESTED_WALK, TUPLE_WALK])
    @pytest.mark.parametrize("start", [0, 3, -2])
    def test_a_batch_plays_what_single_environments_play(self, env_id, start):
        ends = play_alike(env_id, 150, start=start)
        assert ends["terminated"] > 5
        assert ends["truncated"] > 5

    def test_so_does_an_environment_that_is_observed_as_a_single_number(self):
        assert play_alike("Taxi-v4", 80, max_episode_steps=6)["truncated"] > 20

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
        env = VectorEnvironment(describe_environment("CartPole-v1", {}), {}, 1)
        assert env.baselines([1, 2]) == {}
        env.close()

    @pytest.mark.parametrize("env_id", [WALK, DICT_WALK])
    def test_baselines_may_be_those_of_a_single_environment(self, env_id):
        env = VectorEnvironment(describe_environment(env_id, {}), {}, 2)
        assert env.baselines([10, 20])["standing still"].tolist() == [1.0, 2.0]
        env.close()


class Odd(gymnasium.Env[Any, Any]):
    """Episodes of four steps with values that gymnasium allows, and some that it does not."""

    def __init__(self, how: str) -> None:
        self.how, self._seed, self._steps = how, 0, 0
        box = spaces.Box(0, 9, (3,), np.uint8)
        shown: dict[str, gymnasium.Space[Any]] = {
            "tuple as list": spaces.Tuple([box, spaces.Discrete(5)]),
            "small category": spaces.Discrete(9, dtype=np.dtype(np.uint8)),
            "tuple and mask": spaces.Tuple([box, box]),
            "mask alone": spaces.Dict({"action_mask": spaces.MultiBinary(2)}),
            "one more": spaces.Discrete(9),
            "one less": spaces.MultiDiscrete([9, 9], start=[0, 1]),
            "off the board at the end": spaces.Discrete(9),
            "not finite": spaces.Box(0, 1, (2,)),
            "flags of 2": spaces.MultiBinary(3),
            "foreign bytes": spaces.Box(0, 9, (3,), np.dtype(">f4")),  # pyright: ignore
        }
        self.observation_space = shown.get(how, box)
        self.action_space = spaces.Discrete(2)

    @property
    def _shown(self) -> Any:
        odd = {
            "list": [1, 2, 3], "tuple as list": [[1, 2, 3], 4], "small category": 8,
            "too large": [1, 2, 300], "too short": np.zeros(2, np.uint8),
            "flags of 2": np.array([0, 2, 1], np.int8),
            "tuple and mask": (np.ones(3, np.uint8), np.zeros(3, np.uint8)),
            "mask alone": {"action_mask": np.ones(2, np.int8)},
            "not finite": np.array([0, np.nan], np.float32),
            "one more": 9, "one less": np.array([8, 0]),
            "off the board at the end": 9 if self._steps == 4 else 8,
        }  # fmt: skip
        return odd.get(self.how, np.array([1, 2, 3], np.uint8))

    def _info(self) -> dict[str, Any]:
        masks = {"tuple and mask": [0, 1], "nothing valid": [0, 0], "fractions": [0.0, 0.5]}
        masks["added mask"] = [0.0, -np.inf]
        mask = masks.get(self.how)
        begins = self.how == "nothing valid" and self._steps == 0
        return {} if mask is None else {"action_mask": [1, 1] if begins else mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._seed, self._steps = self._seed if seed is None else seed, 0
        return self._shown, self._info()

    def step(self, action: Any) -> Any:
        if self.how == "broken":
            raise ZeroDivisionError("nobody has thought of this")
        self._steps += 1
        share: Any = [0, 0.75, 0.25, np.array([0.5])][self._seed % 4]
        reward = np.nan if self.how == "no number" else 1.0
        return self._shown, reward, self._steps == 4, False, {**self._info(), "share": share}


class Judged(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A wrapper that names the metric by which its environment is judged."""

    headline_metric = "share"

    def baselines(self, seeds: Sequence[int]) -> dict[str, Any]:
        return {"one": np.ones(len(seeds))}


def judged(how: str = "") -> gymnasium.Env[Any, Any]:
    return Judged(Odd(how))


def forgot_to_return() -> None:
    Odd("")


class NoEnvironment:
    """A class with the attributes of an environment that is not one."""

    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)


class Advised(Odd):
    """An environment that suggests action 1 from the first step on, except at seed 2."""

    def __init__(self) -> None:
        super().__init__("")

    def step(self, action: Any) -> Any:
        *result, _ = super().step(action)
        return (*result, {"suggested_action": None if self._seed == 2 else 1})


def advised() -> gymnasium.Env[Any, Any]:
    return Advised()


advised.vector = lambda num_envs: SyncVectorEnv(  # pyright: ignore[reportFunctionMemberAccess]
    [advised] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
)


class UintEnds(SyncVectorEnv):
    """A native batch whose flags of ended episodes are 0 and 1."""

    def step(self, actions: Any) -> Any:
        observation, rewards, terminated, truncated, infos = super().step(actions)
        return observation, rewards, terminated.astype(np.uint8), truncated.astype(np.uint8), infos


def uint_ends() -> gymnasium.Env[Any, Any]:
    return Odd("")


uint_ends.vector = lambda num_envs: UintEnds(  # pyright: ignore[reportFunctionMemberAccess]
    [uint_ends] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
)


class Halved(SyncVectorEnv):
    """A native batch that shows floats, although its space has whole numbers."""

    def reset(self, **arguments: Any) -> Any:
        observation, infos = super().reset(**arguments)
        return observation / 2, infos


def halved() -> gymnasium.Env[Any, Any]:
    return Odd("")


halved.vector = lambda num_envs: Halved(  # pyright: ignore[reportFunctionMemberAccess]
    [halved] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
)


def suggests(spec: EnvironmentSpec, env_args: dict[str, Any]) -> bool:
    return examine_environment(spec.id, env_args).suggests


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "odd", sys.modules[__name__])


@pytest.mark.usefixtures("odd")
class TestOddEnvironments:
    @pytest.mark.parametrize(
        ("how", "first"),
        [
            ("list", {"observation": [1, 2, 3]}),
            ("foreign bytes", {"observation": [1, 2, 3]}),
            ("small category", {"observation": 8}),
            ("tuple as list", {"0": [1, 2, 3], "1": 4}),
            ("tuple and mask", {"0": [1, 1, 1], "1": [0, 0, 0], "action_mask": [False, True]}),
            ("fractions", {"observation": [1, 2, 3], "action_mask": [False, True]}),
        ],
    )
    def test_what_gymnasium_allows_is_what_its_space_says(self, how: str, first: dict[str, Any]):
        spec = describe_environment("odd:Odd", {"how": how})
        env = VectorEnvironment(spec, {"how": how}, 2)
        for observation in (env.reset([1, 2]), env.step(np.ones(2, np.int64)).observation):
            found = {name: values[1].tolist() for name, values in observation.items()}
            assert found == first
            assert {f.name: str(observation[f.name].dtype) for f in spec.fields} == {
                f.name: f.dtype for f in spec.fields
            }
        env.close()

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("too large", r"the observation \[1, 2, 300\] is not in Box"),
            ("too short", r"an observation uint8\[2\] is not in Box"),
            ("broken", r"ZeroDivisionError: nobody has thought of this"),
            ("nothing valid", r"no action is valid, and the episode has not ended"),
            ("mask alone", r"odd:Odd shows nothing but its action mask"),
            ("not finite", r"its observation is not finite from the start"),
            ("no number", r"its reward is not finite from the start"),
            ("broken", r"nobody has thought of this \(.*test_environment_factory\.py:\d+\)"),
            ("flags of 2", r"the observation \[0, 2, 1\] is outside of its space"),
            (
                "added mask",
                r"action_mask.* is \[0\.0, -inf\]; one 0 or 1 for each of the 2 actions",
            ),
            ("one more", r"the observation 9 is outside of its space"),
            ("one less", r"the observation \[8, 0\] is outside of its space"),
        ],
    )
    def test_what_no_actor_could_use_is_refused_before_there_is_one(
        self, how: str, words: str, caplog: pytest.LogCaptureFixture
    ):
        with pytest.raises(UsageError, match=words):
            describe_environment("odd:Odd", {"how": how})
        assert caplog.text == ""

    def test_a_batch_that_shows_other_numbers_than_its_space_says_is_refused(self):
        words = r"the observation is outside of its space: .* of float64 is not uint8\[1, 3\]"
        with pytest.raises(UsageError, match=words):
            describe_environment("odd:halved", {})

    def test_none_suggests_nothing_in_any_batch(self):
        for env_id in ("odd:Advised", "odd:advised"):
            spec = describe_environment(env_id, {})
            env = VectorEnvironment(spec, {}, 2)
            env.reset([2, 3])
            assert env.suggested is None
            suggested = [env.step(np.zeros(2, np.int64)).suggested for _ in range(2)]
            assert [None if s is None else s.tolist() for s in suggested] == [[-1, 1]] * 2
            assert env.failures == 0
            env.close()
            assert suggests(spec, {})
        assert not suggests(describe_environment("odd:Odd", {"how": ""}), {"how": ""})

    def test_what_nobody_acts_on_or_learns_from_may_be_outside_of_the_space(self):
        spec = describe_environment("odd:Odd", {"how": "off the board at the end"})
        env = VectorEnvironment(spec, {"how": "off the board at the end"}, 2)
        env.reset([1, 2])
        steps = [env.step(np.zeros(2, np.int64)) for _ in range(4)]
        assert steps[-1].terminated.all()
        assert not steps[-1].failed.any()
        env.close()

    @pytest.mark.parametrize("name", ["forgot_to_return", "NoEnvironment"])
    def test_what_is_no_environment_is_refused_by_its_type(self, name: str):
        advice = {
            "forgot_to_return": "None, not a gymnasium.Env: does the function return the "
            "environment?",
            "NoEnvironment": "NoEnvironment, not a gymnasium.Env: derive it: class NoEnvironment("
            "gymnasium.Env)",
        }
        words = re.escape(f"odd:{name}: it made {advice[name]}") + "$"
        with pytest.raises(UsageError, match=words):
            describe_environment(f"odd:{name}", {})

    def test_a_module_that_cannot_be_read_is_refused_in_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "misspelt.py").write_text("import gymnasium\ngymnasuim.Env\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(UsageError, match=r"misspelt:make: NameError: name 'gymnasuim'"):
            describe_environment("misspelt:make", {})

    def test_the_headlines_of_environments_that_end_together_are_each_their_own(self):
        spec = describe_environment("odd:judged", {})
        env = VectorEnvironment(spec, {}, 4)
        env.reset([0, 1, 2, 3])
        last = [env.step(np.zeros(4, np.int64)) for _ in range(4)][-1]
        assert last.headline.tolist() == [0.0, 0.75, 0.25, 0.5]
        env.close()

    def test_a_wrapper_may_say_by_what_to_judge(self):
        spec = describe_environment("odd:judged", {})
        assert spec.headline_metric == "share"
        env = VectorEnvironment(spec, {}, 2)
        assert env.baselines([1, 2])["one"].tolist() == [1.0, 1.0]
        env.close()

    def test_what_is_called_baselines_and_is_no_function_is_passed_over(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(Judged, "baselines", {"one": 1.0})
        env = VectorEnvironment(describe_environment("odd:judged", {}), {}, 2)
        assert env.baselines([1, 2]) == {}
        env.close()

    def test_a_batch_may_say_one_for_an_episode_that_has_ended(self):
        spec = describe_environment("odd:uint_ends", {})
        env = VectorEnvironment(spec, {}, 2)
        env.reset([0, 1])
        steps = [env.step(np.zeros(2, np.int64)) for _ in range(4)]
        assert [step.terminated.tolist() for step in steps] == [[False] * 2] * 3 + [[True] * 2]
        env.close()


class OneMask(gymnasium.Env[Any, Any]):
    """Three steps and one mask array that is reused: first all actions are valid, then one."""

    observation_space = spaces.Box(0, 9, (2,), np.float32)
    action_space = spaces.Discrete(4)

    def __init__(self) -> None:
        self._mask = np.ones(4, np.int8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._steps = 0
        self._mask[:] = 1
        return np.zeros(2, np.float32), {"action_mask": self._mask}

    def step(self, action: Any) -> Any:
        self._steps += 1
        self._mask[:] = [0, 1, 0, 0]
        return np.zeros(2, np.float32), 1.0, False, self._steps == 3, {"action_mask": self._mask}


def test_the_mask_of_a_final_observation_is_not_that_of_the_next_episode(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "one_mask", sys.modules[__name__])
    env = VectorEnvironment(describe_environment("one_mask:OneMask", {}), {}, 1)
    env.reset([0])
    transition = [env.step(np.array([1])) for _ in range(3)][-1]
    assert transition.final_observation["action_mask"].tolist() == [[0, 1, 0, 0]]
    assert transition.observation["action_mask"].tolist() == [[1, 1, 1, 1]]
    env.close()


class Recording:
    """Copies of the observations of three environments, and the transitions shipped of them.

    Attributes:
        seen: the observation before each step, by the step's number.
        bootstrap: the observation after it, the final one at truncation, by the step's number.
        truncated: the numbers of the steps that ended in truncation.
    """

    def __init__(self, env_id: str, steps: int) -> None:
        self.spec = describe_environment(env_id, {})
        self.seen: dict[float, dict[str, Any]] = {}
        self.bootstrap: dict[float, dict[str, Any]] = {}
        self.truncated: set[float] = set()
        recorder = SegmentRecorder(self.spec, 3, n_step=1, discount=1.0, segment_length=4)
        env = VectorEnvironment(self.spec, {}, 3)
        observation = env.reset([5, 6, 7])
        rng = np.random.default_rng(0)
        segments = []
        for step in range(steps):
            zeros = np.zeros(3, np.float32)
            recorder.record(self.spec.pack(observation), zeros, zeros, zeros)
            transition = env.step(rng.integers(0, 2, 3))
            # Each reward is the step's number, which identifies the transition later.
            numbers = 3 * step + np.arange(3, dtype=np.float64)
            self._remember(numbers, observation, transition)
            final = transition.final_observation
            segments += recorder.finish(
                numbers,
                transition.terminated,
                transition.truncated,
                self.spec.pack(final) if final else {},
                np.zeros(
                    np.count_nonzero(transition.truncated & ~transition.terminated), np.float32
                ),
            )
            observation = transition.observation
        env.close()
        columns, blocks = join_segments([*segments, *recorder.flush()], self.spec)
        data = encode_transitions(TransitionBatch("run", 0, 0, 0, 0, columns, blocks))
        self.shipped = decode_transitions(data, self.spec, "run")

    def _remember(
        self, numbers: np.ndarray, observation: dict[str, Any], transition: Transition
    ) -> None:
        finals = iter(range(3))
        for env, number in enumerate(numbers.tolist()):
            self.seen[number] = row_of(observation, env)
            self.bootstrap[number] = row_of(transition.observation, env)
            if transition.truncated[env] and not transition.terminated[env]:
                self.bootstrap[number] = row_of(transition.final_observation, next(finals))
                self.truncated.add(number)


def row_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {name: np.array(values[row]) for name, values in batch.items()}


@pytest.mark.filterwarnings("ignore:.*share an object")
@pytest.mark.parametrize("env_id", [DICT_WALK, NESTED_WALK, TUPLE_WALK])
def test_observations_of_every_kind_are_shipped_and_come_back_equal(env_id):
    recording = Recording(env_id, steps=40)
    spec, columns = recording.spec, recording.shipped.columns
    frames = spec.unpack(
        {
            field.name: np.concatenate([b.fields[field.name] for b in recording.shipped.blocks])
            for field in spec.fields
        }
    )
    numbers = columns["n_step_return"].tolist()
    # The last step of an unfinished episode is not shipped: the next observation is unknown.
    assert set(range(3 * 39)) <= set(numbers)
    assert len(recording.truncated & set(numbers)) > 5
    for i, number in enumerate(numbers):
        assert_row(frames, int(columns["observation_index"][i]), recording.seen[number])
        if columns["discount"][i] > 0:
            assert_row(frames, int(columns["bootstrap_index"][i]), recording.bootstrap[number])


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
