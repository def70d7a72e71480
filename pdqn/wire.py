"""The bytes of every message, and the checks that hostile bytes must pass.

Three kinds of message exist:

* *Control*: one frame, a msgpack map with ``version`` and ``type``. Between every role and the
  coordinator.
* *TransitionBatch*: one frame, a msgpack map. From an actor to replay::

      version          protocol version
      type             "transitions"
      run              id of the run
      actor            index of the actor
      incarnation      how often that actor was started before
      sequence         0, 1, 2, ... for each actor and incarnation
      parameter_version   learner steps of the parameters that acted
      count            transitions
      codec            "zstd" or "none", of the body
      raw_bytes        size of the body before compression
      columns          list of {name, dtype, shape}; the body holds them one after another
      body             bytes

* *Arrays*: several frames, a msgpack map followed by one raw buffer for each of its ``columns``.
  SampleBatches and their requests, between replay and learner; nothing is copied.

A decoder never allocates what a message merely claims: sizes are compared with limits and with
each other first. What fails raises ``WireError`` with a short reason that is counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import zstandard
from numpy.typing import NDArray

from pdqn.specs import ALLOWED_DTYPES, EnvironmentSpec

PROTOCOL_VERSION = 1
MAX_CONTROL_BYTES = 1 << 20
MAX_TRANSITION_BYTES = 64 << 20
MAX_ARRAYS_BYTES = 1 << 30
MAX_TRANSITIONS = 1 << 16
# Of the msgpack structures; a byte of an empty map costs 70 bytes of memory.
_MAX_LENGTH = 1 << 12
_MAX_ELEMENTS = 1 << 16
_ZSTD_LEVEL = 1
_PROBE_BYTES = 1 << 14
# A batch has about one frame per transition; n-step borders and truncations add some.
_MAX_FRAMES_PER_TRANSITION = 66

TRANSITION_COLUMNS = {
    "action": np.dtype(np.int32),
    "n_step_return": np.dtype(np.float32),
    "discount": np.dtype(np.float32),
    "priority": np.dtype(np.float32),
    "observation_index": np.dtype(np.int32),
    "bootstrap_index": np.dtype(np.int32),
}
OBSERVATION_PREFIX = "observation."


class WireError(ValueError):
    """A message that must not be used.

    Attributes:
        reason: one word or two, from a fixed set, to count by.
        count: transitions in the message, as far as it is known.
    """

    def __init__(self, reason: str, detail: str = "", count: int = 0) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.count = count


@dataclass(frozen=True)
class TransitionBatch:
    """What an actor ships: transitions that point into the frames shipped with them.

    Attributes:
        columns: ``observation.<field>`` [frames, *stored_shape], and [count] each of int32
            action, float32 n_step_return, float32 discount, float32 priority, int32
            observation_index and int32 bootstrap_index (both into the frames).
    """

    run: str
    actor: int
    incarnation: int
    sequence: int
    parameter_version: int
    columns: dict[str, NDArray[Any]]

    @property
    def count(self) -> int:
        """Number of transitions."""
        return len(self.columns["action"])


def encode_control(kind: str, content: Mapping[str, Any]) -> bytes:
    """A control message; ``content`` is plain data."""
    return _pack_map({"version": PROTOCOL_VERSION, "type": kind, **content})


def decode_control(data: bytes) -> dict[str, Any]:
    """A checked control message: a map with a ``type``.

    Raises:
        WireError: too large, malformed, or of another protocol version.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError("too large", f"{len(data)} bytes of control")
    return _unpack_map(data)


def encode_transitions(batch: TransitionBatch) -> bytes:
    """The single frame of a TransitionBatch."""
    names = sorted(batch.columns)
    arrays = [np.ascontiguousarray(batch.columns[name]) for name in names]
    raw = b"".join(_buffer(array) for array in arrays)
    codec, body = _compress(raw)
    return _pack_map(
        {
            "version": PROTOCOL_VERSION,
            "type": "transitions",
            "run": batch.run,
            "actor": batch.actor,
            "incarnation": batch.incarnation,
            "sequence": batch.sequence,
            "parameter_version": batch.parameter_version,
            "count": batch.count,
            "codec": codec,
            "raw_bytes": len(raw),
            "columns": [_describe(name, a) for name, a in zip(names, arrays, strict=True)],
            "body": body,
        }
    )


