"""A long search for messages that ``pdqn.wire`` misreads, guided by the code that they reach.

    python -m pip install --target ATHERIS atheris
    PYTHONPATH=ATHERIS python -m benchmarks.fuzz_wire [SECONDS] [CORPUS]

atheris (libFuzzer for Python) mutates messages, and keeps those that reach new code in
``pdqn.wire``. The last byte of an input chooses the environment, and the bytes before it are the
message. Half of the mutations change bytes. The others unpack the message and change its values,
because a changed byte seldom gets past msgpack and zstd.

A message must become a TransitionBatch that fits the environment and survives a round trip.
Otherwise ``pdqn.wire`` must refuse it with a ``WireError`` for one of the ``REASONS``. Anything
else, and every warning, ends the search with a traceback and leaves the input in ``crash-*``.

The search starts from valid messages, which it writes into the folder CORPUS. It leaves its finds
there for the next time; without CORPUS it uses a temporary folder. SECONDS is 480 by default.
"""

from __future__ import annotations

import importlib
import math
import random
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import msgpack
import numpy as np
import zstandard

from pdqn import wire
from pdqn.specs import EnvironmentSpec, FieldSpec

RUN = "run"
SECONDS = 480
MAX_INPUT_BYTES = 4096
SPECS = (
    EnvironmentSpec("fuzz/Vector-v0", (FieldSpec("observation", (4,), "float32"),), 2),
    EnvironmentSpec(
        "fuzz/Maps-v0",
        (
            FieldSpec("action_mask", (9,), "int8", binary=True),
            FieldSpec("map", (3, 3), "float16"),
            FieldSpec("radius", (1,), "float32"),
        ),
        9,
    ),
    EnvironmentSpec("fuzz/Images-v0", (FieldSpec("observation", (5, 7), "uint8"),), 4).stacked(4),
    EnvironmentSpec(
        "fuzz/Nested-v0",
        (
            FieldSpec("camera.depth", (2, 2), "float64"),
            FieldSpec("camera.lit", (2, 2), "bool"),
            FieldSpec("level", (), "uint64"),
        ),
        3,
    ).stacked(2),
)
VALUES = (
    None, True, -1, 0, 1, 2, 5, 1 << 16, 1 << 32, 1 << 62, (1 << 64) - 1, 0.5, float("nan"),
    "", "zstd", "none", "float32", "int64", "uint8", b"", b"\0\0\x80\x7f", [], {},
)  # fmt: skip


def main() -> None:
    """Search for the given time; libFuzzer ends the process."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ModuleNotFoundError:
        print("atheris is not installed: python -m pip install --target ATHERIS atheris")
        sys.exit(2)
    warnings.simplefilter("error")
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    corpus = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(prefix="fuzz-wire-"))
    write_seeds(corpus)
    print(f"corpus in {corpus}")
    for function in vars(wire).values():
        if isinstance(function, FunctionType) and function.__module__ == wire.__name__:
            atheris.instrument_func(function)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        mutated = with_other_values(data, rng) if rng.random() < 0.5 else None
        if mutated is None or len(mutated) > max_size:
            return atheris.Mutate(data, max_size)
        return mutated

    def test(data: bytes) -> None:
        provider = atheris.FuzzedDataProvider(data)
        spec = SPECS[provider.ConsumeIntInRange(0, len(SPECS) - 1)]
        check(provider.ConsumeBytes(atheris.ALL_REMAINING), spec)

    flags = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], test, custom_mutator=mutate)
    atheris.Fuzz()


def check(message: bytes, spec: EnvironmentSpec) -> None:
    """Decode a message; any error except a known refusal is a finding."""
    try:
        batch = wire.decode_transitions(message, spec, RUN)
    except wire.WireError as error:
        if error.reason not in wire.REASONS:
            raise
        return
    check_values(batch, spec)
    again = wire.decode_transitions(wire.encode_transitions(batch), spec, RUN)
    assert again.columns.keys() == batch.columns.keys()
    for name, column in batch.columns.items():
        assert again.columns[name].tobytes() == column.tobytes(), name
    for block, original in zip(again.blocks, batch.blocks, strict=True):
        for name, values in original.fields.items():
            assert block.fields[name].tobytes() == values.tobytes(), name


def check_values(batch: wire.TransitionBatch, spec: EnvironmentSpec) -> None:
    """Check the assumptions of replay and learner, by other means than the decoder's."""
    columns = {name: column.tolist() for name, column in batch.columns.items()}
    assert all(0 <= action < spec.num_actions for action in columns["action"])
    assert all(0 <= discount <= 1 for discount in columns["discount"])
    assert all(0 <= priority < math.inf for priority in columns["priority"])
    assert all(map(math.isfinite, columns["n_step_return"]))
    indices = columns["observation_index"] + columns["bootstrap_index"]
    assert all(0 <= index < batch.frames for index in indices)
    positions = [position for block in batch.blocks for position in range(block.count)]
    for position, history in zip(positions, columns.get(wire.HISTORY, positions), strict=True):
        assert history <= position
        assert spec.frame_stack == 1 or history < spec.frame_stack
    for block in batch.blocks:
        for field in spec.fields:
            values = block.fields[field.name]
            assert values.shape == (block.count, *field.stored_shape), field.name
            assert values.dtype != np.bool_ or set(values.tobytes()) <= {0, 1}, field.name
            assert all(map(math.isfinite, values.reshape(-1).tolist())), field.name


