"""Tests of what a command imports before it answers: this decides how long a person waits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TELLS = """
import sys
from launcher.cli.main import main

sys.argv = ["pdqn", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print("code", end.code, *sys.modules, file=sys.stderr)
"""
HEAVY = {"torch", "numba", "scipy", "gymnasium", "matplotlib"}


def imported_by(directory: Path, *arguments: str) -> list[str]:
    """Run a command to its good end, and return the modules that its process has then."""
    done = subprocess.run(
        [sys.executable, "-c", TELLS, *arguments],
        cwd=directory, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    word, code, *modules = done.stderr.split()
    assert (word, code) == ("code", "0"), done.stderr
    return modules


@pytest.mark.parametrize("arguments", [("--help",), ("launch", "--help")])
def test_help_imports_neither_numpy_nor_sockets(tmp_path: Path, arguments: tuple[str, ...]):
    assert not (HEAVY | {"numpy", "zmq", "rich"}).intersection(imported_by(tmp_path, *arguments))


@pytest.mark.parametrize("env_id", ["pdqn/CirclePlacement-v0", "CartPole-v1"])
def test_check_imports_neither_torch_nor_environments(tmp_path: Path, env_id: str):
    imported = imported_by(tmp_path, "check", "--env", env_id)
    assert "launcher.plan.plan" in imported
    assert not HEAVY.intersection(imported)


def test_the_helpers_are_started_before_anything_else_is_imported():
    code = (
        "import sys\n"
        "import launcher.cli.main, launcher.plan.inspector, launcher.processes.forkserver\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not (HEAVY | {"numpy", "zmq", "rich"}).intersection(done.stdout.split())
