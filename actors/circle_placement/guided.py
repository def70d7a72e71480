"""Searches that a trained policy takes part in: its Q proposes centres beside the heaviest ones.

Greedy completions on the map's tables value all proposals, and the best complete placement is kept.
Exact greedy's centre is among the proposals of every step. No search is therefore below exact
greedy, however bad the policy is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from actors.circle_placement.beam import (
    advance,
    candidates,
    make_children,
    make_nodes,
    value_children,
)
from actors.circle_placement.completion import absent
from actors.circle_placement.environment import EpisodeBatch, Observation
from actors.circle_placement.kernels import GOING_ON
from actors.circle_placement.search import (
    COARSE,
    LIST_LENGTH,
    Placement,
    beam_search,
    greedy_best,
    placement_of,
    solve,
    spacing_of,
)
from actors.circle_placement.tables import Tables, packed, unpacked
from pdqn.errors import UsageError
from pdqn.jit import compiled
from pdqn.specs import ACTION_MASK

# Q of a batch of observations, float32[batch, actions]; -inf where masked.
Values = Callable[[Observation], NDArray[np.float32]]

_FORMS = re.compile(
    r"rollouts:(?P<rollouts>[0-9]{1,4})"
    r"|beam:(?P<width>[0-9]{1,4})x(?P<breadth>[0-9]{1,4})"
    r"|time:(?P<time>[0-9]{1,5}(?:\.[0-9]{1,3})?)(?P<unit>ms|s)"
    r"|(?P<symmetries>symmetries)"
)
_MOST_ROLLOUTS, _WIDEST, _BROADEST, _LONGEST_SECONDS = 512, 256, 1024, 3600.0
_ACCEPTED = (
    f"rollouts:16 (1 to {_MOST_ROLLOUTS}), beam:16x32 (1 to {_WIDEST} x 2 to {_BROADEST}), "
    "time:100ms or time:2s (at most 3600s), or symmetries"
)
_AT_LEAST_SECONDS = 1e-9  # for a search whose time is over before it begins
_SYMMETRIES = 8
_FIRST = np.zeros(1, np.int64)


@dataclass(frozen=True)
class Method:
    """A way to place circles with a policy.

    Attributes:
        text: its name, as a person writes it.
        width: placements that a beam keeps; 0 without a beam.
        by_value: centres that Q proposes for each of them.
        by_weight: centres that their weights propose for each of them, exact greedy's first.
        seconds: limit for a map; 0 without one.
        symmetries: number of symmetries of the square over which Q is averaged.
    """

    text: str
    width: int = 0
    by_value: int = 0
    by_weight: int = 0
    seconds: float = 0.0
    symmetries: int = 1

    @property
    def searches(self) -> bool:
        """Return whether it does more than follow Q, so that it also works without a policy."""
        return self.width > 0 or self.seconds > 0


POLICY_ALONE = Method("greedy on Q")


def parse_search(text: str, setting: str = "search") -> Method:
    """Read a method as a person writes it.

    Args:
        text: such as ``rollouts:16``, ``beam:16x32``, ``time:100ms`` or ``symmetries``.
        setting: name of the setting, for the error.

    Raises:
        UsageError: a ``ValueError``, which says what is accepted.
    """
    found = _FORMS.fullmatch(text.strip())
    method = None if found is None else _method(text.strip(), found.groupdict())
    if method is None:
        raise UsageError(f"{setting} {text!r:.80}: expected {_ACCEPTED}")
    return method


def _method(text: str, parts: dict[str, str | None]) -> Method | None:
    """Make the method of a text's parts; None if a number is out of bounds."""
    if parts["symmetries"]:
        return Method(text, symmetries=_SYMMETRIES)
    if parts["time"]:
        seconds = float(parts["time"]) / (1000.0 if parts["unit"] == "ms" else 1.0)
        return Method(text, seconds=seconds) if 0.0 < seconds <= _LONGEST_SECONDS else None
    if parts["rollouts"]:
        count = int(parts["rollouts"])
        within = 1 <= count <= _MOST_ROLLOUTS
        return Method(text, width=1, by_value=count, by_weight=count) if within else None
    width, breadth = int(parts["width"] or 0), int(parts["breadth"] or 0)
    if not (1 <= width <= _WIDEST and 2 <= breadth <= _BROADEST):
        return None
    by_value = breadth // 2
    return Method(text, width=width, by_value=by_value, by_weight=breadth - by_value)