def decode_transitions(
    data: bytes | memoryview, spec: EnvironmentSpec, run: str
) -> TransitionBatch:
    """A TransitionBatch that fits the run's environment in every value.

    Raises:
        WireError: anything that is not exactly as the module's page says.
    """
    if len(data) > MAX_TRANSITION_BYTES:
        raise WireError("too large", f"{len(data)} bytes")
    header = _unpack_map(data)
    if header["type"] != "transitions":
        raise WireError("type", repr(header["type"])[:40])
    if header.get("run") != run:
        raise WireError("other run")
    actor, incarnation, sequence, version, count, raw_bytes = (
        _natural(header, key)
        for key in ("actor", "incarnation", "sequence", "parameter_version", "count", "raw_bytes")
    )
    if max(actor, incarnation) >= 1 << 32:
        raise WireError("malformed", "actor or incarnation that no acknowledgement can name")
    try:
        columns = _transition_columns(header, spec, count, raw_bytes)
    except WireError as error:
        error.count = min(count, MAX_TRANSITIONS)
        raise
    return TransitionBatch(run, actor, incarnation, sequence, version, columns)


def encode_arrays(
    kind: str, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> list[Any]:
    """The frames of an arrays message; the buffers are the arrays' own memory."""
    # Not ascontiguousarray, which would give scalars a dimension.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    columns = [_describe(name, array) for name, array in contiguous.items()]
    header = encode_control(kind, {**content, "columns": columns})
    return [header, *(_buffer(array) for array in contiguous.values())]


def decode_arrays(
    frames: Sequence[bytes | memoryview],
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays of an arrays message, views of the frames.

    Raises:
        WireError: a header that does not describe the frames exactly.
    """
    if not frames or len(frames[0]) > MAX_CONTROL_BYTES:
        raise WireError("malformed", "no header of a permitted size")
    header = _unpack_map(frames[0])
    columns = column_list(header.get("columns"))
    if len(columns) != len(frames) - 1:
        raise WireError("columns", f"{len(columns)} described, {len(frames) - 1} sent")
    arrays: dict[str, NDArray[Any]] = {}
    for (name, dtype, shape), frame in zip(columns, frames[1:], strict=True):
        if len(frame) != array_bytes(dtype, shape) or len(frame) > MAX_ARRAYS_BYTES:
            raise WireError("size", f"column {name}")
        arrays[name] = np.frombuffer(frame, dtype).reshape(shape)
    return header, arrays


def _pack_map(message: Mapping[str, Any]) -> bytes:
    packed = msgpack.packb(message)
    assert packed is not None  # the type stubs allow it; the function does not do it
    return packed


def _unpack_map(data: bytes | memoryview) -> dict[str, Any]:
    elements = 0

    def counted(container: Any) -> Any:
        nonlocal elements
        elements += 1 + len(container)
        if elements > _MAX_ELEMENTS:
            raise ValueError(f"more than {_MAX_ELEMENTS} elements")
        return container

    try:
        message = msgpack.unpackb(
            data,
            strict_map_key=True,
            object_hook=counted,
            list_hook=counted,
            max_array_len=_MAX_LENGTH,
            max_map_len=_MAX_LENGTH,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError("malformed", str(error)[:80]) from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError("malformed", "no map with a type")
    if message.get("version") != PROTOCOL_VERSION:
        raise WireError(
            "version", f"{message.get('version')!r:.20} where {PROTOCOL_VERSION} is spoken"
        )
    return message


def _natural(header: Mapping[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise WireError("malformed", f"{key} is {value!r:.20}")
    return value


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}


def column_list(columns: Any) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """(name, dtype, shape) of every described column.

    Raises:
        WireError: a dtype that is not plain and numeric, or a shape that makes no sense.
    """
    if not isinstance(columns, list) or len(columns) > 256:
        raise WireError("columns", "not a list of at most 256")
    checked: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
    for column in columns:
        if not isinstance(column, dict):
            raise WireError("columns", "not maps")
        name, dtype, shape = column.get("name"), column.get("dtype"), column.get("shape")
        if not isinstance(name, str) or any(name == other for other, _, _ in checked):
            raise WireError("columns", f"name {name!r:.40}")
        if dtype not in ALLOWED_DTYPES:
            raise WireError("dtype", f"{name:.40} is {dtype!r:.20}")
        if not isinstance(shape, list) or len(shape) > 8:
            raise WireError("shape", f"{name:.40}")
        if not all(type(n) is int and 0 <= n <= MAX_ARRAYS_BYTES for n in shape):
            raise WireError("shape", f"{name:.40}")
        checked.append((name, np.dtype(str(dtype)), tuple(shape)))
    return checked


def _transition_layout(
    described: Any, spec: EnvironmentSpec, count: int
) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """The described columns, if they are exactly those of the environment."""
    layout = column_list(described)
    frames = next((s[0] for n, _, s in layout if n.startswith(OBSERVATION_PREFIX) and s), 0)
    if not 0 < count <= MAX_TRANSITIONS or not 0 < frames <= count * _MAX_FRAMES_PER_TRANSITION:
        raise WireError("count", f"{count} transitions over {frames} frames")
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (dtype, (count,)) for name, dtype in TRANSITION_COLUMNS.items()
    }
    for field in spec.fields:
        name = OBSERVATION_PREFIX + field.name
        expected[name] = (field.stored_dtype, (frames, *field.stored_shape))
    if {name for name, _, _ in layout} != set(expected):
        raise WireError("columns", "not those of the environment")
    for name, dtype, shape in layout:
        if dtype != expected[name][0]:
            raise WireError("dtype", f"{name} is {dtype}, not {expected[name][0]}")
        if shape != expected[name][1]:
            raise WireError("shape", f"{name} is {shape}, not {expected[name][1]}")
    return layout


def _transition_columns(
    header: Mapping[str, Any], spec: EnvironmentSpec, count: int, raw_bytes: int
) -> dict[str, NDArray[Any]]:
    layout = _transition_layout(header.get("columns"), spec, count)
    expected = sum(array_bytes(dtype, shape) for _, dtype, shape in layout)
    if raw_bytes != expected or raw_bytes > MAX_TRANSITION_BYTES:
        raise WireError("size", f"{raw_bytes} bytes claimed, columns need {expected}")
    raw = _decompress(header.get("codec"), header.get("body"), raw_bytes)
    columns: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, dtype, shape in layout:
        columns[name] = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape)
        offset += array_bytes(dtype, shape)
    _check_values(columns, spec)
    return columns


def _check_values(columns: Mapping[str, NDArray[Any]], spec: EnvironmentSpec) -> None:
    frames = len(columns[OBSERVATION_PREFIX + spec.fields[0].name])
    for name in ("n_step_return", "discount", "priority"):
        if not np.isfinite(columns[name]).all():
            raise WireError("not finite", name)
    if columns["priority"].min() < 0:
        raise WireError("priority", "negative")
    if columns["discount"].min() < 0 or columns["discount"].max() > 1:
        raise WireError("discount", "outside 0..1")
    if columns["action"].min() < 0 or columns["action"].max() >= spec.num_actions:
        raise WireError("action", f"outside 0..{spec.num_actions - 1}")
    for name in ("observation_index", "bootstrap_index"):
        if columns[name].min() < 0 or columns[name].max() >= frames:
            raise WireError("index", name)


def array_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Bytes of an array, in Python integers: hostile dimensions must not wrap around."""
    size = dtype.itemsize
    for dimension in shape:
        size *= dimension
    return size


def _buffer(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _compress(raw: bytes) -> tuple[str, bytes]:
    """Compress unless a sample of the payload says that it is not worth it."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    middle = max(0, len(raw) // 2 - _PROBE_BYTES // 2)
    probe = raw[middle : middle + _PROBE_BYTES]
    if len(compressor.compress(probe)) > 0.9 * len(probe):
        return "none", raw
    return "zstd", compressor.compress(raw)


def _decompress(codec: Any, body: Any, raw_bytes: int) -> bytes:
    if not isinstance(body, bytes):
        raise WireError("malformed", "no body")
    if codec == "none":
        if len(body) != raw_bytes:
            raise WireError("size", f"body of {len(body)} bytes, {raw_bytes} claimed")
        return body
    if codec != "zstd":
        raise WireError("codec", f"{codec!r:.20}")
    try:
        # The frame's own claim is what the decompressor would allocate: compare it first.
        if zstandard.frame_content_size(body) != raw_bytes:
            raise WireError("size", "compressed frame of another size than claimed")
        raw = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError("corrupt", str(error)[:80]) from None
    if len(raw) != raw_bytes:
        raise WireError("size", f"{len(raw)} bytes decompressed, {raw_bytes} claimed")
    return raw
