"""Rectangular maps as a person may have them: ``python -m benchmarks.rectangles FILE.npy``.

They are the upper parts of generated maps, whose weights have the environment's own distribution.
So what a policy gains on them compares with what it gains on squares.
"""

from __future__ import annotations

import sys

import numpy as np

from actors.circle_placement.problem import Problem
from pdqn.seeds import HELD_OUT_SEED

MAPS, HEIGHT, WIDTH = 2_048, 64, 96
# Not among the maps that runs on squares train on or are evaluated on.
_FIRST_SEED = 2 * HELD_OUT_SEED


def main(path: str) -> None:
    """Write the maps to a file, float16[MAPS, HEIGHT, WIDTH], each relative to its maximum."""
    problem = Problem.parse(WIDTH, "fixed", False)
    maps = np.empty((MAPS, HEIGHT, WIDTH), np.float16)
    for index in range(MAPS):
        weights = problem.instance(_FIRST_SEED + index).weights[:HEIGHT]
        maps[index] = weights / weights.max()
    np.save(path, maps)


if __name__ == "__main__":
    main(sys.argv[1])
