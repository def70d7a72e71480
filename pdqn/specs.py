"""Observation and action specs: agreed once per run, checked everywhere.

An observation is a flat map of named arrays. A plain Box observation is the single field
``observation``. Binary fields (masks) are packed to bits as soon as they are recorded, and stay
packed on the wire and in the buffer.

Actors always record, ship and store single *frames*: the observations of one step each. A stacked
field (``stack`` K above 1) reaches networks as the frames of the last K steps. They lie on a new
axis before the frame's own axes, oldest first. The first frame of an episode stands in for missing
earlier frames.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdqn.text import is_printable

Observation = dict[str, NDArray[Any]]

ACTION_MASK = "action_mask"
ROLLOUT_ACTIONS, ROLLOUT_RETURNS = "rollout_actions", "rollout_returns"
ROLLOUT_FIELDS = frozenset({ROLLOUT_ACTIONS, ROLLOUT_RETURNS})  # of use to a learner only
# Fields that tell of actions; networks do not see them.
UNSEEN = ROLLOUT_FIELDS | {ACTION_MASK}
ATARI_NAMESPACE = "ALE/"
PLAIN_FIELD = "observation"  # name of the field of an observation without parts
ALLOWED_DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64",
    "float16", "float32", "float64",
)  # fmt: skip
MAX_FRAME_STACK = 32
MAX_CATEGORIES = 4096  # limit of a field; with more categories, its values stay numbers


@dataclass(frozen=True)
class FieldSpec:
    """A named array of an observation.

    Attributes:
        name: key of the field.
        shape: shape of one observation's array, without a batch dimension.
        dtype: numpy name of the dtype in the environment.
        binary: whether the values are 0 or 1 and are packed to bits when recorded.
        stack: number of steps whose frames a network sees at once.
        categories: number of categories of each value, in order. Networks get such values one-hot
            (Discrete, MultiDiscrete). Empty for numbers.
        start: the first category of each value.
        scale: number by which networks divide the values of a picture. None for other fields, and
            in files of earlier versions. A batch may have other bounds than its environments.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    binary: bool = False
    stack: int = 1
    categories: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    scale: float | None = dataclasses.field(default=None, compare=False)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Shape of a network's input, without a batch dimension."""
        return (self.stack, *self.shape) if self.stack > 1 else self.shape

    @property
    def stored_stacked_shape(self) -> tuple[int, ...]:
        """Shape of a recorded stack as it is sampled, without a batch dimension."""
        return (self.stack, *self.stored_shape) if self.stack > 1 else self.stored_shape

    @cached_property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape as recorded, without a batch dimension."""
        return (-(-math.prod(self.shape) // 8),) if self.binary else self.shape

    @cached_property
    def stored_dtype(self) -> np.dtype[Any]:
        """Dtype as recorded."""
        return np.dtype(np.uint8 if self.binary else self.dtype)

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of one recorded observation's array."""
        return math.prod(self.stored_shape) * self.stored_dtype.itemsize

    def is_known(self, values: NDArray[Any]) -> bool:
        """Return whether values [..., *shape] are among the categories; numbers always are."""
        if not self.categories:
            return True
        first = np.array(self.start, np.int64)
        each = np.asarray(values).reshape(-1, len(self.categories))
        return bool(((each >= first) & (each < first + self.categories)).all())

    def blank(self, batch: int) -> NDArray[Any]:
        """Make a network's input [batch, *stacked_shape]: zeros, or each value's first category."""
        values = np.zeros((batch, *self.stacked_shape), "bool" if self.binary else self.dtype)
        if self.categories:
            values[...] = np.reshape(self.start, self.shape)
        return values

    def pack(self, values: NDArray[Any]) -> NDArray[Any]:
        """Convert from the environment's form [batch, *shape] to the recorded form."""
        if not self.binary:
            return np.asarray(values, dtype=self.stored_dtype)
        return np.packbits(values.reshape(len(values), -1).astype(bool, copy=False), axis=1)

    def unpack(self, values: NDArray[Any]) -> NDArray[Any]:
        """Convert from the recorded form [..., *stored_shape] to [..., *shape]; binary to bool."""
        if not self.binary:
            return values
        bits = np.unpackbits(values, axis=-1, count=math.prod(self.shape))
        return bits.view(np.bool_).reshape(*values.shape[:-1], *self.shape)


