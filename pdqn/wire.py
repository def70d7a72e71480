"""The bytes of every message, and the checks that hostile bytes must pass.

There are three kinds of messages:

* *Control*: one frame, a msgpack map with ``version`` and ``type``. Between every role and the
  coordinator.
* *TransitionBatch*: one frame, a msgpack map. From an actor to replay::

      version          protocol version
      type             "transitions"
      run              id of the run
      actor            index of the actor
      incarnation      how often that actor was started before
      ticket           proof that the actor sent it; see ``pdqn.tickets``
      sequence         0, 1, 2, ... for each actor and incarnation
      made             transitions of that actor and incarnation up to the last one of this batch
      parameter_version   learner steps of the parameters that acted
      count            transitions
      codec            "zstd" or "none", of the body
      raw_bytes        size of the body before compression
      columns          list of {name, dtype, shape}; the body holds them one after another
      body             bytes
      blocks           list of {frames, codec, raw_bytes, body}: consecutive frames of the
                       observation, each block compressed by itself, so that replay can keep it
                       as it came; a body holds field after field, in the order of the spec

  The columns are ``TRANSITION_COLUMNS`` and, where frames are stacked, ``history``. A frame is the
  observation of one step. It is shipped once, however many transitions share it. No stack reaches
  from one block into another.

* *Arrays*: one frame, the length of a msgpack map (4 bytes, big endian), the map, and the arrays
  that its ``columns`` describe, one after another. The learner sends parameters this way to all
  processes that act.

SampleBatches and their requests are in ``replay.samples``.

A decoder never allocates memory on the strength of a claim in a message: it first compares sizes
with limits and with each other. A failed check raises ``WireError`` with one of the ``REASONS``, to
count by. All functions may be called from several threads.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack
import numpy as np
import zstandard
from numpy.typing import NDArray

from pdqn.specs import ALLOWED_DTYPES, EnvironmentSpec, Observation
from pdqn.tickets import TICKET_BYTES
from pdqn.wire_errors import REASONS as REASONS
from pdqn.wire_errors import Reason, WireError, shown

PROTOCOL_VERSION = 4
MAX_CONTROL_BYTES = 1 << 20
MAX_TRANSITION_BYTES = 64 << 20
MAX_ARRAYS_BYTES = 1 << 30
MAX_TRANSITIONS = 1 << 16
MAX_BLOCKS = 1 << 10
MAX_COLUMNS = 1 << 10
# A batch has about one frame per transition; n-step borders, stacks and truncations add some.
_MAX_FRAMES_PER_TRANSITION = 100
_MAX_MADE = 1 << 53
_MAX_DIMENSIONS = 8
_LENGTH_BYTES = 4
# Python's own functions, such as repr, would fail on values nested a thousand deep.
_MAX_DEPTH = 32
_ZSTD_LEVEL = 1
_PROBE_BYTES = 1 << 14
# With a larger share left, compression is not worth the time that decompression takes.
_WORTHWHILE_SHARE = 0.9

TRANSITION_COLUMNS = {
    "action": np.dtype(np.int32),
    "n_step_return": np.dtype(np.float32),
    "discount": np.dtype(np.float32),
    "priority": np.dtype(np.float32),
    "observation_index": np.dtype(np.int32),
    "bootstrap_index": np.dtype(np.int32),
}
# Column of a stacked frame: the number of earlier frames that belong to its stack.
HISTORY = "history"
_HISTORY_DTYPE = np.dtype(np.uint8)
_DTYPES = {name: np.dtype(name) for name in ALLOWED_DTYPES}
# Finding a name here takes a twentieth of the time that numpy needs to compose it.
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)

# Name, dtype and shape of an array.
_Column = tuple[str, np.dtype[Any], tuple[int, ...]]


@dataclass(frozen=True)
class _Limits:
    """Limits of a msgpack structure, of which one byte may take seventy bytes of memory.

    Attributes:
        length: largest number of elements of one list or map.
        elements: largest number of elements of all lists and maps.
        text_bytes: largest size of one text, which takes up to four times as much memory.
    """

    length: int
    elements: int
    text_bytes: int


_CONTROL_LIMITS = _Limits(length=1 << 12, elements=1 << 16, text_bytes=MAX_CONTROL_BYTES)
# The list of blocks is the longest part, and each block is a map of four.
_TRANSITION_LIMITS = _Limits(length=MAX_BLOCKS, elements=8 * MAX_BLOCKS, text_bytes=1 << 12)


class _Zstandard(threading.local):
    """A compressor and a decompressor per thread: they are costly to make and may not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_zstandard = _Zstandard()


