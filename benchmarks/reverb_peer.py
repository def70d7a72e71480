"""Reverb's replay on given observations; run by ``benchmarks.replay`` with Reverb's own Python.

``python reverb_peer.py OBSERVATIONS.npy SECONDS``: one writer process, then one sampling client
with priority updates, batches of 256, over TCP loopback. Prints one line of JSON.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time

import numpy as np

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
BATCH = 256
MAX_SIZE = 100_000


def write(port: int, path: str, seconds: float, results: multiprocessing.Queue) -> None:
    """Append steps, and make an item of every two: a one-step transition."""
    import reverb  # pyright: ignore[reportMissingImports]

    observations = np.load(path)
    client = reverb.Client(f"localhost:{port}")
    count, started = 0, time.time()
    with client.trajectory_writer(num_keep_alive_refs=2) as writer:
        while time.time() - started < seconds:
            observation = observations[count % len(observations)]
            writer.append(
                {"o": observation, "a": np.int32(1), "r": np.float32(1), "d": np.float32(0.99)}
            )
            count += 1
            if count > 1:
                last = {name: writer.history[name][-2:-1] for name in "ard"}
                item = {"o": writer.history["o"][-2:], **last}
                writer.create_item("t", 1.0 + count % 7, item)
            if count % 200 == 0:
                writer.flush()
    results.put(count / (time.time() - started))


def sample(port: int, shape: tuple[int, ...], dtype: np.dtype, seconds: float) -> float:
    """Measure samples per second of one client that updates all drawn priorities."""
    import reverb  # pyright: ignore[reportMissingImports]
    import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    types = {"o": tf.as_dtype(dtype), "a": tf.int32, "r": tf.float32, "d": tf.float32}
    shapes = {"o": tf.TensorShape((2, *shape)), **dict.fromkeys("ard", tf.TensorShape((1,)))}
    dataset = reverb.TrajectoryDataset(
        server_address=f"localhost:{port}",
        table="t",
        dtypes=types,
        shapes=shapes,
        max_in_flight_samples_per_worker=2 * BATCH,
        num_workers_per_iterator=1,
    )
    batches = dataset.batch(BATCH).prefetch(4).as_numpy_iterator()
    client = reverb.Client(f"localhost:{port}")
    for _ in range(5):
        next(batches)
    count, started = 0, time.time()
    while time.time() - started < seconds:
        keys = np.asarray(next(batches).info.key).reshape(BATCH, -1)[:, 0]
        client.mutate_priorities("t", updates={int(key): 1.0 for key in keys})
        count += BATCH
    return count / (time.time() - started)


def main() -> None:
    """Measure both, one after the other."""
    path, seconds = sys.argv[1], float(sys.argv[2])
    import reverb  # pyright: ignore[reportMissingImports]

    table = reverb.Table(
        "t",
        sampler=reverb.selectors.Prioritized(0.6),
        remover=reverb.selectors.Fifo(),
        max_size=MAX_SIZE,
        rate_limiter=reverb.rate_limiters.MinSize(1000),
    )
    server = reverb.Server([table])
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    writer = context.Process(target=write, args=(server.port, path, seconds, results))
    writer.start()
    inserts = results.get(timeout=seconds + 120)
    writer.join()
    observations = np.load(path, mmap_mode="r")
    samples = sample(server.port, observations.shape[1:], observations.dtype, seconds)
    print(json.dumps({"inserts_per_second": inserts, "samples_per_second": samples}))


if __name__ == "__main__":
    main()
