"""The command ``pdqn solve``: circles on a person's own map, placed by search."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from actors.circle_placement.baselines import baselines
from actors.circle_placement.bound import dual_bound
from actors.circle_placement.drawing import draw_episode
from actors.circle_placement.environment import EpisodeBatch
from actors.circle_placement.guided import follow
from actors.circle_placement.map_files import Georeference
from actors.circle_placement.maps import FORBIDDEN, MapSet
from actors.circle_placement.problem import OwnMaps, Problem
from actors.circle_placement.search import solve as search
from actors.circle_placement.tables import tables_of
from launcher.results.checks import check_output
from launcher.terminal import echo_json, show
from pdqn.atomic import replacing
from pdqn.errors import UsageError

_SEED = 0  # of the only map
_LONGEST_SECONDS = 3600.0
_NO_GAP = 1e-4  # of the map's weight; coverages are printed to this


@dataclass(frozen=True)
class Site:
    """A circle of a plan.

    Attributes:
        row: row of its centre.
        column: column of its centre.
        radius: in cells.
        share: share of the map's weight that it covers.
        x: eastward coordinate of its centre, if the map's file tells its place.
        y: northward coordinate of its centre.
    """

    row: int
    column: int
    radius: int
    share: float
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Solution:
    """A plan for one map, beside what it can be measured by; coverages are shares of its weight.

    Attributes:
        sites: the circles, in the order of their radii as given.
        coverage: coverage of the plan.
        exact_greedy: coverage of exact greedy.
        bound: coverage that no plan exceeds.
        policy: coverage of the given policy, from which the search began; None without one.
        system: coordinate system of x and y; empty without one.
    """

    sites: tuple[Site, ...]
    coverage: float
    exact_greedy: float
    bound: float
    policy: float | None = None
    system: str = ""

    @property
    def closed(self) -> float | None:
        """Share of the provable gap above exact greedy that the plan has closed, 0 to 1.

        None if exact greedy is within ``_NO_GAP`` of the bound: nothing is left to gain.
        """
        gap = self.bound - self.exact_greedy
        return (self.coverage - self.exact_greedy) / gap if gap > _NO_GAP else None


def solve(
    own: OwnMaps,
    radii: str,
    spacing: int,
    seconds: float,
    seed: int,
    *,
    model: Path | None = None,
    out: Path | None = None,
    picture: Path | None = None,
    as_json: bool = False,
) -> int:
    """Search for a plan, print it, and write it to files.

    Args:
        own: the map and its settings.
        radii: list of radii in cells.
        spacing: least number of cells between rims.
        seconds: time to search.
        seed: seed of the search.
        model: run directory or model file of a policy, from whose plan the search begins.
        out: CSV file for the plan.
        picture: picture of the plan.
        as_json: print JSON.

    Raises:
        UsageError: an option cannot be used; the message names it.
    """
    _check_options(seconds, out, picture)
    problem = Problem.parse("auto", radii, False, spacing=spacing, own=own)
    maps = problem.maps
    if maps is None or len(maps.names) != 1:
        count = 0 if maps is None else len(maps.names)
        raise UsageError(f"{own.maps}: {count} maps; expected the file of a single one")
    if not isinstance(problem.radii, tuple):
        raise UsageError(f"--radii {radii}: expected the radius of each circle, such as 20,17,14")
    start = None if model is None else _policy_centres(problem, model)
    solution = _solution(problem, maps, problem.radii, seconds, seed, start)
    if as_json:
        echo_json(_as_map(solution))
    else:
        show(_table(maps, solution))
    if out is not None:
        _write_csv(out, solution)
    if picture is not None:
        _draw(picture, maps, solution)
    return 0


def _check_options(seconds: float, out: Path | None, picture: Path | None) -> None:
    """Refuse a time or files that cannot be, before the search."""
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(f"--time {seconds:g}s: expected more than 0, and at most 1h")
    if out is not None:
        check_output("--out", out, (".csv",))
    if picture is not None:
        check_output("--picture", picture, (".png",))


def _policy_centres(problem: Problem, path: Path) -> NDArray[np.int64]:
    """Place the circles by a policy, also by one for maps of another size: int64[placed, 2]."""
    # Searches without a policy need not wait for torch.
    from launcher.results.models import NO_PERMISSION, open_model
    from pdqn.networks.qmap import QMap
    from pdqn.policy import action_values, model_path

    model = open_model(model_path(path), NO_PERMISSION)
    if not isinstance(model.network, QMap):
        raise UsageError(f"--model {path}: expected a policy of circle placement with its network")
    batch = EpisodeBatch(problem, 1)
    batch.start(0, _SEED)
    return follow(batch, partial(action_values, model.network))


def _solution(
    problem: Problem,
    maps: MapSet,
    radii: tuple[int, ...],
    seconds: float,
    seed: int,
    start: NDArray[np.int64] | None,
) -> Solution:
    """Search on the only map.

    Args:
        problem: the problem.
        maps: its only map.
        radii: its radii.
        seconds: time to search.
        seed: seed of the search.
        start: int64[placed, 2], the plan to begin from; None for exact greedy's.
    """
    tables = tables_of(problem, _SEED)
    found = search(tables, seconds=seconds, seed=seed, start=start)
    greedy = float(baselines(problem, [_SEED])["exact_greedy"][0])
    place = maps.places[0]
    weights = maps.weights[0].astype(np.float64)
    sites = _sites(weights.copy(), found.centres, radii, place)
    bound = dual_bound(tables, found.coverage)
    system = "" if place is None else place.system
    policy = None
    if start is not None:
        policy = sum(site.share for site in _sites(weights, start, radii, place))
    return Solution(sites, found.coverage, greedy, bound, policy, system)


def _sites(
    left: NDArray[np.float64],
    centres: NDArray[np.int64],
    radii: tuple[int, ...],
    place: Georeference | None,
) -> tuple[Site, ...]:
    """Describe all circles; what they cover is gone from left, float64[N, N]."""
    total = float(left.sum())
    return tuple(
        _site(left, row, column, radius, total, place)
        for (row, column), radius in zip(centres.tolist(), radii, strict=False)
    )


def _site(
    left: NDArray[np.float64],
    row: int,
    column: int,
    radius: int,
    total: float,
    place: Georeference | None,
) -> Site:
    """Describe a circle; what it covers is gone from left."""
    i, j = np.ogrid[: len(left), : len(left)]
    disc = (i - row) ** 2 + (j - column) ** 2 <= radius * radius
    share = float(left[disc].sum() / total)
    left[disc] = 0.0
    x, y = (None, None) if place is None else place.coordinates(row, column)
    return Site(row, column, radius, share, x, y)


def _as_map(solution: Solution) -> dict[str, Any]:
    """Return the plan as plain data."""
    return {
        "circles": [_row(number, site) for number, site in enumerate(solution.sites, start=1)],
        "coverage": solution.coverage,
        "exact_greedy": solution.exact_greedy,
        "bound": solution.bound,
        "policy": solution.policy,
        "share_of_gap_closed": solution.closed,
        "coordinate_system": solution.system,
    }


def _row(number: int, site: Site) -> dict[str, Any]:
    """Return a circle by the names of the CSV's columns."""
    row = {"circle": number, "row": site.row, "column": site.column, "radius": site.radius}
    if site.x is not None:
        row |= {"x": site.x, "y": site.y}
    return row | {"share": site.share}


