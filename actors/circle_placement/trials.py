"""Rollouts of circle placement: what other centres of the next circle lead to.

A trial places the next circle at a centre and all after it as exact greedy does. Its return is
exact, and a map's tables make it cheap: a twentieth of a millisecond at 64 x 64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actors.circle_placement.beam import (
    Best,
    Nodes,
    candidates,
    fill_lists,
    make_children,
    make_nodes,
    value_children,
)
from actors.circle_placement.completion import loss_at
from actors.circle_placement.kernels import TRIAL_STREAM, below, drawn, seeded
from actors.circle_placement.problem import Instance, Problem, parse_whole
from actors.circle_placement.tables import ABSENT, NEVER, Tables, sort_block, tables_of, unpacked
from pdqn.errors import UsageError
from pdqn.jit import compiled

MOST_TRIALS = 256
_USUAL_TRIALS = 24  # about as long as a step of the network
_LIST_LENGTH = 512
_SPACING = 1 / 64  # distance of heavy centres from each other, as a share of the map's side
# Of the trials; the others begin at random centres, so that no value is left to chance.
_HEAVY = 2 / 3
_STEPS = 1 << 20
_MOST_DRAWS = 20  # for a random centre


def parse_rollouts(value: int | str, *, overlap: bool) -> int:
    """Return the number of trials of an observation.

    Args:
        value: a whole number, or ``auto``.
        overlap: whether circles may overlap.

    Raises:
        UsageError: it is neither from 0 to ``MOST_TRIALS`` nor ``auto``.
    """
    if value == "auto":
        return 0 if overlap else _USUAL_TRIALS
    count = parse_whole("rollouts", value, 0)
    if count > MOST_TRIALS:
        raise UsageError(
            f"rollouts = {count}; expected auto or a whole number from 0 to {MOST_TRIALS}"
        )
    return count


class Trials:
    """Rollouts of the episodes of a batch.

    Args:
        problem: their settings.
        num_envs: size of the batch.
        count: trials of each observation.

    Raises:
        UsageError: circles may overlap, so that tables of a map would be of no use.
    """

    def __init__(self, problem: Problem, num_envs: int, count: int) -> None:
        if problem.overlap:
            raise UsageError("rollouts need circles that do not overlap; leave out overlap=true")
        self.count = count
        self._problem = problem
        self._spacing = int((_SPACING * problem.map_size) ** 2)
        self._episodes: list[tuple[Tables, Nodes] | None] = [None] * num_envs
        self._children = make_children(count)
        none = np.empty(0, np.int64)
        self._best = Best(np.full(1, np.inf), none, none)  # nothing is better, or kept

    def start(self, b: int, map_seed: int, instance: Instance) -> None:
        """Start episode b on a map."""
        before = self._episodes[b]
        spare = before[0] if before else None
        tables = tables_of(self._problem, map_seed, instance, spare)
        self._episodes[b] = tables, make_nodes(tables, 1, _LIST_LENGTH)

    def of(
        self, b: int, map_seed: int, centres: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Try centres of an episode's next circle.

        Args:
            b: index of the episode.
            map_seed: seed of its map, from which random centres follow.
            centres: int64[placed, 2] of the circles so far; fewer than there are in all.

        Returns:
            int32[count], actions, and float32[count], the shares of the map's weight that these and
            greedy ones after them collect. Actions are -1 where there is no other centre to try.
        """
        episode = self._episodes[b]
        assert episode is not None, "the episode has not been started"
        (tables, nodes), placed = episode, len(centres)
        nodes.rows[0], nodes.columns[0] = ABSENT, ABSENT
        nodes.rows[0, :placed], nodes.columns[0, :placed] = centres.T
        nodes.lengths[:], nodes.ends[:] = 0, 0
        actions = np.full(self.count, -1, np.int32)
        returns = np.zeros(self.count, np.float32)
        heavy = max(1, int(_HEAVY * self.count))
        tried = _try_out(
            tables, nodes, placed, self._spacing, map_seed, heavy, actions, self._children,
            self._best,
        )  # fmt: skip
        returns[:tried] = self._children.completed[:tried] / tables.total
        return actions, returns


@compiled
def _try_out(tables, nodes, circle, spacing, seed, heavy, actions, children, best):
    """Value centres of a circle as children of the only node, greedy's first; return their number.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``, with empty lists.
        circle: the circle to place.
        spacing: squared distance that heavy centres exceed.
        seed: seed of the random centres.
        heavy: number of heavy centres at most.
        actions: int32[count], overwritten as far as there are children.
        children: ``Children``, overwritten.
        best: ``Best``.
    """
    fill_lists(tables, nodes, 0, circle)
    chosen = np.empty(len(actions), np.int64)
    count = candidates(tables, nodes, 0, circle, spacing, chosen[:heavy])
    if count == 0:
        return 0
    rows, columns, kind = nodes.rows[0], nodes.columns[0], tables.kinds[circle]
    s0, s1 = seeded(seed, TRIAL_STREAM + circle)
    for _ in range(_MOST_DRAWS * len(chosen)):
        if count == len(chosen):
            break
        bits, s0, s1 = drawn(s0, s1)
        share = below(bits, _STEPS) / _STEPS
        rank = int(tables.lengths[kind] * share * share)  # rather a heavy one
        bits, s0, s1 = drawn(s0, s1)
        sort_block(tables, kind, rank)
        centres, values = tables.centres[kind, rank], tables.values[kind, rank]
        i = below(bits, len(values))
        if values[i] == NEVER:
            continue
        x, y = unpacked(centres[i])
        if loss_at(tables, rows, columns, kind, x, y, 0, circle) >= 0.0:
            chosen[count] = centres[i]
            count += 1
    value_children(tables, nodes, 0, circle, chosen[:count], 1, children, 0, best)
    for i in range(count):
        x, y = unpacked(chosen[i])
        actions[i] = x * tables.weights.shape[1] + y
    return count