def search_episode(batch: EpisodeBatch, text: str, values: Values) -> NDArray[np.int64]:
    """Plan an episode that has just begun, without a change to it.

    Args:
        batch: one episode.
        text: a method, see ``parse_search``.
        values: Q of a batch of observations.

    Returns:
        int64[placed], the actions of the episode.

    Raises:
        UsageError: the method is not one, or circles may overlap.
        ResetNeeded: the episode has not just begun.
    """
    method = parse_search(text, "method")
    if batch.ends[0] != GOING_ON or batch.episodes.placed[0]:
        raise ResetNeeded("reset() must be called before a search, which plans a whole episode")
    centres = place(batch, method, values).centres
    return centres[:, 0] * batch.problem.map_size + centres[:, 1]


def place(batch: EpisodeBatch, method: Method, values: Values | None) -> Placement:
    """Place the circles of an episode that has just begun, without a change to it.

    Args:
        batch: one episode.
        method: the way to place them. A limit of seconds includes the making of the map's tables.
        values: Q of a batch of observations. None searches without a policy: weights propose as
            many centres as Q and weights do otherwise, and a limited search begins from greedy.

    Returns:
        The placement; never below exact greedy's if the method searches.

    Raises:
        UsageError: circles may overlap.
    """
    began = time.perf_counter()
    check_rules(batch)
    tables = batch.tables(0)
    if values is None:
        assert method.searches, "there is nothing to follow"
        if method.width:
            return beam_search(tables, method.width, method.by_value + method.by_weight)
        start = None
    elif method.width:
        return _guided_beam(tables, batch, method, values)
    else:
        start = follow(batch, values if method.symmetries == 1 else of_symmetries(values))
    if not method.seconds:
        assert start is not None, "there are values to follow"
        rows, columns = absent(tables), absent(tables)
        rows[: len(start)], columns[: len(start)] = start.T
        return placement_of(tables, rows, columns)
    left = method.seconds - (time.perf_counter() - began)
    return solve(tables, seconds=max(left, _AT_LEAST_SECONDS), start=start)


def check_rules(batch: EpisodeBatch, setting: str = "search") -> None:
    """Refuse problems for which there are no tables.

    Raises:
        UsageError: circles may overlap.
    """
    if batch.problem.overlap:
        raise UsageError(f"{setting}: circles must not overlap, and overlap=true lets them")


def exact_greedy(batch: EpisodeBatch) -> Placement:
    """Place the circles of an episode that has just begun as exact greedy does."""
    tables = batch.tables(0)
    best = greedy_best(tables)
    return placement_of(tables, best.rows, best.columns)


def of_symmetries(values: Values) -> Values:
    """Return a function like ``values``: the mean over the eight symmetries of the square."""

    def mean(observation: Observation) -> NDArray[np.float32]:
        maps = observation["map"]
        batch, side = maps.shape[:2]
        masks = observation[ACTION_MASK].reshape(maps.shape)
        seen = {key: np.concatenate([part] * _SYMMETRIES) for key, part in observation.items()}
        seen["map"] = np.concatenate([_turned(maps, k) for k in range(_SYMMETRIES)])
        turned_masks = np.concatenate([_turned(masks, k) for k in range(_SYMMETRIES)])
        seen[ACTION_MASK] = turned_masks.reshape(len(turned_masks), -1)
        planes = values(seen).reshape(_SYMMETRIES, batch, side, side)
        back = [_turned_back(plane, k) for k, plane in enumerate(planes)]
        return np.mean(back, axis=0, dtype=np.float64).reshape(batch, -1).astype(np.float32)

    return mean


