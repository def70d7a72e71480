"""Environments in the process of a run or command: what they turn, take and print there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import torch
import wild_environments as wild
from test_single import config_of

from actors.environments.describe import describe_environment
from actors.environments.guard import EnvironmentFailedError, close_quietly
from actors.environments.guest import EnvironmentQuitError, Guest
from actors.environments.making import Makers
from actors.environments.vector import VectorEnvironment
from launcher import streams
from launcher.console.console import SilentConsole
from launcher.console.lines import summary_rows
from launcher.interrupts import Interrupts
from launcher.run.session import Session
from launcher.run.single import SingleRun
from launcher.rundir import RunDirectory
from launcher.terminal import echo
from pdqn import handlers, logs
from pdqn.errors import Interrupted

if TYPE_CHECKING:
    from conftest import Command, StartCommand

pytestmark = pytest.mark.usefixtures("same_threads", "no_picture")
WALK = "wild_environments:Walk"


def batch_of(make: Any, failures_allowed: int = 0, size: int = 2) -> VectorEnvironment:
    spec = describe_environment(WALK, {})
    made = Makers(make, None)
    return VectorEnvironment(spec, {}, size, failures_allowed=failures_allowed, made=made)


def switches() -> list[Any]:
    return [
        torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),
        torch.get_num_threads(), torch.get_deterministic_debug_mode(), np.geterr(),
        list(warnings.filters), logging.root.manager.disable, list(logging.root.handlers),
    ]  # fmt: skip


# ---- switches ----


def test_switches_of_an_environment_hold_within_its_calls_and_nowhere_else():
    seen, before = list[Any](), switches()

    def turn() -> None:
        seen.append(torch.get_default_dtype())
        wild.turn_everything()

    env = batch_of(lambda: wild.Doing(turn), size=1)
    assert switches() == before
    env.reset([0])
    env.step(np.zeros(1, np.int64))
    assert switches() == before
    assert seen == [torch.float32, torch.float64, torch.float64], "it finds its own again"
    env.close()
    assert switches() == before


def test_switches_that_an_environment_turns_back_are_forgotten():
    guest = Guest()
    with guest:
        torch.set_grad_enabled(False)
    with guest:
        torch.set_grad_enabled(True)
    torch.set_grad_enabled(False)
    try:
        with guest:
            assert not torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)


@pytest.fixture
def _inferring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the environment enter inference mode when it is first stepped, and never leave it."""
    mode, entered = torch.inference_mode(), list[bool]()

    def turn() -> None:
        turn_everything()
        if not entered:
            mode.__enter__()
            entered.append(True)

    turn_everything = wild.turn_everything
    monkeypatch.setattr(wild, "turn_everything", turn)
    yield
    if entered:
        mode.__exit__(None, None, None)
        torch.set_grad_enabled(True)  # which the mode has kept as the environment had turned it


@pytest.mark.usefixtures("_inferring")
def test_a_run_learns_the_same_in_one_process_whatever_its_environment_turns(tmp_path: Path):
    models = []
    for name in ("Walk", "Turning"):
        config = config_of({"env": f"wild_environments:{name}", "steps": 600})
        directory = RunDirectory(tmp_path / name)
        spec = dataclasses.replace(describe_environment(WALK, {}), id=config.run.env)
        session = Session(config, spec, directory, SilentConsole(), Interrupts())
        assert SingleRun(session).execute() == 0
        model = torch.load(tmp_path / name / "final_model.pth", weights_only=True)
        best = torch.load(tmp_path / name / "best_model.pth", weights_only=True)
        models.append((model["parameter_version"], best["score"], model["parameters"]))
    (version, score, ours), (turned_version, turned_score, turned) = models
    assert (version, score) == (turned_version, turned_score)
    assert version > 20
    assert all(torch.equal(ours[name], turned[name]) for name in ours)


