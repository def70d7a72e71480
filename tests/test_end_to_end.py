"""Whole runs, scaled down: the real command with real processes and real signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch

from launcher.folders import sweep
from pdqn.model import load_model

if TYPE_CHECKING:
    from conftest import Command, Observed, StartCommand

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]

SMALL = [
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "learner.batch_size=16",
    "--set", "learner.threads=1",
    "--set", "system.telemetry_seconds=0.2", "--set", "system.metrics_seconds=0.2",
    "--run-dir", "run",
]  # fmt: skip
PLACEMENT = ["--env-arg", "map_size=16", "--env-arg", "radii=[3, 2, 1]", *SMALL]
CART_POLE = ["--env", "CartPole-v1", "--console", "plain", *SMALL]
NO_EVALUATOR = ["--set", "evaluation.enabled=false"]
STOP_SECONDS = 20.0


# A pdqn whose launcher fails with a bug of its own after some learner steps.
BROKEN_LAUNCHER = """
import runpy, sys
import launcher.run.session

def show(self, members):
    if self.metrics.learner_steps() > 20:
        raise ZeroDivisionError(f"with gymnasium: {'gymnasium' in sys.modules}")

if __name__ == "__main__":
    launcher.run.session.Session.show = show
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_error_of_the_launchers_own_loses_nothing_that_was_learned(
    pdqn_command: StartCommand, tmp_path: Path
):
    script = tmp_path / "broken.py"
    script.write_text(BROKEN_LAUNCHER, encoding="utf-8")
    options = ["--actors", "1", "--time", "120s", *NO_EVALUATOR]
    with pdqn_command(
        "launch", *CART_POLE, *options, directory=tmp_path, prefix=(sys.executable, str(script))
    ) as command:
        assert command.wait() == 1
        assert "ZeroDivisionError: with gymnasium: False" in command.stderr, "roles need that"
    assert load_model(tmp_path / "run" / "final_model.pth").parameter_version > 20


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGHUP, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_what_the_whole_process_group_is_told_ends_a_run_in_order(
    pdqn_command: StartCommand,
    eventually: Eventually,
    read_lines: ReadLines,
    tmp_path: Path,
    number: signal.Signals,
):
    """Send the signal of a closed terminal, of ``timeout`` or of a batch system."""
    options = ["--actors", "2", "--time", "120s", *NO_EVALUATOR]

    def learner_steps() -> int:
        lines = read_lines(tmp_path / "run" / "metrics.jsonl")
        return lines[-1]["learner_steps"] if lines else 0

    # The tests themselves may run where SIGHUP is ignored.
    heard = ("env", "--default-signal=HUP")
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path, prefix=heard) as command:
        eventually(lambda: (tmp_path / "run" / "metrics.jsonl").exists(), 60)
        eventually(lambda: learner_steps() > 0, 60)
        command.interrupt(number)
        assert command.wait(STOP_SECONDS) == 0, command.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "interrupted"
    assert summary["first_error"] is None
    assert set(summary["restarts"].values()) == {0}
    assert summary["transitions"]["lost"] == summary["transitions"]["unsent"] == 0
    assert load_model(tmp_path / "run" / "final_model.pth").parameter_version > 0


Observe = Callable[["Command"], "Observed"]


def free_port() -> int:
    """A port of 127.0.0.1 that stays free until a command binds it.

    The system itself never gives it to a connection of another test.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


# ---- a run that ends by itself ----


# A library of the forkserver with an exit handler that waits, and one of the launcher that tells
# what it has imported in the end.
EXIT_HANDLERS = """
import atexit, pathlib, sys, time
here = pathlib.Path(__file__)
if any("launcher.processes.forkserver" in argument for argument in sys.orig_argv):
    atexit.register(time.sleep, 1000)
    here.with_name("registered").touch()
if "launch" in sys.orig_argv:
    atexit.register(lambda: here.with_name("imported").write_text(" ".join(sys.modules)))
