"""Seeds and generators, each a function of (run seed, role, index, incarnation)."""

from __future__ import annotations

import typing
import zlib

if typing.TYPE_CHECKING:
    import numpy as np

HELD_OUT_SEED = 1_000_000
MOST_HELD_OUT = 1_000_000  # held-out episodes of an evaluation
UNSEEN = MOST_HELD_OUT  # skipped held-out seeds: as many as any evaluation of a run may use
# Coprime to HELD_OUT_SEED, so consecutive environments get distinct seeds below it.
_STRIDE = 387_433
_REBUILT_STRIDE = 7_919


def generator(seed: int, role: str, index: int = 0, incarnation: int = 0) -> np.random.Generator:
    """Make the random generator of one incarnation of one role."""
    # The settings need this module's numbers, and --help need not wait for numpy.
    import numpy as np

    return np.random.default_rng([seed, zlib.crc32(role.encode()), index, incarnation])


def torch_seed(seed: int, role: str, index: int = 0, incarnation: int = 0) -> int:
    """Draw a seed for torch for one incarnation of one role."""
    return int(generator(seed, role, index, incarnation).integers(1 << 62))


def environment_seeds(seed: int, first: int, num_envs: int, incarnation: int) -> list[int]:
    """Derive training seeds of environments ``first`` .. ``first + num_envs - 1`` of a run.

    All are below ``HELD_OUT_SEED``; seeds from there on are for evaluation. Environments of one
    incarnation never share a seed (up to a million of them).
    """
    start = int(generator(seed, "environments", 0, incarnation).integers(HELD_OUT_SEED))
    return [(start + _STRIDE * (first + i)) % HELD_OUT_SEED for i in range(num_envs)]


def rebuilt_seed(seed: int, failures: int) -> int:
    """Derive the training seed of an environment that was rebuilt after a number of failures."""
    return (seed + failures * _REBUILT_STRIDE) % HELD_OUT_SEED


def held_out_seeds(count: int, skipped: int = 0) -> list[int]:
    """List ``count`` seeds of the held-out set, after the first ``skipped``.

    A run evaluates on the seeds from 0 on. Results that a run selected by these are judged on the
    seeds from ``UNSEEN`` on.
    """
    return [HELD_OUT_SEED + skipped + k for k in range(count)]
