"""A user's directory does not shadow the modules of pdqn and of Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from launcher.safe_path import forget, safe_path

if TYPE_CHECKING:
    from conftest import StartCommand

FIND = "import random; print(random.__file__); import os; print(os.environ['PYTHONSAFEPATH'])"


def found_in(directory: Path) -> list[str]:
    command = [sys.executable, "-c", FIND]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True).stdout.split()


def test_processes_do_not_look_where_they_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "random.py").write_text("")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with safe_path():
        where, told = found_in(tmp_path)
    assert Path(where).parent != tmp_path
    assert "PYTHONSAFEPATH" not in os.environ
    # A program that the user's environment starts searches that directory again.
    monkeypatch.setenv("PYTHONSAFEPATH", told)
    forget()
    assert "PYTHONSAFEPATH" not in os.environ


def test_who_wants_it_so_everywhere_keeps_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    forget()
    assert os.environ["PYTHONSAFEPATH"] == "1"


ENVIRONMENT = """
import gymnasium

def make():
    return gymnasium.make("CartPole-v1")
"""


@pytest.mark.slow
def test_a_run_starts_among_modules_of_the_same_names(pdqn_command: StartCommand, tmp_path: Path):
    for name in ("actors", "replay", "launcher"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "random.py").write_text("")
    (tmp_path / "mine.py").write_text(ENVIRONMENT)
    options = ["--env", "mine:make", "--actors", "1", "--steps", "300", "--console", "plain"]
    with pdqn_command("launch", *options, "--run-dir", "run", directory=tmp_path) as command:
        assert command.wait() == 0, command.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit_reason"] == "steps"
    assert set(summary["restarts"].values()) == {0}