"""
HEAVY = {"torch", "numba", "scipy", "gymnasium", "matplotlib"}


@pytest.fixture(scope="module")
def finished(pdqn_command: StartCommand, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Provide a run of circle placement that has ended, and has left no process."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "sitecustomize.py").write_text(EXIT_HANDLERS)
    path = {"PYTHONPATH": str(directory)}
    options = ["--actors", "2", "--episodes", "400", "--console", "json", "--mode", "ultra"]
    options += ["--force", "--set", "system.pictures=true"]
    with pdqn_command("launch", *PLACEMENT, *options, directory=directory, **path) as command:
        assert command.wait() == 0, command.stderr
    return command


@pytest.fixture(scope="module")
def run_dir(finished: Command) -> Path:
    return finished.directory / "run"


@pytest.fixture(scope="module")
def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def test_a_run_leaves_all_its_files(run_dir: Path):
    files = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert files >= {
        "config.toml",
        "metrics.jsonl",
        "events.jsonl",
        "summary.json",
        "training_results.png",
        "final_model.pth",
        *(f"logs/{role}.log" for role in ("actor-0", "actor-1", "replay-0", "learner-0")),
        "logs/evaluator-0.log",
    }
    assert any(file.startswith("tensorboard/events") for file in files)
    assert any(file.startswith("checkpoints/step-") for file in files)
    assert not [file for file in files if Path(file).name.startswith(".")]
    assert (run_dir / "training_results.png").read_bytes()[:4] == b"\x89PNG"
    for role in ("actor-0", "actor-1", "replay-0", "learner-0", "evaluator-0"):
        log = (run_dir / "logs" / f"{role}.log").read_text(encoding="utf-8")
        assert re.search(rf"{role.replace('-', ' ')} joined as process \d+$", log, re.M)
        assert log.endswith("it has left in order\n")


def test_an_exit_handler_of_a_library_that_waits_keeps_no_process(finished: Command):
    assert (finished.directory / "registered").exists()
    assert finished.members() == []


def test_the_launcher_of_a_run_never_imports_what_is_heavy(finished: Command):
    imported = (finished.directory / "imported").read_text(encoding="utf-8").split()
    assert "launcher.run.parallel" in imported
    assert not HEAVY.intersection(imported)


def test_nothing_is_lost(summary: dict[str, Any]):
    transitions = summary["transitions"]
    assert transitions["sent"] == transitions["received"] > 0
    others = ("lost", "duplicate", "rejected", "unsent")
    assert {name: transitions[name] for name in others} == dict.fromkeys(others, 0)
    # Every step becomes a transition: an episode has three, and actors flush the last ones.
    assert summary["environment_steps"] - transitions["sent"] < 2 * 32 * 2


def test_the_summary_has_everything_that_others_rely_on(summary: dict[str, Any]):
    assert summary["exit_reason"] == "episodes"
    # At least the limit, and at most one batch of environments more.
    assert 400 <= summary["episodes"] < 400 + 32
    assert summary["environment_steps"] >= 3 * 400
    assert summary["actors"] == 2
    for name in ("wall_seconds", "episodes_per_second", "environment_steps_per_second"):
        assert summary[name] > 0
    for name in ("learner_steps", "learner_steps_per_second", "samples_per_insert"):
        assert summary[name] >= 0
    assert summary["policy_lag_mean"] >= 0
    assert summary["environment"]["id"] == "pdqn/CirclePlacement-v0"
    assert 0 < summary["environment"]["return_mean"] < 1
    assert 0 < summary["environment"]["metrics"]["coverage"] < 1
    assert summary["eval"]["episodes"] == 32
    assert 0 < summary["eval"]["return_mean"] < 1
    assert 0 < summary["eval"]["metrics"]["coverage"] < 1
    assert " exact greedy" in summary["eval"]["reached"]
    assert summary["restarts"] == dict.fromkeys(
        ("actor", "replay", "learner", "evaluator", "forkserver"), 0
    )
    assert summary["bytes_per_transition"]["wire"] > 0
    assert summary["bytes_per_transition"]["stored"] > 0
    assert summary["first_error"] is None


def test_the_last_evaluation_is_of_the_final_model(run_dir: Path, summary: dict[str, Any]):
    content = torch.load(run_dir / "final_model.pth", weights_only=True)
    assert content["parameter_version"] == summary["learner_steps"]
    assert summary["eval"]["parameter_version"] == summary["learner_steps"]


def test_metrics_and_events_tell_the_run(run_dir: Path, read_lines: ReadLines):
    lines = read_lines(run_dir / "metrics.jsonl")
    steps = [line["environment_steps"] for line in lines]
    assert steps == sorted(steps)
    assert any("eval/coverage" in line for line in lines)
    last = [line for line in lines if "rollout/ep_rew_mean" in line][-1]
    assert last["rollout/ep_len_mean"] == 3.0
    assert last["replay/samples_per_insert"] > 0
    assert last["replay/samples_per_insert_target"] == 4.0
    for name in ("inserts_blocked_share", "samples_blocked_share"):
        assert 0 <= last[f"replay/{name}"] <= 1
    assert last["replay/blocked_for_seconds"] >= 0
    assert last["learner/shared_memory"] in (0, 1)
    kinds = [event["event"] for event in read_lines(run_dir / "events.jsonl")]
    assert (kinds[0], kinds[-1]) == ("started", "ended")
    assert kinds.count("joined") == kinds.count("left") == 5
    assert kinds.index("running") < kinds.index("stopping")


def test_the_json_console_speaks_json_only(finished: Command, summary: dict[str, Any]):
    lines = [json.loads(line) for line in finished.stdout.splitlines()]
    assert {line["event"] for line in lines} == {"message", "progress", "summary"}
    assert [line["event"] for line in lines].index("progress") > 0
    sentences = [line["text"] for line in lines if line["event"] == "message"]
    for start in (
        "replay: 5,000 transitions, dense, ",
        "the policy starts level with exact greedy; ",
    ):
        assert any(sentence.startswith(start) for sentence in sentences)
    assert lines[-1]["summary"] == summary
    assert lines[-1]["error"] is None
    assert finished.stderr == ""


def test_eval_plays_greedy_episodes_beside_the_baselines(
    pdqn_command: StartCommand, run_dir: Path, tmp_path: Path
):
    arguments = ["eval", str(run_dir), "--episodes", "8", "--json"]
    with pdqn_command(*arguments, directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    result = json.loads(command.stdout)
    assert result["episodes"] == 8
    assert result["baselines"].keys() >= {"random", "exact_greedy"}
    assert 0 < result["metrics"]["coverage"] < 1
    assert result["parameter_version"] == load_model(run_dir / "final_model.pth").parameter_version


def test_plot_draws_the_picture_again(pdqn_command: StartCommand, run_dir: Path, tmp_path: Path):
    picture = run_dir / "training_results.png"
    picture.unlink()
    with pdqn_command("plot", str(run_dir), directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    assert command.stdout == f"{picture}\n{run_dir / 'strategy.png'}\n"
    assert picture.stat().st_size > 1000


# ---- over TCP ----


def test_actors_join_a_run_from_another_command(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    address = f"127.0.0.1:{free_port()}"
    options = ["--bind", address, "--actors", "0", "--steps", "2000", *NO_EVALUATOR]
    joining = ["actor", "--join", str(tmp_path / "run"), "--count", "2"]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.until((run.path / "address.json").exists)
        with pdqn_command(*joining, directory=tmp_path / "elsewhere") as other:
            run.until(lambda: other.role("actor", 1))
            assert command.wait() == 0, command.stderr
            assert other.wait(STOP_SECONDS) == 0, other.stderr
    assert f"--join tcp://{address}" in command.stdout
    assert f"joined the run at tcp://{address} as host 0" in other.stderr
    assert "this host has left the run: the run has ended" in other.stderr
    assert "host 0 has joined: host 0 on " in command.stdout
    assert "host 0 has left" in command.stdout
    summary = run.summary()
    assert summary["exit_reason"] == "steps"
    assert summary["transitions"]["lost"] == 0
    assert summary["transitions"]["received"] > 0
    config = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    assert config["actor"]["count"] == 0
    actors = {event["index"] for event in run.events("joined") if event["role"] == "actor"}
    assert actors == {0, 1}


@pytest.mark.slow
def test_a_learner_of_another_command_that_is_killed_is_started_again_there(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    address = f"127.0.0.1:{free_port()}"
    options = ["--bind", address, "--no-learner", "--actors", "1", *NO_EVALUATOR]
    joining = ["learner", "--join", f"tcp://{address}", "--key", "../run/keys/local.key"]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.until((run.path / "address.json").exists)
        with pdqn_command(*joining, directory=tmp_path / "x") as other:
            run.learns()
            first = other.role("learner")
            assert first is not None
            assert command.role("learner") is None
            first.send_signal(signal.SIGKILL)
            run.until(lambda: run.joined("learner", 1))
            run.grows("learner_steps")
            run.interrupt()
            assert other.wait(STOP_SECONDS) == 0, other.stderr
    assert "killed by SIGKILL; starts again" in other.stderr


# ---- Ctrl-C ----


# An environment whose library takes over the signals, and works in a folder of its own.
RUDE = """
import os, signal
import gymnasium

