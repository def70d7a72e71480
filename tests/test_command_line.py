"""The real ``pdqn`` command: what it says, what it refuses, and that its options arrive."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.shell_completion import get_completion_class
from click.testing import CliRunner

from launcher.cli.commands import cli
from launcher.cli.main import main
from launcher.cli.options import Count, Whole, WholeRange
from launcher.plan.machine import detect
from pdqn import handlers
from pdqn.config import Config

Answer = tuple[int, str, str]  # exit code, stdout, stderr
Run = Callable[..., Answer]

COMMANDS = (
    "launch",
    "check",
    "actor",
    "replay",
    "learner",
    "evaluator",
    "eval",
    "plot",
    "settings",
)


@pytest.fixture
def run(pdqn_command: Any, tmp_path: Path) -> Run:
    """Run a command to its end in the test's directory."""

    def run(*arguments: str, **variables: str) -> Answer:
        with pdqn_command(*arguments, directory=tmp_path, **variables) as command:
            return command.wait(), command.stdout, command.stderr

    return run


@pytest.fixture
def run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Run a command to its end in this process, which spares the start of another one."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(handlers, "_ours", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(logging, "lastResort", None)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PDQN_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["pdqn", *arguments])
        with tempfile.TemporaryDirectory(prefix="t-") as folder:
            with monkeypatch.context() as patch:
                patch.setattr(tempfile, "tempdir", folder)
                patch.setenv("TMPDIR", folder)
                with pytest.raises(SystemExit) as ended:
                    main()
            assert list(Path(folder).glob("pdqn-*")) == []
        code = ended.value.code
        assert isinstance(code, int)
        out, err = capfd.readouterr()
        return code, out, err

    # What the command changes for its own process.
    environment = dict(os.environ)
    os.environ["COLUMNS"] = "300"
    yield run
    os.environ.clear()
    os.environ.update(environment)
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def assert_refused(answer: Answer, *expected: str) -> None:
    code, stdout, stderr = answer
    assert code == 2, stderr
    assert stdout == ""
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("pdqn: ")
    for text in expected:
        assert text in stderr


def assert_nothing_started(directory: Path) -> None:
    left = {path.name for path in directory.iterdir() if not path.name.startswith("command-")}
    assert left == set(), "something was started"


# ---- refused before anything starts ----

