"""Thousands of hostile messages: each is decoded exactly, or refused for a known reason.

``make test`` tries a fifth of the random ones, and ``make test-slow`` all of them.
``benchmarks/fuzz_wire.py`` searches longer, guided by the code's reaction to the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pdqn import parameters, wire
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TransitionBatch, WireError
from replay.samples import (
    SampleAnswer,
    SampleRequest,
    SlotLayout,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
)
from replay.sharding import ShardState, Tally
from replay.shared_memory import TOKEN_BYTES, MemoryAddress

RUN = "run-1"
SPECS = (
    EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2),
    EnvironmentSpec(
        "test/Maps-v0",
        (
            FieldSpec("action_mask", (9,), "int8", binary=True),
            FieldSpec("map", (3, 3), "float16"),
            FieldSpec("radius", (1,), "float32"),
        ),
        num_actions=9,
    ),
    EnvironmentSpec("test/Images-v0", (FieldSpec("observation", (5, 7), "uint8"),), 4).stacked(4),
    EnvironmentSpec(
        "test/Nested-v0",
        (
            FieldSpec("camera.left.depth", (2, 2), "float64"),
            FieldSpec("camera.left.lit", (2, 2), "bool"),
            FieldSpec("position", (2,), "int16"),
        ),
        3,
    ).stacked(2),
    EnvironmentSpec(
        "test/Scalars-v0",
        (
            FieldSpec("direction", (2,), "int64", categories=(3, 300), start=(-1, 0)),
            FieldSpec("flag", (), "bool"),
            FieldSpec("half", (), "float16"),
            FieldSpec("level", (), "uint64"),
        ),
        3,
    ),
)


def batch_of(spec: EnvironmentSpec, count: int, sizes: tuple[int, ...]) -> TransitionBatch:
    """Build random transitions over blocks with these numbers of frames, a segment for each."""
    rng = np.random.default_rng(0)
    frames = sum(sizes)
    columns: dict[str, np.ndarray] = {
        "action": rng.integers(0, spec.num_actions, count, np.int32),
        "n_step_return": rng.normal(size=count).astype(np.float32),
        "discount": rng.choice([0, 0.5, 1], count).astype(np.float32),
        "priority": rng.exponential(size=count).astype(np.float32),
        "observation_index": rng.integers(0, frames, count, np.int32),
        "bootstrap_index": rng.integers(0, frames, count, np.int32),
    }
    if spec.frame_stack > 1:
        positions = np.concatenate([np.arange(size) for size in sizes])
        columns[wire.HISTORY] = np.minimum(positions, spec.frame_stack - 1).astype(np.uint8)
    blocks = [
        wire.compress_block(
            {f.name: f.pack(rng.integers(0, 2, (size, *f.shape))) for f in spec.fields}, spec
        )
        for size in sizes
    ]
    return TransitionBatch(RUN, 3, 1, 17, 4000, columns, blocks)


BATCHES = tuple(
    (spec, batch_of(spec, count, sizes))
    for spec in SPECS
    for count, sizes in ((1, (1,)), (5, (2, 4)), (40, (30, 1, 10)))
)
TRANSITIONS = tuple((spec, wire.encode_transitions(batch)) for spec, batch in BATCHES)
ARRAYS = {
    "keys": np.arange(3),
    "map": np.linspace(0, 1, 12, dtype=np.float16).reshape(2, 3, 2),
    "mask": np.array([[True, False]]),
    "scalar": np.array(2.5, np.float32),
    "none": np.empty((0, 7), np.uint8),
}
ARRAYS_MESSAGE = wire.encode_arrays("anything", {"x": 1}, ARRAYS)
PARAMETERS = parameters.encode(
    parameters.Parameters(
        RUN,
        1,
        7,
        {
            "layer.weight": torch.arange(6, dtype=torch.float32).reshape(3, 2),
            "scale": torch.tensor(0.5),
            "nothing": torch.empty(0, 4),
        },
    )
)
BATCH_SIZE = 16
SLOTS = SlotLayout(SPECS[0], BATCH_SIZE, 3)
REQUESTS = tuple(
    encode_request(
        SampleRequest(
            request=5,
            batch_size=BATCH_SIZE,
            rows=rows,
            start=2,
            slot=slot,
            memory=None if slot is None else MemoryAddress(99, 7, bytes(TOKEN_BYTES), SLOTS.nbytes),
            learner_steps=1000,
            tally=None if slot is None else Tally(1, 2, 3, 4, 5.5),
            keys=np.arange(rows),
            priorities=np.linspace(0, 1, rows, dtype=np.float32),
        )
    )
    for rows, slot in ((0, None), (4, None), (BATCH_SIZE - 2, 2))
)
ANSWERS = tuple(
    encode_answer(
        SampleAnswer(5, 4, 2, slot, "", ShardState(0, 10, 20, 10, 3.5, 30, 40, -2.5), waiting)
    )
    for slot, waiting in ((None, ()), (2, (3, 4)))
)

# The number of cases of each test below. A test asserts the sum, so it cannot shrink unnoticed.
CASES: dict[str, int] = {}
QUICK = 5


def fuzz(
    cases: int, *examples: dict[str, Any], **strategies: st.SearchStrategy[Any]
) -> Callable[..., Any]:
    """Decorate a test to run with ``cases`` random cases and the examples before them.

    It is two tests: a slow one of all cases, and one of a share of them.
    """

    def decorate(test: Callable[..., None]) -> Callable[[int], None]:
        @pytest.mark.parametrize(
            "cases",
            [cases // QUICK, pytest.param(cases, marks=pytest.mark.slow)],
            ids=["quick", "all"],
        )
        def run(cases: int) -> None:
            done = 0

            def case(**drawn: Any) -> None:
                nonlocal done
                done += 1
                test(**drawn)

            for drawn in examples:
                case = example(**drawn)(case)
            quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
            limits = settings(deadline=None, max_examples=cases, suppress_health_check=quiet)
            limits(given(**strategies)(case))()
            assert done >= cases

        CASES[test.__name__] = cases
        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


def outcome(decode: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result or the WireError of a decoder; any other error fails the test."""
    try:
        return decode(*arguments)
    except WireError as caught:
        error = caught
    assert error.reason in wire.REASONS
    assert 0 <= error.count <= wire.MAX_TRANSITIONS
    assert len(str(error)) < 300
    return error