@dataclass(frozen=True)
class EnvironmentSpec:
    """Description of an environment for replay, learner and networks.

    Attributes:
        id: gymnasium id.
        fields: the observation's arrays, sorted by name.
        num_actions: number of actions, which are 0 .. num_actions - 1.
        headline_metric: key of the info value that matters most at the end of an episode, if any.
        first_action: the environment's own number of action 0.
        circle_placement: whether the environment declares itself as circle placement, for which
            there are a special network and picture.
    """

    id: str
    fields: tuple[FieldSpec, ...]
    num_actions: int
    headline_metric: str | None = None
    first_action: int = 0
    circle_placement: bool = False

    @property
    def masked(self) -> bool:
        """Return whether observations contain a mask of the valid actions."""
        return any(field.name == ACTION_MASK for field in self.fields)

    @property
    def rollouts(self) -> int:
        """Number of rollouts of an observation; 0 if the environment tells none."""
        return sum(f.shape[0] for f in self.fields if f.name == ROLLOUT_ACTIONS)

    @property
    def fields_to_act(self) -> tuple[FieldSpec, ...]:
        """The fields without rollouts."""
        return tuple(f for f in self.fields if f.name not in ROLLOUT_FIELDS)

    @cached_property
    def observation_bytes(self) -> int:
        """Bytes of one recorded frame."""
        return sum(field.stored_bytes for field in self.fields)

    @cached_property
    def frame_stack(self) -> int:
        """Largest number of steps whose frames a network sees at once."""
        return max(field.stack for field in self.fields)

    def stacked(self, frame_stack: int) -> EnvironmentSpec:
        """Copy this spec with all fields that networks see stacked over ``frame_stack`` steps."""
        fields = tuple(
            replace(field, stack=1 if field.name in UNSEEN else frame_stack)
            for field in self.fields
        )
        return replace(self, fields=fields)

    def difference(self, other: EnvironmentSpec) -> str:
        """Describe the first difference to another spec; empty if they are equal."""
        ours, theirs = self._comparable(other), other._comparable(self)
        different = (name for name in theirs if ours[name] != theirs[name])
        name = next(different, None)
        if name is None:
            return ""
        return f"its {name} is {ours[name]!r:.200}, not {theirs[name]!r:.200}"

    def _comparable(self, other: EnvironmentSpec) -> dict[str, Any]:
        """Return the map of this spec without the scales that the other does not know."""
        known = {field.name for field in other.fields if field.scale is not None}
        fields = (f if f.name in known else replace(f, scale=None) for f in self.fields)
        return replace(self, fields=tuple(fields)).to_map()

    def blank(self, batch: int) -> Observation:
        """Make a batch of plausible stacked observations with which to try a network."""
        return {field.name: field.blank(batch) for field in self.fields}

    def pack(self, observation: Mapping[str, NDArray[Any]]) -> Observation:
        """Convert a batch of frames to the recorded form."""
        return {field.name: field.pack(observation[field.name]) for field in self.fields}

    def unpack(self, observation: Mapping[str, NDArray[Any]]) -> Observation:
        """Convert a batch of recorded frames, or of stacks of them, to the environment's form."""
        return {field.name: field.unpack(observation[field.name]) for field in self.fields}

    def to_map(self) -> dict[str, Any]:
        """Convert to a plain map for msgpack and model files."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> EnvironmentSpec:
        """Read a map that ``to_map`` wrote.

        Raises:
            ValueError: a dtype is not allowed, or a shape, stack, scale or number of categories is
                impossible; a name is not printable.
        """
        fields = tuple(
            FieldSpec(
                str(f["name"]),
                tuple(map(int, f["shape"])),
                str(f["dtype"]),
                bool(f["binary"]),
                int(f["stack"]),
                tuple(map(int, f["categories"])),
                tuple(map(int, f["start"])),
                None if f.get("scale") is None else float(f["scale"]),
            )
            for f in values["fields"]
        )
        for field in fields:
            _check_field(field)
        env_id, headline = str(values["id"]), values.get("headline_metric")
        names = (env_id, "" if headline is None else headline, *(field.name for field in fields))
        for name in names:
            if not isinstance(name, str) or not is_printable(name):
                raise ValueError(f"{name!r:.80} is not a name of printable characters")
        return cls(
            env_id,
            fields,
            int(values["num_actions"]),
            headline,
            int(values.get("first_action", 0)),
            bool(values.get("circle_placement", False)),
        )


def _check_field(field: FieldSpec) -> None:
    if field.dtype not in ALLOWED_DTYPES:
        raise ValueError(f"observation field {field.name} has dtype {field.dtype}")
    if any(size < 0 for size in field.shape):
        raise ValueError(f"observation field {field.name} has the shape {field.shape}")
    if not 1 <= field.stack <= MAX_FRAME_STACK:
        raise ValueError(f"observation field {field.name} has a stack of {field.stack}")
    if field.scale is not None and not 0 < field.scale < math.inf:
        raise ValueError(f"observation field {field.name} has the scale {field.scale}")
    values_of = math.prod(field.shape) if field.categories else 0
    if not len(field.categories) == len(field.start) == values_of:
        raise ValueError(
            f"observation field {field.name} has {len(field.categories)} "
            f"categories and {len(field.start)} starts for {values_of} values"
        )
    if any(size < 1 for size in field.categories) or sum(field.categories) > MAX_CATEGORIES:
        raise ValueError(f"observation field {field.name} has {field.categories} categories")