# What is wrong, and what the one line must name.
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "bad time": (["--time", "10x"], ["--time", "'10x'", "90s, 10m, 2h or 1d"]),
    "no time at all": (["--time", "0s"], ["--time", "'0s'", "above zero"]),
    "endless time": (["--time", "inf"], ["'inf'; expected a finite time above zero: 90s, 10m"]),
    "too many steps": (
        ["--steps", "99999999999999999999"],
        ["--steps", "expected a whole number from 1 to 9223372036854775807"],
    ),
    "unknown mode": (["--mode", "fast"], ["--mode", "'fast'", "parallel"]),
    "unknown option": (["--epochs", "5"], ["--epochs"]),
    "unknown console": (["--console", "loud"], ["--console", "plain"]),
    "actors are no number": (["--actors", "many"], ["--actors", "'many'"]),
    "too few actors": (["--actors", "-1"], ["actor.count = -1", "at least 0"]),
    "no replays": (["--replays", "0"], ["replay.shards = 0", "at least 1 and at most 256"]),
    "bad memory": (
        ["--set", "replay.memory=lots"],
        ["--set: replay.memory = 'lots'", "8GB, 500MB or 8000000000", "25%"],
    ),
    "too large a buffer": (
        ["--env", "CartPole-v1", "--set", "replay.capacity=10000000000"],
        ["replay.capacity = 10000000000 needs", "at most", "fit (dense)"],
    ),
    "no episodes": (["--episodes", "0"], ["run.episodes = 0", "at least 1"]),
    "env-arg without a value": (["--env-arg", "map_size"], ["--env-arg", "KEY=VALUE"]),
    "set without a value": (["--set", "learner.batch_size"], ["section.key=value"]),
    "unknown section": (["--set", "trainer.x=1"], ["unknown section trainer", "learner"]),
    "unknown key": (["--set", "learner.batch=1"], ["unknown key learner.batch", "batch_size"]),
    "bad value": (["--set", "learner.batch_size=big"], ["learner.batch_size = 'big'", "number"]),
    "no table": (
        ["--set", "evaluation.env_args=level=3"],
        ["--set: evaluation.env_args = 'level=3'", "a table such as {level = 3, fast = true}"],
    ),
    "no such file": (["--config", "none.toml"], ["none.toml", "No such file"]),
    "unknown environment": (["--env", "Nowhere-v0"], ["Nowhere-v0", "doesn't exist"]),
    "bad env-arg value": (["--env-arg", "map_size=abc"], ["map_size='abc'", "whole number"]),
    "keys for everybody": (
        ["--bind", "0.0.0.0:7777", "--advertise", "head", "--insecure", "--keys", "none"],
        ["--insecure uses no keys, got --keys none; give one of the two"],
    ),
    "no such address here": (
        ["--bind", "192.0.2.7:7777", "--insecure"],
        ["--bind 192.0.2.7:7777", "Cannot assign requested address"],
    ),
    "no address": (["--bind", "head:7777"], ["--bind head:7777", "an IPv4 address"]),
    "no keys": (["--bind", "127.0.0.1", "--keys", "none"], ["none/head.key: no such key file"]),
    "keys for nobody": (["--keys", "none"], ["--keys is for a run that others join: give --bind"]),
    "learner from nowhere": (["--no-learner"], ["--no-learner", "give --bind"]),
    "slots of no cluster": (
        ["--dask-slots", "30"],
        ["--dask-slots is for roles on a Dask cluster: give --dask"],
    ),
    "python of no cluster": (["--dask-python", "/opt/python"], ["--dask-python", "give --dask"]),
    "pinned to no cluster": (["--dask-pin", "learner=gpu"], ["--dask-pin", "give --dask"]),
    "port range": (["--bind", "127.0.0.1", "--port-range", "9:8"], ["'9:8'", "FIRST:LAST"]),
    "ultra on a small machine": (["--mode", "ultra", "--steps", "1"], ["ultra is for", "--force"]),
    "unknown key in a file": (
        ["--config", "command-unknown.toml"],
        ["file command-unknown.toml", "unknown key learner.batchsize"],
    ),
    "no name of a run directory": (["--run-dir", ""], ["'--run-dir': it is empty; name a file"]),
    "no name of a file": (["--config", ""], ["'--config': it is empty; name a file"]),
    "no toml in a file": (["--config", "command-broken.toml"], ["command-broken.toml"]),
    "port in use": (["--bind", "127.0.0.1:PORT"], ["--bind 127.0.0.1:", "Address already in use"]),
    "run directory that cannot be written": (
        ["--env", "CartPole-v1", "--run-dir", "command-broken.toml/run"],
        ["run directory command-broken.toml/run cannot be written: Not a directory"],
    ),
    "run directory that holds a run": (
        ["--env", "CartPole-v1", "--run-dir", "command-old"],
        ["run directory command-old already holds a run; choose another"],
    ),
    "run directory that is a file": (
        ["--env", "CartPole-v1", "--run-dir", "command-broken.toml"],
        ["run directory command-broken.toml cannot be made: something else has that name"],
    ),
    "resume what": (["--resume", "nowhere"], ["--resume nowhere: not a run directory"]),
    "resume elsewhere": (
        ["--resume", "command-old", "--run-dir", "other"],
        ["--run-dir other: a resumed run stays in its own, command-old"],
    ),
    "a size that the network does not have": (
        ["--set", "network.hidden=8"],
        ["network.hidden = 8: a network of kind qmap does not use it"],
    ),
}
OTHERS: dict[str, tuple[list[str], list[str]]] = {
    "join what": (["actor"], ["--join"]),
    "join where": (["actor", "--join", "somewhere"], ["expected tcp://HOST:PORT"]),
    "join without a port": (["actor", "--join", "tcp://head"], ["tcp://head has no port"]),
    "join without a key": (
        ["actor", "--join", "tcp://10.0.0.1:7"],
        ["tcp://10.0.0.1:7 needs a key", "--key", "--insecure"],
    ),
    "join on loopback without a key": (
        ["actor", "--join", "tcp://127.0.0.1:7"],
        ["tcp://127.0.0.1:7 needs a key", "the run's directory", "--key", "--insecure"],
    ),
    "join with a key that is none": (
        ["actor", "--join", "tcp://10.0.0.1:7", "--key", "none.key"],
        ["none.key: no such key file"],
    ),
    "watch without a key": (["watch", "tcp://10.0.0.1:7"], ["needs a key", "--key"]),
    "revoke and make": (["keys", "keys", "one", "--revoke", "two"], ["--revoke two", "one"]),
    "join how many": (["actor", "--join", "tcp://127.0.0.1:1", "--count", "0"], ["--count"]),
    "eval what": (["eval", "nowhere"], ["nowhere is neither a model file nor a run directory"]),
    "eval how often": (["eval", "nowhere", "--episodes", "2000000000"], ["1<=x<=1000000"]),
    "search how": (["eval", "nowhere", "--search", "all"], ["--search 'all'", "rollouts:16"]),
    "plot what": (["plot", "nowhere"], ["nowhere holds no metrics.jsonl"]),
    "do what": (["trian"], ["trian"]),
    "open to nobody": (["launch", "--insecure"], ["--insecure is for a run that others join"]),
    "film where": (
        ["eval", "nowhere", "--video-episodes", "2"],
        ["a film needs a file to go to: give --video FILE"],
    ),
    "check no cluster": (["check", "--dask-slots", "3"], ["--dask-slots", "give --dask"]),
    "watch what": (["watch", "nowhere"], ["nowhere is not a run directory"]),
    "export what": (["export", "nowhere", "--onnx", "x.onnx"], ["nowhere is neither a model file"]),
    "export where": (
        ["export", "nowhere", "--onnx", "none/x.onnx"],
        ["--onnx none/x.onnx: there is no folder none"],
    ),
    "export how": (["export", "nowhere", "--onnx", "x"], ["--onnx x: expected a name", ".onnx"]),
    "film how": (["eval", "nowhere", "--video", "x.avi"], ["--video x.avi", ".gif, .webp"]),
    "complete in what": (["completion", "dos"], ["'dos'", "bash"]),
}
FILES = {
    "command-unknown.toml": "[learner]\nbatchsize = 3\n",
    "command-broken.toml": "[learner\n",
    "command-old/config.toml": "old",
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line_before_anything_starts(
    run_here: Run, tmp_path: Path, name: str
):
    if name == "ultra on a small machine" and fits_ultra():
        pytest.skip("this machine fits mode ultra")
    words, expected = REFUSED[name]
    for file, text in FILES.items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with taken_port() as port:
        answer = run_here("launch", *(word.replace("PORT", str(port)) for word in words))
    assert_refused(answer, *expected)
    assert_nothing_started(tmp_path)
    old = tmp_path / "command-old"
    assert [path.name for path in old.iterdir()] == ["config.toml"]
    assert (old / "config.toml").read_text(encoding="utf-8") == "old"


def fits_ultra() -> bool:
    machine = detect()
    return machine.cores >= 64 and machine.learner_gpu is not None


@pytest.mark.parametrize("name", OTHERS)
def test_other_commands_refuse_in_one_line_too(run_here: Run, name: str):
    words, expected = OTHERS[name]
    assert_refused(run_here(*words), *expected)


@pytest.mark.slow
def test_nobody_is_asked_where_standard_input_is_closed(pdqn_command: Any, tmp_path: Path):
    if fits_ultra():
        pytest.skip("this machine fits mode ultra")
    arguments = ("launch", "--mode", "ultra", "--steps", "1")
    closed = ("sh", "-c", 'exec "$@" <&-', "sh")
    with pdqn_command(*arguments, directory=tmp_path, prefix=closed) as command:
        answer = command.wait(), command.stdout, command.stderr
    assert_refused(answer, "ultra is for", "--force or --yes runs it all the same")


# ---- streams ----


def closing(stream: str) -> tuple[str, ...]:
    """A prefix that runs a command without one of its standard streams."""
    return ("sh", "-c", f'exec "$@" {stream}&-', "sh")


def test_where_standard_error_is_closed_a_refusal_is_no_crash(pdqn_command: Any, tmp_path: Path):
    # What it refuses stands behind what it says to a terminal.
    arguments = ("launch", "--dask", "nowhere", "--no-learner")
    with pdqn_command(*arguments, directory=tmp_path, prefix=closing("2>")) as command:
        assert command.wait() == 2


@pytest.mark.parametrize("console", ["auto", "plain"])
def test_where_standard_output_is_closed_a_console_talks_to_nobody(
    pdqn_command: Any, tmp_path: Path, console: str
):
    (tmp_path / "config.toml").touch()
    arguments = ("watch", ".", "--console", console)
    with pdqn_command(*arguments, directory=tmp_path, prefix=closing(">")) as command:
        code = command.wait()
    assert (code, command.stderr.strip()) == (
        1,
        "pdqn: .: its run ended without a last snapshot (killed?)",
    )


def test_what_does_not_fit_on_a_disk_is_told_in_one_line(pdqn_command: Any, tmp_path: Path):
    with Path("/dev/full").open("wb") as full:
        arguments = ("completion", "bash")
        with pdqn_command(*arguments, directory=tmp_path, output=full.fileno()) as command:
            code = command.wait()
    assert (code, command.stderr) == (1, "pdqn: No space left on device\n")


@pytest.fixture
def completing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], str]], int]:
    """Run ``pdqn completion bash`` in this process, with words of a test's own; its exit code."""

    def run(words: Callable[[], str]) -> int:
        shell = type("Shell", (), {"__init__": lambda *_: None, "source": lambda _: words()})
        monkeypatch.setattr("launcher.cli.commands.get_completion_class", lambda _: shell)
        monkeypatch.setattr(sys, "argv", ["pdqn", "completion", "bash"])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def test_a_file_that_cannot_be_read_is_named_in_one_line(
    completing: Any, capsys: pytest.CaptureFixture[str]
):
    def refuse() -> str:
        raise PermissionError(errno.EACCES, "Permission denied", "run/model.pth")

    assert completing(refuse) == 1
    assert capsys.readouterr() == ("", "pdqn: run/model.pth: Permission denied\n")


