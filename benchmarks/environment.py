"""The speed of the built-in environment on one core: ``python -m benchmarks.environment``.

Every figure is the best of several rounds: other programs on the machine can only slow one down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from actors.circle_placement.baselines import baselines, random_valid_actions
from actors.circle_placement.environment import CirclePlacementVectorEnv
from actors.circle_placement.problem import STANDARD_RADII, Problem
from pdqn.discs import disc_sums

NUM_ENVS = 16
ROUNDS = 10
SECONDS_PER_ROUND = 0.3
STANDARD = Problem.parse(map_size=128, radii="fixed", overlap=False)


def main() -> None:
    """Measure everything and print one table."""
    rows = [
        ("map generation", "ms/map", 1e3 * seconds_per_call(generate_a_map)),
        ("random policy, stepped", "episodes/s", 1 / seconds_per_random_episode()),
        ("all three baselines", "maps/s", 1 / seconds_per_call(play_baselines)),
        ("disc sums, float32", "ms/map", 1e3 * seconds_per_disc_sum(np.float32)),
        ("disc sums, float16", "ms/map", 1e3 * seconds_per_disc_sum(np.float16)),
    ]
    print(f"128 x 128 maps, fixed radii, {NUM_ENVS} environments, one core, best of {ROUNDS}")
    for name, unit, value in rows:
        print(f"{name:32}{value:10.3f} {unit}")


def seconds_per_call(function: Callable[[], object]) -> float:
    """Return the mean time of a call in the best round; the first call only compiles."""
    function()
    return min(seconds_per_call_in_a_round(function) for _ in range(ROUNDS))


def seconds_per_call_in_a_round(function: Callable[[], object]) -> float:
    """Return the mean time of a call."""
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS_PER_ROUND:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


def generate_a_map() -> None:
    """Generate the map and the circles of one seed."""
    STANDARD.instance(0)


def play_baselines() -> None:
    """Play a greedy and a random episode on one map, and compute their upper bound."""
    baselines(STANDARD, [0])


def seconds_per_random_episode() -> float:
    """Return the time of an episode under a random valid policy, map generation included."""
    envs = CirclePlacementVectorEnv(NUM_ENVS)
    generator = np.random.default_rng(0)
    masks = envs.reset(seed=0)[0]["action_mask"]

    def play_one_episode_each() -> None:
        nonlocal masks
        for _ in STANDARD_RADII:
            observations, *_ = envs.step(random_valid_actions(masks, generator))
            masks = observations["action_mask"]

    return seconds_per_call(play_one_episode_each) / NUM_ENVS


def seconds_per_disc_sum(dtype: type[np.floating]) -> float:
    """Return the time for one map, averaged over the fixed radii."""
    shape = (len(STANDARD_RADII), STANDARD.map_size, STANDARD.map_size)
    maps = np.random.default_rng(0).random(shape).astype(dtype)
    return seconds_per_call(lambda: disc_sums(maps, STANDARD_RADII)) / len(STANDARD_RADII)


if __name__ == "__main__":
    main()
