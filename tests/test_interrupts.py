"""The interrupts that end a run in order, and those that end it at once."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.interrupts import Interrupts


class Pressed:
    """Interrupts with a clock that the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interrupts, self.seconds, self.ended = Interrupts(), 0.0, 0
        self.interrupts.on_second = self._end
        monkeypatch.setattr("launcher.interrupts.time.monotonic", lambda: self.seconds)

    def at(self, seconds: float, number: signal.Signals) -> tuple[int, int]:
        """Deliver a signal; return how many count so far, and how many forced an end."""
        self.seconds = seconds
        self.interrupts._handle(number, None)
        return self.interrupts.count, self.ended

    def _end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_is_closed_may_say_so_twice(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    pressed = Pressed(monkeypatch)
    assert pressed.at(10.0, number) == (1, 0)
    assert pressed.at(10.1, number) == (1, 0)
    assert pressed.at(20.0, number) == (2, 1), "and later it is another one"


def test_a_second_ctrl_c_ends_it_however_soon_it_comes(monkeypatch: pytest.MonkeyPatch):
    pressed = Pressed(monkeypatch)
    assert pressed.at(10.0, signal.SIGINT) == (1, 0)
    assert pressed.at(10.1, signal.SIGINT) == (2, 1)


# A pdqn that a person interrupts while it imports a module.
PRESSED = """
import os, signal, sys

class Presses:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Presses())
from pdqn.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "answer"),
    [
        ("launcher.cli.main", "pdqn: interrupted\n"),
        ("launcher.cli.commands", "pdqn: interrupted\n"),
        ("numpy", "pdqn: interrupted before anything was started\n"),
        ("launcher.run.launch", "pdqn: interrupted before anything was started\n"),
    ],
)
def test_ctrl_c_is_answered_in_one_line_from_the_beginning(
    tmp_path: Path, module: str, answer: str
):
    script = PRESSED.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", script, "launch", "--env", "CartPole-v1", "--time", "60s"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # Click ends the line on which a terminal shows ^C.
    assert (done.returncode, done.stderr.lstrip("\n"), done.stdout) == (130, answer, "")
    assert list(tmp_path.iterdir()) == [], "nothing was started"
