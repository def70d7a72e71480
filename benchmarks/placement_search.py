"""Search and bound of circle placement on held-out maps: gain over exact greedy, and time a map.

    python -m benchmarks.placement_search --maps 16 --seconds 0.1 --seconds 1

One thread, whose CPU time is what counts; a map's tables are part of it, the making of the map is
not. Each row is on the same maps, and errors are paired by map.
"""

from __future__ import annotations

import time

import click
import numpy as np

from actors.circle_placement.bound import dual_bound
from actors.circle_placement.completion import greedy
from actors.circle_placement.problem import Problem
from actors.circle_placement.search import solve
from actors.circle_placement.tables import tables_of
from actors.evaluation import standard_error
from pdqn.seeds import HELD_OUT_SEED


def measured(
    problem: Problem, seed: int, seconds: float
) -> tuple[float, float, float, float, float]:
    """Search on one map, and bound it.

    Returns:
        Coverage of exact greedy and of the search, the dual bound, and the CPU seconds of the
        search and of the bound.
    """
    instance = problem.instance(seed)
    began = time.thread_time()
    tables = tables_of(problem, seed, instance)
    left = seconds - (time.thread_time() - began)
    found = solve(tables, seconds=max(left, 1e-4), clock=time.thread_time).coverage
    searched = time.thread_time()
    bound = dual_bound(tables, found)
    bounded = time.thread_time() - searched
    return greedy(tables)[0] / tables.total, found, bound, searched - began, bounded


@click.command()
@click.option("--maps", default=16, type=click.IntRange(2), help="held-out maps")
@click.option("--seconds", multiple=True, type=float, default=(0.1, 1.0), help="limit of a map")
@click.option("--size", "sizes", multiple=True, type=int, default=(64, 128), help="side of a map")
@click.option("--radii", multiple=True, default=("fixed",), help="fixed, random, or a list")
def main(
    maps: int, seconds: tuple[float, ...], sizes: tuple[int, ...], radii: tuple[str, ...]
) -> None:
    """Print a row for each size, kind of radii and limit."""
    click.echo(
        "map  radii   limit  greedy  search  gain              bound   closed  search s  bound s"
    )
    for size in sizes:
        for kind in radii:
            problem = Problem.parse(size, kind, False)
            measured(problem, HELD_OUT_SEED - 1, 0.1)  # compiles
            for limit in seconds:
                rows = [measured(problem, HELD_OUT_SEED + k, limit) for k in range(maps)]
                base, found, bound, searched, bounded = np.array(rows).T
                gain, error = (found - base).mean(), standard_error(found - base)
                closed = gain / (bound - base).mean()
                click.echo(
                    f"{size:<4} {kind:<7} {limit:<6g} {base.mean():.4f}  {found.mean():.4f}  "
                    f"{gain:+.5f} ± {error:.5f}  {bound.mean():.4f}  {closed:6.1%}  "
                    f"{searched.mean():8.4f}  {bounded.mean():7.4f}"
                )


if __name__ == "__main__":
    main()
