"""Global random states of a process, from which environments may draw."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from pdqn import seeds


def seed(run_seed: int, role: str, index: int, incarnation: int) -> None:
    """Seed Python's, numpy's and torch's own generators for one incarnation of one role.

    Actors inherit the states of the process that forks them: unseeded, all would draw the same.
    """
    rng = seeds.generator(run_seed, f"{role}'s process", index, incarnation)
    random.seed(int(rng.integers(1 << 62)))
    np.random.seed(int(rng.integers(1 << 32)))
    torch.manual_seed(int(rng.integers(1 << 62)))


@contextmanager
def kept() -> Iterator[None]:
    """Restore the states afterwards, whatever the body draws."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
