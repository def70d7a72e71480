"""What a run's observations and actions look like: agreed once, checked everywhere.

An observation is a flat map of named arrays. A plain Box observation is the single field
``observation``. Binary fields (masks) are packed to bits as soon as they are recorded, and stay
packed on the wire and in the buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Observation = dict[str, NDArray[Any]]

ACTION_MASK = "action_mask"
ALLOWED_DTYPES = (
    "bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64",
)  # fmt: skip


@dataclass(frozen=True)
class FieldSpec:
    """One named array of an observation.

    Attributes:
        name: key of the field.
        shape: shape of one observation's array, without a batch dimension.
        dtype: numpy name of the dtype in the environment.
        binary: the values are 0 or 1, and are packed to bits when recorded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    binary: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape as recorded, without a batch dimension."""
        return (-(-int(np.prod(self.shape)) // 8),) if self.binary else self.shape

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Dtype as recorded."""
        return np.dtype(np.uint8 if self.binary else self.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes of one recorded observation's array."""
        return int(np.prod(self.stored_shape)) * self.stored_dtype.itemsize

    def pack(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the environment's form [batch, *shape] to the recorded one."""
        if not self.binary:
            return np.asarray(values, dtype=self.stored_dtype)
        return np.packbits(values.reshape(len(values), -1).astype(bool, copy=False), axis=1)

    def unpack(self, values: NDArray[Any]) -> NDArray[Any]:
        """From the recorded form [batch, *stored_shape] to [batch, *shape]; binary becomes bool."""
        if not self.binary:
            return values
        bits = np.unpackbits(values, axis=1, count=int(np.prod(self.shape)))
        return bits.view(np.bool_).reshape(len(values), *self.shape)


@dataclass(frozen=True)
class EnvironmentSpec:
    """What replay, learner and networks must know of an environment.

    Attributes:
        id: gymnasium id.
        fields: the observation's arrays, sorted by name.
        num_actions: actions are 0 .. num_actions - 1.
        headline_metric: key of the info that matters most at the end of an episode, if any.
    """

    id: str
    fields: tuple[FieldSpec, ...]
    num_actions: int
    headline_metric: str | None = None

    @property
    def masked(self) -> bool:
        """Whether observations say which actions are valid."""
        return any(field.name == ACTION_MASK for field in self.fields)

    @property
    def observation_bytes(self) -> int:
        """Bytes of one recorded observation."""
        return sum(field.stored_bytes for field in self.fields)

    def pack(self, observation: Mapping[str, NDArray[Any]]) -> Observation:
        """The recorded form of a batch of observations."""
        return {field.name: field.pack(observation[field.name]) for field in self.fields}

    def unpack(self, observation: Mapping[str, NDArray[Any]]) -> Observation:
        """The environment's form of a batch of recorded observations."""
        return {field.name: field.unpack(observation[field.name]) for field in self.fields}

    def to_map(self) -> dict[str, Any]:
        """A plain map for msgpack and for model files."""
        return asdict(self)

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> EnvironmentSpec:
        """The inverse of ``to_map``.

        Raises:
            ValueError: a dtype that no column may have.
        """
        fields = tuple(
            FieldSpec(
                str(f["name"]), tuple(map(int, f["shape"])), str(f["dtype"]), bool(f["binary"])
            )
            for f in values["fields"]
        )
        for field in fields:
            if field.dtype not in ALLOWED_DTYPES:
                raise ValueError(f"observation field {field.name} has dtype {field.dtype}")
        headline = values.get("headline_metric")
        return cls(str(values["id"]), fields, int(values["num_actions"]), headline)