def check_batch(batch: TransitionBatch, spec: EnvironmentSpec) -> None:
    """Check everything that a buffer relies on, and that the batch can be sent on unchanged."""
    expected = dict(wire.TRANSITION_COLUMNS)
    if spec.frame_stack > 1:
        expected[wire.HISTORY] = np.dtype(np.uint8)
    assert {name: column.dtype for name, column in batch.columns.items()} == expected
    for name, column in batch.columns.items():
        length = batch.frames if name == wire.HISTORY else batch.count
        assert column.shape == (length,)
        assert column.dtype.kind != "f" or np.isfinite(column).all()
    columns = batch.columns
    assert ((columns["action"] >= 0) & (columns["action"] < spec.num_actions)).all()
    assert ((columns["discount"] >= 0) & (columns["discount"] <= 1)).all()
    assert (columns["priority"] >= 0).all()
    for name in ("observation_index", "bootstrap_index"):
        assert ((columns[name] >= 0) & (columns[name] < batch.frames)).all()
    if spec.frame_stack > 1:
        positions = np.concatenate([np.arange(block.count) for block in batch.blocks])
        assert (columns[wire.HISTORY] <= np.minimum(positions, spec.frame_stack - 1)).all()
    for block in batch.blocks:
        assert block.count > 0
        assert list(block.fields) == [field.name for field in spec.fields]
        for field in spec.fields:
            values = block.fields[field.name]
            assert values.dtype == field.stored_dtype
            assert values.shape == (block.count, *field.stored_shape)
            assert values.dtype.kind != "f" or np.isfinite(values).all()
            assert values.dtype != bool or set(values.tobytes()) <= {0, 1}
    assert_equal(wire.decode_transitions(wire.encode_transitions(batch), spec, RUN), batch)


def assert_equal(again: TransitionBatch, batch: TransitionBatch) -> None:
    names = ("run", "actor", "incarnation", "sequence", "parameter_version")
    assert [getattr(again, n) for n in names] == [getattr(batch, n) for n in names]
    assert again.columns.keys() == batch.columns.keys()
    for name, column in batch.columns.items():
        assert again.columns[name].tobytes() == column.tobytes()
    for block, original in zip(again.blocks, batch.blocks, strict=True):
        assert (block.codec, block.body) == (original.codec, original.body)
        for name, values in original.fields.items():
            assert block.fields[name].tobytes() == values.tobytes()


def try_transitions(data: bytes, spec: EnvironmentSpec) -> bool:
    """Decode a message of transitions, check it, and return False if it was refused."""
    batch = outcome(wire.decode_transitions, data, spec, RUN)
    if isinstance(batch, WireError):
        return False
    check_batch(batch, spec)
    return True


