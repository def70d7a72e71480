"""The limit of a process's own memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from actors.evaluation import MOST_ENVIRONMENTS
from launcher.plan.memory import EVALUATED_AT_ONCE
from launcher.run.parallel import Run
from launcher.run.session import Session
from pdqn.memory import SLACK_BYTES, MemoryLimit, held_bytes

if TYPE_CHECKING:
    from conftest import StartCommand

GB = 10**9
TESTS = str(Path(__file__).parent)
RUN = [
    "launch", "--env", "failing_environments:broken", "--console", "plain", "--run-dir", "run",
    "--envs-per-actor", "2", "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "evaluation.enabled=false", "--set", "system.telemetry_seconds=0.2",
    "--set", "system.metrics_seconds=0.2", "--env-arg", "how=leak",
]  # fmt: skip
PATH = {"PYTHONPATH": TESTS}


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run" / "summary.json").read_text(encoding="utf-8"))


def test_the_limit_is_a_multiple_of_the_plan_and_a_slack():
    limit = MemoryLimit("replay", planned_bytes=2 * GB, multiple=3.0)
    assert limit.limit_bytes == 6 * GB + SLACK_BYTES
    assert limit.excess(limit.limit_bytes) == ""
    assert limit.excess(limit.limit_bytes + 1) != ""


@pytest.mark.parametrize(("planned", "multiple"), [(2 * GB, 0.0), (0, 3.0)])
def test_without_a_multiple_or_a_plan_there_is_no_limit(planned: int, multiple: float):
    limit = MemoryLimit("replay", planned, multiple)
    limit.settle(5 * GB)
    assert limit.limit_bytes == 0
    assert limit.excess(10**15) == ""


def test_a_role_ends_before_it_fills_the_machine_however_large_its_plan_is():
    limit = MemoryLimit("replay", 50 * GB, 3.0, machine_bytes=100 * GB)
    assert limit.limit_bytes == 90 * GB
    assert "the expected 50 GB, and 1 GB, within this machine's memory)" in limit.excess(91 * GB)
    assert MemoryLimit("replay", 95 * GB, 3.0, 100 * GB).limit_bytes == 95 * GB, "it was planned"
    assert MemoryLimit("replay", GB, 3.0, 100 * GB).limit_bytes == 3 * GB + SLACK_BYTES


def test_what_a_role_holds_once_it_works_counts_as_planned():
    limit = MemoryLimit("actor", planned_bytes=GB, multiple=2.0)
    limit.settle(5 * GB)
    assert limit.limit_bytes == 10 * GB + SLACK_BYTES
    limit.settle(3 * GB)
    assert limit.limit_bytes == 10 * GB + SLACK_BYTES


def test_the_sentence_names_what_is_held_the_limit_and_what_helps():
    text = MemoryLimit("actor", planned_bytes=80 * 10**6, multiple=3.0).excess(5_200_000_000)
    assert text == (
        "holds 5.2 GB of memory, more than its limit of 1.24 GB (system.memory_limit = 3 times the "
        "expected 80 MB, and 1 GB): its environment may keep what it should free, or need more "
        "than was planned; a higher system.memory_limit allows more, 0 any amount"
    )


def test_memory_of_its_own_counts_as_held():
    before = held_bytes()
    kept = np.ones(300_000_000, np.uint8)
    assert 250_000_000 < held_bytes() - before < 350_000_000
    assert kept.all()


def test_without_a_descriptor_nothing_is_measured_and_nothing_fails():
    code = (
        "import resource\n"
        "from launcher.plan import machine\n"
        "from pdqn.memory import held_bytes\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "print(held_bytes(), machine.load())\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert result.stdout == "0 (0.0, 0)\n", result.stderr


@pytest.mark.slow
def test_an_environment_that_leaks_ends_its_actor_with_a_sentence_and_the_run_goes_on(
    pdqn_command: StartCommand, tmp_path: Path
):
    options = ["--actors", "1", "--steps", "3000", "--set", "system.memory_limit=0.01"]
    options += ["--env-arg", f"marker={tmp_path / 'leaked'}"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 0, command.stderr
        shown = command.stdout
    assert "actor 0: holds 1." in shown
    assert "more than its limit of 1" in shown
    assert "its environment may keep what it should free" in shown
    assert "Traceback" not in shown
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    assert summary["restarts"]["actor"] == 1
    assert summary["first_error"].startswith("actor 0: ended by its memory limit")
    log = (tmp_path / "run" / "logs" / "actor-0.log").read_text(encoding="utf-8")
    assert "this role holds" in log


@pytest.mark.slow  # that there is no limit then is tested above
def test_without_the_limit_an_actor_may_hold_any_amount(pdqn_command: StartCommand, tmp_path: Path):
    options = ["--actors", "1", "--steps", "3000", "--set", "system.memory_limit=0"]
    options += ["--env-arg", f"marker={tmp_path / 'leaked'}"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 0, command.stderr
    assert summary_of(tmp_path)["restarts"]["actor"] == 0


def test_a_run_in_one_process_that_leaks_saves_and_ends(pdqn_command: StartCommand, tmp_path: Path):
    options = ["--mode", "single", "--time", "60s", "--set", "system.memory_limit=0.01"]
    options += ["--env-arg", f"marker={tmp_path / 'leaked'}"]
    with pdqn_command(*RUN, *options, directory=tmp_path, **PATH) as command:
        assert command.wait() == 1
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "failed"
    assert summary["error"].startswith("this process holds 1.")
    assert list((tmp_path / "run" / "checkpoints").glob("step-*/learner.pth"))


def test_the_plan_knows_how_many_episodes_are_evaluated_at_once():
    assert EVALUATED_AT_ONCE == MOST_ENVIRONMENTS


def test_the_launcher_warns_once(monkeypatch: pytest.MonkeyPatch):
    noted: list[str] = []
    run: Any = Run.__new__(Run)
    run._memory = MemoryLimit("launcher", 1, 3.0)
    run._session = Session.__new__(Session)
    monkeypatch.setattr(run._session, "note", lambda *what: noted.append(what[-1]))
    monkeypatch.setattr("launcher.run.parallel.held_bytes", lambda: 2 * GB)
    run._look_at_memory()
    run._look_at_memory()
    (text,) = noted
    assert text.startswith("holds 2 GB of memory, more than its limit of 1 GB")