def test_a_terminal_without_a_character_gets_the_others(
    completing: Any, monkeypatch: pytest.MonkeyPatch
):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="latin-1"))
    assert completing(lambda: "0.391 ≥ 0.006") == 0
    assert shown.getvalue() == b"0.391 ? 0.006\n"


def test_an_unknown_environment_variable_is_refused(run: Run):
    answer = run("launch", PDQN_LEARNER__BATCHSIZE="3")
    assert_refused(answer, "environment variable", "unknown key learner.batchsize")


def test_a_preset_of_which_a_file_leaves_nothing_is_refused(run: Run, tmp_path: Path):
    (tmp_path / "all.toml").write_text(Config().to_toml())
    answer = run("launch", "--config", "all.toml", "--preset", "dqn")
    assert_refused(
        answer, "--preset dqn would do nothing", "file all.toml sets everything that it sets"
    )


# ---- help ----


def test_help_lists_every_command(run: Run):
    code, stdout, stderr = run("--help")
    assert (code, stderr) == (0, "")
    for command in COMMANDS:
        assert f"\n  {command}" in stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run_here: Run, command: str):
    code, stdout, stderr = run_here(command, "--help")
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"Usage: pdqn {command}")
    assert "Show this message and exit." in stdout


def test_without_a_command_there_is_help(run: Run):
    code, stdout, stderr = run()
    assert code == 2
    assert "Commands:" in stdout + stderr