def try_control(data: bytes) -> None:
    message = outcome(wire.decode_control, data)
    if not isinstance(message, WireError):
        assert message["version"] == wire.PROTOCOL_VERSION
        assert isinstance(message["type"], str)
        # Nothing is nested too deeply for Python's own functions.
        repr(message)


def try_arrays(data: bytes) -> bool:
    decoded = outcome(wire.decode_arrays, data)
    if isinstance(decoded, WireError):
        return False
    header, arrays = decoded
    content = {k: v for k, v in header.items() if k not in ("version", "type", "columns")}
    again = wire.decode_arrays(wire.encode_arrays(header["type"], content, arrays))[1]
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        assert (again[name].dtype, again[name].shape) == (array.dtype, array.shape)
        assert again[name].tobytes() == array.tobytes()
        assert array.dtype != bool or set(array.tobytes()) <= {0, 1}
    return True


def try_parameters(data: bytes) -> bool:
    decoded = outcome(parameters.decode, data)
    if isinstance(decoded, WireError):
        return False
    assert decoded.generation >= 0
    assert decoded.parameter_version >= 0
    assert isinstance(decoded.run, str)
    assert all(tensor.dtype == torch.float32 for tensor in decoded.tensors.values())
    again = parameters.decode(parameters.encode(decoded))
    assert list(again.tensors) == list(decoded.tensors)
    for name, tensor in decoded.tensors.items():
        assert again.tensors[name].shape == tensor.shape
        assert again.tensors[name].numpy().tobytes() == tensor.numpy().tobytes()
    return True


def try_request(data: bytes) -> bool:
    request = outcome(decode_request, data, BATCH_SIZE, SLOTS)
    if isinstance(request, WireError):
        return False
    assert 0 <= request.start <= request.start + request.rows <= BATCH_SIZE
    assert len(request.keys) == len(request.priorities)
    assert request.slot is None or 0 <= request.slot < SLOTS.count
    assert request.memory is None or request.memory.nbytes == SLOTS.nbytes
    again = decode_request(encode_request(request), BATCH_SIZE, SLOTS)
    for name, value in vars(request).items():
        same = vars(again)[name]
        if isinstance(value, np.ndarray):
            assert same.tobytes() == value.tobytes()
        else:
            assert same == value
    return True


def try_answer(data: bytes) -> bool:
    answer = outcome(decode_answer, data)
    if isinstance(answer, WireError):
        return False
    assert decode_answer(encode_answer(answer)) == answer
    return True


def try_everywhere(data: bytes) -> None:
    for spec in SPECS:
        assert not try_transitions(data, spec)
    try_control(data)
    for arrays in (data, len(data).to_bytes(4, "big") + data + b"12"):
        try_arrays(arrays)
        try_parameters(arrays)
    try_request(data)
    try_answer(data)


def packed(message: Any) -> bytes:
    data = msgpack.packb(message)
    assert data is not None
    return data


def copied(value: Any) -> Any:
    """Copy deeply, without recursion in Python."""
    return msgpack.unpackb(packed(value))


def nested(depth: int) -> Any:
    value: Any = None
    for _ in range(depth):
        value = [value]
    return value


KEYS = (
    *msgpack.unpackb(TRANSITIONS[0][1]), *msgpack.unpackb(REQUESTS[0]),
    *msgpack.unpackb(ANSWERS[0]), "frames", "name", "dtype", "shape",
)  # fmt: skip
NUMBERS = (
    -(1 << 63), -(1 << 31), -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 24, 41, 255, 256, 1 << 16,
    (1 << 30) - 1, 1 << 31, 1 << 32, 1 << 61, 1 << 62, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
plain = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.sampled_from(
        ["int32", "float32", "uint8", "bool", "object", ">i4", "zstd", "none", "action", RUN]
    )
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=6))
    | st.sampled_from([31, 32, 33, 150]).map(nested)
)
structures = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=6,
)