# ---- signals ----


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupts]:
    """Provide interrupts that are installed, until the end of the test."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(handlers, "_ours", {})
    yield Interrupts().install()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_end_a_run_although_an_environment_takes_them_with_every_call(counted: Interrupts):
    env = batch_of(lambda: wild.Doing(wild.take_signals))
    for call in (lambda: None, lambda: env.reset([0, 1]), lambda: env.step(np.zeros(2, np.int64))):
        call()
        before = counted.count
        signal.raise_signal(signal.SIGINT)
        assert counted.count == before + 1
        counted.count = 0
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN, "which nobody else has installed"
    env.close()


def test_a_signal_that_an_environment_blocks_arrives(counted: Interrupts):
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])

    env = batch_of(lambda: wild.Doing(block))
    signal.raise_signal(signal.SIGINT)
    assert counted.count == 1
    env.close()


# ---- what is raised ----


@pytest.mark.parametrize(
    "how", ["Timeout", "KeyboardInterrupt", "SystemExit", "CancelledError", "GeneratorExit"]
)
def test_what_an_environment_raises_costs_an_episode_although_it_is_not_an_exception(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("actors.environments.guard.time.sleep", lambda _: None)
    env = batch_of(lambda: wild.Quits(how), failures_allowed=1)
    env.reset([0, 1])
    failed = [env.step(np.ones(2, np.int64)).failed.any() for _ in range(4)]
    assert failed == [False, False, True, False]
    assert how in caplog.text
    env.close()
    never = batch_of(lambda: wild.Quits(how), failures_allowed=0)
    never.reset([0, 1])
    steps = (never.step(np.ones(2, np.int64)) for _ in range(4))
    with pytest.raises(EnvironmentFailedError, match=how):
        deque(steps, maxlen=0)
    never.close()


def test_what_ends_its_making_is_an_error_like_any_other():
    def quit_now() -> None:
        raise wild.Timeout("no license")

    with pytest.raises(EnvironmentQuitError, match="Timeout: no license"):
        batch_of(lambda: wild.Doing(quit_now))


def test_a_persons_interrupt_is_not_an_environments_failure():
    def interrupted() -> None:
        if env is not None:
            raise Interrupted

    env = None
    env = batch_of(lambda: wild.Doing(interrupted), failures_allowed=5)
    with pytest.raises(Interrupted):
        env.reset([0, 1])


# ---- closing ----


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_one_that_cannot_be_closed_holds_nobody_up(
    how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("actors.environments.vector._CLOSE_SECONDS", 0.1)
    monkeypatch.setattr("actors.environments.vector._LEAST_CLOSE_SECONDS", 0.05)
    env = batch_of(lambda: wild.Unclosed(how))
    env.close()
    assert caplog.text.count("an environment could not be closed") == 2
    expected = {"raises": "the simulator does not answer", "hangs": "not closed within 0.05 s"}
    assert expected[how] in caplog.text


def test_closing_leaves_the_handlers_of_signals_as_they_were():
    before = signal.getsignal(signal.SIGUSR2)
    close_quietly(wild.Walk())
    assert signal.getsignal(signal.SIGUSR2) == before


# ---- processes of an environment's own ----


def test_a_process_that_an_environment_forks_can_be_ended(counted: Interrupts):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=lambda: (ready.set(), time.sleep(600)))
    child.start()
    assert ready.wait(20)
    child.terminate()
    child.join(20)
    assert child.exitcode == -signal.SIGTERM, "the run's handler would have counted the signal"
    assert counted.count == 0


LEAVES = """
import atexit, multiprocessing, os, sys, time
from launcher import streams
from launcher.cli import main as entry

def stay():
    os.close(2)
    time.sleep(600)

class Torn:
    def __del__(self):
        time.sleep(600)

entry._END_SECONDS = 0.5
with streams.apart():
    child = multiprocessing.get_context("fork").Process(target=stay)
    child.start()
    if "hangs" in sys.argv:
        atexit.register(time.sleep, 600)
    if "torn" in sys.argv:
        child.kill()
        sys.kept = Torn()
print(child.pid, flush=True)
entry.main = lambda: sys.exit(3)
entry.run_program()
"""


@pytest.mark.parametrize("how", ["stays", "hangs", "torn"])
def test_a_command_ends_although_an_environment_left_what_python_waits_for(
    how: str, eventually: Any
):
    command = subprocess.run(
        [sys.executable, "-c", LEAVES, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert command.returncode == 3, command.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        left = psutil.Process(int(command.stdout))
        eventually(lambda: left.status() == psutil.STATUS_ZOMBIE)  # if nobody waits for orphans


ENDS_SLOWLY = """
import sys, time
from launcher import streams
from launcher.cli import main as entry

class Slow:
    def __del__(self, sleep=time.sleep):
        sleep(2)  # while Python ends, after it has restored the handlers of signals

entry._END_SECONDS = 0.5
with streams.apart():
    entry.slow = Slow()