@dataclass(frozen=True, eq=False)
class FrameBlock:
    """Consecutive frames and their compressed form.

    Attributes:
        fields: stored_dtype[frames, *stored_shape] of each field, in recorded form.
        codec: codec of the body, "zstd" or "none".
        body: the fields' bytes one after another, in the order of the spec, compressed.
    """

    fields: Observation
    codec: str
    body: bytes

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(next(iter(self.fields.values())))

    @property
    def raw_bytes(self) -> int:
        """Size of the body before compression."""
        return sum(array.nbytes for array in self.fields.values())


@dataclass(frozen=True, eq=False)
class TransitionBatch:
    """A shipment of an actor: transitions that point into the frames shipped with them.

    Attributes:
        columns: [count] each of int32 action, float32 n_step_return, float32 discount, float32
            priority, int32 observation_index and int32 bootstrap_index. Both indices point into the
            frames. Where frames are stacked, there is also uint8 history [frames]: the number of
            earlier frames that belong to each one's stack.
        blocks: the frames.
        ticket: proof that the actor sent it; empty where no replay asks for one.
        made: transitions of the stream up to the last one of this batch; 0 if it does not say.
    """

    run: str
    actor: int
    incarnation: int
    sequence: int
    parameter_version: int
    columns: dict[str, NDArray[Any]]
    blocks: list[FrameBlock]
    ticket: bytes = dataclasses.field(default=b"", repr=False)
    made: int = 0

    @property
    def stream(self) -> tuple[int, int]:
        """The (actor, incarnation) that sent it."""
        return self.actor, self.incarnation

    @property
    def count(self) -> int:
        """Number of transitions."""
        return len(self.columns["action"])

    @property
    def frames(self) -> int:
        """Number of frames."""
        return sum(block.count for block in self.blocks)


def encode_control(kind: str, content: Mapping[str, Any]) -> bytes:
    """Encode a control message; ``content`` is plain data."""
    return _pack_map({"version": PROTOCOL_VERSION, "type": kind, **content})


