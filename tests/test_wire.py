"""Bytes: what goes round, what is refused and why; hostile bytes cost and crash nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pdqn import wire
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TransitionBatch, WireError, decode_transitions, encode_transitions

RUN = "run-1"
VECTOR = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2)
# The shape of circle placement, smaller.
MAPS = EnvironmentSpec(
    "test/Maps-v0",
    (
        FieldSpec("action_mask", (36,), "int8", binary=True),
        FieldSpec("map", (6, 6), "float16"),
        FieldSpec("placed", (20,), "int8", binary=True),
        FieldSpec("progress", (2,), "float32"),
        FieldSpec("radii", (20,), "float32"),
        FieldSpec("radius", (1,), "float32"),
    ),
    num_actions=36,
    headline_metric="coverage",
)
# Every reason that a message of transitions can be refused for; they are counted by these names.
REASONS = {
    "too large", "malformed", "version", "type", "other run", "columns", "dtype", "shape", "count",
    "size", "codec", "corrupt", "not finite", "priority", "discount", "action", "index",
}  # fmt: skip
MEGABYTE = 1 << 20


def batch_of(spec: EnvironmentSpec, count: int = 5, frames: int = 6) -> TransitionBatch:
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {
        "action": rng.integers(0, spec.num_actions, count, np.int32),
        "n_step_return": rng.normal(size=count).astype(np.float32),
        "discount": rng.choice([0, 0.5, 1], count).astype(np.float32),
        "priority": rng.exponential(size=count).astype(np.float32),
        "observation_index": rng.integers(0, frames, count, np.int32),
        "bootstrap_index": rng.integers(0, frames, count, np.int32),
    }
    for field in spec.fields:
        values = rng.integers(0, 2, (frames, *field.shape)).astype(field.dtype)
        columns["observation." + field.name] = field.pack(values)
    return TransitionBatch(RUN, 3, 1, 17, 4000, columns)


def with_frames(frames: np.ndarray) -> TransitionBatch:
    batch = batch_of(VECTOR, count=10, frames=len(frames))
    batch.columns["observation.observation"] = frames
    return batch


def message_of(spec: EnvironmentSpec = VECTOR, **batch: Any) -> dict[str, Any]:
    """A good message, unpacked, with its body uncompressed."""
    message = msgpack.unpackb(encode_transitions(batch_of(spec, **batch)))
    if message["codec"] == "zstd":
        message["body"] = zstandard.ZstdDecompressor().decompress(message["body"])
        message["codec"] = "none"
    return message


def packed(message: Any) -> bytes:
    data = msgpack.packb(message)
    assert data is not None
    return data


def error_of(data: bytes, spec: EnvironmentSpec = VECTOR) -> WireError:
    with pytest.raises(WireError) as caught:
        decode_transitions(data, spec, RUN)
    assert caught.value.reason in REASONS
    return caught.value


@contextmanager
def at_most_allocated(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


class TestTransitions:
    @pytest.mark.parametrize("spec", [VECTOR, MAPS], ids=lambda spec: spec.id)
    @pytest.mark.parametrize(("count", "frames"), [(1, 1), (5, 6), (1000, 1003)])
    def test_a_batch_goes_round_bit_by_bit(self, spec, count, frames):
        batch = batch_of(spec, count, frames)
        decoded = decode_transitions(memoryview(encode_transitions(batch)), spec, RUN)
        assert (decoded.run, decoded.actor, decoded.incarnation) == (RUN, 3, 1)
        assert (decoded.sequence, decoded.parameter_version, decoded.count) == (17, 4000, count)
        assert decoded.columns.keys() == batch.columns.keys()
        for name, column in batch.columns.items():
            np.testing.assert_array_equal(decoded.columns[name], column)
            assert decoded.columns[name].dtype == column.dtype

    def test_columns_need_not_be_contiguous(self):
        batch = batch_of(VECTOR)
        observations = batch.columns["observation.observation"]
        batch.columns["observation.observation"] = np.asfortranarray(observations)
        batch.columns["action"] = np.repeat(batch.columns["action"], 2)[::2]
        decoded = decode_transitions(encode_transitions(batch), VECTOR, RUN)
        np.testing.assert_array_equal(decoded.columns["observation.observation"], observations)
        np.testing.assert_array_equal(decoded.columns["action"], batch.columns["action"])

    def test_what_compresses_is_compressed(self):
        zeros = np.zeros((1000, 4), np.float32)
        data = encode_transitions(with_frames(zeros))
        assert msgpack.unpackb(data)["codec"] == "zstd"
        assert len(data) < 1500

    def test_what_does_not_compress_is_sent_as_it_is(self):
        noise = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
        data = encode_transitions(with_frames(noise))
        message = msgpack.unpackb(data)
        assert message["codec"] == "none"
        assert len(message["body"]) == message["raw_bytes"] == 16_000 + 10 * 24

    def test_the_header_says_what_the_page_says(self):
        message = msgpack.unpackb(encode_transitions(batch_of(VECTOR)))
        assert list(message) == [
            "version", "type", "run", "actor", "incarnation", "sequence", "parameter_version",
            "count", "codec", "raw_bytes", "columns", "body",
        ]  # fmt: skip
        assert {"name": "observation.observation", "dtype": "float32", "shape": [6, 4]} in message[
            "columns"
        ]


def column(message: dict[str, Any], name: str) -> dict[str, Any]:
    return next(column for column in message["columns"] if column["name"] == name)


def change(**values: Any) -> Callable[[dict[str, Any]], None]:
    """A change of header fields."""
    return lambda message: message.update(values)


def shape(name: str, *dimensions: Any) -> Callable[[dict[str, Any]], None]:
    return lambda message: column(message, name).update(shape=list(dimensions))


def dtype(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda message: column(message, name).update(dtype=value)


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda message: message.pop(key)


def without_column(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda message: message["columns"].remove(column(message, name))


def extra_column(name: Any) -> Callable[[dict[str, Any]], None]:
    added = {"name": name, "dtype": "float32", "shape": [5]}
    return lambda message: message["columns"].append(added)


FRAMES = "observation.observation"


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("version", change(version=2)),
        ("version", change(version="1")),
        ("version", without("version")),
        ("type", change(type="sample")),
        ("malformed", change(type=3)),
        ("malformed", without("type")),
        ("other run", change(run="run-2")),
        ("other run", change(run=["run-1"])),
        ("other run", without("run")),
        ("malformed", change(actor=-1)),
        ("malformed", change(actor="3")),
        ("malformed", change(actor=True)),
        ("malformed", change(actor=None)),
        ("malformed", change(actor=1 << 32)),
        ("malformed", change(incarnation=1 << 32)),
        ("malformed", change(sequence=1 << 62)),
        ("malformed", change(sequence=1.0)),
        ("malformed", without("parameter_version")),
        ("malformed", change(raw_bytes=-1)),
        ("malformed", change(count=-5)),
        ("malformed", change(body="text")),
        ("malformed", without("body")),
        ("count", change(count=0)),
        ("count", change(count=wire.MAX_TRANSITIONS + 1)),
        ("count", shape(FRAMES, 0, 4)),
        ("count", shape(FRAMES, 1 << 20, 4)),
        ("count", without_column(FRAMES)),
        ("count", change(columns=[])),
        ("codec", change(codec="gzip")),
        ("codec", change(codec=[])),
        ("codec", without("codec")),
        ("size", change(raw_bytes=1)),
        ("size", change(raw_bytes=(1 << 62) - 1)),
        ("size", change(body=b"")),
        ("size", lambda message: message.update(body=message["body"] + b"\0")),
        ("corrupt", change(codec="zstd")),
        ("corrupt", change(codec="zstd", body=b"")),
        ("columns", change(columns=None)),
        ("columns", change(columns={})),
        ("columns", change(columns=["action"])),
        ("columns", change(columns=[{}] * 257)),
        ("columns", extra_column("reward")),
        ("columns", extra_column("action")),
        ("columns", extra_column(None)),
        ("columns", without_column("priority")),
        ("dtype", dtype("action", "int64")),
        ("dtype", dtype("action", ">i4")),
        ("dtype", dtype("action", "object")),
        ("dtype", dtype("action", "S4")),
        ("dtype", dtype("action", None)),
        ("dtype", dtype("action", ["int32"])),
        ("dtype", dtype(FRAMES, "int32")),
        ("shape", shape("action", 4)),
        ("shape", shape("action")),
        ("shape", shape("action", 5, 1)),
        ("shape", shape("action", -5)),
        ("shape", shape("action", 5.0)),
        ("shape", shape("action", True)),
        ("shape", shape("action", 1 << 31)),
        ("shape", shape("action", *[1] * 9)),
        ("shape", lambda message: column(message, "action").update(shape=5)),
        ("shape", shape(FRAMES, 6, 4, 1)),
        ("shape", shape(FRAMES, 4, 6)),
        ("shape", shape(FRAMES, 6, -4)),
        ("shape", shape(FRAMES, 6, 1 << 62)),
    ],
)
def test_a_header_that_does_not_fit_is_refused_for_the_reason(reason, spoil):
    message = message_of()
    spoil(message)
    assert error_of(packed(message)).reason == reason


def test_dimensions_whose_product_overflows_64_bits_are_refused():
    # 2**30 * 2**30 * 2**4 elements of 4 bytes are 0 modulo 2**64.
    spec = EnvironmentSpec("x", (FieldSpec("observation", (2**30, 2**30), "float32"),), 2)
    message = message_of()
    message["count"] = 1
    for name in wire.TRANSITION_COLUMNS:
        column(message, name)["shape"] = [1]
    column(message, FRAMES)["shape"] = [16, 2**30, 2**30]
    for raw_bytes in (24, 0, message["raw_bytes"]):
        message["raw_bytes"] = raw_bytes
        assert error_of(packed(message), spec).reason == "size"


@pytest.mark.parametrize(
    ("reason", "name", "value"),
    [
        ("not finite", "n_step_return", np.nan),
        ("not finite", "n_step_return", -np.inf),
        ("not finite", "discount", np.nan),
        ("not finite", "priority", np.inf),
        ("priority", "priority", -1e-6),
        ("discount", "discount", 1.0001),
        ("discount", "discount", -0.1),
        ("action", "action", 2),
        ("action", "action", -1),
        ("index", "observation_index", 6),
        ("index", "observation_index", -1),
        ("index", "bootstrap_index", 6),
        ("index", "bootstrap_index", -(2**31)),
    ],
)
def test_one_value_that_cannot_be_is_enough_for_a_refusal(reason, name, value):
    batch = batch_of(VECTOR)
    batch.columns[name][3] = value
    error = error_of(encode_transitions(batch))
    assert error.reason == reason
    assert error.count == 5


def test_the_extremes_that_can_be_are_accepted():
    batch = batch_of(VECTOR)
    batch.columns["discount"][:2] = 0, 1
    batch.columns["priority"][:2] = 0, np.finfo(np.float32).max
    batch.columns["action"][:2] = 0, 1
    batch.columns["bootstrap_index"][:2] = 0, 5
    decode_transitions(encode_transitions(batch), VECTOR, RUN)


def test_a_refused_message_tells_how_many_transitions_it_had_if_it_says_so():
    message = message_of()
    message["codec"] = "gzip"
    assert error_of(packed(message)).count == 5
    message["run"] = "run-2"
    assert error_of(packed(message)).count == 0
    message = message_of() | {"count": 1 << 61}
    assert error_of(packed(message)).count == wire.MAX_TRANSITIONS


def test_a_batch_for_another_environment_is_refused():
    assert error_of(encode_transitions(batch_of(MAPS)), VECTOR).reason == "columns"
    assert error_of(encode_transitions(batch_of(VECTOR)), MAPS).reason == "columns"


def test_the_columns_may_come_in_any_order():
    message = message_of(count=1, frames=1)
    by_name = {}
    offset = 0
    for described in message["columns"]:
        size = 4 * int(np.prod(described["shape"]))
        by_name[described["name"]] = described, message["body"][offset : offset + size]
        offset += size
    reversed_names = sorted(by_name, reverse=True)
    message["columns"] = [by_name[name][0] for name in reversed_names]
    message["body"] = b"".join(by_name[name][1] for name in reversed_names)
    decoded = decode_transitions(packed(message), VECTOR, RUN)
    for name, values in batch_of(VECTOR, 1, 1).columns.items():
        np.testing.assert_array_equal(decoded.columns[name], values)


class TestHostileSizes:
    def test_a_message_beyond_the_limit_is_not_even_parsed(self):
        data = bytes(wire.MAX_TRANSITION_BYTES + 1)
        with at_most_allocated(MEGABYTE):
            assert error_of(data).reason == "too large"

    def test_a_gigabyte_of_zeros_compressed_to_a_few_kilobytes_is_not_unpacked(self):
        compressor = zstandard.ZstdCompressor(level=1)
        chunks = compressor.chunker(size=1 << 30)
        block = bytes(1 << 24)
        bomb = b"".join(part for _ in range(64) for part in chunks.compress(block))
        bomb += b"".join(chunks.finish())
        message = message_of() | {"codec": "zstd", "body": bomb}
        assert len(bomb) < MEGABYTE
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "size"
            assert error_of(packed(message | {"raw_bytes": 1 << 30})).reason == "size"

    def test_a_frame_that_hides_its_size_is_refused(self):
        message = message_of()
        hidden = zstandard.ZstdCompressor(write_content_size=False).compress(message["body"])
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message | {"codec": "zstd", "body": hidden})).reason == "size"

    def test_a_frame_that_claims_less_than_it_holds_is_refused(self):
        message = message_of()
        honest = zstandard.ZstdCompressor().compress(bytes(1 << 24))
        frame = zstandard.get_frame_parameters(honest)
        # The four bytes of the content size follow magic number and descriptor.
        claim = message["raw_bytes"].to_bytes(4, "little")
        start = honest.index((1 << 24).to_bytes(4, "little"))
        lying = honest[:start] + claim + honest[start + 4 :]
        assert frame.content_size == 1 << 24
        assert zstandard.frame_content_size(lying) == message["raw_bytes"]
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message | {"codec": "zstd", "body": lying})).reason == "corrupt"

    def test_two_frames_where_one_is_due_are_refused(self):
        message = message_of()
        frame = zstandard.ZstdCompressor().compress(message["body"])
        decode_transitions(packed(message | {"codec": "zstd", "body": frame}), VECTOR, RUN)
        assert error_of(packed(message | {"codec": "zstd", "body": frame * 2})).reason == "corrupt"

    def test_claims_of_raw_bytes_and_shapes_allocate_nothing(self):
        message = message_of() | {"count": wire.MAX_TRANSITIONS}
        for name in wire.TRANSITION_COLUMNS:
            column(message, name)["shape"] = [wire.MAX_TRANSITIONS]
        column(message, FRAMES)["shape"] = [wire.MAX_TRANSITIONS * 60, 4]
        message["raw_bytes"] = wire.MAX_TRANSITIONS * (24 + 60 * 16)
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "size"

    @pytest.mark.parametrize("head", [b"\xdd", b"\xdf"], ids=["arrays", "maps"])
    def test_nested_claims_of_many_elements_allocate_nothing(self, head):
        nested = (head + b"\x00\x0f\xff\xff" + b"\xa0" * (head == b"\xdf")) * 900
        with at_most_allocated(MEGABYTE):
            assert error_of(nested).reason == "malformed"
            assert error_of(nested + bytes(100_000)).reason == "malformed"

    def test_a_message_of_very_many_empty_maps_is_given_up_early(self):
        # A byte each on the wire, seventy in memory.
        maps = b"\xdc\x0f\x00" + b"\x80" * 0xF00
        data = b"\xdc\x0f\x00" + maps * 0xF00
        with at_most_allocated(8 * MEGABYTE):
            assert error_of(data).reason == "malformed"

    def test_very_deep_structures_are_refused(self):
        for opening in (b"\x91", b"\x81\xa1a"):
            assert error_of(opening * 100_000 + b"\xc0").reason == "malformed"

    def test_a_long_report_still_fits(self):
        content = {
            "episodes": [[1.5, 13, 0.25]] * 2000,
            "counters": {f"c{i}": 1 for i in range(500)},
        }
        decoded = wire.decode_control(wire.encode_control("telemetry", content))
        assert decoded["episodes"] == content["episodes"]


def outcome(decode: Callable[..., Any], *arguments: Any) -> Any:
    """What a decoder returns, or the WireError it raises; any other error is raised."""
    try:
        return decode(*arguments)
    except WireError as error:
        return error


def attempt(data: bytes, spec: EnvironmentSpec) -> None:
    """Only a whole batch or a WireError with a reason of the list may come of it."""
    batch = outcome(decode_transitions, data, spec, RUN)
    if isinstance(batch, WireError):
        assert batch.reason in REASONS
        assert 0 <= batch.count <= wire.MAX_TRANSITIONS
    else:
        frames = len(batch.columns["observation." + spec.fields[0].name])
        assert (batch.columns["action"] < spec.num_actions).all()
        assert (batch.columns["bootstrap_index"] < frames).all()


class Corpus:
    """Good messages, made once: compressed and not, of both environments."""

    messages = tuple(
        (spec, encode_transitions(batch_of(spec, count, count + 1)))
        for spec in (VECTOR, MAPS)
        for count in (1, 3, 40)
    )


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "insert", "delete", "repeat"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=1500)
@given(which=st.integers(0, len(Corpus.messages) - 1), edits=edits)
def test_corrupted_bytes_are_refused_or_harmless(which, edits):
    spec, original = Corpus.messages[which]
    data = bytearray(original)
    for kind, where, value in edits:
        at = int(where * len(data))
        if kind == "flip" and data:
            data[at] ^= value[0]
        elif kind == "insert":
            data[at:at] = value
        elif kind == "delete":
            del data[at : at + len(value)]
        else:
            data[at:at] = data[at : at + 16 * len(value)]
    attempt(bytes(data), spec)


@settings(deadline=None, max_examples=300)
@given(which=st.integers(0, len(Corpus.messages) - 1), share=st.floats(0, 1, exclude_max=True))
def test_truncated_bytes_are_refused(which, share):
    spec, original = Corpus.messages[which]
    assert error_of(original[: int(share * len(original))], spec).reason == "malformed"


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=6)
    | st.binary(max_size=6)
    | st.sampled_from(["int32", "float32", "object", "zstd", "none", "action", FRAMES, RUN, 5, 6])
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=6)),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6), inner, max_size=5)
    ),
    max_leaves=8,
)
KEYS = tuple(message_of())


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """A good message with a few fields, or fields of its columns, replaced by anything."""
    message = message_of()
    for _ in range(draw(st.integers(1, 3))):
        value = draw(plain)
        if draw(st.booleans()):
            message[draw(st.sampled_from(KEYS))] = value
        elif isinstance(message["columns"], list):
            at = draw(st.integers(0, 6))
            if at < len(message["columns"]) and isinstance(message["columns"][at], dict):
                message["columns"][at][draw(st.sampled_from(["name", "dtype", "shape"]))] = value
    return message


@settings(deadline=None, max_examples=800)
@given(message=spoiled())
def test_replaced_fields_are_refused_or_harmless(message):
    attempt(packed(message), VECTOR)


@settings(deadline=None, max_examples=400)
@given(message=plain | st.dictionaries(st.sampled_from(KEYS), plain))
@example(message={"version": 1, "type": "transitions"})
@example(message={"version": 1, "type": "control", "columns": [{"name": "a"}]})
def test_any_structure_is_refused_or_a_control_message(message):
    data = packed(message)
    error_of(data)
    for decoded in (outcome(wire.decode_control, data), outcome(wire.decode_arrays, [data, b"12"])):
        assert not isinstance(decoded, WireError) or decoded.reason in REASONS


@settings(deadline=None, max_examples=400)
@given(data=st.binary(max_size=200))
@example(data=b"\xc7\x00\xff")  # a timestamp of no size
@example(data=b"\xd7\xff" + b"\xff" * 8)  # a timestamp with too many nanoseconds
@example(data=b"\x81\xc0\xc0")  # a key that is no text
@example(data=b"\x81\x80\xc0")  # a key that cannot be hashed
@example(data=b"\xa2\xff\xff")  # a text that is no UTF-8
@example(data=b"\xc1")  # never used
def test_any_bytes_are_refused(data):
    error_of(data)
    with pytest.raises(WireError):
        wire.decode_control(data)
    with pytest.raises(WireError):
        wire.decode_arrays([data])


class TestControl:
    def test_plain_data_goes_round(self):
        content = {"a": [1, 2.5, None, True], "b": {"c": "text"}, "d": b"\0"}
        decoded = wire.decode_control(wire.encode_control("join", content))
        assert decoded == {"version": wire.PROTOCOL_VERSION, "type": "join", **content}

    def test_another_version_is_refused_by_number(self):
        data = packed({"version": 2, "type": "join"})
        with pytest.raises(WireError, match="2 where 1 is spoken") as caught:
            wire.decode_control(data)
        assert caught.value.reason == "version"

    def test_a_megabyte_is_the_limit(self):
        with pytest.raises(WireError) as caught:
            wire.decode_control(wire.encode_control("join", {"text": "x" * wire.MAX_CONTROL_BYTES}))
        assert caught.value.reason == "too large"

    @pytest.mark.parametrize("message", [None, 3, [], "join", {}, {"version": 1, "type": None}])
    def test_what_is_no_map_with_a_type_is_refused(self, message):
        with pytest.raises(WireError, match="no map with a type"):
            wire.decode_control(packed(message))


def arrays() -> dict[str, np.ndarray]:
    return {
        "keys": np.arange(3),
        "map": np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)[:, ::2],
        "mask": np.array([[True, False]]),
        "scalar": np.array(2.5, np.float32),
        "none": np.empty((0, 7), np.uint8),
    }


def frames_of(arrays: dict[str, np.ndarray]) -> list[bytes]:
    return [bytes(frame) for frame in wire.encode_arrays("sample", {"x": 1}, arrays)]


class TestArrays:
    def test_arrays_go_round_without_being_copied(self):
        sent = arrays()
        frames = frames_of(sent)
        header, received = wire.decode_arrays(frames)
        assert header["type"] == "sample"
        assert header["x"] == 1
        assert list(received) == list(sent)
        for (name, array), frame in zip(sent.items(), frames[1:], strict=True):
            np.testing.assert_array_equal(received[name], array)
            assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
            assert array.size == 0 or np.shares_memory(received[name], np.frombuffer(frame, "u1"))

    def test_the_frames_are_the_arrays_own_memory(self):
        keys = np.arange(3)
        frame = wire.encode_arrays("sample", {}, {"keys": keys})[1]
        assert np.shares_memory(np.frombuffer(frame, np.int64), keys)

    def test_no_arrays_are_a_header_alone(self):
        header, received = wire.decode_arrays(wire.encode_arrays("request", {}, {}))
        assert (header["columns"], received) == ([], {})

    @pytest.mark.parametrize(
        ("reason", "spoil"),
        [
            ("malformed", lambda frames: []),
            ("malformed", lambda frames: [bytes(wire.MAX_CONTROL_BYTES + 1), *frames[1:]]),
            ("columns", lambda frames: frames[:-1]),
            ("columns", lambda frames: [*frames, b""]),
            ("size", lambda frames: [frames[0], frames[1][:-1], *frames[2:]]),
            ("size", lambda frames: [frames[0], frames[1] + b"\0", *frames[2:]]),
        ],
    )
    def test_frames_that_the_header_does_not_describe_are_refused(self, reason, spoil):
        with pytest.raises(WireError) as caught:
            wire.decode_arrays(spoil(frames_of(arrays())))
        assert caught.value.reason == reason

    @settings(deadline=None, max_examples=300)
    @given(edits=edits)
    def test_a_corrupted_header_is_refused_or_harmless(self, edits):
        header, *buffers = frames_of(arrays())
        data = bytearray(header)
        for _, where, value in edits:
            data[int(where * len(data))] ^= value[0]
        decoded = outcome(wire.decode_arrays, [bytes(data), *buffers])
        assert not isinstance(decoded, WireError) or decoded.reason in REASONS

    def test_the_size_of_an_array_does_not_wrap_around(self):
        assert wire.array_bytes(np.dtype("int32"), (2**30, 2**30, 16)) == 2**66
        assert wire.array_bytes(np.dtype("float64"), ()) == 8
        assert wire.array_bytes(np.dtype("float64"), (3, 0)) == 0