entry.main = lambda: sys.exit(3)
entry.run_program()
"""


def test_a_command_whose_end_takes_long_keeps_its_exit_code():
    command = subprocess.run([sys.executable, "-c", ENDS_SLOWLY], timeout=60, check=False)
    assert command.returncode == 3


# ---- what is printed ----


@pytest.mark.parametrize("is_logged", [True, False])
def test_what_an_environment_prints_stays_apart_from_what_a_command_prints(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, is_logged: bool
):
    log = tmp_path / "log"
    with streams.apart(log if is_logged else None):
        wild.speak()
        echo("a result")
        echo("a remark", err=True)
        assert sys.stdin.read() == "", "keys are the command's"
        sys.stdout.close()  # which some libraries do
    echo("later")
    out, err = capfd.readouterr()
    assert out == "a result\nlater\n"
    spoken = log.read_text() if is_logged else err.replace("a remark\n", "")
    assert sorted(spoken.splitlines()) == ["a warning", "from C", "loading a level"]


def test_the_log_of_an_environment_that_prints_on_and_on_keeps_its_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        logs, "LOG", dataclasses.replace(logs.LOG, most_bytes=400, first_bytes=50, last_bytes=50)
    )
    with streams.apart(tmp_path / "log"):
        for _ in range(100):
            os.write(1, b"on and on\n")
            streams.bound_log()
    text = (tmp_path / "log").read_text()
    assert len(text) < 500
    assert "bytes of this log were left out here" in text
    assert text.endswith("on and on\n")


# ---- a whole run, and its evaluation ----


def lines_of(command: Command) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command.stdout.splitlines()]


@pytest.mark.slow
def test_a_run_in_one_process_keeps_its_place_its_signals_and_its_output(
    pdqn_command: StartCommand, tmp_path: Path, eventually: Any
):
    (tmp_path / "simulator").mkdir()
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    options = [
        "--env", "wild_environments:Elsewhere", "--env-arg", f"folder={tmp_path / 'simulator'}",
        "--mode", "single", "--time", "60s", "--run-dir", "run", "--console", "json",
        "--set", "replay.capacity=5000", "--set", "network.hidden=16",
    ]  # fmt: skip
    with pdqn_command("launch", *options, directory=tmp_path, **path) as command:
        eventually(lambda: "environment_steps" in command.stdout)
        command.process.send_signal(signal.SIGTERM)
        assert command.wait(30) == 0, command.stderr
        assert lines_of(command)[-1]["summary"]["exit_reason"] == "interrupted"
    assert sorted(p.name for p in (tmp_path / "simulator").iterdir()) == []
    assert {"final_model.pth", "summary.json", "metrics.jsonl"} <= {
        file.name for file in (tmp_path / "run").iterdir()
    }
    assert "from C" in (tmp_path / "run" / "logs" / "actor-0.log").read_text()
    arguments = ["eval", "run", "--episodes", "2", "--max-episode-steps", "20", "--json"]
    with pdqn_command(*arguments, directory=tmp_path, **path) as command:
        assert command.wait() == 0, command.stderr
        assert lines_of(command)[0]["episodes"] == 2
        assert "goodbye" in command.stderr


def test_a_run_of_many_processes_ends_in_order_whatever_its_environments_do(
    pdqn_command: StartCommand, tmp_path: Path
):
    (tmp_path / "simulator").mkdir()
    options = [
        "--env", "wild_environments:Everything", "--env-arg", f"folder={tmp_path / 'simulator'}",
        "--actors", "2", "--envs-per-actor", "2", "--steps", "1500", "--run-dir", "run",
        "--console", "json", "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
        "--set", "network.hidden=16", "--set", "evaluation.episodes=2",
    ]  # fmt: skip
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    with pdqn_command("launch", *options, directory=tmp_path, **path) as command:
        assert command.wait() == 0, command.stderr
        summary = lines_of(command)[-1]["summary"]
    assert (summary["exit_reason"], summary["warning"]) == ("steps", None)
    assert not any(summary["restarts"].values())
    assert summary["environment_failures"] >= 1
    assert summary["transitions"]["sent"] == summary["transitions"]["received"] > 0
    assert (tmp_path / "run" / "best_model.pth").is_file()
    assert list((tmp_path / "simulator").iterdir()) == []
    log = (tmp_path / "run" / "logs" / "actor-0.log").read_text()
    assert "an environment could not be closed" in log


def test_a_run_says_at_its_end_that_no_evaluation_worked(tmp_path: Path):
    config = config_of({"env": "wild_environments:Moody", "steps": 400})
    evaluation = dataclasses.replace(config.evaluation, env_args={"fails": True})
    config = dataclasses.replace(config, evaluation=evaluation)
    spec = describe_environment(config.run.env, {})
    session = Session(config, spec, RunDirectory(tmp_path / "run"), SilentConsole(), Interrupts())
    assert SingleRun(session).execute() == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    warning = dict(summary_rows(summary, None))["warning"]
    assert warning.startswith("no evaluation worked, so there is no best model: step ")
    assert "none of 2 held-out episodes" in warning