def test_settings_lists_every_setting_with_its_default(run: Run):
    code, stdout, _ = run("settings")
    assert code == 0
    assert "learner.batch_size = 64\n    transitions in a SampleBatch" in stdout
    assert "actor.count = auto\n" in stdout


# ---- check ----

CHECKS = {
    "check": ["check", "--env", "CartPole-v1", "--actors", "2"],
    "json": ["check", "--env", "loud:make", "--actors", "2", "--replays", "2", "--json"],
    "large": ["check", "--set", "replay.store=compressed", "--set", "replay.memory=500MB"],
    "too large": ["check", "--env", "CartPole-v1", "--set", "replay.capacity=10000000000"],
    "check only": ["launch", "--env", "CartPole-v1", "--check-only"],
}


# An environment that prints, and whose simulator does.
LOUD = """
import os
import gymnasium

print("Hello from the simulator's community.")

def make():
    os.write(1, b"loading level 1 ...")
    return gymnasium.make("CartPole-v1")
"""


@pytest.fixture
def check(run: Run, run_here: Run, tmp_path: Path) -> Callable[[str], Answer]:
    """Run one of the commands of ``CHECKS``, by its name; it starts nothing."""

    def check(name: str) -> Answer:
        # What an environment prints could only reach the output of a process of its own.
        answer = (run if name == "json" else run_here)(*CHECKS[name])
        assert_nothing_started(tmp_path)
        return answer

    return check