def make():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir("/")
    return gymnasium.make("CartPole-v1")
"""


def test_ctrl_c_while_starting_ends_the_run_in_order(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    (tmp_path / "rude.py").write_text(RUDE, encoding="utf-8")
    options = ["--env", "rude:make", "--actors", "2", "--set", "system.pictures=true"]
    with pdqn_command("launch", *CART_POLE, *options, *NO_EVALUATOR, directory=tmp_path) as command:
        run = observe(command)
        run.until(lambda: run.events("started"))
        summary = run.interrupt()
    assert summary["exit_reason"] == "interrupted"
    assert summary["transitions"]["lost"] == 0
    assert (run.path / "config.toml").exists()
    assert (run.path / "training_results.png").exists()
    assert "Traceback" not in command.stdout + command.stderr


def test_ctrl_c_in_the_middle_saves_everything(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    with pdqn_command("launch", *CART_POLE, "--actors", "2", directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        names = [("actor", 0), ("actor", 1), ("replay", 0), ("learner", 0), ("evaluator", 0)]
        for role, index in names:
            assert run.role(role, index), "every process is named after its role"
        summary = run.interrupt()
    assert summary["exit_reason"] == "interrupted"
    assert summary["transitions"]["sent"] == summary["transitions"]["received"] > 0
    assert summary["transitions"]["lost"] == 0
    # Recorded steps are shipped, except for the newest of each environment.
    envs = tomllib.loads((run.path / "config.toml").read_text())["actor"]["envs_per_actor"]
    unsent = summary["environment_steps"] - summary["transitions"]["sent"]
    assert 0 <= unsent <= 2 * envs
    assert summary["first_error"] is None
    assert load_model(run.path / "final_model.pth").parameter_version == summary["learner_steps"]
    newest = max(path.name for path in (run.path / "checkpoints").iterdir())
    assert newest == f"step-{summary['learner_steps']:09d}"
    assert not (run.path / "training_results.png").exists(), "system.pictures is false here"
    assert run.events("ended")[-1]["reason"] == "interrupted"
    for log in (run.path / "logs").iterdir():
        assert "Traceback" not in log.read_text(encoding="utf-8"), log


def test_ctrl_c_twice_ends_everything_at_once(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    with pdqn_command(
        "launch", *CART_POLE, "--actors", "2", *NO_EVALUATOR, directory=tmp_path
    ) as command:
        run = observe(command)
        run.learns()
        command.interrupt()
        run.until(lambda: run.events("stopping"))
        command.interrupt()
        assert command.wait(STOP_SECONDS) == 130
    assert "Traceback" not in command.stdout + command.stderr


# ---- Ctrl-Z ----


@pytest.mark.slow
def test_a_run_that_is_stopped_for_long_goes_on_without_a_restart(
    pdqn_command: StartCommand, observe: Observe, eventually: Eventually, tmp_path: Path
):
    options = ["--actors", "2", "--set", "system.heartbeat_timeout_seconds=3"]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        assert run.role("evaluator"), "every role is there"
        stopped = command.members()
        for process in stopped:
            process.suspend()
        eventually(lambda: all(p.status() == psutil.STATUS_STOPPED for p in stopped))
        time.sleep(5.0)  # longer than the coordinator waits for a silent role
        for process in stopped:
            process.resume()
        run.grows("environment_steps", "learner_steps")
        summary = run.interrupt()
    assert summary["restarts"] == dict.fromkeys(
        ("actor", "replay", "learner", "evaluator", "forkserver"), 0
    )
    assert summary["transitions"]["lost"] == 0
    assert summary["first_error"] is None
    assert not [kind for kind in ("silent", "rejoined", "failed") if run.events(kind)]


# ---- what dies ----


def test_no_process_outlives_a_launcher_that_was_killed(
    pdqn_command: StartCommand, observe: Observe, eventually: Eventually, tmp_path: Path
):
    with pdqn_command("launch", *CART_POLE, "--actors", "2", directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        pids = [int(event["text"].split("pid ")[1].split(",")[0]) for event in run.events("joined")]
        assert len(pids) == 5
        assert {process.pid for process in command.members()} > set(pids)
        os.kill(command.process.pid, signal.SIGKILL)
        assert command.process.wait() == -signal.SIGKILL
        eventually(lambda: not command.members(), 10.0)
        temporary = Path(command._temporary.name)
        left = [*temporary.glob("pdqn-*"), *temporary.glob("pymp-*")]
        assert sorted(sweep([str(temporary)])) == sorted(left) != []


def test_an_actor_and_a_learner_that_are_killed_are_started_again(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--actors", "2", "--set", "checkpoint.period_seconds=0.5", *NO_EVALUATOR]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        victim = run.role("actor", 1)
        victim.kill()
        run.until(lambda: run.joined("actor", 1))
        assert run.role("actor", 1).pid != victim.pid
        run.grows("environment_steps", "learner_steps")
        saved = run.until(lambda: run.checkpoints()[1:])[0]
        run.role("learner").kill()
        run.until(lambda: run.joined("learner", 1))
        run.grows("environment_steps", "learner_steps")
        summary = run.interrupt()
    assert summary["transitions"]["lost"] == 0
    assert summary["transitions"]["sent"] >= summary["transitions"]["received"]
    assert summary["restarts"] == {
        "actor": 1,
        "replay": 0,
        "learner": 1,
        "evaluator": 0,
        "forkserver": 0,
    }
    assert "actor 1: killed by SIGKILL (see run/logs/actor-1.log)" in summary["first_error"]
    ended = [(e["role"], e["index"], e["cause"]) for e in run.events("ended") if "role" in e]
    assert ended == [("actor", 1, "killed by SIGKILL"), ("learner", 0, "killed by SIGKILL")]
    assert "actor 1 ended (killed by SIGKILL); starts again in 0.5 s" in command.stdout
    told = next(event["text"] for event in run.events("checkpoint"))
    continued = int(told.removeprefix("goes on from learner step "))
    assert saved <= continued <= summary["learner_steps"]


def test_a_replay_that_is_killed_again_and_again_loses_nothing_and_the_run_goes_on(
    pdqn_command: StartCommand, observe: Observe, read_lines: ReadLines, tmp_path: Path
):
    options = ["--actors", "2", "--set", "replay.capacity=100000", *NO_EVALUATOR]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        stored = 0.0
        for kill in range(1, 3):
            before = read_lines(run.path / "metrics.jsonl")
            stored += before[-1]["replay/size"]
            run.role("replay").kill()
            run.role("actor", 1).kill()
            run.until(lambda incarnation=kill: run.joined("replay", incarnation))
            run.until(lambda incarnation=kill: run.joined("actor", incarnation))
            run.grows("environment_steps", "learner_steps")
        summary = run.interrupt()
    assert summary["restarts"] == {
        "actor": 2,
        "replay": 2,
        "learner": 0,
        "evaluator": 0,
        "forkserver": 0,
    }
    last = read_lines(run.path / "metrics.jsonl")[-1]
    assert last["replay/transitions_recovered"] >= stored
    transitions = summary["transitions"]
    assert transitions["received"] == last["replay/size"], "all is stored and counted once"
    assert transitions["duplicate"] == 0
    assert transitions["lost"] == transitions["waiting"] == transitions["stored_twice"] == 0
    ends = sum(transitions[name] for name in ("received", "refused", "died"))
    assert transitions["made"] == ends, "what is not stored died with an actor that was killed"
    assert transitions["sent"] >= transitions["received"]
    assert last["system/transitions_died"] == transitions["died"]
    assert last["system/lost"] == 0, "what was acknowledged leaves no gap in a stream"
    assert summary["samples_per_insert"] < 4.2, "what was sampled is not due again"
    assert load_model(run.path / "final_model.pth").parameter_version == summary["learner_steps"]


def test_a_run_goes_on_while_one_of_its_replays_is_lost_and_comes_back(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--actors", "2", "--replays", "2", *NO_EVALUATOR]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        assert run.role("replay", 0), "both shards are processes"
        victim = run.role("replay", 1)
        victim.kill()
        run.grows("environment_steps", "learner_steps")
        run.until(lambda: run.joined("replay", 1))
        assert run.role("replay", 1).pid != victim.pid
        run.grows("environment_steps", "learner_steps")
        summary = run.interrupt()
    assert summary["exit_reason"] == "interrupted"
    assert summary["restarts"] == {
        "actor": 0,
        "replay": 1,
        "learner": 0,
        "evaluator": 0,
        "forkserver": 0,
    }
    assert "replays 2 alive" in command.stdout
    transitions = summary["transitions"]
    assert transitions["lost"] == transitions["died"] == transitions["waiting"] == 0
    assert transitions["made"] == transitions["received"] + transitions["refused"]
    config = tomllib.loads((run.path / "config.toml").read_text(encoding="utf-8"))
    assert (config["replay"]["shards"], config["replay"]["capacity"]) == (2, 5000)
    assert load_model(run.path / "final_model.pth").parameter_version == summary["learner_steps"]


def test_a_run_fails_only_when_its_last_replay_is_given_up(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--actors", "1", "--replays", "2", "--set", "system.restarts=0", *NO_EVALUATOR]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        run.role("replay", 0).kill()
        run.until(lambda: "replay 0 ended (killed by SIGKILL) too often" in command.stdout)
        run.grows("environment_steps", "learner_steps")
        run.role("replay", 1).kill()
        assert command.wait() == 1
    assert "replay 1 cannot be kept alive" in command.stdout
    assert "Traceback" not in command.stdout + command.stderr
    assert run.summary()["exit_reason"] == "failed"


@pytest.mark.slow
def test_a_run_whose_replay_cannot_be_kept_alive_fails(
    pdqn_command: StartCommand, observe: Observe, tmp_path: Path
):
    options = ["--actors", "1", "--set", "system.restarts=0", *NO_EVALUATOR]
    with pdqn_command("launch", *CART_POLE, *options, directory=tmp_path) as command:
        run = observe(command)
        run.learns()
        run.role("replay").kill()
        assert command.wait() == 1
    summary = run.summary()
    assert summary["exit_reason"] == "failed"
    assert "replay 0: killed by SIGKILL" in summary["first_error"]
    assert "replay 0 cannot be kept alive" in command.stdout
    assert "Traceback" not in command.stdout + command.stderr
    assert load_model(run.path / "final_model.pth").parameter_version == summary["learner_steps"]