def _table(maps: MapSet, solution: Solution) -> Table:
    """Lay out the plan, and the figures by which it can be judged."""
    height, width = maps.shapes[0]
    policy = "" if solution.policy is None else f", the policy {solution.policy:.4f}"
    closed = "" if solution.closed is None else f": {solution.closed:.0%} of the gap closed"
    drawn = Table(
        title=f"{maps.names[0]}: {len(solution.sites)} circles on {height} x {width} cells",
        caption=f"coverage {solution.coverage:.4f}, exact greedy {solution.exact_greedy:.4f}"
        f"{policy}, no plan above {solution.bound:.4f}{closed}",
    )
    rows = [_row(number, site) for number, site in enumerate(solution.sites, start=1)]
    for name in rows[0] if rows else ():
        told = f" ({solution.system})" if name in ("x", "y") and solution.system else ""
        drawn.add_column(f"{name}{told}", justify="right")
    for row in rows:
        drawn.add_row(*(f"{v:.4f}" if k == "share" else f"{v:.10g}" for k, v in row.items()))
    return drawn


def _write_csv(path: Path, solution: Solution) -> None:
    """Write the plan, a line for each circle."""
    rows = [_row(number, site) for number, site in enumerate(solution.sites, start=1)]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["circle"])
        writer.writeheader()
        writer.writerows(rows)


def _draw(path: Path, maps: MapSet, solution: Solution) -> None:
    """Draw the plan on the map."""
    height, width = maps.shapes[0]
    centres = np.array([(site.row, site.column) for site in solution.sites]).reshape(-1, 2)
    picture = draw_episode(
        maps.weights[0, :height, :width],
        centres,
        np.array([site.radius for site in solution.sites], np.int64),
        solution.coverage,
        maps.fits[0, :height, :width] == FORBIDDEN,
        maps.placed,
    )
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
