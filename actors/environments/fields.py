"""Named fields of nested observation spaces.

Dict and Tuple spaces, however deep, are flattened to fields. ``camera.left`` is the key ``left`` of
the Dict at ``camera``; ``0.mask`` is the key ``mask`` of the first entry of a Tuple.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import spaces

from pdqn.errors import UsageError
from pdqn.specs import ACTION_MASK, ALLOWED_DTYPES, MAX_CATEGORIES, PLAIN_FIELD, FieldSpec

# The keys and positions that lead to a part of an observation, from the outside in.
Path = tuple[Any, ...]
# A larger bound of a Box says nothing about its values, such as that of a whole int32.
_LARGEST_BOUND = (1 << 16) - 1


def leaves_of(space: gymnasium.Space[Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Find the spaces inside Dicts and Tuples, and the paths to them."""
    if isinstance(space, spaces.Dict):
        inner = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        inner = list(enumerate(space.spaces))
    else:
        yield path, space
        return
    for key, part in inner:
        yield from leaves_of(part, (*path, key))


def part_of(observation: Any, path: Path) -> Any:
    """Follow a path into a nested observation."""
    for key in path:
        observation = observation[key]
    return observation


def field_name(path: Path) -> str:
    """Join the keys and positions of a path with dots."""
    return ".".join(map(str, path)) if path else PLAIN_FIELD


def fields_of(env_id: str, space: gymnasium.Space[Any]) -> tuple[FieldSpec, ...]:
    """Describe an observation space by its fields, sorted by name.

    Raises:
        UsageError: a part is not supported, two fields have the same name, or there is nothing to
            observe.
    """
    leaves = [(field_name(path), leaf) for path, leaf in leaves_of(space)]
    if not any(math.prod(leaf.shape or ()) for _, leaf in leaves):
        raise UsageError(
            f"environment {env_id} has the observation {space}; one that holds values is needed"
        )
    name, times = Counter(name for name, _ in leaves).most_common(1)[0]
    if times > 1:
        raise UsageError(
            f"environment {env_id} has {times} observations of the name {name}; keys of Dict "
            "spaces may contain dots only if the names of all fields stay different"
        )
    fields = (_field(env_id, name, leaf) for name, leaf in leaves)
    return tuple(sorted(fields, key=lambda field: field.name))


def _field(env_id: str, name: str, space: gymnasium.Space[Any]) -> FieldSpec:
    supported = isinstance(
        space, spaces.Box | spaces.MultiBinary | spaces.Discrete | spaces.MultiDiscrete
    )
    dtype = "" if space.dtype is None else space.dtype.name  # whatever the order of its bytes
    if not supported or space.shape is None or dtype not in ALLOWED_DTYPES:
        raise UsageError(
            f"environment {env_id} has the observation {name}: {space}; Box, MultiBinary, "
            "Discrete and MultiDiscrete, alone or in Dict and Tuple, are supported"
        )
    binary = isinstance(space, spaces.MultiBinary) or dtype == "bool" or name == ACTION_MASK
    scale = _scale(space)
    if isinstance(space, spaces.Discrete):
        categories, start = (int(space.n),), (int(space.start),)
    elif isinstance(space, spaces.MultiDiscrete):
        categories = tuple(map(int, space.nvec.ravel()))
        start = tuple(map(int, space.start.ravel()))
    else:
        categories = start = ()
    if sum(categories) > MAX_CATEGORIES:  # one-hot, they would make by far the largest layer
        categories = start = ()
    shape = tuple(space.shape)
    return FieldSpec(name, shape, dtype, binary, categories=categories, start=start, scale=scale)


def _scale(space: gymnasium.Space[Any]) -> float | None:
    """Return the number that brings the values of a picture to -1..1; None for other spaces.

    It is the largest magnitude that the space allows, and 1 if the values are smaller or not
    bounded.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) < 2 or not space.low.size:
        return None
    bound = max(abs(float(end)) for end in (space.low.min(), space.high.max()))
    return bound if 1 < bound <= _LARGEST_BOUND else 1.0
