"""The benchmark ``pdqn bench replay``: the speed of replay, stage by stage and all together.

It first measures each stage by itself in one process. Then the real processes work together over
the sockets that a run on one host has. A writer records, compresses and sends as an actor does, to
the replay that a run would have. A client draws batches from it and updates their priorities as a
learner does.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import zmq
from rich.table import Table
from rich.text import Text

from actors.segments import Segment, join_segments
from launcher import sockets
from launcher.bench import children
from launcher.bench.children import process_of
from launcher.bench.recordings import Recording, recorded
from launcher.coordinator.coordinator import Coordinator
from launcher.metrics.metrics import RunMetrics
from launcher.numbers import number, size
from launcher.plan.machine import Machine, detect
from launcher.plan.plan import plan as plan_run
from launcher.terminal import echo, echo_json, show
from pdqn import layers, wire
from pdqn.config import Config, resolved
from pdqn.errors import RunError, UsageError
from pdqn.files import RUN_ID
from pdqn.link import role
from pdqn.messages import Welcome
from replay.buffer import make_buffer
from replay.client import SampleClient
from replay.process import run_replay
from replay.samples import SampleLayout
from replay.sender import TransitionSender
from replay.waiting import window_batches

_RUN = "bench"
_CAPACITY = 100_000
_MIN_SIZE = 1000
_BATCH_SIZE = 256
_SMALL_BATCH_SIZE = 64
_BATCHES_PREPARED = 256
_JOIN_SECONDS = 60.0
_REPORT_SECONDS = 3.0
WARM_UP_SECONDS = 0.5
_UNLIMITED = 1e15


@dataclass(frozen=True)
class Load:
    """The work of one process in one phase.

    Attributes:
        rate: transitions per second.
        busy: CPU seconds per second.
        latency_seconds: median time from asking for a batch to having it; None if not measured.
    """

    rate: float
    busy: float
    latency_seconds: float | None = None


@dataclass(frozen=True)
class Together:
    """The work of the three processes, one phase after the other.

    Attributes:
        inserts: transitions per second inserted while nothing was sampled.
        samples: transitions per second sampled while nothing was inserted.
        both_inserts: transitions per second inserted while both went on.
        both_samples: transitions per second sampled while both went on.
        busy: CPU seconds per second, by phase and process.
        shared_memory: True if SampleBatches went through shared memory.
        wire_bytes: bytes of a transition on the wire.
        stored_bytes: bytes of a transition in the buffer, its share of everything included.
    """

    inserts: float
    samples: float
    both_inserts: float
    both_samples: float
    busy: dict[str, dict[str, float]]
    shared_memory: bool
    wire_bytes: float
    stored_bytes: float

    def bottleneck(self, phase: str) -> str:
        """Name the busiest process of a phase, and the share of a core that it used."""
        name, busy = max(self.busy[phase].items(), key=lambda item: item[1])
        return f"{name} {busy:.0%}"


def bench_replay(data: Sequence[str], seconds: float, *, as_json: bool) -> int:
    """Measure and print one table; return the exit code."""
    results: dict[str, dict[str, Any]] = {}
    for name, recording in recorded(data):
        echo(f"{name}: {recording.origin}", err=True)
        results[name] = measure(recording, seconds)
    if as_json:
        echo_json(results, indent=2)
    else:
        show(_table(results))
    return 0


def measure(recording: Recording, seconds: float) -> dict[str, Any]:
    """Measure everything for one kind of data, and return plain data."""
    config = bench_config(recording)
    result: dict[str, Any] = {"stages": _stages(recording, config, seconds), "together": {}}
    for transport in _NAMES:
        together = run_together(recording, config, seconds, transport)
        result["stages"]["bytes, wire"] = together.wire_bytes
        result["together"][transport] = {
            "inserts": together.inserts,
            "samples": together.samples,
            "both_inserts": together.both_inserts,
            "both_samples": together.both_samples,
            "latency_seconds": small_batch_latency(recording, config, seconds, transport),
            "busy": together.busy,
            "bottleneck": {phase: together.bottleneck(phase) for phase in together.busy},
            "shared_memory": together.shared_memory,
        }
    return result


def bench_config(recording: Recording) -> Config:
    """Plan the sizes that a run with such data would have, with a limiter that never waits.

    Raises:
        UsageError: this machine has no room for a buffer.
    """
    here = detect()
    # As large as a run's, so that the buffer exceeds all caches, but no larger than that needs.
    capacity = resolved(_planned(recording, here, {}).replay.capacity)
    return _planned(recording, here, {"capacity": min(_CAPACITY, capacity)})


def _planned(recording: Recording, here: Machine, replay: dict[str, Any]) -> Config:
    settings = {
        "run": {"env": recording.spec.id, "mode": "parallel"},
        "actor": {"count": 1, "envs_per_actor": recording.num_envs},
        "learner": {"batch_size": _BATCH_SIZE, "device": "cpu"},
        "replay": {
            "store": "dense",
            "min_size": _MIN_SIZE,
            "samples_per_insert": 1.0,
            "samples_per_insert_tolerance": _UNLIMITED,
            **replay,
        },
        "evaluation": {"enabled": False},
    }
    plan = plan_run(here, layers.build(("benchmark", settings)), recording.spec)
    if plan.errors:
        raise UsageError("; ".join(plan.errors))
    return plan.config


# ---- stages, one by one ----


def _stages(recording: Recording, config: Config, seconds: float) -> dict[str, float]:
    """Measure each stage by itself on one core: transitions per second, and their bytes."""
    encoded = list(islice(encoded_batches(recording, config), _BATCHES_PREPARED))
    decoded = [wire.decode_transitions(data, recording.spec, _RUN) for data in encoded]

    def decode() -> Iterator[int]:
        for data in cycle(encoded):
            yield wire.decode_transitions(data, recording.spec, _RUN).count

    figures = {
        "client": _rate(encoded_counts(recording, config), seconds),
        "wire": _wire_rate(encoded, decoded, seconds),
        "decode": _rate(decode(), seconds),
    }
    for store in ("dense", "compressed"):
        figures |= _store_figures(recording, config, store, decoded, seconds)
    return figures


def _store_figures(
    recording: Recording,
    config: Config,
    store: str,
    decoded: list[wire.TransitionBatch],
    seconds: float,
) -> dict[str, float]:
    """Measure one store: rates of inserting and sampling on one core, bytes of a transition."""
    buffer = make_buffer(changed(config, "replay", {"store": store}), recording.spec)
    layout = SampleLayout(recording.spec, _BATCH_SIZE)
    out = layout.view(bytearray(layout.nbytes))
    priorities = np.random.default_rng(0).random(_BATCH_SIZE).astype(np.float32)

    def insert() -> Iterator[int]:
        for batch in cycle(decoded):
            yield len(buffer.insert(batch.columns, batch.blocks, batch.parameter_version))

    def sample() -> Iterator[int]:
        while True:
            buffer.sample_into(out)
            buffer.update_priorities(out.keys, priorities)
            yield out.count

    # In this order: the buffer is full of data when it is sampled.
    figures = {
        f"insert, {store}": _rate(insert(), seconds),
        f"sample, {store}": _rate(sample(), seconds),
        f"bytes, {store}": buffer.stored_bytes / buffer.size,
    }
    buffer.close()
    return figures


def encoded_batches(recording: Recording, config: Config) -> Iterator[bytes]:
    """Yield TransitionBatches as an actor makes them, without end."""
    for sequence, segments in enumerate(_batches(recording, config)):
        yield _encode(segments, recording, (0, 0), sequence)


def _batches(recording: Recording, config: Config) -> Iterator[list[Segment]]:
    """Gather segments to the configured size of a TransitionBatch."""
    enough = resolved(config.actor.batch_transitions)
    gathered: list[Segment] = []
    count = 0
    for segments in recording.segments(config):
        for segment in segments:
            gathered.append(segment)
            count += len(segment.columns["action"])
            if count >= enough:
                yield gathered
                gathered, count = [], 0


def _encode(
    segments: list[Segment],
    recording: Recording,
    stream: tuple[int, int],
    sequence: int,
    run: str = _RUN,
    ticket: bytes = b"",
    made: int = 0,
) -> bytes:
    columns, blocks = join_segments(segments, recording.spec)
    batch = wire.TransitionBatch(run, *stream, sequence, 0, columns, blocks, ticket, made)
    return wire.encode_transitions(batch)


def encoded_counts(recording: Recording, config: Config) -> Iterator[int]:
    """Record and encode TransitionBatches; yield the number of transitions of each."""
    for sequence, segments in enumerate(_batches(recording, config)):
        _encode(segments, recording, (0, 0), sequence)
        yield sum(len(segment.columns["action"]) for segment in segments)


def _rate(counts: Iterator[int], seconds: float) -> float:
    """Sum the counts per second, after a short warm-up."""
    _consume(counts, WARM_UP_SECONDS)
    total, elapsed = _consume(counts, seconds)
    return total / elapsed


def _consume(counts: Iterator[int], seconds: float) -> tuple[int, float]:
    started, total = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        total += next(counts)
    return total, elapsed


def _wire_rate(encoded: list[bytes], decoded: list[wire.TransitionBatch], seconds: float) -> float:
    """Measure transitions per second from one process to another, without decoding."""
    with process_of(_receive_all) as (process, pipe), zmq.Context() as context:
        push = context.socket(zmq.PUSH)
        push.setsockopt(zmq.LINGER, 0)
        push.setsockopt(zmq.SNDTIMEO, 10_000)
        push.connect(_received(pipe, process))

        def send() -> Iterator[int]:
            for data, batch in cycle(zip(encoded, decoded, strict=True)):
                push.send(data, copy=False)
                yield batch.count

        rate = _rate(send(), seconds)
        push.close()
    return rate


def _receive_all(pipe: Connection) -> None:
    """Take messages until the other side has gone."""
    with sockets.folder() as folder, zmq.Context() as context, context.socket(zmq.PULL) as pull:
        pull.setsockopt(zmq.RCVHWM, 16)
        pull.bind(f"ipc://{folder}/pull")
        pipe.send(pull.getsockopt_string(zmq.LAST_ENDPOINT))
        while not pipe.poll():
            if pull.poll(100):
                pull.recv(copy=False)


# ---- together ----


def run_together(recording: Recording, config: Config, seconds: float, transport: str) -> Together:
    """Insert, then sample, then both at once, with real processes over local sockets."""
    with Processes(recording, changed(config, "replay", {"transport": transport})) as bench:
        # Replay loads its compiled kernels with the first batch.
        bench.phase({"writer": WARM_UP_SECONDS})
        wrote = bench.phase({"writer": seconds})
        wire_bytes, stored_bytes = bench.bytes_per_transition()
        drew = bench.phase({"client": seconds})
        both = bench.phase({"writer": seconds, "client": seconds})
        shared = bench.shared_memory()
    return Together(
        inserts=wrote["writer"].rate,
        samples=drew["client"].rate,
        both_inserts=both["writer"].rate,
        both_samples=both["client"].rate,
        busy={
            phase: {name: load.busy for name, load in loads.items()}
            for phase, loads in (("insert", wrote), ("sample", drew), ("both", both))
        },
        shared_memory=shared,
        wire_bytes=wire_bytes,
        stored_bytes=stored_bytes,
    )


def small_batch_latency(
    recording: Recording, config: Config, seconds: float, transport: str
) -> float:
    """Measure the median round trip of one batch of 64 at a time, with inserts at full rate.

    Returns:
        Seconds.

    Raises:
        RunError: no batch arrived in time.
    """
    config = changed(config, "replay", {"transport": transport})
    config = changed(config, "learner", {"batch_size": _SMALL_BATCH_SIZE, "prefetch": 1})
    with Processes(recording, config) as bench:
        bench.phase({"writer": WARM_UP_SECONDS, "client": WARM_UP_SECONDS})
        latency = bench.phase({"writer": seconds, "client": seconds})["client"].latency_seconds
    if latency is None:
        raise RunError(f"the benchmark's client got no batch within {seconds:g} s")
    return latency


def changed(config: Config, section: str, values: dict[str, Any]) -> Config:
    """Return the configuration with these values of one section."""
    return layers.build(("plan", config.to_map()), ("benchmark", {section: values}))


class Processes:
    """A run with a coordinator and a replay, and a writer and a client for actor and learner.

    Args:
        recording: steps that the writer sends.
        config: the run's.
        others: list of those that are there at the same time; this one is added. Each of them looks
            after all coordinators while it waits.
    """

    def __init__(
        self, recording: Recording, config: Config, others: list[Processes] | None = None
    ) -> None:
        self._all = [] if others is None else others
        self._all.append(self)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._metrics = RunMetrics(None)
        self._sockets = sockets.SocketsFolder(sockets.make_folder())
        folder, self._folder = self._sockets.path, _disk_folder()
        self._coordinator = Coordinator(
            self._context,
            f"ipc://{folder}/coordinator",
            welcome=Welcome(
                _RUN,
                0,
                0,
                config,
                recording.spec,
                f"ipc://{folder}/{{role}}-{{name}}",
                str(self._folder),
            ),
            metrics=self._metrics,
        )
        self._recording = recording
        self._processes: dict[str, BaseProcess] = {}
        self._pipes: dict[str, Connection] = {}

    def __enter__(self) -> Processes:
        """Start the processes; return when all work."""
        try:
            self._start(self._coordinator.endpoint)
            for name in self._pipes:
                self._wait_for(name)
        except BaseException:
            self._kill()
            self._remove()
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None = None, *_: object) -> None:
        """End the processes, at once after a failure, and remove what they have written."""
        if failure is None:
            self._stop()
        self._kill()
        self._remove()

    def _start(self, address: str) -> None:
        self._processes["replay"] = children.start(run_replay, address, 0, None)
        for name, target in (("writer", _write), ("client", _draw)):
            here, there = multiprocessing.get_context("spawn").Pipe()
            self._pipes[name] = here
            self._processes[name] = children.start(target, there, address, self._recording)
            there.close()

    def _stop(self) -> None:
        """Have the processes end in order, for ten seconds at most."""
        self._coordinator.command(["actor", "replay", "learner"], "stop")
        for pipe in self._pipes.values():
            pipe.close()
        deadline = time.monotonic() + 10.0
        for process in self._processes.values():
            while process.is_alive() and time.monotonic() < deadline:
                self._coordinator.poll(0.05)

    def _kill(self) -> None:
        for process in self._processes.values():
            children.end(process)
        for pipe in self._pipes.values():
            pipe.close()

    def _remove(self) -> None:
        self._coordinator.close()
        self._context.destroy(linger=0)
        self._sockets.remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    def phase(self, seconds: dict[str, float]) -> dict[str, Load]:
        """Let each process work for its seconds; return its load, and that of replay."""
        before = self._cpu_seconds("replay")
        started = time.perf_counter()
        for name, duration in seconds.items():
            self._pipes[name].send(duration)
        loads = {name: Load(*self._wait_for(name)) for name in seconds}
        elapsed = time.perf_counter() - started
        busy = (self._cpu_seconds("replay") - before) / elapsed
        return loads | {"replay": Load(0.0, busy)}

    def bytes_per_transition(self) -> tuple[float, float]:
        """Return a transition's bytes on the wire and in the buffer, on average so far."""
        self._reported("replay", "stored_bytes")
        summary = self._metrics.summary()["bytes_per_transition"]
        return summary["wire"], summary["stored"]

    def shared_memory(self) -> bool:
        """Tell whether the client's batches came through shared memory."""
        return bool(self._reported("learner", "shared_memory"))

    def _reported(self, role: str, gauge: str) -> float | None:
        """Wait for a gauge other than zero, and return it; roles report once a second."""
        deadline = time.monotonic() + _REPORT_SECONDS
        while not (value := self._metrics.gauge(role, gauge)) and time.monotonic() < deadline:
            self._coordinator.poll(0.1)
        return value

    def _wait_for(self, name: str) -> Any:
        pipe, process = self._pipes[name], self._processes[name]
        deadline = time.monotonic() + _JOIN_SECONDS
        while not pipe.poll():
            if not process.is_alive() or time.monotonic() > deadline:
                raise RunError(f"the benchmark's {name} did not answer")
            for each in self._all:
                each._coordinator.poll(0.05 / len(self._all))
        return pipe.recv()

    def _cpu_seconds(self, name: str) -> float:
        times = psutil.Process(self._processes[name].pid).cpu_times()
        return times.user + times.system


