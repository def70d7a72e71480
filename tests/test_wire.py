"""Bytes: round trips and reasons for refusal; hostile bytes cost little and crash nothing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
import pytest
import zstandard

from pdqn import wire
from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import TransitionBatch, WireError, decode_transitions, encode_transitions

RUN = "run-1"
VECTOR = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2)
# Circle placement with smaller shapes.
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
IMAGES = EnvironmentSpec("test/Images-v0", (FieldSpec("observation", (5, 7), "uint8"),), 4).stacked(
    4
)
SCALARS = EnvironmentSpec(
    "test/Scalars-v0",
    (
        FieldSpec("flag", (), "bool"),
        FieldSpec("half", (), "float16"),
        FieldSpec("level", (), "uint64"),
        FieldSpec("reading", (), "float64"),
    ),
    3,
)
SPECS = [VECTOR, MAPS, IMAGES, SCALARS]
MEGABYTE = 1 << 20


def frames_of(spec: EnvironmentSpec, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        field.name: field.pack(rng.integers(0, 2, (count, *field.shape)).astype(field.dtype))
        for field in spec.fields
    }


def batch_of(
    spec: EnvironmentSpec, count: int = 5, blocks: tuple[int, ...] = (2, 4)
) -> TransitionBatch:
    """Build random transitions over blocks with these numbers of frames, a segment for each."""
    rng = np.random.default_rng(0)
    frames = sum(blocks)
    columns: dict[str, np.ndarray] = {
        "action": rng.integers(0, spec.num_actions, count, np.int32),
        "n_step_return": rng.normal(size=count).astype(np.float32),
        "discount": rng.choice([0, 0.5, 1], count).astype(np.float32),
        "priority": rng.exponential(size=count).astype(np.float32),
        "observation_index": rng.integers(0, frames, count, np.int32),
        "bootstrap_index": rng.integers(0, frames, count, np.int32),
    }
    if spec.frame_stack > 1:
        positions = np.concatenate([np.arange(size) for size in blocks])
        columns["history"] = np.minimum(positions, spec.frame_stack - 1).astype(np.uint8)
    compressed = [wire.compress_block(frames_of(spec, size, rng), spec) for size in blocks]
    return TransitionBatch(RUN, 3, 1, 17, 4000, columns, compressed)


def with_frames(frames: np.ndarray) -> TransitionBatch:
    batch = batch_of(VECTOR, count=10)
    batch.blocks[:] = [wire.compress_block({"observation": frames}, VECTOR)]
    return batch


def uncompressed(holder: dict[str, Any]) -> None:
    if holder["codec"] == "zstd":
        holder["body"] = zstandard.ZstdDecompressor().decompress(holder["body"])
        holder["codec"] = "none"


def message_of(spec: EnvironmentSpec = VECTOR, **batch: Any) -> dict[str, Any]:
    """Build a good message, unpacked, with all its bodies uncompressed."""
    message = msgpack.unpackb(encode_transitions(batch_of(spec, **batch)))
    for holder in (message, *message["blocks"]):
        uncompressed(holder)
    return message


def packed(message: Any) -> bytes:
    data = msgpack.packb(message)
    assert data is not None
    return data


def error_of(data: bytes, spec: EnvironmentSpec = VECTOR) -> WireError:
    with pytest.raises(WireError) as caught:
        decode_transitions(data, spec, RUN)
    assert caught.value.reason in wire.REASONS
    return caught.value


@contextmanager
def at_most_allocated(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def assert_equal(decoded: TransitionBatch, batch: TransitionBatch) -> None:
    names = ("run", "actor", "incarnation", "sequence", "parameter_version", "count", "frames")
    assert [getattr(decoded, n) for n in names] == [getattr(batch, n) for n in names]
    assert decoded.columns.keys() == batch.columns.keys()
    pairs = [(decoded.columns, batch.columns)]
    for block, original in zip(decoded.blocks, batch.blocks, strict=True):
        assert (block.codec, block.body) == (original.codec, original.body)
        assert (block.count, block.raw_bytes) == (original.count, original.raw_bytes)
        assert list(block.fields) == list(original.fields)
        pairs.append((block.fields, original.fields))
    for arrays, originals in pairs:
        for name, original in originals.items():
            np.testing.assert_array_equal(arrays[name], original)
            assert arrays[name].dtype == original.dtype
            assert not arrays[name].flags.writeable


class TestTransitions:
    @pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
    @pytest.mark.parametrize(
        ("count", "blocks"), [(1, (1,)), (5, (2, 4)), (1000, (1003,)), (400, (1, 200, 3, 300))]
    )
    def test_a_batch_goes_round_bit_by_bit(self, spec, count, blocks):
        batch = batch_of(spec, count, blocks)
        assert_equal(decode_transitions(memoryview(encode_transitions(batch)), spec, RUN), batch)

    def test_a_batch_says_what_its_stream_has_made(self):
        batch = dataclasses.replace(batch_of(VECTOR), made=70)
        message = encode_transitions(batch)
        assert decode_transitions(message, VECTOR, RUN).made == 70
        header = msgpack.unpackb(message)
        del header["made"]
        assert decode_transitions(packed(header), VECTOR, RUN).made == 0

    @pytest.mark.parametrize("made", [-1, 1 << 53, 70.0, None, "70"])
    def test_what_cannot_have_been_made_is_refused(self, made: Any):
        with pytest.raises(WireError, match="malformed: made is"):
            decode_transitions(packed(message_of() | {"made": made}), VECTOR, RUN)

    def test_a_refused_batch_says_what_its_stream_has_made_unless_that_is_impossible(self):
        message = message_of()
        message["body"] = b"damaged"
        for made, known in ((70, 70), (message["count"] - 1, 0)):
            with pytest.raises(WireError) as caught:
                decode_transitions(packed(message | {"made": made}), VECTOR, RUN)
            assert (caught.value.made, caught.value.count) == (known, message["count"])

    def test_arrays_need_not_be_contiguous(self):
        batch = batch_of(VECTOR)
        frames = np.arange(24, dtype=np.float32).reshape(6, 4)
        batch.blocks[:] = [
            wire.compress_block({"observation": np.asfortranarray(frames)}, VECTOR),
            wire.compress_block({"observation": frames[::2, ::-1]}, VECTOR),
        ]
        batch.columns["action"] = np.repeat(batch.columns["action"], 2)[::2]
        decoded = decode_transitions(encode_transitions(batch), VECTOR, RUN)
        np.testing.assert_array_equal(decoded.blocks[0].fields["observation"], frames)
        np.testing.assert_array_equal(decoded.blocks[1].fields["observation"], frames[::2, ::-1])
        np.testing.assert_array_equal(decoded.columns["action"], batch.columns["action"])

    def test_what_compresses_is_compressed(self):
        batch = with_frames(np.zeros((1000, 4), np.float32))
        assert batch.blocks[0].codec == "zstd"
        assert len(encode_transitions(batch)) < 1500

    @pytest.mark.parametrize("frames", [1, 10, 1000, 10_000])
    def test_what_does_not_compress_is_sent_as_it_is(self, frames):
        noise = np.random.default_rng(0).bytes(16 * frames)
        block = with_frames(np.frombuffer(noise, np.float32).reshape(frames, 4)).blocks[0]
        assert (block.codec, block.body, block.raw_bytes) == ("none", noise, 16 * frames)

    def test_whether_a_large_block_is_compressed_is_decided_by_its_middle(self):
        noise = np.random.default_rng(0).integers(0, 256, 160_000, np.uint8)
        frames = noise.view(np.float32).reshape(10_000, 4)
        assert wire.compress_block({"observation": frames}, VECTOR).codec == "none"
        frames[4000:6000] = 0
        assert wire.compress_block({"observation": frames}, VECTOR).codec == "zstd"

    def test_the_header_says_what_the_page_says(self):
        message = msgpack.unpackb(encode_transitions(batch_of(IMAGES)))
        assert list(message) == [
            "version", "type", "run", "actor", "incarnation", "ticket", "sequence",
            "made", "parameter_version", "count", "codec", "raw_bytes", "columns", "body", "blocks",
        ]  # fmt: skip
        assert [list(block) for block in message["blocks"]] == 2 * [
            ["frames", "codec", "raw_bytes", "body"]
        ]
        assert [block["frames"] for block in message["blocks"]] == [2, 4]
        assert [block["raw_bytes"] for block in message["blocks"]] == [70, 140]
        assert {"name": "history", "dtype": "uint8", "shape": [6]} in message["columns"]
        assert {"name": "action", "dtype": "int32", "shape": [5]} in message["columns"]
        assert len(message["columns"]) == 7

    def test_only_stacked_environments_have_a_history(self):
        assert "history" not in {c["name"] for c in message_of(VECTOR)["columns"]}

    def test_a_block_is_kept_and_unpacked_later_from_its_body_alone(self):
        for block in batch_of(MAPS, blocks=(3, 200)).blocks:
            fields = wire.decompress_block(block.codec, memoryview(block.body), block.count, MAPS)
            for name, values in block.fields.items():
                np.testing.assert_array_equal(fields[name], values)

    def test_a_block_in_memory_that_may_change_is_seen_but_not_changed(self):
        block = wire.compress_block({"observation": np.ones((1, 4), np.float32)}, VECTOR)
        arena = bytearray(16 if block.codec == "none" else 0)
        arena[:] = block.fields["observation"].tobytes()
        fields = wire.decompress_block("none", memoryview(arena), 1, VECTOR)
        assert not fields["observation"].flags.writeable
        with pytest.raises(WireError, match="size: block has 16 bytes, 32 claimed"):
            wire.decompress_block("none", memoryview(arena), 2, VECTOR)

    def test_several_threads_encode_and_decode_at_once(self):
        batch = batch_of(MAPS, 400, (100, 300, 1000))

        def there_and_back(_: int) -> None:
            fields = [block.fields for block in batch.blocks]
            blocks = [wire.compress_block(f, MAPS) for f in fields]
            assert [block.body for block in blocks] == [block.body for block in batch.blocks]
            assert_equal(decode_transitions(encode_transitions(batch), MAPS, RUN), batch)

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(there_and_back, range(80))) == [None] * 80


def column(message: dict[str, Any], name: str) -> dict[str, Any]:
    return next(column for column in message["columns"] if column["name"] == name)


Spoil = Callable[[dict[str, Any]], Any]


def change(**values: Any) -> Spoil:
    """Build a change of header fields."""
    return lambda message: message.update(values)


def block(**values: Any) -> Spoil:
    """Build a change of the second block."""
    return lambda message: message["blocks"][1].update(values)


def first_column(**values: Any) -> Spoil:
    return lambda message: message["columns"][0].update(values)


def shape(name: str, *dimensions: Any) -> Spoil:
    return lambda message: column(message, name).update(shape=list(dimensions))


def dtype(name: str, value: Any) -> Spoil:
    return lambda message: column(message, name).update(dtype=value)


def without(key: str) -> Spoil:
    return lambda message: message.pop(key)


def block_without(key: str) -> Spoil:
    return lambda message: message["blocks"][1].pop(key)


def without_column(name: str) -> Spoil:
    return lambda message: message["columns"].remove(column(message, name))


def extra_column(name: Any, of_dtype: str = "float32", size: int = 5) -> Spoil:
    added = {"name": name, "dtype": of_dtype, "shape": [size]}
    return lambda message: message["columns"].append(added)


def nested(depth: int) -> Any:
    value: Any = "deepest"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("version", change(version=1)),
        ("version", change(version="2")),
        ("version", change(version=2.0)),
        ("version", without("version")),
        ("type", change(type="sample")),
        ("malformed", change(type=3)),
        ("malformed", without("type")),
        ("other run", change(run="run-2")),
        ("other run", change(run=["run-1"])),
        ("other run", without("run")),
        ("malformed", change(run="x" * 5000)),
        ("malformed", change(actor=-1)),
        ("malformed", change(actor="3")),
        ("malformed", change(actor=True)),
        ("malformed", change(actor=None)),
        ("malformed", change(actor=1 << 32)),
        ("malformed", change(ticket="text")),
        ("malformed", change(ticket=b"x" * 17)),
        ("malformed", without("ticket")),
        ("malformed", change(actor=msgpack.ExtType(5, b"123"))),
        ("malformed", change(incarnation=1 << 32)),
        ("malformed", change(incarnation=-(1 << 63))),
        ("malformed", change(sequence=1 << 62)),
        ("malformed", change(sequence=(1 << 64) - 1)),
        ("malformed", change(sequence=1.0)),
        ("malformed", without("parameter_version")),
        ("malformed", change(raw_bytes=-1)),
        ("malformed", change(count=-5)),
        ("malformed", change(body="text")),
        ("malformed", without("body")),
        ("malformed", lambda message: message.update({5: 6})),
        ("count", change(count=0)),
        ("count", change(count=wire.MAX_TRANSITIONS + 1)),
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
        ("columns", change(columns=[])),
        ("columns", change(columns=["action"])),
        ("columns", change(columns=[{}] * 257)),
        ("columns", extra_column("reward")),
        ("columns", extra_column("action")),
        ("columns", extra_column("history", "uint8", 6)),
        ("columns", extra_column("observation.observation")),
        ("columns", extra_column(None)),
        ("columns", extra_column(b"action")),
        ("columns", without_column("priority")),
        ("dtype", dtype("action", "int64")),
        ("dtype", dtype("action", "uint32")),
        ("dtype", dtype("action", "bool")),
        ("dtype", dtype("priority", "float64")),
        ("dtype", dtype("priority", "int32")),
        ("dtype", dtype("action", ">i4")),
        ("dtype", dtype("action", "object")),
        ("dtype", dtype("action", "S4")),
        ("dtype", dtype("action", None)),
        ("dtype", dtype("action", ["int32"])),
        ("shape", shape("action", 4)),
        ("shape", shape("action")),
        ("shape", shape("action", 0)),
        ("shape", shape("action", 5, 1)),
        ("shape", shape("action", -5)),
        ("shape", shape("action", 5.0)),
        ("shape", shape("action", True)),
        ("shape", shape("action", 1 << 31)),
        ("shape", shape("action", (1 << 64) - 1)),
        ("shape", shape("action", *[1] * 9)),
        ("shape", shape("action", *[1 << 30] * 8)),
        ("shape", shape("action", 0, 1 << 30, 1 << 30)),
        ("shape", lambda message: column(message, "action").update(shape=5)),
        ("blocks", without("blocks")),
        ("blocks", change(blocks=[])),
        ("blocks", change(blocks={})),
        ("blocks", change(blocks=None)),
        ("blocks", change(blocks=b"blocks")),
        ("blocks", change(blocks=[None])),
        ("blocks", lambda message: message["blocks"].append([2, "none", 32, bytes(32)])),
        ("index", lambda message: message["blocks"].pop()),
        ("count", block(frames=0)),
        ("count", block(frames=0, raw_bytes=0, body=b"")),
        ("count", change(blocks=[{"frames": 501, "raw_bytes": 16 * 501}])),
        ("size", block(frames=3)),
        ("size", block(frames=5)),
        ("size", block(frames=1 << 60)),
        ("size", block(raw_bytes=0)),
        ("size", block(raw_bytes=63)),
        ("size", block(frames=5, raw_bytes=80)),
        ("size", block(frames=1 << 57, raw_bytes=1 << 61)),
        ("size", block(body=b"")),
        ("size", block(body=bytes(63))),
        ("size", block(body=bytes(65))),
        ("malformed", block(frames=True)),
        ("malformed", block(frames=4.0)),
        ("malformed", block(frames=-4)),
        ("malformed", block(frames=-4, raw_bytes=-64)),
        ("malformed", block(frames=(1 << 64) - 1)),
        ("malformed", block(raw_bytes="64")),
        ("malformed", block(body=None)),
        ("malformed", block(body="x" * 64)),
        ("malformed", block(body=[0] * 64)),
        ("malformed", block_without("frames")),
        ("malformed", block_without("raw_bytes")),
        ("malformed", block_without("body")),
        ("codec", block_without("codec")),
        ("codec", block(codec="lz4")),
        ("codec", block(codec=None)),
        ("codec", block(codec=b"zstd")),
        ("corrupt", block(codec="zstd")),
        ("corrupt", block(codec="zstd", body=b"")),
        ("corrupt", block(codec="zstd", body=zstandard.compress(bytes(64))[:-1])),
        ("size", block(codec="none", body=zstandard.compress(bytes(64)))),
        ("size", block(codec="zstd", body=zstandard.compress(bytes(48)))),
    ],
)
def test_a_message_that_does_not_fit_is_refused_for_the_reason(reason, spoil):
    message = message_of()
    decode_transitions(packed(message), VECTOR, RUN)
    spoil(message)
    assert error_of(packed(message)).reason == reason


@pytest.mark.parametrize("depth", [1, 200, 990])
@pytest.mark.parametrize(
    ("place", "key"),
    [
        *[(change, key) for key in message_of()],
        *[(block, key) for key in ("frames", "codec", "raw_bytes", "body")],
        *[(first_column, key) for key in ("name", "dtype", "shape")],
    ],
)
def test_lists_where_they_are_not_due_are_refused_however_deep(depth, place, key):
    message = message_of()
    place(**{key: nested(depth)})(message)
    assert error_of(packed(message)).reason in wire.REASONS


def test_more_blocks_than_a_batch_may_have_are_refused():
    message = message_of(count=200, blocks=(1,) * wire.MAX_BLOCKS)
    decode_transitions(packed(message), VECTOR, RUN)
    message["blocks"] = message["blocks"][:1] * (wire.MAX_BLOCKS + 1)
    assert error_of(packed(message)).reason == "malformed"


def test_dimensions_whose_product_overflows_64_bits_are_refused():
    # 2**30 x 2**30 x 2**4 elements of 4 bytes are 0 modulo 2**64.
    spec = EnvironmentSpec("x", (FieldSpec("observation", (2**30, 2**30, 2**4), "float32"),), 2)
    assert spec.observation_bytes == 2**66
    message = message_of(count=1, blocks=(1,))
    for raw_bytes in (0, 16, (1 << 62) - 1):
        message["blocks"][0]["raw_bytes"] = raw_bytes
        assert error_of(packed(message), spec).reason == "size"


@pytest.mark.parametrize(
    ("reason", "name", "value"),
    [
        ("not finite", "n_step_return", np.nan),
        ("not finite", "n_step_return", -np.inf),
        ("not finite", "discount", np.nan),
        ("not finite", "discount", np.inf),
        ("not finite", "priority", np.inf),
        ("not finite", "priority", np.nan),
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
@pytest.mark.parametrize("number", [0, 3, 4])
def test_one_value_that_cannot_be_is_enough_for_a_refusal(reason, name, value, number):
    batch = batch_of(VECTOR)
    batch.columns[name][number] = value
    error = error_of(encode_transitions(batch))
    assert error.reason == reason
    assert error.count == 5
    assert f"{name} of transition {number} is {batch.columns[name][number].item()}" in str(error)


@pytest.mark.parametrize(
    ("spec", "name"), [(VECTOR, "observation"), (MAPS, "map"), (MAPS, "radius"),
                       (SCALARS, "half"), (SCALARS, "reading")],
)  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_value_of_a_frame_that_is_not_finite_is_enough_for_a_refusal(spec, name, value):
    batch = batch_of(spec)
    fields = {name: values.copy() for name, values in batch.blocks[1].fields.items()}
    fields[name].reshape(-1)[-1] = value
    batch.blocks[1] = wire.compress_block(fields, spec)
    error = error_of(encode_transitions(batch), spec)
    assert str(error) == f"not finite: '{name}' in block 1"
    assert error.count == 5


@pytest.mark.parametrize("name", ["map", "radii"])
def test_the_largest_and_the_smallest_floats_of_a_frame_are_accepted(name):
    batch = batch_of(MAPS)
    fields = {name: values.copy() for name, values in batch.blocks[0].fields.items()}
    limits = np.finfo(fields[name].dtype)
    extremes = [limits.max, limits.min, limits.smallest_subnormal, -0.0]
    fields[name].reshape(-1)[:4] = extremes
    batch.blocks[0] = wire.compress_block(fields, MAPS)
    assert_equal(decode_transitions(encode_transitions(batch), MAPS, RUN), batch)


def test_a_truth_value_that_is_neither_0_nor_1_is_refused():
    batch = batch_of(SCALARS)
    fields = {name: values.copy() for name, values in batch.blocks[0].fields.items()}
    fields["flag"].view(np.uint8)[1] = 2
    batch.blocks[0] = wire.compress_block(fields, SCALARS)
    assert error_of(encode_transitions(batch), SCALARS).reason == "not boolean"


@pytest.mark.parametrize("dtype", ["int64", "uint8"])
@pytest.mark.parametrize(
    ("values", "known"),
    [([0, 2], True), ([2, 5], True), ([3, 2], False), ([0, 1], False), ([0, 6], False)],
)
def test_a_category_that_there_is_not_is_refused(values: list[int], known: bool, dtype: str):
    field = FieldSpec("direction", (2,), dtype, categories=(3, 4), start=(0, 2))
    spec = EnvironmentSpec("test/Categories-v0", (field,), 2)
    frames = np.array([[0, 2]] * 5 + [values], dtype)
    batch = batch_of(spec, blocks=(6,))
    batch.blocks[0] = wire.compress_block({"direction": frames}, spec)
    if known:
        assert_equal(decode_transitions(encode_transitions(batch), spec, RUN), batch)
    else:
        error = error_of(encode_transitions(batch), spec)
        assert str(error) == "category: 'direction' in block 0"


@pytest.mark.parametrize(
    "history",
    [
        [1, 1, 0, 1, 2, 3, 3],  # before the batch
        [0, 2, 0, 1, 2, 3, 3],  # also before the batch
        [0, 1, 1, 2, 3, 3, 3],  # into the previous block
        [0, 1, 0, 1, 0, 2, 3],  # into the previous segment
        [0, 1, 0, 1, 2, 3, 4],  # more than are stacked
        [0, 1, 0, 1, 2, 3, 255],
    ],
)
def test_a_stack_that_reaches_beyond_its_segment_is_refused(history):
    batch = batch_of(IMAGES, blocks=(2, 5))
    assert batch.columns["history"].tolist() == [0, 1, 0, 1, 2, 3, 3]
    batch.columns["history"] = np.array(history, np.uint8)
    error = error_of(encode_transitions(batch), IMAGES)
    assert (error.reason, error.count) == ("history", 5)


def test_a_block_may_hold_several_segments():
    batch = batch_of(IMAGES, blocks=(2, 6))
    batch.columns["history"] = np.array([0, 1, 0, 1, 0, 0, 1, 2], np.uint8)
    assert_equal(decode_transitions(encode_transitions(batch), IMAGES, RUN), batch)


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("columns", without_column("history")),
        ("dtype", dtype("history", "int8")),
        ("shape", shape("history", 5)),
        ("shape", shape("history", 6, 1)),
        ("size", change(body=bytes(5 * 24 + 5))),
    ],
)
def test_a_history_of_another_form_is_refused(reason, spoil):
    message = message_of(IMAGES)
    spoil(message)
    assert error_of(packed(message), IMAGES).reason == reason


def test_the_extremes_that_can_be_are_accepted():
    batch = batch_of(VECTOR)
    batch.columns["n_step_return"][:2] = np.finfo(np.float32).min, np.finfo(np.float32).max
    batch.columns["discount"][:3] = 0, 1, -0.0
    batch.columns["priority"][:2] = 0, np.finfo(np.float32).max
    batch.columns["action"][:2] = 0, 1
    batch.columns["bootstrap_index"][:2] = 0, 5
    assert_equal(decode_transitions(encode_transitions(batch), VECTOR, RUN), batch)


def test_a_field_without_elements_goes_round():
    fields = (FieldSpec("nothing", (0, 3), "float32"), FieldSpec("observation", (4,), "float32"))
    spec = EnvironmentSpec("x", fields, 2)
    batch = batch_of(spec)
    assert_equal(decode_transitions(encode_transitions(batch), spec, RUN), batch)


def test_a_refused_message_tells_how_many_transitions_it_had_if_it_says_so():
    message = message_of()
    message["codec"] = "gzip"
    assert error_of(packed(message)).count == 5
    message["run"] = "run-2"
    assert error_of(packed(message)).count == 0
    message = message_of() | {"count": 1 << 61}
    assert error_of(packed(message)).count == wire.MAX_TRANSITIONS


def test_a_batch_for_another_environment_is_refused():
    assert error_of(encode_transitions(batch_of(MAPS)), VECTOR).reason == "size"
    assert error_of(encode_transitions(batch_of(VECTOR)), MAPS).reason == "size"
    stacked = VECTOR.stacked(4)
    error = error_of(encode_transitions(batch_of(VECTOR)), stacked)
    assert str(error) == "columns: 'history' missing or not of this environment"
    assert error_of(encode_transitions(batch_of(stacked)), VECTOR).reason == "columns"


@pytest.mark.parametrize(
    ("text", "spoil"),
    [
        ("other run: 'run-2', not 'run-1'", change(run="run-2")),
        ("other run: list, not 'run-1'", change(run=[[]])),
        ("type: 'sample', not 'transitions'", change(type="sample")),
        ("version: None, not 4", without("version")),
        ("malformed: actor is -1, not an integer in 0..4294967295", change(actor=-1)),
        ("count: 0 transitions, not 1 to 65536", change(count=0)),
        ("columns: 'action' occurs twice", extra_column("action")),
        ("dtype: action is int64, not int32", dtype("action", "int64")),
        ("dtype: 'action' is '>i4', not a plain number", dtype("action", ">i4")),
        ("shape: action is (4,), not (5,)", shape("action", 4)),
        ("size: 1 bytes claimed, the columns need 120", change(raw_bytes=1)),
        ("size: body has 0 bytes, 120 claimed", change(body=b"")),
        ("codec: body has 'gzip', not 'zstd' or 'none'", change(codec="gzip")),
        ("count: block 1 has no frames", block(frames=0)),
        ("size: block 1 claims 64 bytes for 3 frames of 16 bytes", block(frames=3)),
        ("size: block 1 has 2 bytes, 64 claimed", block(body=b"12")),
        ("malformed: block 1 is None, not bytes", block(body=None)),
        ("blocks: number 0 is 7, not a map", change(blocks=[7])),
    ],
)  # fmt: skip
def test_an_error_names_what_is_wrong_its_value_and_what_is_accepted(text, spoil):
    message = message_of()
    spoil(message)
    assert str(error_of(packed(message))) == text


def test_the_columns_may_come_in_any_order():
    message = message_of(IMAGES, count=1, blocks=(1,))
    by_name = {}
    offset = 0
    for described in message["columns"]:
        size = np.dtype(described["dtype"]).itemsize
        by_name[described["name"]] = described, message["body"][offset : offset + size]
        offset += size
    reversed_names = sorted(by_name, reverse=True)
    message["columns"] = [by_name[name][0] for name in reversed_names]
    message["body"] = b"".join(by_name[name][1] for name in reversed_names)
    decoded = decode_transitions(packed(message), IMAGES, RUN)
    for name, values in batch_of(IMAGES, 1, (1,)).columns.items():
        np.testing.assert_array_equal(decoded.columns[name], values)


def bomb(size: int, content_size: bool = True) -> bytes:
    """Compress zeros to about a ten-thousandth of their size, in little memory."""
    chunks = zstandard.ZstdCompressor(level=1, write_content_size=content_size).chunker(size=size)
    zeros = bytes(1 << 20)
    parts = [part for _ in range(size >> 20) for part in chunks.compress(zeros)]
    return b"".join([*parts, *chunks.finish()])


def lying(claim: int) -> bytes:
    """Build a frame of 16 MiB that claims to have fewer bytes."""
    honest = zstandard.ZstdCompressor().compress(bytes(1 << 24))
    # The content size, four bytes, follows the magic number and the descriptor.
    start = honest.index((1 << 24).to_bytes(4, "little"))
    frame = honest[:start] + claim.to_bytes(4, "little") + honest[start + 4 :]
    assert zstandard.frame_content_size(frame) == claim
    return frame


GIGABYTE_BOMB = bomb(1 << 30)


class TestHostileSizes:
    def test_a_message_beyond_the_limit_is_not_even_parsed(self):
        data = bytes(wire.MAX_TRANSITION_BYTES + 1)
        with at_most_allocated(MEGABYTE):
            assert error_of(data).reason == "too large"

    def test_a_gigabyte_of_zeros_compressed_to_a_few_kilobytes_is_not_unpacked(self):
        assert len(GIGABYTE_BOMB) < MEGABYTE
        message = message_of() | {"codec": "zstd", "body": GIGABYTE_BOMB}
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "size"
            assert error_of(packed(message | {"raw_bytes": 1 << 30})).reason == "size"

    @pytest.mark.parametrize("frames", [4, (1 << 30) // 16])
    def test_nor_is_it_in_a_block(self, frames):
        message = message_of()
        message["blocks"][1] |= {"codec": "zstd", "body": GIGABYTE_BOMB}
        message["blocks"][1] |= {"frames": frames, "raw_bytes": 16 * frames}
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "size"

    def test_nor_by_a_store_that_kept_it(self):
        with at_most_allocated(MEGABYTE), pytest.raises(WireError, match="size: block unpacks"):
            wire.decompress_block("zstd", GIGABYTE_BOMB, 4, VECTOR)

    def test_blocks_that_are_too_large_only_together_are_not_unpacked(self):
        half = (wire.MAX_TRANSITION_BYTES // 2 + 16) // 16
        message = message_of(count=wire.MAX_TRANSITIONS)
        body = zstandard.compress(bytes(16 * half))
        claims = {"frames": half, "raw_bytes": 16 * half, "codec": "zstd", "body": body}
        message["blocks"] = [claims] * 2
        with at_most_allocated(8 * MEGABYTE):
            error = error_of(packed(message))
        assert str(error) == f"size: {32 * half} bytes of frames, at most {64 * MEGABYTE}"

    @pytest.mark.parametrize("holder", ["body", "block"])
    def test_a_frame_that_hides_its_size_is_refused(self, holder):
        message = message_of()
        target = message if holder == "body" else message["blocks"][1]
        compressor = zstandard.ZstdCompressor(write_content_size=False)
        for body in (compressor.compress(target["body"]), bomb(1 << 28, content_size=False)):
            target |= {"codec": "zstd", "body": body}
            with at_most_allocated(MEGABYTE):
                assert error_of(packed(message)).reason == "size"

    @pytest.mark.parametrize("holder", ["body", "block"])
    def test_a_frame_that_claims_less_than_it_holds_is_refused(self, holder):
        message = message_of(count=1000, blocks=(100, 1000))
        target = message if holder == "body" else message["blocks"][1]
        target |= {"codec": "zstd", "body": lying(target["raw_bytes"])}
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "corrupt"

    @pytest.mark.parametrize("holder", ["body", "block"])
    def test_two_frames_where_one_is_due_are_refused(self, holder):
        message = message_of()
        target = message if holder == "body" else message["blocks"][1]
        frame = zstandard.ZstdCompressor().compress(target["body"])
        target |= {"codec": "zstd", "body": frame}
        decode_transitions(packed(message), VECTOR, RUN)
        target |= {"body": frame * 2}
        assert error_of(packed(message)).reason == "corrupt"

    def test_claims_of_raw_bytes_and_shapes_allocate_nothing(self):
        message = message_of()
        message["count"] = wire.MAX_TRANSITIONS
        for name in wire.TRANSITION_COLUMNS:
            column(message, name)["shape"] = [wire.MAX_TRANSITIONS]
        message["raw_bytes"] = wire.MAX_TRANSITIONS * 24
        frames = wire.MAX_TRANSITIONS * 60
        message["blocks"][1] |= {"frames": frames, "raw_bytes": frames * 16}
        with at_most_allocated(MEGABYTE):
            assert error_of(packed(message)).reason == "size"

    @pytest.mark.parametrize("head", [b"\xdd", b"\xdf"], ids=["arrays", "maps"])
    @pytest.mark.parametrize("claim", [0xFFFFF, wire.MAX_BLOCKS])
    def test_nested_claims_of_many_elements_allocate_little(self, head, claim):
        nested = (head + claim.to_bytes(4, "big") + b"\xa0" * (head == b"\xdf")) * 900
        with at_most_allocated(10 * MEGABYTE):
            assert error_of(nested).reason == "malformed"
            assert error_of(nested + bytes(100_000)).reason == "malformed"

    def test_a_short_message_cannot_claim_more_elements_than_it_has_bytes(self):
        nested = b"\xdd\x00\x00\x04\x00" * 100
        with at_most_allocated(MEGABYTE // 10):
            assert error_of(nested).reason == "malformed"

    @pytest.mark.parametrize("element", [b"\x80", b"\x90", b"\xe0", b"\xa2ab", b"\xd4\x05\0"])
    def test_a_message_of_very_many_small_elements_is_given_up_early(self, element):
        # A few bytes each on the wire, up to a hundred in memory.
        inner = b"\xdc\x04\x00" + element * 0x400
        data = b"\xdc\x04\x00" + inner * 0x400
        with at_most_allocated(8 * MEGABYTE):
            assert error_of(data).reason == "malformed"

    def test_a_long_text_of_wide_characters_is_not_even_made(self):
        data = packed(message_of() | {"run": "x" * (32 * MEGABYTE) + "\U0001f600"})
        with at_most_allocated(MEGABYTE):
            assert error_of(data).reason == "malformed"

    @pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
    @pytest.mark.parametrize("depth", [1000, 100_000])
    def test_very_deep_structures_are_refused(self, opening, depth):
        assert error_of(opening * depth + b"\xc0").reason == "malformed"

    def test_a_long_report_still_fits(self):
        content = {
            "episodes": [[1.5, 13, 0.25]] * 2000,
            "counters": {f"c{i}": 1 for i in range(500)},
        }
        decoded = wire.decode_control(wire.encode_control("telemetry", content))
        assert decoded["episodes"] == content["episodes"]

    def test_a_message_of_the_most_blocks_still_fits(self):
        batch = batch_of(VECTOR, 2000, (2,) * wire.MAX_BLOCKS)
        assert_equal(decode_transitions(encode_transitions(batch), VECTOR, RUN), batch)


# Reads messages from its input, each behind its length, and decodes them with little memory to
# spare. The limit includes memory that C libraries allocate, which Python's own accounts miss.
_DECODE_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from pdqn import wire
from pdqn.specs import EnvironmentSpec, FieldSpec
spec = EnvironmentSpec("test/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2)
lengths = [int(length) for length in sys.argv[2:]]
messages = [sys.stdin.buffer.read(length) for length in lengths]
wire.decode_transitions(messages[0], spec, "run-1")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for message in messages[1:]:
    try:
        wire.decode_transitions(message, spec, "run-1")
    except wire.WireError as error:
        print(error.reason)
try:
    bytearray(2 * int(sys.argv[1]))  # more than the spare bytes and those freed since
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_bombs_are_refused_where_there_is_no_memory_to_unpack_them():
    messages = [message_of()]
    for body in (GIGABYTE_BOMB, bomb(1 << 28, content_size=False), lying(120)):
        message = message_of() | {"codec": "zstd", "body": body}
        messages += [message, message | {"raw_bytes": 1 << 30}]
    for body in (GIGABYTE_BOMB, bomb(1 << 28, content_size=False), lying(64)):
        for frames in (4, 1 << 22, 1 << 26):
            messages.append(message_of())
            messages[-1]["blocks"][1] |= {"codec": "zstd", "body": body}
            messages[-1]["blocks"][1] |= {"frames": frames, "raw_bytes": 16 * frames}
    # A window of 128 MiB for a content of 64 bytes.
    window = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    wide = zstandard.ZstdCompressor(compression_params=window).chunker(size=64)
    messages.append(message_of())
    body = b"".join([*wide.compress(bytes(64)), *wide.finish()])
    messages[-1]["blocks"][1] |= {"codec": "zstd", "body": body[:-1]}
    sent = [packed(message) for message in messages]
    spare_bytes = 16 * MEGABYTE
    lengths = [str(len(data)) for data in sent]
    done = subprocess.run(
        [sys.executable, "-c", _DECODE_IN_LITTLE_MEMORY, str(spare_bytes), *lengths],
        input=b"".join(sent),
        capture_output=True,
        timeout=60,
        check=False,
    )
    reasons = done.stdout.decode().split()
    assert (done.returncode, done.stderr) == (0, b"")
    assert reasons[-1] == "limited"
    assert len(reasons) == len(sent)
    assert set(reasons[:-1]) == {"size", "corrupt"}


class TestControl:
    def test_plain_data_goes_round(self):
        content = {"a": [1, 2.5, None, True], "b": {"c": "text"}, "d": b"\0"}
        decoded = wire.decode_control(wire.encode_control("join", content))
        assert decoded == {"version": wire.PROTOCOL_VERSION, "type": "join", **content}

    def test_another_version_is_refused_by_number(self):
        data = packed({"version": 1, "type": "join"})
        with pytest.raises(WireError, match="1, not 4") as caught:
            wire.decode_control(data)
        assert caught.value.reason == "version"

    def test_a_megabyte_is_the_limit(self):
        with pytest.raises(WireError) as caught:
            wire.decode_control(wire.encode_control("join", {"text": "x" * wire.MAX_CONTROL_BYTES}))
        assert caught.value.reason == "too large"

    @pytest.mark.parametrize("code", [0, 5, 127])
    def test_extension_types_are_refused(self, code):
        with pytest.raises(WireError, match=f"malformed: ValueError extension type {code}"):
            wire.decode_control(wire.encode_control("join", {"a": msgpack.ExtType(code, b"ab")}))

    def test_more_than_32_structures_inside_each_other_are_refused(self):
        decoded = wire.decode_control(wire.encode_control("join", {"a": nested(31)}))
        assert decoded["a"] == nested(31)
        for depth in (32, 400):
            with pytest.raises(WireError, match="malformed: nested deeper than 32"):
                wire.decode_control(wire.encode_control("join", {"a": nested(depth)}))

    @pytest.mark.parametrize("message", [None, 3, [], "join", {}, {"version": 4, "type": None}])
    def test_what_is_no_map_with_a_type_is_refused(self, message):
        with pytest.raises(WireError, match="not a map with a type"):
            wire.decode_control(packed(message))


def arrays() -> dict[str, np.ndarray]:
    return {
        "keys": np.arange(3),
        "map": np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)[:, ::2],
        "mask": np.array([[True, False]]),
        "scalar": np.array(2.5, np.float32),
        "none": np.empty((0, 7), np.uint8),
    }


def encoded(columns: list[dict[str, Any]], body: bytes) -> bytes:
    """Build an arrays message by hand."""
    header = wire.encode_control("parameters", {"columns": columns})
    return len(header).to_bytes(4, "big") + header + body


def described(name: str = "a", dtype: str = "float32", *shape: int) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


class TestArrays:
    def test_arrays_go_round_without_being_copied_when_they_are_received(self):
        sent = arrays()
        data = bytearray(wire.encode_arrays("parameters", {"x": 1}, sent))
        header, received = wire.decode_arrays(memoryview(data))
        assert header["type"] == "parameters"
        assert header["x"] == 1
        assert list(received) == list(sent)
        for name, array in sent.items():
            np.testing.assert_array_equal(received[name], array)
            assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
            assert not received[name].flags.writeable
            assert array.size == 0 or np.shares_memory(received[name], np.frombuffer(data, "u1"))

    def test_the_bytes_are_what_the_page_says(self):
        data = wire.encode_arrays("parameters", {"x": 1}, {"a": np.array([1, 2], np.uint8)})
        length = int.from_bytes(data[:4], "big")
        assert msgpack.unpackb(data[4 : 4 + length]) == {
            "version": 4, "type": "parameters", "x": 1, "columns": [described("a", "uint8", 2)],
        }  # fmt: skip
        assert data[4 + length :] == b"\1\2"

    def test_no_arrays_are_a_header_alone(self):
        header, received = wire.decode_arrays(wire.encode_arrays("parameters", {}, {}))
        assert (header["columns"], received) == ([], {})

    @pytest.mark.parametrize(
        ("reason", "data"),
        [
            ("malformed", b""),
            ("malformed", b"\0\0\0"),
            ("malformed", b"\xff" * 40),
            ("too large", (2 * MEGABYTE).to_bytes(4, "big") + bytes(2 * MEGABYTE)),
            ("size", encoded([], b"\0")),
            ("size", encoded([described()], b"123")),
            ("size", encoded([described()], b"12345")),
            ("size", encoded([described("a", "float32", 1 << 30)], b"")),
            ("shape", encoded([described("a", "float32", 1 << 30, 2)], b"")),
            ("shape", encoded([described("a", "float32", 1 << 30, 1 << 30, 1 << 30)], b"")),
            # numpy would also refuse these two, although they have no elements.
            ("shape", encoded([described("a", "float32", 0, 1 << 30, 1 << 30, 1 << 30)], b"")),
            ("shape", encoded([described("a", "float32", 1 << 30, 1 << 30, 0)], b"")),
            ("columns", encoded([described(), described()], bytes(8))),
            ("not boolean", encoded([described("a", "bool", 2)], b"\1\2")),
        ],
    )
    def test_what_the_header_does_not_describe_is_refused(self, reason, data):
        with at_most_allocated(MEGABYTE), pytest.raises(WireError) as caught:
            wire.decode_arrays(data)
        assert caught.value.reason == reason
