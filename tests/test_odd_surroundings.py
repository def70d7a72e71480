"""Directories, locales and variables of other programs do no harm, or are refused in one line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.cli.main import main
from launcher.rundir import RunDirectory, new_path
from pdqn.errors import UsageError

NOT_UTF8 = os.fsdecode(b"l\xffufe")
ASCII_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pdqn", *words])
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_run_directory_that_is_not_utf8_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UsageError, match=r"its path is not UTF-8; choose another --run-dir$"):
        RunDirectory(tmp_path / NOT_UTF8 / "run")
    assert not list(tmp_path.iterdir())
    (tmp_path / NOT_UTF8).mkdir()
    monkeypatch.chdir(tmp_path / NOT_UTF8)
    with pytest.raises(UsageError, match=r"^run directory runs/.*: its path is not UTF-8"):
        new_path("CartPole-v1", 0)
    assert not list(Path().iterdir())


def test_a_locale_that_is_not_utf8_writes_no_other_path_than_ascii(tmp_path: Path):
    (tmp_path / "läufe").mkdir()
    code = (
        "import sys, pathlib; from launcher.rundir import RunDirectory\n"
        "RunDirectory(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "läufe" / "run")],
        env={**os.environ, **ASCII_LOCALE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "this locale writes paths in ascii; set LC_ALL=C.UTF-8, or choose" in done.stderr
    assert not list((tmp_path / "läufe").iterdir())


@pytest.mark.parametrize("name", ["läufe ü", "[red] {role} %s ,;~ 'q'", "new\nline"])
def test_a_run_directory_may_have_any_name_that_is_utf8(name: str, tmp_path: Path):
    RunDirectory(tmp_path / name).close()
    assert (tmp_path / name / "logs").is_dir()


def test_a_current_directory_that_was_removed_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert call(monkeypatch, "check", "--env", "CartPole-v1") == 2
    assert capsys.readouterr().err == (
        "pdqn: the current directory cannot be used (No such file or directory); change to "
        "another one\n"
    )


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_another_backend_of_matplotlib_is_replaced(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MPLBACKEND", backend)
    assert call(monkeypatch, "--version") == 0
    assert os.environ["MPLBACKEND"] == "agg"
    assert capsys.readouterr().err == ""


def test_without_that_variable_matplotlib_chooses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)
    call(monkeypatch, "--version")
    assert "MPLBACKEND" not in os.environ


@pytest.mark.parametrize("number", ["0", "-1", " 00 ", "many", ""])
def test_a_number_of_threads_below_one_does_not_keep_numba_from_being_imported(
    number: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NUMBA_NUM_THREADS", number)
    call(monkeypatch, "--version")
    assert "NUMBA_NUM_THREADS" not in os.environ


def test_a_number_of_threads_that_numba_takes_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "2")
    call(monkeypatch, "--version")
    assert os.environ["NUMBA_NUM_THREADS"] == "2"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_too_little_memory_is_told_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr("launcher.cli.main.cli.main", fail)
    assert call(monkeypatch, "check") == 1
    said = capsys.readouterr().err
    assert said.startswith("pdqn: there is too little memory (")
    assert str(error) in said
    assert said.endswith("): free some, or see ulimit -v\n")
    assert said.count("\n") == 1


def test_bad_input_has_its_exit_code_although_nobody_can_read_why(monkeypatch: pytest.MonkeyPatch):
    full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115 - closing it fails
    monkeypatch.setattr(sys, "stderr", full)
    assert call(monkeypatch, "launch", "--nonsense") == 2
    with contextlib.suppress(OSError):
        full.close()


@pytest.mark.parametrize("width", ["0", "00", ""])
def test_a_terminal_of_no_width_has_tables_all_the_same(
    width: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setenv("COLUMNS", width)
    assert call(monkeypatch, "settings") == 0
    assert "learner.batch_size" in capsys.readouterr().out
