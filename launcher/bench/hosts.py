"""The benchmark ``pdqn bench hosts``: costs of a transition, and the actors that saturate a run."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import torch
import zmq
from rich.table import Table

import pdqn
from actors.rollout import Identity, Rollout
from actors.segments import Segment, join_segments
from launcher.bench.saturation import Costs, limits
from launcher.coordinator.coordinator import Coordinator
from launcher.kinds import Names
from launcher.metrics.metrics import RunMetrics
from launcher.numbers import number, size
from launcher.plan.inspector import Inspector
from launcher.plan.prepare import prepare
from launcher.terminal import echo_json, show
from learner.learner import Learner
from pdqn import parameters, transport, wire
from pdqn.clients import Client
from pdqn.config import Config, resolved
from pdqn.messages import Join, Welcome
from pdqn.networks import build_network
from pdqn.parameters import Parameters
from pdqn.specs import EnvironmentSpec
from pdqn.telemetry import Telemetry
from pdqn.transport import Context, KeyPair, Network
from replay.buffer import make_buffer
from replay.samples import SampleLayout

_RUN = "bench"
_WARM_UP_SECONDS = 0.5
_BATCHES_KEPT = 200
_CRYPT_BYTES = 1 << 20
_CURVE_OVERHEAD_BYTES = 40  # for each message: nonce, tag and flags (RFC 26), and its length
# More would take long to join. Each member reports once.
_MEMBERS = _REPORTS = 2000
_TURN_SECONDS = 0.001  # so short that the coordinator does not wait to gather messages


def bench_hosts(
    config: Config,
    seconds: float,
    host_actors: int,
    given: Names | None = None,
    *,
    as_json: bool,
) -> int:
    """Measure and print; return the exit code. ``given`` is as ``prepare`` takes it."""
    with Inspector(config.system) as inspector:
        spec, _, plan = prepare(config, inspector=inspector, given=given)
    costs = measure(plan.config, spec, seconds, host_actors)
    found = limits(costs)
    if as_json:
        shown = {"costs": dataclasses.asdict(costs), "limits": [vars(one) for one in found]}
        echo_json(shown, indent=2)
        return 0
    table = Table(title="actors that saturate", title_justify="left", box=None, pad_edge=False)
    for name, justify in (("one of", "left"), ("actors", "right"), ("because", "left")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    for one in found:
        table.add_row(one.what, number(one.actors), one.why)
    show(_cost_table(spec, costs), "", table)
    return 0


def measure(config: Config, spec: EnvironmentSpec, seconds: float, host_actors: int) -> Costs:
    """Measure what a run of this configuration costs on this machine, piece by piece."""
    torch.set_num_threads(1)
    actor_rate, encoded = _measure_actor(config, spec, seconds)
    crypt = _measure_encryption(seconds)
    count = sum(batch.count for _, batch in encoded)
    wire_bytes = sum(len(data) + _CURVE_OVERHEAD_BYTES for data, _ in encoded) / count
    insert, sample = _measure_replay(config, spec, [data for data, _ in encoded], seconds)
    torch.set_num_threads(resolved(config.learner.threads))
    learner = Learner(config, spec)
    return Costs(
        actor_rate=1 / (1 / actor_rate + wire_bytes * crypt),
        wire_bytes=wire_bytes,
        sample_bytes=SampleLayout(spec, config.learner.batch_size).nbytes
        / config.learner.batch_size,
        insert_seconds=insert,
        sample_seconds=sample,
        learner_rate=_measure_learner(learner, config, spec, seconds),
        parameter_bytes=len(parameters.encode(Parameters(_RUN, 0, 0, learner.online.state_dict()))),
        publish_seconds=config.learner.publish_seconds,
        host_actors=host_actors,
        samples_per_insert=resolved(config.replay.samples_per_insert),
        crypt_seconds_per_byte=crypt,
        report_seconds=_measure_coordinator(config, spec),
        telemetry_seconds=config.system.telemetry_seconds,
    )


def _measure_actor(
    config: Config, spec: EnvironmentSpec, seconds: float
) -> tuple[float, list[tuple[bytes, wire.TransitionBatch]]]:
    """Measure transitions per second of CPU time, made and encoded; return also some batches."""
    network = build_network(spec, config.network)
    rollout = Rollout(config, spec, network, Identity(0, 0))
    telemetry = Telemetry()
    kept: list[tuple[bytes, wire.TransitionBatch]] = []

    def act() -> Iterator[int]:
        gathered: list[Segment] = []
        while True:
            gathered += rollout.step(telemetry)
            count = sum(segment.count for segment in gathered)
            if count >= resolved(config.actor.batch_transitions):
                columns, blocks = join_segments(gathered, spec)
                batch = wire.TransitionBatch(_RUN, 0, 0, len(kept), 0, columns, blocks)
                kept.append((wire.encode_transitions(batch), batch))
                del kept[:-_BATCHES_KEPT]
                gathered = []
                yield count
            else:
                yield 0

    rate = _cpu_rate(act(), seconds)
    while not kept:
        _cpu_rate(act(), seconds)
    rollout.close()
    return rate, kept


def _measure_replay(
    config: Config,
    spec: EnvironmentSpec,
    encoded: list[bytes],
    seconds: float,
) -> tuple[float, float]:
    """Measure the CPU seconds of replay for a transition that arrives, and for a sampled one."""
    buffer = make_buffer(config, spec)
    batch_size = config.learner.batch_size
    layout = SampleLayout(spec, batch_size)
    out = layout.view(bytearray(layout.nbytes))
    fresh = np.random.default_rng(0).random(batch_size).astype(np.float32)

    def insert() -> Iterator[int]:
        for data in cycle(encoded):
            batch = wire.decode_transitions(data, spec, _RUN)
            yield len(buffer.insert(batch.columns, batch.blocks, 0))

    def sample() -> Iterator[int]:
        while True:
            buffer.sample_into(out)
            buffer.update_priorities(out.keys, fresh)
            yield out.count

    costs = 1 / _cpu_rate(insert(), seconds), 1 / _cpu_rate(sample(), seconds)
    buffer.close()
    return costs


def _measure_learner(
    learner: Learner, config: Config, spec: EnvironmentSpec, seconds: float
) -> float:
    """Measure transitions per second by the wall clock: the learner shares no threads or GPU."""
    layout = SampleLayout(spec, config.learner.batch_size)
    sample = layout.view(bytearray(layout.nbytes))
    sample.sampling_priority[:] = 1.0

    def learn() -> Iterator[int]:
        while True:
            learner.step(learner.tensors(sample))
            yield sample.count

    return _rate(learn(), seconds, time.perf_counter)


def _measure_encryption(seconds: float) -> float:
    """Measure CPU seconds per byte at one side of an encrypted connection: half of both sides'."""
    pairs = [KeyPair.new() for _ in range(2)]
    contexts = [Context(Network(pair)) for pair in pairs]
    contexts[0].allow({pairs[1].public: Client("peer")})
    pull, push = contexts[0].socket(zmq.PULL), contexts[1].socket(zmq.PUSH)
    push.setsockopt(zmq.SNDTIMEO, 1000)
    transport.connect(push, transport.bind(pull, "tcp://127.0.0.1:*"))
    done = threading.Event()

    def send() -> None:
        data = bytes(_CRYPT_BYTES)
        while not done.is_set():
            try:
                push.send(data)
            except zmq.Again:
                return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()

    def receive() -> Iterator[int]:
        while True:
            yield len(pull.recv(copy=False)) if pull.poll(1000) else 0

    try:
        rate = _cpu_rate(receive(), seconds)
    finally:  # after Ctrl-C as well: what is on its way would keep this process
        done.set()
        while thread.is_alive():
            if pull.poll(50):
                pull.recv(copy=False)
        for context in contexts:
            context.destroy(linger=0)
    return 1 / rate / 2


