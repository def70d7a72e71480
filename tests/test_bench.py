"""The replay benchmark: its data, its stages, and its processes."""

from __future__ import annotations

import builtins
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from actors.segments import join_segments
from benchmarks.check_speed import ratios
from launcher.bench import hosts, journal, replay
from launcher.bench.recordings import RECORDINGS, record
from launcher.coordinator.coordinator import Coordinator
from launcher.metrics.metrics import RunMetrics
from pdqn import wire
from pdqn.errors import UsageError
from pdqn.layers import build
from pdqn.messages import Report, Welcome
from pdqn.specs import EnvironmentSpec, FieldSpec


@pytest.mark.parametrize("name", ["minatar", "atari"])
def test_recorded_frames_come_back_from_their_batches_as_they_were(name):
    recording = record(name)
    config = replay.bench_config(recording)
    (field,) = recording.spec.fields
    first_ended = np.flatnonzero(recording.ended[:, 0])
    segments = (s for group in recording.segments(config) for s in group)
    for segment in islice(segments, 30):
        columns, blocks = join_segments([segment], recording.spec)
        batch = wire.TransitionBatch("run", 0, 0, 0, 0, columns, blocks)
        decoded = wire.decode_transitions(wire.encode_transitions(batch), recording.spec, "run")
        frames = np.concatenate([block.fields[field.name] for block in decoded.blocks])
        np.testing.assert_array_equal(frames, segment.frames[field.name])
        assert decoded.count == segment.count
    assert recording.frames[field.name].shape[:2] == recording.actions.shape
    assert len(first_ended) > 0, "no episode ended"


def test_data_that_is_not_there_is_named_with_what_is():
    with pytest.raises(UsageError, match="'pong'; there are cartpole, minatar, atari, placement"):
        record("pong")


def test_atari_without_its_package_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("ale_py"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'pdqn\[atari\]'"):
        record("atari")


@pytest.mark.slow
def test_every_stage_and_every_phase_with_real_processes_has_a_figure(capsys, monkeypatch):
    monkeypatch.setattr(replay, "_NAMES", {"auto": "shared memory"})
    result = replay.measure(RECORDINGS["cartpole"](), seconds=0.3)
    assert result["stages"].keys() > replay._STAGES.keys()
    assert min(result["stages"].values()) > 0
    together = result["together"]["auto"]
    for figure in ("inserts", "samples", "both_inserts", "both_samples", "latency_seconds"):
        assert together[figure] > 0, figure
    assert together["shared_memory"]
    assert {name.split()[0] for name in together["bottleneck"].values()} <= {
        "writer", "replay", "client",
    }  # fmt: skip
    # A CartPole transition has two frames of 16 bytes, but about one of them is shipped and stored.
    assert 20 < result["stages"]["bytes, wire"] < 60
    assert 40 < result["stages"]["bytes, dense"] < 80
    shown = replay._table({"cartpole": result})
    assert [column.header for column in shown.columns] == ["", "cartpole"]


@pytest.mark.slow
def test_the_cost_of_the_journal_is_measured_in_turns_with_and_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    recording = RECORDINGS["cartpole"]()
    config = replay.changed(replay.bench_config(recording), "replay", journal._SETTINGS)
    result = journal.compare(recording, config, 0.3, "write", 2)
    for values in result.values():
        assert [len(rounds) for rounds in values["rounds"].values()] == [2, 2]
        assert min(values["off"], values["write"], values["ratio"]) > 0
    shown = journal._table({"cartpole, dense": result}, "write")
    assert shown.row_count == 3
    assert list(tmp_path.glob("*/journal")) == [], "the folders are removed"


@pytest.fixture
def few_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_MEMBERS", 20)


@pytest.mark.usefixtures("few_members")
def test_the_coordinator_is_measured_in_a_run_of_many_who_report_in_turn():
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    spec = EnvironmentSpec("test", (FieldSpec("observation", (4,), "float32"),), 2)
    coordinator = Coordinator(
        context, "inproc://here", welcome=Welcome("run", 0, 0, build(), spec, "", ""),
        metrics=RunMetrics(None),
    )  # fmt: skip
    socket = hosts._join_many(context, coordinator)
    assert coordinator.membership.count("actor") == 20
    for reported in range(20):
        assert sum(member.reported for member in coordinator.membership.members()) == reported
        socket.send(Report().encoded)
        coordinator.poll(1.0)
    context.destroy(linger=0)


@pytest.mark.usefixtures("same_threads", "few_members")
def test_what_a_transition_costs_is_measured_piece_by_piece(capsys: Any):
    run = {"env": "pdqn/CirclePlacement-v0", "env_args": {"map_size": 16, "radii": [3, 2, 1]}}
    learner = {"batch_size": 16, "threads": 1}
    config = build(("test", {"run": run, "learner": learner, "actor": {"count": 1}}))
    assert hosts.bench_hosts(config, 0.2, 30, as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert all(value > 0 for value in shown["costs"].values())
    assert {"this learner", "a replay process", "10 Gbit/s to replay"} <= {
        limit["what"] for limit in shown["limits"]
    }
    assert 20 < shown["costs"]["wire_bytes"] < 2000
    assert hosts.bench_hosts(config, 0.1, 30, as_json=False) == 0
    assert "actors that saturate" in capsys.readouterr().out


def test_lost_speed_is_told_by_the_median_of_the_rounds_and_new_paths_are_left_out():
    rounds = [
        ({"act": 10.0, "gone": 1.0}, {"act": 30.0, "new": 1.0}),
        ({"act": 10.0, "gone": 1.0}, {"act": 12.0, "new": 1.0}),
        ({"act": 20.0, "gone": 1.0}, {"act": 20.0, "new": 1.0}),
    ]
    assert ratios(rounds) == {"act": pytest.approx(1.2)}


# ---- the end, when somebody else decides it ----

ENDING = """
import os, signal, sys
from launcher.bench.children import process_of

def work(pipe):
    pipe.send(None)
    pipe.recv()

if __name__ == "__main__":
    with process_of(work) as (process, pipe):
        pipe.recv()
        {}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"])
def test_processes_of_a_benchmark_that_is_ended_say_nothing(tmp_path: Path, end: str):
    script = tmp_path / "ending.py"
    script.write_text(ENDING.format(end), encoding="utf-8")
    # It waits until nobody has its standard error, which the processes share.
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (-signal.SIGKILL, 3)
    assert done.stderr == ""


def test_a_benchmark_that_is_ended_says_so_in_one_line():
    command = [sys.executable, "-m", "pdqn", "bench", "replay", "--data", "cartpole"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stderr is not None
        assert "cartpole" in bench.stderr.readline()
        for _ in range(2):  # as of timeout(1), which signals the command and its group
            bench.send_signal(signal.SIGTERM)
        rest = bench.stderr.read()
        assert bench.wait(60) == 128 + signal.SIGTERM
    assert rest.strip().splitlines()[-1] == "pdqn: ended by SIGTERM"
    assert "Traceback" not in rest


def test_a_measurement_that_is_ended_leaves_no_thread(monkeypatch: pytest.MonkeyPatch):
    def interrupted(counts: Iterator[int], _seconds: float) -> float:
        next(counts)
        raise KeyboardInterrupt

    monkeypatch.setattr(hosts, "_cpu_rate", interrupted)
    before = threading.enumerate()
    with pytest.raises(KeyboardInterrupt):
        hosts._measure_encryption(0.1)
    assert threading.enumerate() == before