def decode_control(data: bytes | memoryview) -> dict[str, Any]:
    """Decode and check a control message, a map with a ``type``.

    Raises:
        WireError: the message is too large, malformed, or of another protocol version.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise WireError("too large", f"{len(data)} bytes, at most {MAX_CONTROL_BYTES}")
    return _unpack_map(data, _CONTROL_LIMITS)


def compress_block(fields: Observation, spec: EnvironmentSpec) -> FrameBlock:
    """Compress the frames ``fields``, stored_dtype[frames, *stored_shape] each, to a block."""
    ordered = {f.name: np.ascontiguousarray(fields[f.name]) for f in spec.fields}
    return FrameBlock(ordered, *_compress(_joined(list(ordered.values()))))


def decompress_block(
    codec: str, body: bytes | memoryview, frames: int, spec: EnvironmentSpec
) -> Observation:
    """Decode the fields of a block, stored_dtype[frames, *stored_shape] each, read-only.

    They are views of the body if the codec is "none".

    Raises:
        WireError: the body does not hold exactly ``frames`` frames.
    """
    return _block_fields(codec, body, frames, spec, "block")


def encode_transitions(batch: TransitionBatch) -> bytes:
    """Encode a TransitionBatch as a single frame."""
    names = sorted(batch.columns)
    arrays = [np.ascontiguousarray(batch.columns[name]) for name in names]
    raw = _joined(arrays)
    codec, body = _compress(raw)
    return _pack_map(
        {
            "version": PROTOCOL_VERSION,
            "type": "transitions",
            "run": batch.run,
            "actor": batch.actor,
            "incarnation": batch.incarnation,
            "ticket": batch.ticket,
            "sequence": batch.sequence,
            "made": batch.made,
            "parameter_version": batch.parameter_version,
            "count": batch.count,
            "codec": codec,
            "raw_bytes": len(raw),
            "columns": [_describe(name, a) for name, a in zip(names, arrays, strict=True)],
            "body": body,
            "blocks": [
                {"frames": b.count, "codec": b.codec, "raw_bytes": b.raw_bytes, "body": b.body}
                for b in batch.blocks
            ],
        }
    )


def decode_transitions(
    data: bytes | memoryview,
    spec: EnvironmentSpec,
    run: str | None,
    admit: Callable[[int, int, bytes], object] = lambda *_: None,
) -> TransitionBatch:
    """Decode a TransitionBatch and check that every value fits the run's environment.

    Its arrays are read-only. Without a ``run``, any run is accepted. ``admit`` may refuse an actor,
    incarnation and ticket with an error of its own, before more of the message is looked at.

    Raises:
        WireError: the message differs from the description of this module.
    """
    if len(data) > MAX_TRANSITION_BYTES:
        raise WireError("too large", f"{len(data)} bytes, at most {MAX_TRANSITION_BYTES}")
    header = _unpack_map(data, _TRANSITION_LIMITS)
    if header["type"] != "transitions":
        raise WireError("type", f"{shown(header['type'])}, not 'transitions'")
    if type(of_run := header.get("run")) is not str or run not in (None, of_run):
        raise WireError("other run", f"{shown(of_run)}, not {shown(run)}")
    # An acknowledgement names these two in 32 bits each.
    actor, incarnation = (natural(header, key, 1 << 32) for key in ("actor", "incarnation"))
    if type(ticket := header.get("ticket")) is not bytes or len(ticket) > TICKET_BYTES:
        raise WireError("malformed", f"a ticket that is not at most {TICKET_BYTES} bytes")
    admit(actor, incarnation, ticket)
    sequence, version, count = (
        natural(header, key) for key in ("sequence", "parameter_version", "count")
    )
    made = natural(header, "made", _MAX_MADE) if "made" in header else 0
    try:
        if 0 < made < count:
            raise WireError("count", f"{count} transitions of {made} that were made")
        sizes = _block_sizes(header.get("blocks"), spec)
        columns = _transition_columns(header, spec, count, sizes)
        blocks = [
            _block(number, block, frames, spec)
            for number, (block, frames) in enumerate(zip(header["blocks"], sizes, strict=True))
        ]
    except WireError as error:
        error.count, error.sender = min(count, MAX_TRANSITIONS), (actor, incarnation, sequence)
        error.made = made if made >= count else 0
        raise
    stream = (actor, incarnation)
    return TransitionBatch(of_run, *stream, sequence, version, columns, blocks, ticket, made)


def encode_arrays(
    kind: str, content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> bytes:
    """Encode an arrays message as a single frame."""
    # ascontiguousarray would turn scalars into one-dimensional arrays.
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    columns = [_describe(name, array) for name, array in contiguous.items()]
    header = encode_control(kind, {**content, "columns": columns})
    length = len(header).to_bytes(_LENGTH_BYTES, "big")
    return b"".join([length, header, *map(_buffer, contiguous.values())])


def decode_arrays(data: bytes | memoryview) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Decode an arrays message to its header and its arrays, which are read-only views of it.

    Raises:
        WireError: the header does not describe exactly the bytes that follow it.
    """
    view = memoryview(data).toreadonly()
    start = _LENGTH_BYTES + int.from_bytes(view[:_LENGTH_BYTES], "big")
    header, body = decode_control(view[_LENGTH_BYTES:start]), view[start:]
    columns = _column_list(header.get("columns"))
    needed = sum(_array_bytes(dtype, shape) for _, dtype, shape in columns)
    if len(body) != needed:
        raise WireError("size", f"{len(body)} bytes of arrays, the columns need {needed}")
    arrays = _split(body, columns)
    for name, array in arrays.items():
        _check_booleans(name, array)
    return header, arrays


def natural(header: Mapping[str, Any], key: str, limit: int = 1 << 62) -> int:
    """Return the integer from 0 to less than ``limit`` that a map has under a key.

    Raises:
        WireError: there is no such integer.
    """
    value = header.get(key)
    if type(value) is not int or not 0 <= value < limit:
        raise WireError("malformed", f"{key} is {shown(value)}, not an integer in 0..{limit - 1}")
    return value


def _pack_map(message: Mapping[str, Any]) -> bytes:
    packed = msgpack.packb(message)
    assert packed is not None  # only the type stubs allow None
    return packed