def test_check_shows_the_machine_and_the_plan(check: Callable[[str], Answer]):
    code, stdout, stderr = check("check")
    assert (code, stderr) == (0, "")
    for text in ("machine", "plan", "memory", "actor.count", "(configured)", "ready"):
        assert text in stdout


def test_check_shows_the_store_and_measures_what_it_is_to_compress(check: Callable[[str], Answer]):
    code, stdout, stderr = check("large")
    assert (code, stderr) == (0, "")
    for text in ("replay.store", "compressed  (configured)", "replay.memory", "replay.shards"):
        assert text in stdout
    (line,) = [line for line in stdout.splitlines() if line.startswith("replay: ")]
    assert " transitions, compressed, " in line
    assert " of 500 MB (measured " in line
    assert "the policy starts level with exact greedy; expect it above after about " in stdout


def test_check_as_json_is_nothing_but_json(
    check: Callable[[str], Answer],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
):
    folder = tmp_path_factory.mktemp("person")
    (folder / "loud.py").write_text(LOUD, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    code, stdout, stderr = check("json")
    assert (code, stderr) == (0, "")
    answer = json.loads(stdout)
    assert answer["ok"] is True
    assert answer["plan"]["config"]["actor"]["count"] == 2
    assert answer["plan"]["config"]["replay"]["shards"] == 2
    assert answer["plan"]["config"]["replay"]["memory"].isdecimal()
    assert "in 2 shards, dense" in answer["plan"]["replay"]
    assert answer["machine"]["cores"] >= 1


def test_check_exits_with_1_when_a_run_could_not_work(check: Callable[[str], Answer]):
    code, stdout, _ = check("too large")
    assert code == 1
    assert "replay.capacity = 10000000000 needs" in stdout
    assert "ready" not in stdout


def test_launch_with_check_only_starts_nothing(check: Callable[[str], Answer]):
    code, stdout, stderr = check("check only")
    assert (code, stderr) == (0, "")
    assert "pdqn launch can start" in stdout


# ---- plot ----


def test_the_picture_of_one_run_is_written_where_it_is_asked_for(tmp_path: Path):
    run, out = tmp_path / "run", tmp_path / "my.png"
    run.mkdir()
    line = {"environment_steps": 100, "time_seconds": 1.0, "rollout/ep_rew_mean": 1.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    done = CliRunner().invoke(cli, ["plot", str(run), "--out", str(out)])
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    assert out.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]
    done = CliRunner().invoke(cli, ["plot", str(run)])
    assert (done.exit_code, done.stdout) == (0, f"{run / 'training_results.png'}\n")


def test_pictures_of_a_run_that_is_somebody_elses_need_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path)
    done = CliRunner().invoke(cli, ["plot", str(tmp_path)])
    assert str(done.exception) == f"{tmp_path} cannot be written to: name the picture with --out"


