"""Every file in ``examples/``, run by the commands in its docstring, with small limits."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from launcher.cli.main import main

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--mode", "single", "--steps", "300", "--console", "off"]
SMALL += ["--set", "evaluation.episodes=1", "--set", "system.pictures=false"]
Run = Callable[[list[str]], str]


def commands(example: str) -> list[list[str]]:
    """List the indented commands of an example's docstring."""
    documentation = ast.get_docstring(ast.parse((EXAMPLES / example).read_text("utf-8")))
    return [shlex.split(line) for line in re.findall(r"^ {4}(.+)$", documentation or "", re.M)]


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    same_threads: None,
) -> Run:
    """Run a command as in the checkout and return its output; one process imports torch once."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def run(command: list[str]) -> str:
        program, *arguments = command
        if program == "pdqn":
            small = SMALL if arguments[0] == "launch" else []
            monkeypatch.setattr(sys, "argv", [program, *arguments, *small])
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, capsys.readouterr().err
        else:
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
        return capsys.readouterr().out

    return run


def test_an_environment_of_your_own_is_checked_and_trained_on(run: Run, tmp_path: Path):
    check, launch = commands("own_environment.py")
    assert "ready" in run(check)
    run(launch)
    assert list(tmp_path.glob("runs/*/final_model.pth"))


def test_a_network_of_your_own_is_trained(run: Run, tmp_path: Path):
    (launch,) = commands("own_network.py")
    run(launch)
    assert list(tmp_path.glob("runs/*/final_model.pth"))


def test_a_program_plays_with_a_trained_policy(run: Run):
    launch, play = commands("use_policy.py")
    run(launch)
    names = [line.partition(":")[0] for line in run(play).splitlines()]
    assert names == [f"episode {seed}" for seed in range(3)]


def test_a_program_trains_until_its_target_and_evaluates(run: Run, monkeypatch: pytest.MonkeyPatch):
    small = {"RUN__MODE": "single", "REPLAY__MIN_SIZE": "64", "EVALUATION__PERIOD_SECONDS": "0.1",
             "EVALUATION__EPISODES": "1", "SYSTEM__PICTURES": "false"}  # fmt: skip
    for name, value in small.items():
        monkeypatch.setenv(f"PDQN_{name}", value)
    (train,) = commands("train_from_python.py")
    printed = run([*train, "evaluation=1"])
    assert "ended by stop_at\n" in printed
    assert printed.endswith("over 20 episodes\n")


class StoppedError(Exception):
    """The end of an example that otherwise runs until somebody stops it."""


def test_a_cluster_of_jobs_prints_where_its_scheduler_is_and_stays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    class SLURMCluster:
        scheduler_address = "tcp://10.1.0.1:40123"

        def __init__(self, **arguments: object) -> None:
            assert arguments["python"] == sys.executable

        def scale(self, jobs: int) -> None:
            assert jobs == 8

    def stop(self: threading.Event, timeout: float | None = None) -> bool:
        raise StoppedError

    module = ModuleType("dask_jobqueue")
    module.__dict__["SLURMCluster"] = SLURMCluster
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    monkeypatch.setattr(threading.Event, "wait", stop)
    with pytest.raises(StoppedError):
        runpy.run_path(str(EXAMPLES / "slurm_cluster.py"), run_name="__main__")
    assert capsys.readouterr().out == "tcp://10.1.0.1:40123\n"