def _unpack_map(data: bytes | memoryview, limits: _Limits) -> dict[str, Any]:
    elements = 0

    def counted(container: Any) -> Any:
        nonlocal elements
        elements += 1 + len(container)
        if elements > limits.elements:
            raise ValueError(f"more than {limits.elements} elements")
        return container

    # The decoder allocates the claimed length of a list at once; each element takes a byte or more.
    length = min(limits.length, len(data))
    try:
        message = msgpack.unpackb(
            data,
            strict_map_key=True,
            object_hook=counted,
            list_hook=counted,
            ext_hook=_refuse_extension,
            max_array_len=length,
            max_map_len=length,
            max_str_len=limits.text_bytes,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise WireError("malformed", f"{type(error).__name__} {error!s:.80}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError("malformed", "not a map with a type")
    version = message.get("version")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise WireError("version", f"{shown(version)}, not {PROTOCOL_VERSION}")
    if _depth_exceeds(message, _MAX_DEPTH):
        raise WireError("malformed", f"nested deeper than {_MAX_DEPTH}")
    return message


def _depth_exceeds(container: Any, limit: int) -> bool:
    level = [container]
    for _ in range(limit):
        inner = (values.values() if type(values) is dict else values for values in level)
        level = [value for values in inner for value in values if type(value) in (dict, list)]
        if not level:
            return False
    return True


def _refuse_extension(code: int, _: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")


def _describe(name: str, array: NDArray[Any]) -> dict[str, Any]:
    return {"name": name, "dtype": _DTYPE_NAMES[array.dtype], "shape": list(array.shape)}


def _column_list(columns: Any) -> list[_Column]:
    """Check every column that a message describes: its dtype is plain and its shape possible."""
    if not isinstance(columns, list) or len(columns) > MAX_COLUMNS:
        raise WireError("columns", f"not a list of at most {MAX_COLUMNS}")
    checked: dict[str, _Column] = {}
    for description in columns:
        column = _column(description)
        if column[0] in checked:
            raise WireError("columns", f"{shown(column[0])} occurs twice")
        checked[column[0]] = column
    return list(checked.values())


def _column(description: Any) -> _Column:
    if not isinstance(description, dict):
        raise WireError("columns", f"one is {shown(description)}, not a map")
    name, dtype, shape = (description.get(key) for key in ("name", "dtype", "shape"))
    if not isinstance(name, str):
        raise WireError("columns", f"the name {shown(name)} is not a text")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WireError("dtype", f"{shown(name)} is {shown(dtype)}, not a plain number")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        raise WireError(
            "shape", f"that of {shown(name)} is not a list of at most {_MAX_DIMENSIONS}"
        )
    for size in shape:
        if type(size) is not int or size < 0:
            raise WireError("shape", f"{shown(name)} has the size {shown(size)}, not 0 or more")
    # numpy refuses large sizes even if another size is 0.
    if math.prod(size or 1 for size in shape) > MAX_ARRAYS_BYTES:
        raise WireError("shape", f"{shown(name)} has more than {MAX_ARRAYS_BYTES} elements")
    return name, _DTYPES[dtype], tuple(shape)


def _array_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    # Python integers: hostile dimensions must not overflow.
    return dtype.itemsize * math.prod(shape)


def _block_sizes(blocks: Any, spec: EnvironmentSpec) -> list[int]:
    """Return the number of frames of each block, after checking the claims against the limits."""
    # The limits of the message's structure already ensure at most MAX_BLOCKS.
    if not isinstance(blocks, list) or not blocks:
        raise WireError("blocks", f"not a list of 1 to {MAX_BLOCKS}")
    frame_bytes = spec.observation_bytes
    sizes: list[int] = []
    for number, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise WireError("blocks", f"number {number} is {shown(block)}, not a map")
        frames, raw_bytes = natural(block, "frames"), natural(block, "raw_bytes")
        if frames == 0:
            raise WireError("count", f"block {number} has no frames")
        if raw_bytes != frames * frame_bytes:
            claim = f"{raw_bytes} bytes for {frames} frames of {frame_bytes} bytes"
            raise WireError("size", f"block {number} claims {claim}")
        sizes.append(frames)
    if (total_bytes := sum(sizes) * frame_bytes) > MAX_TRANSITION_BYTES:
        raise WireError("size", f"{total_bytes} bytes of frames, at most {MAX_TRANSITION_BYTES}")
    return sizes


def _block(number: int, block: Mapping[str, Any], frames: int, spec: EnvironmentSpec) -> FrameBlock:
    codec, body = _codec_and_body(block, f"block {number}")
    fields = _block_fields(codec, body, frames, spec, f"block {number}")
    check_frames(fields, spec, f"block {number}")
    return FrameBlock(fields, codec, body)


def _block_fields(
    codec: str, body: bytes | memoryview, frames: int, spec: EnvironmentSpec, where: str
) -> Observation:
    raw = _decompress(codec, body, frames * spec.observation_bytes, where)
    return _split(raw, [(f.name, f.stored_dtype, (frames, *f.stored_shape)) for f in spec.fields])


def check_frames(fields: Observation, spec: EnvironmentSpec, where: str) -> None:
    """Reject frames that no network could learn from.

    Args:
        fields: stored_dtype[frames, *stored_shape] of each field.
        spec: spec of the environment.
        where: place of the frames in the message, in words.

    Raises:
        WireError: a number is not finite, a boolean is neither 0 nor 1, or a category is unknown.
    """
    for field in spec.fields:
        name, values = field.name, fields[field.name]
        if not _is_finite(values):
            raise WireError("not finite", f"{shown(name)} in {where}")
        _check_booleans(name, values)
        if not field.is_known(values):
            raise WireError("category", f"{shown(name)} in {where}")


def _is_finite(values: NDArray[Any]) -> bool:
    if values.dtype == np.float16:
        # All bits but the sign. numpy's isfinite takes twenty times as long for this dtype.
        return not ((values.view(np.uint16) & 0x7FFF) >= 0x7C00).any()
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _check_booleans(name: str, values: NDArray[Any]) -> None:
    if values.dtype == np.bool_ and (values.view(np.uint8) > 1).any():
        raise WireError("not boolean", f"{shown(name)} has bytes other than 0 and 1")


def _transition_layout(
    described: Any, spec: EnvironmentSpec, count: int, frames: int
) -> list[_Column]:
    """Return the described columns if they are exactly those of a batch."""
    if not 0 < count <= MAX_TRANSITIONS:
        raise WireError("count", f"{count} transitions, not 1 to {MAX_TRANSITIONS}")
    if frames > (most := count * _MAX_FRAMES_PER_TRANSITION):
        raise WireError("count", f"{frames} frames for {count} transitions, at most {most}")
    expected: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
        name: (dtype, (count,)) for name, dtype in TRANSITION_COLUMNS.items()
    }
    if spec.frame_stack > 1:
        expected[HISTORY] = (_HISTORY_DTYPE, (frames,))
    layout = _column_list(described)
    if (names := {name for name, _, _ in layout}) != expected.keys():
        differing = ", ".join(shown(name) for name in sorted(names ^ expected.keys())[:3])
        raise WireError("columns", f"{differing} missing or not of this environment")
    for name, dtype, shape in layout:
        if dtype != expected[name][0]:
            raise WireError("dtype", f"{name} is {dtype}, not {expected[name][0]}")
        if shape != expected[name][1]:
            raise WireError("shape", f"{name} is {shape}, not {expected[name][1]}")
    return layout


def _transition_columns(
    header: Mapping[str, Any], spec: EnvironmentSpec, count: int, sizes: Sequence[int]
) -> dict[str, NDArray[Any]]:
    layout = _transition_layout(header.get("columns"), spec, count, sum(sizes))
    raw_bytes = natural(header, "raw_bytes")
    needed = sum(_array_bytes(dtype, shape) for _, dtype, shape in layout)
    if raw_bytes != needed:
        raise WireError("size", f"{raw_bytes} bytes claimed, the columns need {needed}")
    columns = _split(_decompress(*_codec_and_body(header, "body"), raw_bytes, "body"), layout)
    check_columns(columns, spec, sizes)
    return columns


def check_columns(
    columns: Mapping[str, NDArray[Any]], spec: EnvironmentSpec, sizes: Sequence[int]
) -> None:
    """Reject transitions that no network could learn from.

    Args:
        columns: columns of a TransitionBatch.
        spec: spec of its environment.
        sizes: number of frames of each of its blocks.

    Raises:
        WireError: a number is not finite or not in its range.
    """
    _check_range(columns, "action", "action", 0, spec.num_actions - 1)
    _check_range(columns, "n_step_return", "not finite", -_LARGEST_FLOAT, _LARGEST_FLOAT)
    _check_range(columns, "discount", "discount", 0, 1)
    _check_range(columns, "priority", "priority", 0, _LARGEST_FLOAT)
    for name in ("observation_index", "bootstrap_index"):
        _check_range(columns, name, "index", 0, sum(sizes) - 1)
    if spec.frame_stack > 1:
        _check_history(columns[HISTORY], sizes, spec.frame_stack)


def _check_range(
    columns: Mapping[str, NDArray[Any]], name: str, reason: Reason, low: float, high: float
) -> None:
    values = columns[name]
    # Two quick passes for the least and the greatest value; a NaN also fails them.
    if low <= values.min() and values.max() <= high:
        return
    number = int(np.argmin((values >= low) & (values <= high)))
    value = values[number].item()
    raise WireError(
        reason if math.isfinite(value) else "not finite",
        f"{name} of transition {number} is {value}, not in {low:g}..{high:g}",
    )


def _check_history(history: NDArray[Any], sizes: Sequence[int], stack: int) -> None:
    if history.max() >= stack:
        raise WireError("history", f"{history.max()} earlier frames in a stack of {stack}")
    # A stack lies within one block, because replay unpacks blocks independently.
    firsts = np.cumsum([0, *sizes[:-1]], dtype=np.intp)
    if history[firsts].any() or (history[1:] > history[:-1] + 1).any():
        raise WireError("history", "a stack reaches beyond the frames that belong together")


def _codec_and_body(content: Mapping[str, Any], where: str) -> tuple[str, bytes]:
    codec, body = content.get("codec"), content.get("body")
    if not isinstance(codec, str):
        raise WireError("codec", f"{where} has {shown(codec)}")
    if not isinstance(body, bytes):
        raise WireError("malformed", f"{where} is {shown(body)}, not bytes")
    return codec, body


def _buffer(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _joined(arrays: Sequence[NDArray[Any]]) -> bytes | memoryview:
    """Join arrays one after another; a single one is not copied."""
    if len(arrays) == 1:
        return _buffer(arrays[0])
    return b"".join(_buffer(array) for array in arrays)


def _split(raw: bytes | memoryview, layout: Iterable[_Column]) -> dict[str, NDArray[Any]]:
    """Split ``raw`` into arrays that lie in it one after another."""
    arrays: dict[str, NDArray[Any]] = {}
    offset = 0
    for name, dtype, shape in layout:
        arrays[name] = np.frombuffer(raw, dtype, math.prod(shape), offset).reshape(shape)
        offset += arrays[name].nbytes
    return arrays


def _compress(raw: bytes | memoryview) -> tuple[str, bytes]:
    """Compress, unless a sample of the payload shows that it is not worthwhile."""
    compressor = _zstandard.compressor
    middle = max(0, len(raw) // 2 - _PROBE_BYTES // 2)
    probe = raw[middle : middle + _PROBE_BYTES]
    compressed = compressor.compress(probe)
    if len(compressed) > _WORTHWHILE_SHARE * len(probe):
        return "none", bytes(raw)
    return "zstd", compressed if len(probe) == len(raw) else compressor.compress(raw)


def _decompress(
    codec: str, body: bytes | memoryview, raw_bytes: int, where: str
) -> bytes | memoryview:
    if codec == "none":
        if len(body) != raw_bytes:
            raise WireError("size", f"{where} has {len(body)} bytes, {raw_bytes} claimed")
        return memoryview(body).toreadonly()
    if codec != "zstd":
        raise WireError("codec", f"{where} has {shown(codec)}, not 'zstd' or 'none'")
    try:
        # The decompressor would allocate the frame's own claim: compare it first.
        if (claim := zstandard.frame_content_size(body)) != raw_bytes:
            raise WireError("size", f"{where} unpacks to {claim} bytes, {raw_bytes} claimed")
        raw = _zstandard.decompressor.decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError("corrupt", f"{where}: {error!s:.80}") from None
    if len(raw) != raw_bytes:
        raise WireError("size", f"{where} unpacked to {len(raw)} bytes, {raw_bytes} claimed")
    return raw