# ---- options ----

# Every option of launch that is a setting, and what must be in config.toml.
OPTIONS: dict[str, tuple[list[str], str, Any]] = {
    "--env": (["--env", "CartPole-v1"], "run.env", "CartPole-v1"),
    "--env-arg": (["--env-arg", "sutton_barto_reward=true"], "run.env_args",
                  {"sutton_barto_reward": True, "render_mode": "rgb_array"}),
    "--env-arg again": (["--env-arg", "render_mode=rgb_array"], "run.env_args",
                        {"sutton_barto_reward": True, "render_mode": "rgb_array"}),
    "--actors": (["--actors", "2"], "actor.count", 2),
    "--replays": (["--replays", "2"], "replay.shards", 2),
    "--envs-per-actor": (["--envs-per-actor", "3"], "actor.envs_per_actor", 3),
    "--mode, --yes": (["--mode", "ultra", "--yes"], "run.mode", "ultra"),
    "--episodes": (["--episodes", "100000"], "run.episodes", 100_000),
    "--steps": (["--steps", "500"], "run.steps", 500),
    "--time": (["--time", "2m"], "run.time_seconds", 120.0),
    "--stop-at": (["--stop-at", "evaluation=1e9"], "run.stop_at", "evaluation=1e9"),
    "--seed": (["--seed", "11"], "run.seed", 11),
    "--set": (["--set", "learner.batch_size=16"], "learner.batch_size", 16),
    "--set again": (["--set", "evaluation.enabled=false"], "evaluation.enabled", False),
    "--set of a table": (["--set", "evaluation.env_args={sutton_barto_reward=false}"],
                         "evaluation.env_args",
                         {"sutton_barto_reward": False, "render_mode": "rgb_array"}),
    "--config": (["--config", "command-settings.toml"], "replay.min_size", 70),
}  # fmt: skip
VARIABLES = {
    "PDQN_RUN__SEED": "7",
    "PDQN_REPLAY__CAPACITY": "6000",
    "PDQN_LEARNER__THREADS": "1",
    "PDQN_EVALUATION__ENV_ARGS": "{render_mode='rgb_array'}",
}
FILE = """
[replay]
min_size = 70
capacity = 5000
[run]
seed = 5
[learner]
batch_size = 8
prefetch = 2
"""