def write_seeds(corpus: Path) -> None:
    """Write valid messages of every environment, each with the byte that chooses it.

    Each is written as it is sent, and also uncompressed, where changed bytes have more effect.
    """
    corpus.mkdir(parents=True, exist_ok=True)
    for index, spec in enumerate(SPECS):
        for sizes in ((1,), (2, 4), (30, 1)):
            data = wire.encode_transitions(batch_of(spec, sizes))
            for name, seed in (("sent", data), ("plain", uncompressed(data))):
                (corpus / f"{name}-{index}-{sum(sizes)}").write_bytes(seed + bytes([index]))


def uncompressed(data: bytes) -> bytes:
    """Return the same message with no body compressed."""
    message = msgpack.unpackb(data)
    for holder in (message, *message["blocks"]):
        if holder["codec"] == "zstd":
            holder |= {"codec": "none", "body": zstandard.decompress(holder["body"])}
    packed = msgpack.packb(message)
    assert packed is not None
    return packed


def batch_of(spec: EnvironmentSpec, sizes: tuple[int, ...]) -> wire.TransitionBatch:
    """Build as many transitions as frames, in blocks with these numbers of frames."""
    rng = np.random.default_rng(0)
    frames = sum(sizes)
    columns = {
        name: rng.integers(0, 2, frames).astype(dtype)
        for name, dtype in wire.TRANSITION_COLUMNS.items()
    }
    columns["observation_index"] = columns["bootstrap_index"] = np.arange(frames, dtype=np.int32)
    if spec.frame_stack > 1:
        positions = np.concatenate([np.arange(size) for size in sizes])
        columns[wire.HISTORY] = np.minimum(positions, spec.frame_stack - 1).astype(np.uint8)
    blocks = [
        wire.compress_block(
            {f.name: f.pack(rng.integers(0, 2, (size, *f.shape))) for f in spec.fields}, spec
        )
        for size in sizes
    ]
    return wire.TransitionBatch(RUN, 0, 0, 0, 0, columns, blocks)


def with_other_values(data: bytes, rng: random.Random) -> bytes | None:
    """Change one to three values of the input; None if it is not a msgpack structure."""
    try:
        message = msgpack.unpackb(data[:-1])
        for _ in range(rng.randint(1, 3)):
            container, key = rng.choice(list(places(message)))
            container[key] = other_value(container[key], rng)
        packed = msgpack.packb(message)
    except (ValueError, TypeError, IndexError, msgpack.UnpackException, RecursionError):
        return None
    return None if packed is None else packed + data[-1:]


def places(container: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (container, key) in a structure."""
    if isinstance(container, dict | list):
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            yield container, key
            yield from places(value)


def other_value(value: Any, rng: random.Random) -> Any:
    """Return a replacement for a value, most often a similar one."""
    if rng.random() < 0.2:
        return rng.choice(VALUES)
    if type(value) is int:
        return min(max(0, value + rng.choice((-8, -1, 1, 8, value))), (1 << 64) - 1)
    if isinstance(value, bytes):
        return other_body(value, rng)
    if isinstance(value, list) and value:
        at = rng.randrange(len(value))
        return value[:at] + value[at : at + 1] * rng.choice((0, 2))
    return rng.choice(VALUES)


def other_body(body: bytes, rng: random.Random) -> bytes:
    """Compress or decompress a body, then perhaps replace a few bytes."""
    kind = rng.randrange(4)
    if kind == 0:
        body = zstandard.compress(body)
    elif kind == 1:
        body = decompressed(body)
    changed = bytearray(body)
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(changed) + 1)
        changed[at : at + 4] = rng.choice((b"\0", rng.randbytes(1), rng.randbytes(4)))
    return bytes(changed)


def decompressed(body: bytes) -> bytes:
    """Return the content of a small zstd frame, or the same bytes if they are not one."""
    try:
        if zstandard.frame_content_size(body) <= MAX_INPUT_BYTES:
            return zstandard.decompress(body, max_output_size=MAX_INPUT_BYTES)
    except zstandard.ZstdError:
        pass
    return body


if __name__ == "__main__":
    main()
