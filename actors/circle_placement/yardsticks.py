"""Yardsticks of circle placement that take longer than the baselines: a bound, and a search.

Both depend on a map and its circles only, so this user's cache keeps them. A policy's share of the
gap between exact greedy and the bound says how much of what is possible it has reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.bound import dual_bound
from actors.circle_placement.problem import Instance, Problem
from actors.circle_placement.search import solve
from actors.circle_placement.tables import Tables, tables_of
from pdqn import caches

_ONE_SECOND = 8_000_000  # steps that take about a second
_TO_GUIDE = 50_000  # steps of a search that is good enough to guide the bound
_VERSION = 2  # of both methods: kept values of another one are not used

Scores = dict[str, NDArray[np.float64]]


def bounds(problem: Problem, seeds: Sequence[int]) -> Scores:
    """Compute the coverage that no placement exceeds, by the name ``dual_bound``.

    Args:
        problem: the settings.
        seeds: seeds of the maps.

    Returns:
        float64[len(seeds)], shares of each map's weight; nothing if circles may overlap.
    """
    if problem.overlap:
        return {}
    return {"dual_bound": _of_maps(problem, _bound, seeds)}


def searches(problem: Problem, seeds: Sequence[int]) -> Scores:
    """Compute the coverage of a search of about a second a map, by the name ``annealing_1s``.

    It is limited by steps, so the results are the same on every machine.

    Args:
        problem: the settings.
        seeds: seeds of the maps.

    Returns:
        float64[len(seeds)], shares of each map's weight; nothing if circles may overlap.
    """
    if problem.overlap:
        return {}
    return {"annealing_1s": _of_maps(problem, _searched, seeds)}


def _bound(tables: Tables) -> float:
    return dual_bound(tables, solve(tables, steps=_TO_GUIDE).coverage)


def _searched(tables: Tables) -> float:
    return solve(tables, steps=_ONE_SECOND).coverage


def _of_maps(
    problem: Problem, compute: Callable[[Tables], float], seeds: Sequence[int]
) -> NDArray[np.float64]:
    """Compute a value of each map, on all cores; kernels let other threads run."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return np.array(list(threads.map(partial(_of_map, problem, compute), seeds)))


def _of_map(problem: Problem, compute: Callable[[Tables], float], seed: int) -> float:
    """Compute a value of a map, or read it if it is kept."""
    instance = problem.instance(int(seed))
    path = _kept_at(problem, int(seed), instance, compute.__name__)
    with contextlib.suppress(OSError, ValueError):
        if path is not None and 0.0 <= (value := float(path.read_text("ascii"))) <= 1.0 + 1e-9:
            return value
    value = compute(tables_of(problem, int(seed), instance))
    with contextlib.suppress(OSError):
        if path is not None:
            part = path.with_suffix(f".{os.getpid()}")
            part.write_text(repr(value), "ascii")
            part.replace(path)
    return value


def _kept_at(problem: Problem, seed: int, instance: Instance, name: str) -> Path | None:
    """Return the file of a map's value; None if no folder can be written."""
    folder = caches.own_cache()
    if folder is None or not caches.may_write(folder / "placement"):
        return None
    fits = problem.fits_of(seed)
    settings = (_VERSION, name, instance.weights.shape, fits.shape, problem.spacing)
    content = hashlib.sha256(repr(settings).encode())
    content.update(instance.weights.tobytes())
    content.update(fits.tobytes())
    content.update(instance.radii[: instance.num_circles].tobytes())
    return folder / "placement" / content.hexdigest()[:32]
