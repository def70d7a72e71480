"""Keys pressed in a terminal, simulated by a pseudo-terminal."""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_full_disk import in_the_way

from launcher.console.keyboard import Keyboard

Eventually = Callable[..., Any]
ReadLines = Callable[[Path], list[dict[str, Any]]]

RUN = [
    "launch", "--env", "CartPole-v1", "--run-dir", "run", "--time", "10m",
    "--set", "learner.batch_size=16", "--set", "network.hidden=16",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "evaluation.enabled=false",
    "--set", "checkpoint.period_seconds=1000", "--set", "system.telemetry_seconds=0.2",
    "--set", "system.metrics_seconds=0.2", "--set", "system.pictures=false",
]  # fmt: skip


class TerminalProgram:
    """A program in its own terminal, whose output is read."""

    def __init__(self, command: list[str], directory: Path, columns: int, rows: int) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.shown = b""
        environment = {**os.environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=directory, env=environment,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)

    def set_attributes(self, attributes: list[Any]) -> None:
        termios.tcsetattr(self._slave, termios.TCSANOW, attributes)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._slave)
        self._reader.join(10)
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            self.shown = (self.shown + data)[-2_000_000:]


@pytest.fixture
def in_terminal() -> Iterator[Callable[..., TerminalProgram]]:
    programs: list[TerminalProgram] = []

    def start(*command: str, directory: Path, columns: int = 80, rows: int = 24) -> TerminalProgram:
        programs.append(TerminalProgram(list(command), directory, columns, rows))
        return programs[-1]

    yield start
    for program in programs:
        program.close()


READ_KEYS = """
import sys, time
from launcher.console.keyboard import Keyboard
keyboard = Keyboard()
keyboard.start()
print("READY", flush=True)
pressed = ""
while "!" not in pressed:
    pressed += keyboard.read()
    time.sleep(0.01)
keyboard.stop()
keyboard.stop()
print("GOT", repr(pressed), repr(keyboard.read()), flush=True)
"""


def test_keys_come_at_once_without_echo_and_arrows_mean_nothing(
    in_terminal: Callable[..., TerminalProgram], eventually: Eventually, tmp_path: Path
):
    program = in_terminal(sys.executable, "-c", READ_KEYS, directory=tmp_path)
    eventually(lambda: b"READY" in program.shown, 60)
    assert program.attributes() != program.before
    program.press("p\x1b[A\x1bOPq\x1b[15~s!")
    assert program.process.wait(30) == 0
    eventually(lambda: b"GOT" in program.shown, 10)
    assert b"GOT 'pqs!' ''" in program.shown
    assert program.shown.count(b"pqs") == 1, "nothing is echoed"
    assert program.attributes() == program.before


def test_ctrl_s_is_a_key_and_does_not_freeze_what_is_shown(
    in_terminal: Callable[..., TerminalProgram], eventually: Eventually, tmp_path: Path
):
    program = in_terminal(sys.executable, "-c", READ_KEYS, directory=tmp_path)
    eventually(lambda: b"READY" in program.shown, 60)
    program.press("\x13!")
    assert program.process.wait(30) == 0
    eventually(lambda: b"GOT '\\x13!'" in program.shown, 10)
    assert program.attributes() == program.before


def test_a_terminal_that_a_shell_has_had_meanwhile_is_taken_again(
    in_terminal: Callable[..., TerminalProgram], eventually: Eventually, tmp_path: Path
):
    program = in_terminal(sys.executable, "-c", READ_KEYS, directory=tmp_path)
    eventually(lambda: b"READY" in program.shown, 60)
    taken = program.attributes()
    program.set_attributes(program.before)
    eventually(lambda: program.attributes() == taken, 10)
    program.press("!")
    assert program.process.wait(30) == 0
    assert program.attributes() == program.before


def test_without_a_terminal_there_are_no_keys(tmp_path: Path):
    (tmp_path / "file").write_text("qqq")
    with (tmp_path / "file").open() as file:
        for stream in (file, io.StringIO("qqq")):
            keyboard = Keyboard(stream)
            keyboard.start()
            assert keyboard.read() == ""
            keyboard.stop()


def test_without_a_standard_input_there_are_no_keys(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", None)
    keyboard = Keyboard()
    keyboard.start()
    assert keyboard.read() == ""
    keyboard.stop()


@pytest.mark.slow
def test_a_run_is_shown_on_a_terminal_whose_standard_input_is_closed(
    in_terminal: Callable[..., TerminalProgram], tmp_path: Path
):
    closed = ["sh", "-c", 'exec "$@" <&-', "sh"]
    pdqn = str(Path(sys.executable).with_name("pdqn"))
    arguments = [*RUN, "--mode", "single", "--steps", "200"]
    program = in_terminal(*closed, pdqn, *arguments, directory=tmp_path)
    assert program.process.wait(60) == 0, program.shown[-3000:].decode()
    assert b"throughput" in program.shown
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["exit_reason"] == "steps"


@pytest.mark.parametrize("mode", ["parallel", pytest.param("single", marks=pytest.mark.slow)])
def test_a_run_is_paused_saved_changed_and_ended_by_keys(
    in_terminal: Callable[..., TerminalProgram],
    eventually: Eventually,
    read_lines: ReadLines,
    tmp_path: Path,
    mode: str,
):
    pdqn = str(Path(sys.executable).with_name("pdqn"))
    program = in_terminal(pdqn, *RUN, "--mode", mode, directory=tmp_path)
    run = tmp_path / "run"

    def newest(name: str, count: int) -> list[float]:
        return [line[name] for line in read_lines(run / "metrics.jsonl")[-count:]]

    def metric(name: str) -> float:
        return (newest(name, 1) or [0])[0]

    def events(kind: str) -> list[dict[str, Any]]:
        return [e for e in read_lines(run / "events.jsonl") if e["event"] == kind]

    def waits_for(happened: Callable[[], Any]) -> None:
        eventually(lambda: program.process.poll() is not None or happened(), 60)
        assert program.process.poll() is None, program.shown[-3000:].decode()

    waits_for(lambda: metric("learner_steps") > 20)
    program.press("?")
    waits_for(lambda: b"stop, and save everything" in program.shown)
    program.press("?s")
    waits_for(lambda: events("saved"))
    assert list((run / "checkpoints").glob("*/learner.pth"))
    in_the_way(run / "checkpoints")
    program.press("s")
    waits_for(lambda: any("tries again next time" in e["text"] for e in events("checkpoint")))
    (run / "checkpoints").unlink()
    assert len(events("saved")) == 1
    program.press("s")
    waits_for(lambda: len(events("saved")) == 2)
    assert list((run / "checkpoints").glob("*/learner.pth"))
    program.press("p")
    waits_for(lambda: events("paused"))
    # Lines in transit when the key was pressed still arrive.
    waits_for(lambda: len(last := newest("environment_steps", 6)) == 6 and len(set(last)) == 1)
    steps = metric("environment_steps")
    program.press("p+")
    waits_for(lambda: metric("environment_steps") > steps)
    waits_for(lambda: metric("replay/samples_per_insert_target") == 5.0)
    program.press("q")
    assert program.process.wait(30) == 0
    assert program.attributes() == program.before
    summary = json.loads((run / "summary.json").read_text())
    assert summary["exit_reason"] == "interrupted"
    assert set(summary["restarts"].values()) == {0}
    assert summary["first_error"] is None
    assert summary["transitions"]["lost"] == 0