@pytest.fixture(scope="module")
def written(pdqn_command: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config.toml of one real run that is given every option."""
    directory = tmp_path_factory.mktemp("options")
    (directory / "command-settings.toml").write_text(FILE, encoding="utf-8")
    arguments = [word for words, _, _ in OPTIONS.values() for word in words]
    rest = ["--run-dir", "deep/run", "--console", "off", "--bind", "127.0.0.1"]
    options = [*arguments, *rest]
    with pdqn_command("launch", *options, directory=directory, **VARIABLES) as command:
        assert command.wait() == 0, command.stderr
        assert command.stdout == command.stderr == "", "--console off says nothing"
    config = tomllib.loads((directory / "deep" / "run" / "config.toml").read_text(encoding="utf-8"))
    summary = json.loads((directory / "deep" / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["exit_reason"] == "steps"
    return config


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_reaches_the_run(written: dict[str, Any], option: str):
    _, setting, expected = OPTIONS[option]
    section, _, key = setting.partition(".")
    assert written[section][key] == expected


def test_options_win_over_variables_these_over_the_file_and_that_over_defaults(
    written: dict[str, Any],
):
    assert written["run"]["seed"] == 11
    assert written["replay"]["capacity"] == 6000
    assert written["learner"]["batch_size"] == 16
    assert written["learner"]["prefetch"] == 2


def test_what_stands_in_config_toml_is_resolved(written: dict[str, Any]):
    for section, key in (("replay", "capacity"), ("learner", "device"), ("actor", "discount")):
        assert written[section][key] != "auto"
    assert written["replay"]["store"] == "dense"
    assert written["replay"]["memory"].isdecimal()
    assert written["replay"]["decode_threads"] == 1


# ---- help and completion ----


@pytest.mark.parametrize("name", ["launch", "check"])
def test_every_option_stands_under_a_heading_of_the_help(name: str):
    command = cli.commands[name]
    text = command.get_help(click.Context(command, info_name=name))
    rest = text.partition("Other options:")[2]
    assert "What to train:" in text
    assert set(re.findall(r"--[a-z-]+", rest)) <= {"--help", "--json"}
    missing = {option for param in command.params for option in param.opts if option not in text}
    assert missing == set()


def test_every_command_has_an_example_in_its_help():
    commands = {name: c for name, c in cli.commands.items() if not isinstance(c, click.Group)}
    without = {name for name, command in commands.items() if "pdqn " not in (command.help or "")}
    assert without == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str):
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert "_PDQN_COMPLETE" in done.stdout


def test_commands_and_options_are_completed():
    found = get_completion_class("bash")
    assert found is not None
    complete = found(cli, {}, "pdqn", "_PDQN_COMPLETE")
    assert [item.value for item in complete.get_completions([], "wa")] == ["watch"]
    assert "--resume" in [i.value for i in complete.get_completions(["launch"], "--re")]
    modes = [item.value for item in complete.get_completions(["launch", "--mode"], "")]
    assert modes == ["auto", "single", "parallel", "ultra"]


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (Whole(), "1e5", 100_000),
        (Whole(), "100k", 100_000),
        (WholeRange(1, 10**6), "0.5M", 500_000),
        (Count(), "1e1", 10),
        (Count(), "auto", 0),
    ],
)
def test_counts_may_be_written_short(kind: click.ParamType[int], text: str, number: int):
    assert kind.convert(text, None, None) == number


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Whole(), "1.5"),
        (Whole(), "1e19"),
        (WholeRange(1, 10), "1000"),
        (Count(), "1m"),
        (Count(), "0"),
    ],
)
def test_counts_that_are_none_are_refused(kind: click.ParamType[int], text: str):
    with pytest.raises(click.BadParameter, match=re.escape(text)):
        kind.convert(text, None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("launch", "--set", "learner.batch"), ["plain,learner.batch_size="]),
        (("check", "--set", "network.channels_axis=f"), ["plain,network.channels_axis=first"]),
        (("launch", "--set", "learner.double="), ["learner.double=true", "learner.double=false"]),
        (("launch", "--set", "learner.batch_size=1"), []),
        (("launch", "--env", "CartPole-"), ["plain,CartPole-v0", "plain,CartPole-v1"]),
        (("bench", "--env", "pdqn/Circle"), ["plain,pdqn/CirclePlacement-v0"]),
        (("launch", "--env", "MinAtar/Breakout"), ["MinAtar/Breakout-v0", "MinAtar/Breakout-v1"]),
    ],
)
def test_a_shell_completes_environments_and_settings(
    words: tuple[str, ...], expected: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COMP_WORDS", " ".join(("pdqn", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    kind = get_completion_class("bash")
    assert kind is not None
    lines = kind(cli, {}, "pdqn", "_PDQN_COMPLETE").complete().splitlines()
    assert lines == [one if "," in one else f"plain,{one}" for one in expected]


def test_no_space_follows_a_setting_that_a_shell_completes(run: Run):
    _, script, _ = run("completion", "bash")
    assert "[[ $value == *= ]] && compopt -o nospace" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