def _disk_folder() -> Path:
    """Make the directory of a run, for replay's journal, where the system keeps files on a disk."""
    folder = Path(tempfile.mkdtemp(prefix="pdqn-", dir=os.environ.get("TMPDIR", "/var/tmp")))
    (folder / RUN_ID).write_text(_RUN, encoding="utf-8")
    return folder


def _write(pipe: Connection, address: str, recording: Recording) -> None:
    """Record, compress and send as an actor does, on request; the writer's process."""
    with role("actor", address, 0, None) as (context, link, welcome):
        actor = welcome.config.actor
        stream = 0, welcome.incarnation
        window = window_batches(welcome.config)
        sender = TransitionSender(context, *stream, window, actor.window_bytes, welcome.ticket)
        batches = _batches(recording, welcome.config)

        def keep_in_touch() -> bool:
            link.poll()
            transitions = link.pulse.shards("transitions")
            acknowledgements = link.pulse.shards("acknowledgements")
            if transitions and acknowledgements:
                sender.connect(transitions[0], acknowledgements[0])
            return not link.stopping

        def send() -> Iterator[int]:
            made = 0
            for segments in batches:
                sequence, ticket = sender.next_sequence, welcome.ticket
                count = sum(len(segment.columns["action"]) for segment in segments)
                made += count
                data = _encode(segments, recording, stream, sequence, ticket=ticket, made=made)
                sent = sender.send(data, keep_in_touch)
                link.telemetry.count("transitions_sent", count if sent else 0)
                if sender.next_sequence % 64 == 0:
                    link.poll()
                yield count if sent else 0

        _obey(pipe, keep_in_touch, send(), lambda: None)
        sender.close()