@st.composite
def edited(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw the bytes with some of them flipped, inserted, deleted or repeated, or cut off."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        value = draw(st.binary(min_size=1, max_size=4))
        kind = draw(st.integers(0, 5))
        if kind <= 1:
            data[at : at + len(value)] = value
        elif kind == 2:
            data[at:at] = value
        elif kind == 3:
            del data[at : at + len(value)]
        elif kind == 4:
            data[at:at] = data[at : at + 16 * len(value)]
        else:
            del data[at:]
    return bytes(data)


def places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a structure."""
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in items:
        yield container, key
        if isinstance(value, dict | list) and len(value) < 100:
            yield from places(value)


def spoil_bytes(draw: st.DrawFn, body: bytes) -> bytes:
    """Draw other bytes in place of a body: longer, shorter, changed, or compressed somehow."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return body + draw(st.binary(min_size=1, max_size=4))
    if kind == 1:
        return body[: draw(st.integers(0, len(body)))]
    if kind <= 3:
        return draw(edited(body))
    if kind == 4:
        return draw(st.binary(max_size=40))
    if kind == 5:
        return zstandard.ZstdCompressor(write_content_size=False).compress(body)
    if kind == 6:
        return zstandard.ZstdCompressor(write_checksum=True).compress(body)
    if kind == 7:
        return zstandard.compress(body) + zstandard.compress(b"")
    if kind == 8:  # a frame to be skipped, before a real one
        return b"\x50\x2a\x4d\x18\x02\0\0\0ab" + zstandard.compress(body)
    return zstandard.compress(bytes(1 << draw(st.integers(0, 20))))


def spoil_number(draw: st.DrawFn, number: int) -> int:
    changed = number + draw(st.sampled_from([-2, -1, 1, 2, number, -2 * number, *NUMBERS]))
    return min(max(changed, -(1 << 63)), (1 << 64) - 1)


def spoil_value(draw: st.DrawFn, value: Any) -> Any:
    """Draw something similar to the value."""
    if isinstance(value, bytes):
        return spoil_bytes(draw, value)
    if type(value) is int:
        return spoil_number(draw, value)
    if isinstance(value, list) and value:
        at = draw(st.integers(0, len(value) - 1))
        return value[:at] + value[at : at + 1] * draw(st.sampled_from([0, 2, 3, 1100]))
    return draw(plain)


@st.composite
def changed(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw a message with a few values replaced, removed, exchanged or spoiled."""
    message = msgpack.unpackb(original)
    for _ in range(draw(st.integers(1, 2))):
        found = list(places(message))
        if not found:
            break
        container, key = found[draw(st.integers(0, len(found) - 1))]
        other, other_key = found[draw(st.integers(0, len(found) - 1))]
        kind = draw(st.integers(0, 7))
        if kind == 0:
            container[key] = draw(structures)
        elif kind == 1:
            del container[key]
        elif kind == 2:  # copied, so that no structure contains itself
            container[key] = copied(other[other_key])
        elif kind == 3:
            value = copied(container[key])
            container[key] = copied(other[other_key])
            other[other_key] = value
        elif kind == 4 and isinstance(container, list):
            container.insert(key, copied(other[other_key]))
        else:
            container[key] = spoil_value(draw, container[key])
    return packed(message)


@fuzz(
    1500,
    {"data": b"\xc7\x00\xff"},  # a timestamp without bytes
    {"data": b"\xd7\xff" + b"\xff" * 8},  # a timestamp with too many nanoseconds
    {"data": b"\x81\xc0\xc0"},  # a key that is not a text
    {"data": b"\x81\x80\xc0"},  # a key that cannot be hashed
    {"data": b"\xa2\xff\xff"},  # a text that is not UTF-8
    {"data": b"\xc1"},  # never used
    data=st.binary(max_size=200),
)
def test_any_bytes_are_refused(data):
    try_everywhere(data)


@fuzz(
    600,
    {"message": {"version": wire.PROTOCOL_VERSION, "type": "transitions"}},
    {"message": {"version": wire.PROTOCOL_VERSION, "type": "x", "columns": [{"name": "a"}]}},
    message=structures | st.dictionaries(st.sampled_from(KEYS), structures, max_size=8),
)
def test_any_structure_is_refused_or_a_control_message(message):
    try_everywhere(packed(message))


@fuzz(
    700,
    content=st.dictionaries(st.sampled_from(KEYS), structures, max_size=8),
    spec=st.sampled_from(SPECS),
)
def test_any_content_behind_a_good_beginning_is_refused(content, spec):
    good = {"version": wire.PROTOCOL_VERSION, "run": RUN}
    assert not try_transitions(packed(content | good | {"type": "transitions"}), spec)
    assert not try_request(packed(content | good | {"type": "request"}))
    try_answer(packed(content | good | {"type": "sample"}))
    header = packed(content | good | {"type": "parameters"})
    try_arrays(len(header).to_bytes(4, "big") + header)
    try_parameters(len(header).to_bytes(4, "big") + header)


def chosen(mutation: Callable[[bytes], st.SearchStrategy[bytes]]) -> st.SearchStrategy[Any]:
    """Draw a spec and a spoiled message of it."""
    return st.sampled_from(TRANSITIONS).flatmap(
        lambda pair: st.tuples(st.just(pair[0]), mutation(pair[1]))
    )


@fuzz(3500, message=chosen(edited))
def test_transitions_whose_bytes_were_corrupted_are_refused_or_whole(message):
    spec, data = message
    try_transitions(data, spec)


@fuzz(6500, message=chosen(changed))
def test_transitions_whose_values_were_changed_are_refused_or_whole(message):
    spec, data = message
    try_transitions(data, spec)


@st.composite
def overwritten(draw: st.DrawFn) -> tuple[EnvironmentSpec, bytes]:
    """Draw a well-formed batch with a few bytes of columns or frames overwritten."""
    spec, batch = draw(st.sampled_from(BATCHES))
    columns = {name: column.copy() for name, column in batch.columns.items()}
    frames = [{n: array.copy() for n, array in b.fields.items()} for b in batch.blocks]
    arrays = [array for part in (columns, *frames) for array in part.values() if array.size]
    for _ in range(draw(st.integers(1, 3))):
        raw = arrays[draw(st.integers(0, len(arrays) - 1))].reshape(-1).view(np.uint8)
        at = draw(st.integers(0, len(raw) - 1))
        value = draw(st.sampled_from([b"\0", b"\1", b"\xff", b"\0\0\x80\x7f"]) | st.binary())
        raw[at : at + len(value)] = np.frombuffer(value, np.uint8)[: len(raw) - at]
    blocks = [wire.compress_block(fields, spec) for fields in frames]
    again = TransitionBatch(RUN, 3, 1, 17, 4000, columns, blocks)
    return spec, wire.encode_transitions(again)


@fuzz(2500, message=overwritten())
def test_values_in_columns_and_frames_are_refused_or_as_they_may_be(message):
    spec, data = message
    if not try_transitions(data, spec):
        error = outcome(wire.decode_transitions, data, spec, RUN)
        assert error.reason in {
            "not finite", "not boolean", "category", "action", "discount", "priority", "index",
            "history",
        }  # fmt: skip


@fuzz(500, which=st.sampled_from(TRANSITIONS), share=st.floats(0, 1, exclude_max=True))
def test_truncated_transitions_are_refused(which, share):
    spec, data = which
    error = outcome(wire.decode_transitions, data[: int(share * len(data))], spec, RUN)
    assert isinstance(error, WireError)
    assert error.reason == "malformed"


def test_transitions_of_another_environment_are_refused():
    for own, data in TRANSITIONS:
        for spec in SPECS:
            assert try_transitions(data, spec) == (spec == own)


@st.composite
def with_changed_header(draw: st.DrawFn, original: bytes) -> bytes:
    """Draw an arrays message with a changed header, and perhaps a changed length and body."""
    length = int.from_bytes(original[:4], "big")
    header = draw(changed(original[4 : 4 + length]))
    length = draw(st.just(len(header)) | st.sampled_from([0, 1, 1 << 20, (1 << 32) - 1]))
    body = draw(st.just(original[4 + length :]) | st.binary(max_size=40))
    return length.to_bytes(4, "big") + header + body


@fuzz(2000, data=edited(ARRAYS_MESSAGE) | with_changed_header(ARRAYS_MESSAGE))
def test_corrupted_arrays_are_refused_or_whole(data):
    try_arrays(data)


@fuzz(2500, data=edited(PARAMETERS) | with_changed_header(PARAMETERS))
def test_corrupted_parameters_are_refused_or_whole(data):
    try_parameters(data)


@fuzz(1500, data=st.sampled_from(REQUESTS).flatmap(lambda data: edited(data) | changed(data)))
def test_corrupted_requests_are_refused_or_whole(data):
    try_request(data)


@fuzz(1000, data=st.sampled_from(ANSWERS).flatmap(lambda data: edited(data) | changed(data)))
def test_corrupted_answers_are_refused_or_whole(data):
    try_answer(data)


def test_what_the_other_tests_corrupt_is_accepted_as_it_is():
    for spec, data in TRANSITIONS:
        assert try_transitions(data, spec)
    assert try_arrays(ARRAYS_MESSAGE)
    assert try_parameters(PARAMETERS)
    assert all(try_request(data) for data in REQUESTS)
    assert all(try_answer(data) for data in ANSWERS)


def test_there_are_at_least_twenty_thousand_cases():
    assert sum(CASES.values()) >= 20_000
