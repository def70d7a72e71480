"""Environments that a process of its own looks at, whatever they do to it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from actors.environments.describe import examine_environment
from launcher.plan.inspector import Inspector
from pdqn.config import NetworkConfig, SystemConfig
from pdqn.errors import UsageError
from pdqn.specs import EnvironmentSpec, FieldSpec

if TYPE_CHECKING:
    from conftest import StartCommand

SYSTEM = SystemConfig()
ODD = """
import os, signal, subprocess, sys, threading, time, warnings
import gymnasium
import numpy as np
from gymnasium import spaces

print("Hello from the simulator's community.")

class OddError(BaseException):
    pass

class Base(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

def environment(where, does):
    def method(self, *args, **options):
        does()
        return getattr(super(kind, self), where)(*args, **options)
    kind = type("Odd", (Base,), {where: method})
    return kind

def raises(error):
    raise error

def rude():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    print("loading level 1 ...")
    os.write(1, b"from C\\n")
    subprocess.run(["echo", "from a simulator"])
    threading.Thread(target=time.sleep, args=(600,)).start()
    warnings.simplefilter("error")
    sys.path.clear()
    os.environ.clear()

def end():
    print("no licence")
    os._exit(3)

def make_rude(**arguments):
    return environment("__init__", rude)(**arguments)

fine = Base
exits = environment("reset", lambda: sys.exit(4))
quits = environment("__init__", lambda: quit())
base = environment("step", lambda: raises(OddError("no")))
interrupts = environment("reset", lambda: raises(KeyboardInterrupt()))
asks = environment("__init__", lambda: input("Do you accept? [y/n] "))
ends = environment("__init__", end)
aborts = environment("step", lambda: os.abort())
hangs = environment("reset", lambda: time.sleep(600))
never_closes = environment("close", lambda: time.sleep(600))
close_raises = environment("close", lambda: raises(OddError("no")))
close_ends = environment("close", end)
"""
NETWORKS = """
import os
import torch
from pdqn.networks import QNetwork

class Mine(QNetwork):
    def __init__(self, spec, config):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def prepare(self, observation):
        return (observation["observation"],)

    def forward(self, observation):
        return self.layer(observation)

def ends(spec, config):
    print("no licence")
    os._exit(3)
"""
SCRIPT = """
import argparse
parser = argparse.ArgumentParser(prog="train")
parser.add_argument("--lr", type=float, required=True)
args = parser.parse_args()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of a person's modules."""
    folder = tmp_path_factory.mktemp("person")
    (folder / "oddities.py").write_text(ODD, encoding="utf-8")
    (folder / "odd_networks.py").write_text(NETWORKS, encoding="utf-8")
    (folder / "a_script.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "a_leaver.py").write_text("import sys\nsys.exit('see README')\n", encoding="utf-8")
    (folder / "misspelt.py").write_text("\n\ndef make(:\n", encoding="utf-8")
    return folder


@pytest.fixture
def inspector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inspector]:
    monkeypatch.syspath_prepend(folder)
    with Inspector(SYSTEM) as inspector:
        yield inspector


def line_of(text: str) -> int:
    """Return the number of the only line of ``ODD`` that contains a text."""
    (number,) = (n for n, line in enumerate(ODD.splitlines(), 1) if text in line)
    return number


def refusal(inspector: Inspector, env: str) -> str:
    with pytest.raises(UsageError) as caught:
        inspector.examine(env, {})
    text = str(caught.value)
    assert "\n" not in text
    head = f"environment {env}: "
    assert text.startswith(head)
    return text.removeprefix(head)


def test_another_process_finds_the_same(inspector: Inspector):
    placement = ("pdqn/CirclePlacement-v0", {"map_size": 16, "radii": [3, 2], "suggest": True})
    assert inspector.examine(*placement) == examine_environment(*placement)
    assert "CartPole" not in inspector.examine("CartPole-v1", {}).spec.fields[0].name
    with pytest.raises(UsageError, match="unexpected keyword argument 'colour'"):
        inspector.examine("CartPole-v1", {"colour": 1})


def test_nothing_happens_to_the_process_that_asks(
    inspector: Inspector, folder: Path, capfd: pytest.CaptureFixture[str]
):
    before = Path.cwd(), signal.getsignal(signal.SIGINT), dict(os.environ), list(sys.path)
    assert inspector.examine("oddities:make_rude", {}).spec.num_actions == 2
    assert before == (Path.cwd(), signal.getsignal(signal.SIGINT), dict(os.environ), sys.path)
    assert "oddities" not in sys.modules
    assert capfd.readouterr() == ("", "")


def test_a_persons_network_is_built_in_another_process(inspector: Inspector):
    spec = inspector.examine("oddities:make_rude", {}).spec
    mine = NetworkConfig(kind="odd_networks:Mine")
    assert inspector.measure_network(spec, mine) == 4 * (2 * 2 + 2)
    larger = EnvironmentSpec("larger", (FieldSpec("observation", (3,), "float32"),), 2)
    assert not inspector.takes(mine, spec, larger)
    with pytest.raises(UsageError) as caught:
        inspector.measure_network(spec, NetworkConfig(kind="odd_networks:ends"))
    assert str(caught.value) == (
        "network.kind = odd_networks:ends: its process ended with exit code 3; it printed last: "
        "no licence"
    )
    assert "odd_networks" not in sys.modules


ENDS = [
    ("exits", "SystemExit: 4", "sys.exit(4)"),
    ("base", "OddError: no", "raise error"),
    ("interrupts", "KeyboardInterrupt", "raise error"),
    ("asks", "EOFError: EOF when reading a line", "Do you accept"),
    ("quits", "SystemExit: None", "quit()"),
    ("aborts", "its process was ended by SIGABRT", "os.abort()"),
]


def test_an_end_in_an_environment_is_told_with_its_place(inspector: Inspector, folder: Path):
    for name, told, line in ENDS:
        text = refusal(inspector, f"oddities:{name}")
        assert text.startswith(f"{told} ({folder / 'oddities.py'}:{line_of(line)})")


def test_one_that_ends_its_process_is_told_with_what_it_printed_last(inspector: Inspector):
    text = refusal(inspector, "oddities:ends")
    assert text == "its process ended with exit code 3; it printed last: no licence"


def test_a_module_that_is_a_script_is_told_what_to_do(inspector: Inspector, folder: Path):
    text = refusal(inspector, "a_script:make")
    where = f"{folder / 'a_script.py'}:5"
    assert text.startswith(
        f"importing a_script ended the program (SystemExit: 2 ({where}), its own argparse); put"
    )
    assert "`if __name__ == '__main__':`" in text
    assert "; it printed last: train: error: " in text
    where = f"{folder / 'a_leaver.py'}:2"
    told = f"importing a_leaver ended the program (SystemExit: see README ({where})); put"
    assert refusal(inspector, "a_leaver:make").startswith(told)


def test_a_module_that_python_cannot_read_is_told_with_its_line(inspector: Inspector, folder: Path):
    text = refusal(inspector, "misspelt:make")
    assert text.startswith("SyntaxError: invalid syntax")
    assert text.endswith(f"({folder / 'misspelt.py'}:3)")


def test_one_that_hangs_is_told_with_its_place(
    inspector: Inspector, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    inspector.examine("oddities:fine", {})  # a start takes its time on a busy machine
    monkeypatch.setattr(inspector, "_seconds", 1.0)
    text = refusal(inspector, "oddities:hangs")
    place = f"{folder / 'oddities.py'}:{line_of('hangs = environment')}"
    assert text.startswith(f"no answer for 1 s ({place}); it printed last: Hello from")
    assert text.endswith("if it needs longer, raise system.heartbeat_timeout_seconds")


def test_how_it_closes_changes_nothing(inspector: Inspector, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("launcher.plan.inspector._CLOSE_SECONDS", 0.5)
    # One after another, as for evaluation.env_args.
    for name in ("never_closes", "close_raises", "close_ends", "fine"):
        assert inspector.examine(f"oddities:{name}", {}).spec.num_actions == 2


def test_whoever_waits_stays_in_touch_and_may_give_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(folder)
    turns = list[int]()

    def stay_in_touch() -> None:
        turns.append(1)
        if len(turns) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Inspector(SYSTEM, stay_in_touch) as inspector:
        inspector.examine("oddities:hangs", {})
    assert len(turns) == 4


def test_ctrl_c_ends_a_launch_whose_environment_hangs(
    pdqn_command: StartCommand, folder: Path, eventually: Callable[..., object]
):
    def waits() -> psutil.Process | None:
        children = psutil.Process(command.process.pid).children()
        found = (child for child in children if "pdqn inspector" in " ".join(child.cmdline()))
        return next(found, None)

    with pdqn_command("launch", "--env", "oddities:hangs", directory=folder) as command:
        child = eventually(waits)
        eventually(lambda: "waiting for environment oddities:hangs" in command.stderr, 30.0)
        command.interrupt()
        assert command.wait(20.0) == 130
    assert "Traceback" not in command.stderr
    assert isinstance(child, psutil.Process)
    assert not child.is_running()
