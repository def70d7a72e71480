"""Whole runs with environments that raise, hang and crash: who notices, and what goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_escapes import assert_harmless

from pdqn.seeds import environment_seeds

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Observe = Callable[["Command"], "Observed"]
ReadLines = Callable[[Path], list[dict[str, Any]]]

TESTS = str(Path(__file__).parent)
RUN = [
    "launch", "--env", "failing_environments:broken", "--console", "plain", "--run-dir", "run",
    "--envs-per-actor", "2", "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "evaluation.enabled=false", "--set", "system.telemetry_seconds=0.2",
    "--set", "system.metrics_seconds=0.2",
]  # fmt: skip
PATH = {"PYTHONPATH": TESTS}


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run" / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_an_environment_that_raises_once_costs_its_episode_and_nothing_else(
    pdqn_command: StartCommand, tmp_path: Path
):
    marker = f"marker={tmp_path / 'raised'}"
    options = ["--actors", "1", "--steps", "2000", "--env-arg", marker]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 0, command.stderr
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    assert summary["restarts"] == dict.fromkeys(
        ("actor", "replay", "learner", "evaluator", "forkserver"), 0
    )
    assert summary["environment_failures"] >= 1
    assert summary["transitions"]["lost"] == 0
    log = (tmp_path / "run" / "logs" / "actor-0.log").read_text(encoding="utf-8")
    assert "the simulator is upset" in log


def test_one_found_where_the_command_is_run_that_always_raises_ends_it_with_its_first_traceback(
    pdqn_command: StartCommand, tmp_path: Path
):
    source = Path(TESTS, "failing_environments.py").read_text(encoding="utf-8")
    (tmp_path / "my_environments.py").write_text(source, encoding="utf-8")
    arguments = [part.replace("failing_environments", "my_environments") for part in RUN]
    options = ["--actors", "1", "--time", "60s", "--set", "system.restarts=1"]
    options += ["--set", "actor.environment_failures=2", "--env-arg", "how=escape"]
    with pdqn_command(*arguments, *options, directory=tmp_path) as command:
        assert command.wait() == 1
        shown = command.stdout
        # Escapes in what it raises change no terminal.
        assert r"\x1b]0;owned" in shown
        assert_harmless(shown)
        assert_harmless(command.stderr)
    for log in (tmp_path / "run" / "logs").glob("*.log"):
        assert_harmless(log.read_text("utf-8"))
    assert_harmless((tmp_path / "run" / "events.jsonl").read_text("utf-8"))
    assert "Traceback (most recent call last):" in shown
    assert "raise RuntimeError(" in shown
    assert "my_environments.py" in shown
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "failed"
    assert (
        "actor 0: EnvironmentFailedError: an environment failed 2 times in a row: "
        "RuntimeError: \\x1b]0;owned" in summary["first_error"]
    )


@pytest.mark.slow
def test_one_that_crashes_its_process_costs_one_restart(
    pdqn_command: StartCommand, read_lines: ReadLines, tmp_path: Path
):
    options = ["--actors", "2", "--steps", "3000", "--env-arg", "how=segfault"]
    options += ["--env-arg", f"marker={tmp_path / 'crashed'}"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 0, command.stderr
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    # Both may have come to the step before the file was there.
    assert 1 <= summary["restarts"]["actor"] <= 2
    assert "killed by SIGSEGV" in summary["first_error"]
    # Two actors and at least one restart: each began with seeds of its own, and they are recorded.
    events = read_lines(tmp_path / "run" / "events.jsonl")
    recorded = [event["text"] for event in events if event["event"] == "seeds"]
    assert len(recorded) == len(set(recorded)) == 2 + summary["restarts"]["actor"]
    first, second = environment_seeds(0, first=0, num_envs=2, incarnation=0)
    assert f"environments: {first} {second}" in recorded


@pytest.mark.slow
def test_an_actor_that_is_given_up_does_not_end_a_run_that_has_another_one(
    pdqn_command: StartCommand, read_lines: ReadLines, tmp_path: Path
):
    bad = environment_seeds(0, first=0, num_envs=2, incarnation=0)
    options = ["--actors", "2", "--steps", "3000", "--env-arg", "how=segfault"]
    options += ["--env-arg", f"bad_seeds={bad}", "--set", "system.restarts=0"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 0, command.stderr
        shown = command.stdout
    assert "actor 0 ended (killed by SIGSEGV) too often and is given up" in shown
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    assert summary["restarts"]["actor"] == 0
    ended = [e for e in read_lines(tmp_path / "run" / "events.jsonl") if e["event"] == "ended"]
    assert [(e["role"], e["index"]) for e in ended if "role" in e] == [("actor", 0)]


def test_one_that_hangs_is_ended_and_the_others_go_on(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--actors", "2", "--time", "120s", "--env-arg", "how=hang"]
    options += ["--env-arg", f"marker={tmp_path / 'hung'}"]
    options += ["--set", "system.heartbeat_timeout_seconds=3"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        run = observe(command)
        run.until(lambda: "actor" in {event["role"] for event in run.events("silent")})
        run.until(lambda: run.joined("actor", 1))
        run.grows("environment_steps")
        summary = run.interrupt()
    assert "not heard for 3 s (system.heartbeat_timeout_seconds), is ended" in command.stdout
    logs = [(tmp_path / "run" / "logs" / f"actor-{i}.log").read_text("utf-8") for i in (0, 1)]
    assert any("failing_environments.py" in log and "in _misbehave" in log for log in logs)
    assert summary["restarts"]["actor"] >= 1
