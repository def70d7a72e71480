"""A person's own packages may have the names of pdqn's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdqn import own_modules
from pdqn.__main__ import _leave_current_directory

OURS = Path(own_modules.__file__).parent.parent

# Everything that the name of a module may stand for, in every form of an import.
FILES = {
    "actors/__init__.py": "from .robot import SPEED\nfrom actors.process import RATE\n\n"
    "class Robot:\n    pass\n",
    "actors/robot.py": "SPEED = 1\nimport replay.buffer\n\n"
    "def later():\n    import replay.buffer as b\n    from learner import Learner\n"
    "    return b.SIZE, Learner.__name__\n",
    "actors/process.py": "RATE = 2\n",  # pdqn has one of this name
    "replay/buffer.py": "SIZE = 3\n",  # and of this; the folder has no __init__.py
    "learner.py": "class Learner:\n    pass\n",
    "launcher/data.txt": "not a package\n",
    "mine.py": """
import importlib
import pickle

import actors.process
import actors.robot as robot
from actors import Robot
from actors import robot as same
from actors.circle_placement import problem  # pdqn's, for theirs has no such module
from launcher import rundir

assert (actors.SPEED, actors.process.RATE) == (1, 2)
assert robot is same is importlib.import_module("actors.robot")
assert importlib.import_module(".robot", "actors") is not None
assert type(pickle.loads(pickle.dumps(Robot()))) is Robot
assert robot.later() == (3, "Learner")
assert problem.__name__ == "actors.circle_placement.problem"
""",
}

PROGRAM = """
import sys

sys.path.append(sys.argv[1])
import actors.environments.registration
import replay.samples
from pdqn import own_modules

own_modules.import_module("mine")
assert own_modules.import_module("actors.robot").SPEED == 1
assert own_modules.import_module("learner").Learner

# pdqn's own modules still get pdqn's, also those that they import only now.
before = dict(sys.modules)
from pdqn import errors
exec("import replay.buffer, actors.n_step", {"__name__": "actors.later"})
assert sys.modules["replay.buffer"].__file__ == sys.argv[2] + "/replay/buffer.py"
assert actors.environments.registration.__file__.startswith(sys.argv[2])

# gymnasium imports the entry points of both.
from gymnasium.envs.registration import load_env_creator
assert load_env_creator("actors.robot:later")() == (3, "Learner")
creator = load_env_creator("actors.circle_placement.environment:CirclePlacementEnv")
assert creator.__module__ == "actors.circle_placement.environment"

for name in ("actors.nothing", "nothing"):
    try:
        own_modules.import_module(name)
    except ModuleNotFoundError as error:
        assert str(error) == f"No module named {name!r}", error
    else:
        raise AssertionError(name)
print("all found")
"""


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run(*arguments: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    given = {**os.environ, **variables}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, env=given)


def test_each_module_finds_the_packages_that_it_means(tmp_path: Path):
    written(tmp_path / "own", FILES)
    ran = run("-P", "-c", PROGRAM, str(tmp_path / "own"), str(OURS), directory=tmp_path)
    assert ran.stdout == "all found\n", ran.stderr


def test_without_such_packages_imports_are_left_alone(tmp_path: Path):
    written(tmp_path, {"mine.py": "", "replay/episodes.npz": ""})
    program = """
import builtins, sys
before = builtins.__import__
sys.path.append(".")
from pdqn import own_modules
own_modules.import_module("mine")
assert builtins.__import__ is before
"""
    ran = run("-P", "-c", program, directory=tmp_path)
    assert ran.returncode == 0, ran.stderr


ENVIRONMENT = {
    "actors/robot.py": "SPEED = 1\n",
    "replay/__init__.py": "",
    "replay/buffer.py": "SIZE = 2\n",
    "launcher/__init__.py": "1 / 0\n",
    "my_robot.py": """
from actors.robot import SPEED
from replay.buffer import SIZE
import gymnasium

def make():
    return gymnasium.make("CartPole-v1")
""",
}


def test_the_command_starts_in_a_folder_of_such_packages(tmp_path: Path):
    written(tmp_path, ENVIRONMENT)
    ran = run("-m", "pdqn", "check", "--env", "my_robot:make", directory=tmp_path, PYTHONPATH=".")
    assert ran.stdout.splitlines()[-1].split()[0] == "ready", ran.stderr


def test_the_command_does_not_search_the_current_directory_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "/elsewhere"])
    _leave_current_directory()
    assert sys.path == ["/elsewhere"]
    _leave_current_directory()
    assert sys.path == ["/elsewhere"]


def test_a_distribution_that_has_overwritten_a_package_is_named(tmp_path: Path):
    overwritten = {
        "launcher/__init__.py": "",
        "launcher/cli/main.py": "from replay import server\n",
        "replay/__init__.py": "from replay.models import Recommender\n",
        "actors/__init__.py": "",
        "learner/__init__.py": "",
        "pdqn/__init__.py": "",
        "pdqn/__main__.py": (OURS / "pdqn" / "__main__.py").read_text(),
        "recommender-1.0.dist-info/METADATA": "Name: recommender\nVersion: 1.0\n",
        "recommender-1.0.dist-info/RECORD": "replay/__init__.py,,\n",
    }
    site = written(tmp_path / "site", overwritten)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from pdqn.__main__ import main; main()"
    )
    ran = run("-P", "-c", program, directory=tmp_path)
    assert ran.stderr == (
        "pdqn: No module named 'replay.models'; pdqn has packages actors, launcher, learner, "
        "replay, and so has recommender: install pdqn in an environment of its own\n"
    )
    assert ran.returncode == 1
