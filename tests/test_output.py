"""Output that is read slowly or not at all: nothing waits for it, and a run goes on."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_console import SUMMARY, snapshot

from launcher.console.console import make_console
from launcher.console.output import Output, reader_has_gone
from launcher.results.checks import check_output
from launcher.results.pictures import draw_pictures
from pdqn.errors import UsageError
from pdqn.model import load_model

if TYPE_CHECKING:
    from conftest import StartCommand

Eventually = Callable[..., Any]

RUN = [
    "launch", "--env", "CartPole-v1", "--run-dir", "run", "--actors", "1", "--steps", "3000",
    "--set", "learner.batch_size=16", "--set", "learner.threads=1", "--set", "network.hidden=16",
    "--set", "replay.capacity=5000", "--set", "replay.min_size=64",
    "--set", "replay.samples_per_insert=4", "--set", "evaluation.enabled=false",
    "--set", "system.telemetry_seconds=0.2",
]  # fmt: skip


class Pipe:
    """A full pipe whose reader has stopped."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.writing, False)
        self._filled = 0
        while not self._is_full():
            pass
        os.set_blocking(self.writing, True)
        self.stream = open(self.writing, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        self.read = b""

    def _is_full(self) -> bool:
        try:
            self._filled += os.write(self.writing, bytes(4096))
        except BlockingIOError:
            return True
        return False

    def flow(self) -> None:
        """Resume the reader."""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def lines(self) -> list[str]:
        """List the lines that were read after the pipe was full."""
        return self.read[self._filled :].decode(errors="replace").splitlines()

    def _read(self) -> None:
        while data := os.read(self.reading, 65536):
            self.read += data

    def close(self) -> None:
        os.close(self.writing)
        if hasattr(self, "reader"):
            self.reader.join(10)
        os.close(self.reading)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


# ---- the stream ----


def test_what_nobody_reads_makes_nobody_wait_and_comes_when_somebody_does(
    pipe: Pipe, eventually: Eventually
):
    output = Output(pipe.stream)
    for index in range(100):
        output.write(f"line {index}\n")
    assert output.waiting > 0
    pipe.flow()
    eventually(lambda: len(pipe.lines()) == 100)
    assert pipe.lines() == [f"line {index}" for index in range(100)]
    eventually(lambda: output.waiting == 0)


def test_lines_that_do_not_fit_are_dropped_and_one_line_says_how_many(
    pipe: Pipe, eventually: Eventually
):
    output = Output(pipe.stream, most_bytes=1000)
    for index in range(100):
        output.write(f"{index:099d}\n")
    assert output.waiting <= 1000
    pipe.flow()
    eventually(lambda: output.waiting == 0)
    output.write("it flows again\n")
    eventually(lambda: "it flows again" in pipe.lines())
    kept = [f"{index:099d}" for index in range(10)]
    assert pipe.lines() == [*kept, "90 lines dropped here: nobody was reading", "it flows again"]


def test_a_gap_is_one_gap_also_where_somebody_reads_slowly(pipe: Pipe, eventually: Eventually):
    output = Output(pipe.stream, most_bytes=1000)
    output.write("a" * 899 + "\n")
    output.write("b" * 199 + "\n")
    output.write("c\n")
    pipe.flow()
    eventually(lambda: output.waiting == 0)
    output.write("d\n")
    eventually(lambda: "d" in pipe.lines())
    assert pipe.lines() == ["a" * 899, "2 lines dropped here: nobody was reading", "d"]


def test_one_piece_fits_whatever_its_size_where_nothing_waits(pipe: Pipe, eventually: Eventually):
    output = Output(pipe.stream, most_bytes=1000)
    output.write("a" * 99_999 + "\n")
    pipe.flow()
    assert output.drain()
    eventually(lambda: pipe.lines() == ["a" * 99_999])


def test_the_end_is_waited_for_while_somebody_reads_and_given_up_where_nobody_does(
    pipe: Pipe, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("launcher.console.output._PATIENCE_SECONDS", 0.05)
    output = Output(pipe.stream)
    output.write("a line\n")
    assert not output.drain()
    monkeypatch.setattr("launcher.console.output._PATIENCE_SECONDS", 1e9)
    assert not output.drain(), "it does not wait a second time"
    pipe.flow()
    eventually(output.drain)
    output.write("another line\n" * 10_000)
    assert output.drain()


def test_a_reader_that_has_gone_does_no_harm(pipe: Pipe, eventually: Eventually):
    output = Output(pipe.stream)
    output.write("one\n")
    os.close(pipe.reading)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)
    assert output.drain()
    output.write("two\n")
    assert output.drain()


def test_whether_a_reader_has_gone_is_known_without_writing(pipe: Pipe):
    assert not reader_has_gone(pipe.stream), "nobody reads, but somebody could"
    os.close(pipe.reading)
    pipe.reading = os.open(os.devnull, os.O_RDONLY)
    assert reader_has_gone(pipe.stream)
    assert not reader_has_gone(io.StringIO())


def test_a_file_has_no_reader_that_could_go(tmp_path: Path):
    with (tmp_path / "log").open("w") as stream:
        assert not reader_has_gone(stream)


def test_a_descriptor_that_somebody_made_one_that_never_waits_loses_nothing(
    pipe: Pipe, eventually: Eventually
):
    os.set_blocking(pipe.writing, False)
    output = Output(pipe.stream)
    output.write("a" * 99_999 + "\n")
    pipe.flow()
    eventually(lambda: pipe.lines() == ["a" * 99_999])


def test_text_in_memory_is_written_at_once():
    stream = io.StringIO()
    output = Output(stream)
    output.write("a line\n")
    assert stream.getvalue() == "a line\n"
    assert output.drain()


# ---- files ----


def test_a_file_that_is_there_and_read_only_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    film = tmp_path / "film.gif"
    film.write_bytes(b"an older film")
    check_output("--video", film, [".gif"])
    assert film.read_bytes() == b"an older film"

    def read_only(path: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", read_only)  # root can write to read-only files
    with pytest.raises(UsageError, match=r"film\.gif cannot be written: Permission denied"):
        check_output("--video", film, [".gif"])
    check_output("--video", tmp_path / "another.gif", [".gif"])


def test_a_file_whose_name_is_too_long_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="File name too long"):
        check_output("--video", tmp_path / f"{'f' * 300}.gif", [".gif"])


@pytest.mark.parametrize("content", ["", "[run]\n", "[run]\nenv = 3\n"])
def test_pictures_of_a_run_without_its_environment_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
):
    monkeypatch.setattr("launcher.results.training.plot_training", lambda run_dir: run_dir)
    (tmp_path / "config.toml").write_text(content)
    with pytest.raises(UsageError, match=r"config\.toml is damaged: it has no run\.env"):
        draw_pictures(tmp_path)


