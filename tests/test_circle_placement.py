import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from actors.circle_placement import kernels
from actors.circle_placement.baselines import random_valid_actions
from actors.circle_placement.environment import (
    CirclePlacementEnv,
    CirclePlacementVectorEnv,
    EpisodeBatch,
)
from actors.circle_placement.problem import Problem
from actors.environments.registration import CIRCLE_PLACEMENT_ID, register

FIXED = Problem.parse(128, "fixed", False)
RANDOM = Problem.parse(128, "random", False)

# Together these settings reach every kind of episode.
SETTINGS = [
    {"map_size": 32, "radii": "fixed"},
    {"map_size": 40, "radii": "random", "overlap": True},
    {"map_size": 24, "radii": [4] * 20},  # never room for all of them
    {"map_size": 17, "radii": [8, 2, 5]},  # the first circle has a single valid centre
]


def random_centre(mask: NDArray[np.int8], generator: np.random.Generator) -> int:
    return int(generator.choice(np.flatnonzero(mask)))


def episode(env: CirclePlacementEnv, seed: int) -> Iterator[tuple[Any, int, tuple[Any, ...]]]:
    """Yield the steps of a random episode: observation, action, and the result of ``step``."""
    generator = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    terminated = False
    while not terminated:
        action = random_centre(observation["action_mask"], generator)
        result = env.step(action)
        yield observation, action, result
        observation, _, terminated, *_ = result


def assert_same(actual: Any, expected: Any) -> None:
    """Assert the same keys, dtypes and values at every depth."""
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, tuple) or getattr(expected, "dtype", None) == np.dtype(object):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    else:
        assert actual == expected


# --- maps and circles -----------------------------------------------------------------------


