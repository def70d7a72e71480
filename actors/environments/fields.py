"""Named fields of nested observation spaces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
from gymnasium import spaces

from pdqn.specs import (
    PLAIN_FIELD,
)

# The keys and positions that lead to a part of an observation, from the outside in.
Path = tuple[Any, ...]


def leaves_of(space: gymnasium.Space[Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The spaces inside Dicts and Tuples, and how to get there."""
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