def _turned(planes: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Apply one of the eight symmetries to planes [batch, N, N]."""
    mirrored = planes[:, :, ::-1] if symmetry >= 4 else planes
    return np.rot90(mirrored, symmetry % 4, axes=(1, 2))


def _turned_back(planes: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Apply the inverse of ``_turned``."""
    back = np.rot90(planes, -(symmetry % 4), axes=(1, 2))
    return back[:, :, ::-1] if symmetry >= 4 else back


def follow(batch: EpisodeBatch, values: Values) -> NDArray[np.int64]:
    """Follow the highest Q in an episode that has just begun; return centres, int64[placed, 2]."""
    batch, masks = _copies(batch, _FIRST), _masks_of_first(batch)
    while masks.any():
        _, masks = batch.place(values(batch.observe(_FIRST, masks)).argmax(axis=1))
    return batch.episodes.centres[0, : batch.episodes.placed[0]].copy()


def _guided_beam(tables: Tables, batch: EpisodeBatch, method: Method, values: Values) -> Placement:
    """Search with a beam whose candidates Q and weights propose.

    Args:
        tables: tables of the map.
        batch: one episode, which has just begun.
        method: has a beam.
        values: called once a step with the observations of all placements of the beam.
    """
    best, spacing = greedy_best(tables), spacing_of(tables)
    nodes, following = (make_nodes(tables, method.width, LIST_LENGTH) for _ in range(2))
    children = make_children(method.width * (method.by_value + method.by_weight))
    masks, live, last = _masks_of_first(batch), 1, len(tables.radii) - 1
    for circle in range(last):  # the last circle's heaviest centre is the best, and was tried
        # A copy, since the kernel strikes out what it has chosen.
        q = np.array(values(batch.observe(np.arange(live), masks)), np.float32)
        count = _expand(
            tables, nodes, live, circle, q, method.by_value, method.by_weight, spacing, children,
            best,
        )  # fmt: skip
        if count == 0 or circle + 1 == last:
            break
        live = advance(tables, nodes, following, circle, children, count, method.width)
        nodes, following = following, nodes
        batch = _copies(batch, nodes.parents[:live])
        centres = nodes.rows[:live, circle], nodes.columns[:live, circle]
        _, masks = batch.place(centres[0] * batch.problem.map_size + centres[1])
    return placement_of(tables, best.rows, best.columns)


def _masks_of_first(batch: EpisodeBatch) -> NDArray[np.int8]:
    """Return the valid centres of the first episode's next circle, int8[1, N * N]."""
    masks = np.empty((1, batch.problem.map_size**2), np.int8)
    batch.fill_mask(0, masks[0])
    return masks


def _copies(batch: EpisodeBatch, rows: NDArray[np.int64]) -> EpisodeBatch:
    """Return copies of the episodes in rows, int64[R], of which some may be the same."""
    copies = EpisodeBatch(batch.problem, len(rows))
    for ours, theirs in zip(copies.episodes, batch.episodes, strict=True):
        ours[:] = theirs[rows]
    copies.map_seeds[:], copies.ends[:] = batch.map_seeds[rows], batch.ends[rows]
    if copies._fits is not None and batch._fits is not None:
        copies._fits[:] = batch._fits[rows]
    return copies


@compiled
def _expand(tables, nodes, live, circle, q, by_value, by_weight, spacing, children, best):
    """Value the children of all nodes by their completions; return the number of children.

    Args:
        tables: ``Tables``.
        nodes: ``Nodes``.
        live: number of nodes.
        circle: the circle to place.
        q: float32[live, N * N], -inf where masked; changed.
        by_value: children of a node that Q proposes.
        by_weight: children of a node that their weights propose.
        spacing: squared distance that their centres exceed.
        children: ``Children``, overwritten.
        best: ``Best``, improved in place.
    """
    count = 0
    chosen = np.empty(by_value + by_weight, np.int64)
    for node in range(live):
        found = candidates(tables, nodes, node, circle, spacing, chosen[:by_weight])
        found = _add_best(q[node], tables.weights.shape[1], spacing, chosen, found, by_value)
        value_children(tables, nodes, node, circle, chosen[:found], COARSE, children, count, best)
        count += found
    return count


@compiled
def _add_best(values, width, spacing, chosen, found, wanted):
    """Add the centres of the highest values to those chosen; return the number of all.

    The highest of all needs no distance from centres that were chosen before, only to be another.

    Args:
        values: float32[H * W], -inf where no centre may be; those of chosen ones become -inf.
        width: W.
        spacing: squared distance that centres exceed.
        chosen: int64[C], packed centres, of which the first ``found`` are chosen.
        found: see ``chosen``.
        wanted: number of centres to add.
    """
    end = min(len(chosen), found + wanted)
    for i in range(found):
        x, y = unpacked(chosen[i])
        values[x * width + y] = -np.inf
    for i in range(end - found):
        action = np.argmax(values)
        if values[action] == -np.inf:
            break
        chosen[found] = packed(action // width, action % width)
        found += 1
        first = 0 if i == 0 else found - 1
        for j in range(first, found):
            _strike_out(values, width, spacing, chosen[j])
    return found


@compiled
def _strike_out(values, width, spacing, centre):
    """Set values, float32[H * W], to -inf around a packed centre."""
    x, y = unpacked(centre)
    reach = int(np.sqrt(spacing))
    for i in range(max(0, x - reach), min(len(values) // width, x + reach + 1)):
        for j in range(max(0, y - reach), min(width, y + reach + 1)):
            if (i - x) ** 2 + (j - y) ** 2 <= spacing:
                values[i * width + j] = -np.inf