def _measure_coordinator(config: Config, spec: EnvironmentSpec) -> float:
    """Measure the coordinator's CPU seconds per report and answer, in a run of many actors."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    coordinator = Coordinator(
        context, "inproc://coordinator",
        welcome=Welcome(_RUN, 0, 0, config, spec, "inproc://nowhere", ""),
        metrics=RunMetrics(spec.headline_metric),
    )  # fmt: skip
    try:
        return _report_seconds(context, coordinator)
    finally:
        context.destroy(linger=0)


def _report_seconds(context: zmq.Context[zmq.Socket[bytes]], coordinator: Coordinator) -> float:
    """Measure CPU seconds of a report by members that join through this context."""
    coordinator.command(["actor"], "run")
    telemetry = Telemetry()
    for name in ("environment_steps", "episodes", "transitions_sent", "bytes_sent", "wait_seconds"):
        telemetry.count(name, 1)
    report = telemetry.report().encoded
    spent = 0.0
    with _join_many(context, coordinator) as socket:
        for _ in range(_REPORTS):
            socket.send(report)
            started = time.thread_time()
            coordinator.poll(_TURN_SECONDS)
            spent += time.thread_time() - started
            while socket.poll(0):
                socket.recv()
    return spent / _REPORTS


def _join_many(
    context: zmq.Context[zmq.Socket[bytes]], coordinator: Coordinator
) -> zmq.Socket[bytes]:
    """Join as all actors of a run, through one socket, which sends for each in turn."""
    socket = context.socket(zmq.DEALER)
    for _ in range(_MEMBERS):
        socket.connect(coordinator.endpoint)  # to the other side, each is a different member
    for index in range(_MEMBERS):
        socket.send(Join("actor", pdqn.__version__, "bench", 1, index).encoded)
        while not socket.poll(0):
            coordinator.poll(_TURN_SECONDS)
        socket.recv()
    return socket


def _cpu_rate(counts: Iterator[int], seconds: float) -> float:
    return _rate(counts, seconds, time.process_time)


def _rate(counts: Iterator[int], seconds: float, clock: Callable[[], float]) -> float:
    """Sum the counts per second of a clock, after a short warm-up."""
    end = time.perf_counter() + _WARM_UP_SECONDS
    while time.perf_counter() < end:
        next(counts)
    started, total, end = clock(), 0, time.perf_counter() + seconds
    while time.perf_counter() < end or not total:
        total += next(counts)
    return total / max(1e-9, clock() - started)


def _cost_table(spec: EnvironmentSpec, costs: Costs) -> Table:
    table = Table(
        title=f"{spec.id}: what a transition costs", title_justify="left", box=None,
        show_header=False, pad_edge=False,
    )  # fmt: skip
    table.add_column()
    table.add_column(justify="right")
    rows: list[tuple[str, Any]] = [
        ("an actor makes, on a core", f"{number(costs.actor_rate)}/s"),
        ("bytes from actor to replay", size(costs.wire_bytes)),
        ("bytes from replay to learner, sampled once", size(costs.sample_bytes)),
        ("replay: check, decompress, insert", f"{costs.insert_seconds * 1e6:.2f} us"),
        ("replay: sample once, new priority", f"{costs.sample_seconds * 1e6:.2f} us"),
        ("learner trains on", f"{number(costs.learner_rate)}/s"),
        ("parameters", size(costs.parameter_bytes)),
        ("encryption, either side", f"{costs.crypt_seconds_per_byte * 1e9:.2f} ns a byte"),
    ]
    for row in rows:
        table.add_row(*row)
    return table
