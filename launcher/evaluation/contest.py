"""Searches of ``pdqn eval --search``: one with the policy, beside the same one without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from actors.circle_placement.environment import EpisodeBatch
from actors.circle_placement.guided import (
    POLICY_ALONE,
    Method,
    check_rules,
    exact_greedy,
    parse_search,
    place,
)
from actors.circle_placement.search import Placement
from actors.environments.making import makers
from actors.evaluation import standard_error
from pdqn.gap import closed_gap
from pdqn.model import Model
from pdqn.policy import search_values

_GREEDY, _POLICY, _WITH, _WITHOUT = "exact_greedy", "policy", "with_policy", "without_policy"
_OPTION = "--search"


def parse_option(text: str) -> Method:
    """Read the value of ``--search``.

    Raises:
        UsageError: it is not a search.
    """
    return parse_search(text, _OPTION)


class Contest:
    """Ways to place circles on the same maps, one map at a time, each in its own time.

    Args:
        model: the policy.
        method: the search.

    Raises:
        UsageError: the policy is not of circle placement without overlaps.
    """

    def __init__(self, model: Model, method: Method) -> None:
        self._method, setting = method, f"{_OPTION} {method.text}"
        is_placement = model.spec.circle_placement
        make = makers(model.spec.id, model.env_args).single if is_placement else None
        env: Any = None if make is None else make()
        values = search_values(model, env, setting)  # refuses what is not an environment
        with closing(env):
            self._batch = EpisodeBatch(env.unwrapped.problem, 1)
        check_rules(self._batch, setting)
        self._ways: dict[str, Callable[[EpisodeBatch], Placement]] = {
            _GREEDY: exact_greedy,
            _POLICY: partial(place, method=POLICY_ALONE, values=values),
            _WITH: partial(place, method=method, values=values),
        }
        if method.searches:
            self._ways[_WITHOUT] = partial(place, method=method, values=None)

    def run(self, seeds: Sequence[int], tell: Callable[[str], object]) -> dict[str, Any]:
        """Place the circles on the maps of these seeds in all ways.

        Args:
            seeds: seeds of the maps.
            tell: called with a few words about what goes on.

        Returns:
            method, maps, and placements: by the name of a way its mean coverage, gain and
            gain_error over exact greedy, and seconds a map. Also network_gain [mean, error], what
            the policy adds to the search; None without a search. Errors are paired by map.
        """
        coverages = {name: np.empty(len(seeds)) for name in self._ways}
        seconds = {name: np.empty(len(seeds)) for name in self._ways}
        self._batch.start(0, seeds[0])
        for place_all in self._ways.values():
            place_all(self._batch)  # compiles, and is not timed
        for k, seed in enumerate(seeds):
            tell(f"searches by {self._method.text}: {k} of {len(seeds)} maps")
            self._batch.start(0, seed)
            for name, place_all in self._ways.items():
                began = time.perf_counter()
                coverages[name][k] = place_all(self._batch).coverage
                seconds[name][k] = time.perf_counter() - began
        gains = {name: values - coverages[_GREEDY] for name, values in coverages.items()}
        placements = {
            name: {
                "coverage": float(coverages[name].mean()),
                "gain": float(gain.mean()),
                "gain_error": standard_error(gain),
                "seconds": float(seconds[name].mean()),
            }
            for name, gain in gains.items()
        }
        return {
            "method": self._method.text,
            "maps": len(seeds),
            "placements": placements,
            "network_gain": _network_gain(coverages),
        }


def _network_gain(coverages: dict[str, NDArray[np.float64]]) -> list[float] | None:
    """Return mean and error of the difference that the policy makes to the search."""
    if _WITHOUT not in coverages:
        return None
    difference = coverages[_WITH] - coverages[_WITHOUT]
    return [float(difference.mean()), standard_error(difference)]


def contest_tables(result: dict[str, Any]) -> list[Table]:
    """Lay out the search of an evaluation; empty without one."""
    if (search := result.get("search")) is None:
        return []
    method, found = search["method"], search["placements"]
    drawn = Table(
        title=f"{method}: {search['maps']} held-out maps, one after another",
        caption=_caption(search),
    )
    for column in ("search", "coverage", "gain over greedy", "gap closed", "time a map"):
        drawn.add_column(column, justify="left" if column == "search" else "right")
    labels = {
        _GREEDY: "exact greedy", _POLICY: POLICY_ALONE.text, _WITH: method,
        _WITHOUT: "without network",
    }  # fmt: skip
    for name, row in found.items():
        closed = closed_gap(row["coverage"], result["baselines"])
        drawn.add_row(
            labels[name],
            f"{row['coverage']:.4f}",
            "" if name == _GREEDY else f"{row['gain']:+.5f} ± {row['gain_error']:.5f}",
            "" if closed is None or name == _GREEDY else f"{closed:.0%}",
            _time(row["seconds"]),
        )
    return [drawn]


def _caption(search: dict[str, Any]) -> str:
    """Say what the network adds to a search, in coverage and in time."""
    if search["network_gain"] is None:
        return "± standard errors, paired by map"
    gain, error = search["network_gain"]
    found = search["placements"]
    more = found[_WITH]["seconds"] / found[_WITHOUT]["seconds"]
    return (
        f"the network adds {gain:+.5f} ± {error:.5f}, in {more:.1f} times the search's time; "
        "± standard errors, paired by map"
    )


def _time(seconds: float) -> str:
    """Write the time for a map."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