def _draw(pipe: Connection, address: str, recording: Recording) -> None:
    """Draw batches and update their priorities as a learner does; the client's process."""
    with role("learner", address, 0, None) as (context, link, welcome):
        settings = welcome.config.learner
        if welcome.config.replay.transport == "socket":
            logging.disable(logging.INFO)  # the socket was asked for: no reason to report
        rng = np.random.default_rng(0)
        priorities = rng.random(settings.batch_size).astype(np.float32)
        client = SampleClient(context, welcome.spec, welcome.config, rng)
        latencies: list[float] = []

        def keep_in_touch() -> bool:
            link.telemetry.gauge("shared_memory", client.shared_memory)
            link.poll()
            client.connect(link.pulse.shards("samples"))
            return not link.stopping

        def draw() -> Iterator[int]:
            count = 0
            while True:
                started = time.perf_counter()
                sample = client.receive(0.1, learner_steps=0)
                if sample is None:
                    keep_in_touch()
                    yield 0
                    continue
                latencies.append(time.perf_counter() - started)
                client.release(sample, priorities)
                count += 1
                if count % 64 == 0:
                    keep_in_touch()
                yield sample.count

        def median_latency() -> float | None:
            if not latencies:
                return None
            return float(np.median(latencies[len(latencies) // 10 :]))

        _obey(pipe, keep_in_touch, draw(), median_latency)
        client.close()


def _obey(
    pipe: Connection,
    keep_in_touch: Callable[[], bool],
    counts: Iterator[int],
    latency: Callable[[], float | None],
) -> None:
    """Report being ready; then work for the seconds that each message says, and report the load."""
    pipe.send(None)
    process = psutil.Process()
    while keep_in_touch():
        if not pipe.poll(0.02):
            continue
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        before = process.cpu_times()
        total, elapsed = _consume(counts, seconds)
        after = process.cpu_times()
        busy = (after.user + after.system - before.user - before.system) / elapsed
        pipe.send((total / elapsed, busy, latency()))


def _received(pipe: Connection, process: BaseProcess) -> Any:
    if not pipe.poll(_JOIN_SECONDS):
        raise RunError(f"process {process.pid} of the benchmark did not start")
    return pipe.recv()


# ---- report ----

_NAMES = {"auto": "shared memory", "socket": "socket"}
_STAGES = {
    "client": "record, cut, compress",
    "wire": "socket to a process",
    "decode": "check, decompress",
    "insert, dense": "",
    "insert, compressed": "",
    "sample, dense": f"{_BATCH_SIZE} each",
    "sample, compressed": "one thread",
}


def _table(results: dict[str, dict[str, Any]]) -> Table:
    """Lay out the results: a line for each stage, a column for each kind of data."""
    table = Table(title="transitions per second", title_justify="left", box=None, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in results:
        table.add_column(name, justify="right", no_wrap=True)
    for stage, words in _STAGES.items():
        label = f"{stage}: {words}" if words else stage
        _add_row(table, label, results, lambda r, s=stage: number(r["stages"][s]))
    for transport, words in _NAMES.items():
        table.add_section()
        if any(
            r["together"][transport]["shared_memory"] != (transport == "auto")
            for r in results.values()
        ):
            words += " (not everywhere: see the log above)"
        table.add_row(Text(f"together, {words}", "bold"))
        for line, value in _together_lines(transport):
            _add_row(table, f"  {line}", results, value)
    table.add_section()
    for what in ("wire", "dense", "compressed"):
        label = f"bytes, {what}"
        _add_row(table, label, results, lambda r, s=label: size(r["stages"][s]))
    return table


def _together_lines(transport: str) -> Iterator[tuple[str, Callable[[dict[str, Any]], str]]]:
    """Yield the name and the text of each line about the processes together."""

    def figures(result: dict[str, Any]) -> dict[str, Any]:
        return result["together"][transport]

    for phase, rates in (
        ("insert", ("inserts",)),
        ("sample", ("samples",)),
        ("both", ("both_inserts", "both_samples")),
    ):
        for rate in rates:
            yield rate.replace("_", ", "), lambda r, name=rate: number(figures(r)[name])
        yield "  limited by", lambda r, name=phase: figures(r)["bottleneck"][name]
    label = f"batch of {_SMALL_BATCH_SIZE}, inserting"
    yield label, lambda r: f"{1e3 * figures(r)['latency_seconds']:.2f} ms"


def _add_row(
    table: Table,
    label: str,
    results: dict[str, dict[str, Any]],
    value: Callable[[dict[str, Any]], str],
) -> None:
    table.add_row(label, *(value(result) for result in results.values()))