def test_another_kind_of_file_than_a_model_is_refused_in_one_line_without_torchs_advice(
    tmp_path: Path,
):
    path = tmp_path / "summary.json"
    path.write_text('{\n  "episodes": 3\n}\n')
    with pytest.raises(UsageError) as refused:
        load_model(path)
    assert str(refused.value) == (
        f"{path}: not a model that this version reads (damaged, or another kind of file)"
    )


# ---- consoles ----


def test_json_stays_json_where_lines_were_dropped(pipe: Pipe, eventually: Eventually):
    console = make_console("json", pipe.stream)
    for index in range(100):
        console.message(f"event {index}: {'x' * 20_000}")
    pipe.flow()
    eventually(lambda: len(pipe.lines()) >= 40)
    console.finish(SUMMARY, None)
    eventually(lambda: '"summary"' in pipe.lines()[-1])
    *events, dropped, summary = map(json.loads, pipe.lines())
    assert 40 <= len(events) < 60
    text = f"{100 - len(events)} lines dropped here: nobody was reading"
    assert dropped == {"event": "message", "text": text}
    assert summary["summary"] == SUMMARY


def test_a_frame_that_would_wait_is_not_drawn_and_the_newest_is_once_somebody_reads(
    pipe: Pipe, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FORCE_COLOR", "1")  # force colours, as on a terminal
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    seconds = iter(range(10**6))
    console = make_console("rich", pipe.stream, clock=lambda: float(next(seconds)))
    console.start()
    for episodes in range(100, 200):
        console.update(snapshot(figures={"episodes": episodes}))
    pipe.flow()

    def shown() -> str:
        return "\n".join(pipe.lines())

    eventually(
        lambda: console.update(snapshot(figures={"episodes": 777})) or "777 episodes" in shown()
    )
    console.finish(SUMMARY, None)
    assert not any(f"{episodes} episodes" in shown() for episodes in range(100, 200))
    eventually(lambda: "(episode limit)" in shown())


# ---- whole runs ----


def summary_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run" / "summary.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("console", ["plain", "json"])
def test_a_run_whose_lines_nobody_reads_goes_on_and_ends(
    pdqn_command: StartCommand, pipe: Pipe, tmp_path: Path, console: str
):
    options = [*RUN, "--console", console]
    with pdqn_command(*options, directory=tmp_path, output=pipe.writing) as command:
        assert command.wait() == 0, command.stderr
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    assert not any(summary["restarts"].values())
    assert "Traceback" not in command.stderr


def test_a_run_on_a_terminal_that_nobody_reads_goes_on_and_ends(
    pdqn_command: StartCommand, tmp_path: Path
):
    master, slave = os.openpty()
    options = [*RUN, "--console", "rich"]
    variables = {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    with pdqn_command(*options, directory=tmp_path, output=slave, **variables) as command:
        assert command.wait() == 0, command.stderr
    os.close(slave)
    os.close(master)
    summary = summary_of(tmp_path)
    assert summary["exit_reason"] == "steps"
    assert not any(summary["restarts"].values())
    assert "Traceback" not in command.stderr
