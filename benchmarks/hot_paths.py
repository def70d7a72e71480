"""CPU time of what a run spends its time on: ``python -m benchmarks.hot_paths``.

Each path runs alone on one thread, on recorded or played data. A figure is the CPU time of a unit
of work in the quicker slices of many: other programs can only slow a slice down.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from actors.environments.describe import describe_environment
from actors.rollout import Identity, Rollout
from actors.segments import join_segments
from launcher.bench.recordings import Recording, record
from launcher.bench.replay import bench_config, changed, encoded_batches
from launcher.bench.whole.stages import Work, filled, taken_in
from learner.learner import Learner
from pdqn import wire
from pdqn.config import Config
from pdqn.layers import build
from pdqn.networks import build_network
from pdqn.telemetry import Telemetry
from replay.buffer import PrioritizedBuffer, make_buffer
from replay.samples import Sample

_ENVS, _BATCH = 8, 64
_RUN = "bench"
_STEPS = 1000
_SLICE_SECONDS = 0.05
_BATCHES = 64


def main() -> None:
    """Measure the paths, and print microseconds of each unit."""
    parser = argparse.ArgumentParser(description="Measure the CPU time of the hot paths.")
    parser.add_argument("--seconds", type=float, default=1.0, help="CPU seconds for each path")
    parser.add_argument("--path", nargs="*", choices=list(PATHS), help="only these")
    parser.add_argument("--json", action="store_true", help="print nothing but JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = {name: _apart(name, options.seconds) for name in options.path or PATHS}
    if options.json:
        print(json.dumps(figures))
        return
    for name, microseconds in figures.items():
        print(f"{name:28}{microseconds:10.2f} us")


def _apart(name: str, seconds: float) -> float:
    """Measure a path in a process of its own: memory that others have used would change it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=lambda: theirs.send(measure(PATHS[name](), seconds)))
    child.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        sys.exit(f"{name}: its process ended without a figure")
    finally:
        child.join()


def measure(work: Work, seconds: float) -> float:
    """Return the CPU microseconds of a unit: the lower quartile of slices."""
    next(work)  # compiles, and fills caches
    found: list[float] = []
    spent = 0.0
    while spent < seconds or len(found) < 4:
        began, units = time.thread_time(), 0
        while (taken := time.thread_time() - began) < _SLICE_SECONDS:
            units += next(work)
        found.append(1e6 * taken / units)
        spent += taken
    return statistics.quantiles(found, n=4)[0]


def _config(env: str, env_args: dict[str, Any]) -> Config:
    settings = {
        "run": {"env": env, "env_args": env_args},
        "actor": {
            "envs_per_actor": _ENVS,
            "discount": 0.99,
            "segment_length": 16,
            "batch_transitions": 64,
        },
        "learner": {
            "learning_rate": 1e-4,
            "device": "cpu",
            "precision": "float32",
            "batch_size": _BATCH,
        },
    }
    return build(("benchmark", settings))


# ---- actors ----


def _act(env: str, env_args: dict[str, Any]) -> Work:
    """Step environments by the values of a network, and record."""
    spec = describe_environment(env, env_args)
    config = _config(env, env_args)
    rollout = Rollout(config, spec, build_network(spec, config.network), Identity(0, 0))
    while True:
        telemetry = Telemetry()  # a new one now and then, since it collects episodes
        for _ in range(_STEPS):
            rollout.step(telemetry)
            yield _ENVS


def _ship(name: str) -> Work:
    """Join the segments of a batch, and encode it."""
    recording = record(name)
    config = bench_config(recording)
    segments = islice(recording.segments(config), 4 * _BATCHES)
    gathered = [segment for several in segments for segment in several][:_BATCHES]
    count = sum(len(segment.columns["action"]) for segment in gathered)
    while True:
        columns, blocks = join_segments(gathered, recording.spec)
        wire.encode_transitions(wire.TransitionBatch(_RUN, 0, 0, 0, 0, columns, blocks))
        yield count


# ---- replay ----


def _intake(name: str, store: str) -> Work:
    """Decode batches, and insert them."""
    recording = record(name)
    config = bench_config(recording)
    encoded = list(islice(encoded_batches(recording, config), _BATCHES))
    buffer = make_buffer(changed(config, "replay", {"store": store}), recording.spec)
    yield from taken_in(buffer, recording.spec, cycle(encoded))


def _sample(name: str, store: str) -> Work:
    """Draw batches, and update their priorities."""
    buffer, sample = _filled(record(name), store)
    priorities = np.random.default_rng(0).random(_BATCH).astype(np.float32)
    while True:
        buffer.sample_into(sample)
        buffer.update_priorities(sample.keys, priorities)
        yield _BATCH


# ---- the learner ----


def _learn(name: str, **network: Any) -> Work:
    """Take steps of gradient descent on samples of a recording."""
    recording = record(name)
    buffer, sample = _filled(recording, "dense")
    config = changed(_config(recording.spec.id, {}), "network", network)
    learner = Learner(config, recording.spec)
    while True:
        buffer.sample_into(sample)
        learner.step(learner.tensors(sample))
        yield _BATCH


def _filled(recording: Recording, store: str) -> tuple[PrioritizedBuffer, Sample]:
    """Fill a buffer with a recording, and draw a sample of it."""
    config = changed(bench_config(recording), "replay", {"store": store})
    encoded = list(islice(encoded_batches(recording, config), _BATCHES))
    return filled(changed(config, "learner", {"batch_size": _BATCH}), recording.spec, encoded)


# A path is a case of its own for each kind of network and store that it may have.
PATHS: dict[str, Callable[[], Work]] = {
    "act, CartPole": lambda: _act("CartPole-v1", {}),
    "act, placement 64": lambda: _act("pdqn/CirclePlacement-v0", {"map_size": 64}),
    "act, placement 128": lambda: _act("pdqn/CirclePlacement-v0", {}),
    "ship, CartPole": lambda: _ship("cartpole"),
    "ship, placement 128": lambda: _ship("placement"),
    "intake, CartPole": lambda: _intake("cartpole", "dense"),
    "intake, placement 128": lambda: _intake("placement", "compressed"),
    "sample, CartPole": lambda: _sample("cartpole", "dense"),
    "sample, placement 128": lambda: _sample("placement", "compressed"),
    "learn, CartPole": lambda: _learn("cartpole"),
    "learn, CartPole, normalised": lambda: _learn("cartpole", layer_norm=True),
    "learn, MinAtar": lambda: _learn("minatar"),
    "learn, placement 128": lambda: _learn("placement"),
}


if __name__ == "__main__":
    main()