def statistics(maps: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return [map, statistic]: mean, maximum, shares of cells above 0.3 and 0.7 of the maximum."""
    largest = maps.max((1, 2), keepdims=True)
    above = [(maps > share * largest).mean((1, 2)) for share in (0.3, 0.7)]
    return np.stack([maps.mean((1, 2)), largest[:, 0, 0], *above], 1).astype(np.float64)


def naive_map(size: int, walk_steps: int, rng: random.Random) -> NDArray[np.float64]:
    cells = np.array([[rng.random() for _ in range(size)] for _ in range(size)])
    x, y = rng.randrange(size), rng.randrange(size)
    for _ in range(walk_steps):
        cells[x, y] += rng.random()
        if rng.random() < 0.001:
            x, y = rng.randrange(size), rng.randrange(size)
        else:
            x += (rng.random() < 0.5) - (rng.random() < 0.5)
            y += (rng.random() < 0.5) - (rng.random() < 0.5)
            x, y = min(max(x, 0), size - 1), min(max(y, 0), size - 1)
    return cells


def test_maps_of_the_standard_size_have_the_known_statistics():
    maps = np.stack([FIXED.instance(seed).weights for seed in range(300)])
    assert maps.sum((1, 2), dtype=np.float64).mean() == pytest.approx(58_200, abs=25)
    mean, largest, above_3, above_7 = statistics(maps).mean(0)
    assert mean == pytest.approx(3.552, abs=0.002)
    assert largest == pytest.approx(26.2, abs=0.9)
    assert above_3 == pytest.approx(0.099, abs=0.008)
    assert above_7 == pytest.approx(0.00175, abs=0.0003)


def test_maps_of_another_size_have_the_same_mean():
    problem = Problem.parse(64, "fixed", False)
    maps = [problem.instance(seed).weights for seed in range(100)]
    assert np.mean(maps) == pytest.approx(3.55, abs=0.01)


def test_maps_have_the_statistics_of_a_naive_twin():
    problem, rng = Problem.parse(24, "fixed", False), random.Random(0)
    naive = statistics(np.stack([naive_map(24, problem.walk_steps, rng) for _ in range(100)]))
    maps = statistics(np.stack([problem.instance(seed).weights for seed in range(1000)]))
    standard_errors = np.sqrt(naive.var(0) / len(naive) + maps.var(0) / len(maps))
    assert (np.abs(naive.mean(0) - maps.mean(0)) < 4 * standard_errors).all()


def test_random_radii_have_the_documented_distribution():
    instances = [RANDOM.instance(seed) for seed in range(4000)]
    counts = np.bincount([i.num_circles for i in instances], minlength=16) / len(instances)
    np.testing.assert_allclose(counts[3:7], 1 / 16, atol=0.016)
    np.testing.assert_allclose(counts[7:13], 1.5 / 16, atol=0.02)
    np.testing.assert_allclose(counts[13:], 1 / 16, atol=0.016)
    radii = np.concatenate([i.radii[: i.num_circles] for i in instances])
    shares = np.bincount(radii, minlength=21) / len(radii)
    np.testing.assert_allclose(shares[2:8], 0.4 / 6, atol=0.006)
    np.testing.assert_allclose(shares[8:15], 0.4 / 7, atol=0.006)
    np.testing.assert_allclose(shares[15:], 0.2 / 6, atol=0.006)
    assert all((np.diff(i.radii) <= 0).all() for i in instances)


def test_radii_are_in_proportion_to_the_map():
    assert FIXED.radii == (20, 17, 14, 12, 12, 8, 7, 6, 5, 4, 3, 2, 1)
    assert Problem.parse(64, "fixed", False).radii == (10, 9, 7, 6, 6, 4, 4, 3, 3, 2, 2, 1, 1)
    assert Problem.parse(16, "random", False).instance(0).radii.max() <= 3


def test_a_seed_is_a_map_whatever_the_radii():
    np.testing.assert_array_equal(FIXED.instance(7).weights, RANDOM.instance(7).weights)
    assert (FIXED.instance(7).weights != FIXED.instance(8).weights).any()


# --- settings -------------------------------------------------------------------------------


def test_settings_may_be_strings_from_a_command_line():
    parsed = Problem.parse("64", "5, 4,3", "true")
    assert parsed == Problem.parse(64, [5, 4, 3], True) == Problem(64, (5, 4, 3), True)
    assert Problem.parse(64, np.array([5, 4]), "False") == Problem(64, (5, 4), False)
    assert Problem.parse(64, 5, 0) == Problem.parse(64, "[5]", "0") == Problem(64, (5,), False)


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("map_size", 15, "whole number >= 16"),
        ("map_size", "64.5", "whole number >= 16"),
        ("radii", "big", '"fixed", "random" or 1 to 20 whole numbers'),
        ("radii", [], "1 to 20 whole numbers"),
        ("radii", [1] * 21, "1 to 20 whole numbers"),
        ("radii", [3, 0], "whole numbers >= 1"),
        ("radii", [1.5], "whole numbers >= 1"),
        ("radii", [True], "whole numbers >= 1"),
        ("radii", None, "whole numbers >= 1"),
        ("radii", [64], "does not fit on a map with map_size=128; at most 63 does"),
        ("overlap", "maybe", "true or false"),
        ("render_mode", "human", "rgb_array"),
        ("num_envs", 0, "whole number >= 1"),
    ],
)
def test_a_bad_setting_is_refused_by_name(key, value, accepted):
    with pytest.raises(ValueError, match=r"expected|does not fit") as error:
        CirclePlacementVectorEnv(**{key: value})
    message = str(error.value)
    assert message.startswith(f"{key}={value!r}: ")
    assert accepted in message
    assert "\n" not in message


# --- rules ----------------------------------------------------------------------------------


def test_rewards_of_two_overlapping_circles_worked_out_by_hand():
    batch = EpisodeBatch(Problem.parse(16, [1, 1], True), 1)
    batch.start(0, 0)
    batch.episodes.weights[0] = 1.0
    batch.episodes.totals[0] = 256.0
    first, _ = batch.place(np.array([5 * 16 + 5]))
    second, _ = batch.place(np.array([5 * 16 + 6]))
    assert first == [5 / 256]
    assert second == [3 / 256]  # two of its five cells are already covered
    covered = {(5, 4), (5, 5), (5, 6), (5, 7), (4, 5), (6, 5), (4, 6), (6, 6)}
    assert set(zip(*np.nonzero(batch.episodes.weights[0] == 0), strict=True)) == covered


@pytest.mark.parametrize("settings", SETTINGS)
def test_an_episode_follows_the_rules_of_a_naive_twin(settings):
    env = CirclePlacementEnv(**settings)
    problem = Problem.parse(**{"overlap": False, **settings})
    size = problem.map_size
    i, j = np.mgrid[:size, :size]
    for seed in range(3):
        original, radii, count = problem.instance(seed)
        weights, total = original.copy(), original.sum(dtype=np.float64)
        centres: list[tuple[int, int]] = []
        for observation, action, (_, reward, terminated, truncated, info) in episode(env, seed):
            placed = len(centres)
            radius = radii[placed]
            valid = (np.minimum(i, j) >= radius) & (np.maximum(i, j) < size - radius)
            if not problem.overlap:
                for (x, y), r in zip(centres, radii, strict=False):
                    valid &= np.hypot(i - x, j - y) >= radius + r
            np.testing.assert_array_equal(observation["action_mask"], valid.ravel())
            expected_map = (weights / original.max()).astype(np.float16)
            np.testing.assert_array_equal(observation["map"], expected_map)
            assert observation["radius"] == radius
            np.testing.assert_array_equal(observation["radii"], radii)
            assert observation["placed"].tolist() == [1] * placed + [0] * (20 - placed)
            coverage = 1 - weights.sum(dtype=np.float64) / total
            np.testing.assert_allclose(observation["progress"], [placed / count, coverage], 1e-5)

            x, y = divmod(action, size)
            disc = (i - x) ** 2 + (j - y) ** 2 <= radius**2
            assert reward == pytest.approx(weights[disc].sum(dtype=np.float64) / total, abs=1e-12)
            weights[disc] = 0
            centres.append((x, y))
            assert not truncated
            assert terminated or info["action_mask"].any()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_return_is_the_final_coverage(settings):
    env = CirclePlacementEnv(**settings)
    for seed in range(20):
        coverages = [0.0]
        total = 0.0
        for _, _, (_, reward, _, _, info) in episode(env, seed):
            total += reward
            coverages.append(info["coverage"])
            assert info["map_seed"] == seed
        assert total == pytest.approx(coverages[-1], abs=1e-9)
        assert coverages == sorted(coverages)
        assert coverages[-1] <= 1 + 1e-9


def test_an_episode_ends_when_all_circles_are_placed():
    *_, (_, _, (observation, _, terminated, _, info)) = episode(CirclePlacementEnv(32), 0)
    assert terminated
    assert info["end"] == "all_placed"
    assert observation["placed"].sum() == 13
    assert observation["progress"][0] == 1
    assert observation["radius"] == 0
    assert not observation["action_mask"].any()


def test_an_episode_ends_when_no_valid_centre_is_left():
    env = CirclePlacementEnv(24, radii=[4] * 20)
    *_, (_, _, (observation, _, terminated, _, info)) = episode(env, 0)
    assert terminated
    assert info["end"] == "no_valid_centre"
    assert observation["placed"].sum() < 20
    assert observation["radius"] == 0
    assert not observation["action_mask"].any()


def test_only_the_last_step_says_how_the_episode_ended():
    infos = [info for *_, (_, _, _, _, info) in episode(CirclePlacementEnv(32), 0)]
    assert ["end" in info for info in infos] == [False] * 12 + [True]


# --- errors of the caller -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "rule"),
    [
        (-1, "expected 0 to 1023, a cell of the map"),
        (1024, "expected 0 to 1023, a cell of the map"),
        (3 * 32 + 16, "out of bounds, as x = 3 must be within 4 to 27"),
        (16 * 32 + 28, "out of bounds, as y = 28 must be within 4 to 27"),
        (0, "out of bounds, as x = 0 and y = 0 must be within 4 to 27"),
        (
            10 * 32 + 18,
            "overlaps circle 1 of radius 5 at (10, 10); the distance is 8.00, at least 9",
        ),
    ],
)
def test_an_invalid_action_is_refused_with_the_rule_it_breaks(action, rule):
    env = CirclePlacementEnv(32, radii=[5, 4])
    env.reset(seed=0)
    env.step(10 * 32 + 10)
    with pytest.raises(ValueError, match="invalid") as error:
        env.step(action)
    message = str(error.value)
    assert message.startswith(f"action {action} is invalid for circle 2 of radius 4: ")
    assert rule in message


@pytest.mark.parametrize("action", [1.0, "5", [5], None, True])
def test_an_action_that_is_no_integer_is_refused(action):
    env = CirclePlacementEnv(32)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected integer actions"):
        env.step(action)


def test_one_invalid_action_changes_nothing_in_any_environment():
    envs, twins = (CirclePlacementVectorEnv(3, map_size=32, radii=[5, 4]) for _ in range(2))
    for e in (envs, twins):
        e.reset(seed=0)
    with pytest.raises(ValueError, match="environment 2: action 0 is invalid for circle 1"):
        envs.step(np.array([330, 330, 0]))
    assert_same(envs.step(np.array([330, 330, 330])), twins.step(np.array([330, 330, 330])))


def test_a_step_outside_of_an_episode_is_refused():
    env = CirclePlacementEnv(32, radii=[5])
    with pytest.raises(ResetNeeded):
        env.step(330)
    env.reset(seed=0)
    env.step(330)
    with pytest.raises(ResetNeeded):
        env.step(330)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_that_no_map_has_is_refused(seed):
    with pytest.raises((ValueError, gymnasium.error.Error)):
        CirclePlacementEnv(32).reset(seed=seed)


# --- gymnasium ------------------------------------------------------------------------------


class ForgivingEnv(CirclePlacementEnv):
    """An environment that takes the nearest valid action: ``check_env`` ignores the mask."""

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        self.valid = np.flatnonzero(observation["action_mask"])
        return observation, info

    def step(self, action: Any) -> Any:
        result = super().step(self.valid.item(np.abs(self.valid - action).argmin()))
        self.valid = np.flatnonzero(result[0]["action_mask"])
        return result


@pytest.mark.parametrize("settings", [{}, *SETTINGS[:3]])
def test_gymnasium_finds_no_fault(settings):
    env = ForgivingEnv(**settings, render_mode="rgb_array")
    env.spec = gymnasium.spec(CIRCLE_PLACEMENT_ID)
    check_env(env)


def test_gymnasium_makes_both_forms_by_id():
    env = gymnasium.make(CIRCLE_PLACEMENT_ID, map_size=32)
    assert isinstance(env.unwrapped, CirclePlacementEnv)
    assert env.unwrapped.headline_metric == "coverage"
    envs = gymnasium.make_vec(
        CIRCLE_PLACEMENT_ID, 3, vectorization_mode="vector_entry_point", map_size=32
    )
    assert isinstance(envs.unwrapped, CirclePlacementVectorEnv)
    assert envs.num_envs == 3
    assert envs.unwrapped.headline_metric == "coverage"


def test_registering_twice_is_harmless():
    before = gymnasium.spec(CIRCLE_PLACEMENT_ID)
    register()
    assert gymnasium.spec(CIRCLE_PLACEMENT_ID) is before


def test_registering_imports_nothing_heavy():
    code = (
        "import sys, actors.environments.registration;"
        "assert not {'numba', 'torch', 'matplotlib', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("settings", SETTINGS)
def test_observations_lie_within_their_space(settings):
    env = CirclePlacementEnv(**settings)
    for observation, _, (following, *_) in episode(env, 0):
        assert observation in env.observation_space
        assert following in env.observation_space
    envs = CirclePlacementVectorEnv(2, **settings)
    assert envs.reset(seed=0)[0] in envs.observation_space


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_vector_form_equals_gymnasiums_own_of_the_single_form(settings):
    def make() -> CirclePlacementEnv:
        return CirclePlacementEnv(**settings)

    batch = CirclePlacementVectorEnv(5, **settings)
    serial = SyncVectorEnv([make] * 5, autoreset_mode=AutoresetMode.SAME_STEP)
    assert batch.metadata == serial.metadata
    assert batch.observation_space == serial.observation_space
    assert batch.action_space == serial.action_space
    generator, ended = np.random.default_rng(0), 0
    observations, infos = batch.reset(seed=40)
    assert_same((observations, infos), serial.reset(seed=40))
    for _ in range(60):
        actions = random_valid_actions(observations["action_mask"], generator)
        result = batch.step(actions)
        assert_same(result, serial.step(actions))
        observations, _, terminations, *_ = result
        ended += terminations.sum()
    assert ended >= 10


@pytest.mark.parametrize("seed", [None, 3, [5, None, 1_000_000]])
def test_a_reset_mask_resets_only_what_it_names(seed):
    def make() -> CirclePlacementEnv:
        return CirclePlacementEnv(32)

    batch = CirclePlacementVectorEnv(3, map_size=32)
    serial = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    actions = np.array([330, 400, 500])
    for envs in (batch, serial):
        envs.reset(seed=[7, 8, 9])
        envs.step(actions)
    mask = np.array([False, True, True])
    options = {"reset_mask": mask}
    result = batch.reset(seed=seed, options=options)
    assert_same(result, serial.reset(seed=seed, options={"reset_mask": mask}))
    assert result[0]["placed"].sum(1).tolist() == [1, 0, 0]
    assert "reset_mask" in options  # the caller's dictionary has not changed


@pytest.mark.parametrize("mask", [[True], np.zeros(2, bool), np.ones(2, int)])
def test_a_bad_reset_mask_is_refused(mask):
    envs = CirclePlacementVectorEnv(2, map_size=32)
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


def test_one_seed_for_each_environment_is_needed():
    with pytest.raises(ValueError, match="one seed for each of 2"):
        CirclePlacementVectorEnv(2, map_size=32).reset(seed=[1])


def test_observations_do_not_change_after_they_are_returned():
    envs = CirclePlacementVectorEnv(3, map_size=24, radii=[4] * 20)
    generator = np.random.default_rng(0)
    returned: list[tuple[Any, ...]] = [envs.reset(seed=0)]
    copies = [pickle.dumps(returned[0])]
    for _ in range(30):
        actions = random_valid_actions(returned[-1][0]["action_mask"], generator)
        returned.append(envs.step(actions))
        copies.append(pickle.dumps(returned[-1]))
    for result, copy in zip(returned, copies, strict=True):
        assert_same(result, pickle.loads(copy))  # noqa: S301 - written just above


# --- seeds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("radii", ["fixed", "random"])
def test_a_seed_always_makes_the_same_episode(radii):
    env, other = CirclePlacementEnv(32, radii=radii), CirclePlacementEnv(32, radii=radii)
    other.reset(seed=99)
    other.reset()
    for seed in (0, 1_000_000, 2**40):
        assert_same(env.reset(seed=seed), other.reset(seed=seed))
        assert_same(env.reset(), other.reset())


def test_training_never_meets_a_held_out_map():
    env = CirclePlacementEnv(16)
    env.reset(seed=1_000_000)
    seeds = [env.reset()[1]["map_seed"] for _ in range(2000)]
    assert max(seeds) < 1_000_000
    assert max(seeds) > 990_000
    assert min(seeds) < 10_000


def test_unseeded_environments_play_different_maps():
    envs = CirclePlacementVectorEnv(8, map_size=16)
    assert len(set(envs.reset()[1]["map_seed"])) == 8


# --- baselines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("radii", "expected"),
    # Means of 300 other maps. Random radii vary the circles' areas, so the means vary more.
    [("fixed", (0.263, 0.418, 0.563)), ("random", (0.212, 0.340, 0.469))],
)
def test_baselines_have_the_known_means(radii, expected):
    coverages = CirclePlacementEnv(radii=radii).baselines(range(1_000_300, 1_000_340))
    for name, mean in zip(("random", "exact_greedy", "upper_bound"), expected, strict=True):
        standard_error = coverages[name].std(ddof=1) / np.sqrt(40)
        assert coverages[name].mean() == pytest.approx(mean, abs=4 * standard_error)


@pytest.mark.parametrize("settings", SETTINGS)
def test_greedy_lies_between_random_and_the_upper_bound(settings):
    coverages = CirclePlacementEnv(**settings).baselines(range(40))
    assert all(c.shape == (40,) and c.dtype == np.float64 for c in coverages.values())
    assert coverages["random"].mean() <= coverages["exact_greedy"].mean()
    for name in ("random", "exact_greedy"):
        assert (coverages[name] <= coverages["upper_bound"] + 1e-12).all()
    assert (coverages["upper_bound"] <= 1).all()


@pytest.mark.parametrize("settings", SETTINGS)
def test_exact_greedy_is_what_a_naive_greedy_covers_in_the_environment(settings):
    env = CirclePlacementEnv(**settings)

    def heaviest(observation: Any, weights: NDArray[np.float32]) -> int:
        size, radius = len(weights), int(observation["radius"][0])
        i, j = np.mgrid[-radius : radius + 1, -radius : radius + 1]
        offsets = np.argwhere(i**2 + j**2 <= radius**2) - radius
        valid = np.flatnonzero(observation["action_mask"])
        x, y = np.divmod(valid, size)
        cells = weights[x[:, None] + offsets[:, 0], y[:, None] + offsets[:, 1]]
        return int(valid[cells.sum(1, dtype=np.float64).argmax()])

    assert play(env, 3, heaviest) == pytest.approx(env.baselines([3])["exact_greedy"][0], abs=1e-9)


def play(
    env: CirclePlacementEnv, seed: int, policy: Callable[[Any, NDArray[np.float32]], int]
) -> float:
    """Return the coverage of a policy that also sees the weights in full precision."""
    observation, info = env.reset(seed=seed)
    while "end" not in info:
        weights = env._batch.episodes.weights[0]
        observation, _, _, _, info = env.step(policy(observation, weights))
    return info["coverage"]


def test_baselines_depend_on_the_seeds_alone():
    single, vector = CirclePlacementEnv(32), CirclePlacementVectorEnv(2, map_size=32)
    assert_same(single.baselines([5, 6]), vector.baselines(np.array([5, 6]).tolist()))
    assert_same(single.baselines([6]), {k: v[1:] for k, v in vector.baselines([5, 6]).items()})


def test_random_actions_are_uniform_over_the_valid_ones():
    masks = np.zeros((6000, 30), np.int8)
    masks[:, [0, 7, 29]] = 1
    actions = random_valid_actions(masks, np.random.default_rng(0))
    shares = np.bincount(actions, minlength=30) / len(actions)
    np.testing.assert_allclose(shares[[0, 7, 29]], 1 / 3, atol=0.025)
    assert shares.sum() == pytest.approx(shares[[0, 7, 29]].sum())


def test_the_generators_streams_and_seeds_differ():
    states = {kernels.seeded(seed, stream) for seed in range(1000) for stream in (1, 2, 3)}
    assert len(states) == 3000


# --- pictures -------------------------------------------------------------------------------


@pytest.mark.parametrize(("map_size", "width"), [(128, 512), (100, 500), (600, 600)])
def test_a_picture_shows_the_map_and_grows_with_no_circle(map_size, width):
    env = CirclePlacementEnv(map_size, render_mode="rgb_array")
    observation, _ = env.reset(seed=0)
    empty = env.render()
    env.step(int(np.flatnonzero(observation["action_mask"])[0]))
    picture = env.render()
    assert empty is not None
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape == empty.shape == (width + 36, width, 3)
    assert (picture != empty).any()


def test_the_vector_form_draws_every_environment():
    envs = CirclePlacementVectorEnv(3, map_size=32, render_mode="rgb_array")
    envs.reset(seed=0)
    pictures = envs.render()
    assert pictures is not None
    assert [p.shape for p in pictures] == [(548, 512, 3)] * 3


def test_without_a_render_mode_there_is_a_warning_and_no_picture():
    env = CirclePlacementEnv(32)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode='rgb_array'"):
        assert env.render() is None
