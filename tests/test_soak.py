"""A full buffer no longer grows, however much passes through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pdqn.specs import EnvironmentSpec, FieldSpec
from pdqn.wire import FrameBlock, compress_block
from replay.buffer import PrioritizedBuffer, make_store
from replay.samples import SampleLayout
from replay.sizes import compressed_bytes

STACK = 3
SPEC = EnvironmentSpec(
    "test/Maps-v0", (FieldSpec("map", (64, 64), "uint8", stack=STACK),), num_actions=4
)
CAPACITY = 6000
ROUNDS = 10
# By then every ring has been written from end to end, and the system has committed its memory.
FULL_AFTER = 3
# 5 bytes for every transition that passes through meanwhile. Measured: 80,000 bytes within five
# rounds, and nothing more in thirty further rounds, which this test leaves out.
TOLERANCE_BYTES = 200_000
MOST_FRAMES = 40


def random_blocks(rng: np.random.Generator) -> list[FrameBlock]:
    """Build two blocks of frames that compress to about a third, each to a different size."""
    blocks: list[FrameBlock] = []
    for _ in range(2):
        frames = int(rng.integers(5, MOST_FRAMES // 2))
        maps = rng.integers(0, rng.integers(2, 8), (frames, 64, 64), np.uint8)
        blocks.append(compress_block({"map": maps}, SPEC))
    return blocks


def columns_of(blocks: list[FrameBlock]) -> dict[str, np.ndarray]:
    """Build a transition for each frame; every block is a segment."""
    count = sum(block.count for block in blocks)
    positions = np.concatenate([np.arange(block.count) for block in blocks])
    return {
        "action": np.zeros(count, np.int32),
        "n_step_return": np.zeros(count, np.float32),
        "discount": np.ones(count, np.float32),
        "priority": np.ones(count, np.float32),
        "observation_index": np.arange(count, dtype=np.int32),
        "bootstrap_index": np.arange(count, dtype=np.int32),
        "history": np.minimum(positions, STACK - 1).astype(np.uint8),
    }


def use_for_long(kind: Any) -> dict[str, list[int]]:
    """List allocated and resident bytes after every ``CAPACITY`` transitions inserted."""
    rng = np.random.default_rng(0)
    memory_bytes = compressed_bytes(SPEC, CAPACITY, 1600)
    store = make_store(kind, SPEC, CAPACITY, memory_bytes, 2)
    buffer = PrioritizedBuffer(SPEC, CAPACITY, store=store, priority_exponent=0.6, rng=rng)
    layout = SampleLayout(SPEC, 16)
    sample = layout.view(np.empty(layout.nbytes, np.uint8))
    process = psutil.Process()
    batches = [random_blocks(rng) for _ in range(100)]
    sizes: dict[str, list[int]] = {"allocated": [], "resident": []}
    for rounds in range(1, ROUNDS + 1):
        while buffer.inserted < rounds * CAPACITY:
            blocks = batches[rng.integers(len(batches))]
            buffer.insert(columns_of(blocks), blocks, 0)
            buffer.sample_into(sample)
            buffer.update_priorities(sample.keys, rng.random(16).astype(np.float32))
        sizes["allocated"].append(buffer.allocated_bytes)
        sizes["resident"].append(process.memory_info().rss)
    buffer.check_valid()
    buffer.close()
    return sizes


@pytest.mark.parametrize("kind", ["dense", "compressed"])
def test_memory_is_flat_once_the_buffer_is_full(kind: str):
    result = subprocess.run(
        [sys.executable, __file__, kind],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        timeout=100,
        check=True,
    )
    sizes = json.loads(result.stdout)
    assert len(set(sizes["allocated"])) == 1
    full = sizes["resident"][FULL_AFTER - 1 :]
    assert max(full) - full[0] < TOLERANCE_BYTES, f"resident memory grew: {full}"


if __name__ == "__main__":
    json.dump(use_for_long(sys.argv[1]), sys.stdout)
