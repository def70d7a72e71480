"""Global random states of a process, from which environments may draw."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def get_state() -> dict[str, Any]:
    """Return the states as plain data."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state().numpy(),
    }


def set_state(state: Mapping[str, Any]) -> None:
    """Continue from ``get_state``, also if it has been packed and unpacked."""
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.from_numpy(state["torch"]))


@contextmanager
def kept() -> Iterator[None]:
    """Restore the states afterwards, whatever the body draws."""
    before = get_state()
    try:
        yield
    finally:
        set_state(before)
