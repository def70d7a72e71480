"""Sockets have short paths in a folder of the user's own, wherever the temporary directory is."""

from __future__ import annotations

import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from launcher import sockets
from pdqn.errors import UsageError
from pdqn.patterns import fill
from pdqn.transport import can_be_address

if TYPE_CHECKING:
    from conftest import StartCommand


def long_directory(tmp_path: Path) -> Path:
    directory = tmp_path / ("x" * (90 - len(str(tmp_path))))
    directory.mkdir()
    return directory


@pytest.fixture(autouse=True)
def no_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


def test_the_folder_is_in_the_temporary_directory_and_only_its_user_can_enter(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        with sockets.folder() as folder:
            assert folder.parent == Path(name)
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not list(Path(name).iterdir())


def test_a_long_temporary_directory_is_left_for_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory = long_directory(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as short, sockets.folder() as folder:
        assert folder.parent == Path("/tmp")
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(folder / "evaluator-123-4567-parameters"))
        # The system's own folder for this user comes before those of everybody.
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        with sockets.folder() as other:
            assert other.parent == Path(short)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
        assert sockets.find_parent() == "/tmp"
    assert not list(directory.iterdir())


@pytest.mark.parametrize("name", [b"a|b", b"new\nline", b"\xff", "\u202eback".encode()])
def test_a_directory_that_no_address_can_name_takes_no_sockets(name: bytes, tmp_path: Path):
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    directory.mkdir()
    assert not can_be_address(str(directory))
    assert sockets.why_not(str(directory)) == "its name cannot be part of an address"


def test_where_nothing_takes_sockets_one_line_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    directory, file = long_directory(tmp_path), tmp_path / "file"
    file.touch()
    monkeypatch.setattr(sockets, "_candidates", lambda: iter([str(directory), str(file)]))
    with pytest.raises(UsageError) as caught:
        sockets.find_parent()
    assert str(caught.value) == (
        f"no directory takes the sockets of a run ({directory}: its path is too long; "
        f"{file}: Not a directory); set TMPDIR to a short path in which you may write"
    )


@pytest.mark.parametrize("folder", ["/{role} of me", "/{name}/{host}", "/100%s"])
def test_a_folder_may_be_called_like_a_placeholder(folder: str):
    assert fill(f"ipc://{folder}/{{role}}-{{name}}", "role", "actor-0") == (
        f"ipc://{folder}/actor-0-{{name}}"
    )
    assert can_be_address(folder)


def test_placeholders_of_an_address_without_a_folder_are_filled():
    assert fill("tcp://{host}:*", "host", "10.0.0.1") == "tcp://10.0.0.1:*"


def test_a_run_goes_on_wherever_temporary_directories_are(
    pdqn_command: StartCommand, eventually: Callable[..., Any], tmp_path: Path
):
    # The first one is too long, so the sockets are in the second one.
    long = long_directory(tmp_path)
    with tempfile.TemporaryDirectory(prefix="t-") as short:
        braces = Path(short) / "{role} [red] %s 'ü'"
        braces.mkdir()
        with pdqn_command(
            "launch", "--mode", "parallel", "--env", "CartPole-v1", "--steps", "300",
            "--console", "json", "--run-dir", "run", "--set", "evaluation.enabled=false",
            directory=tmp_path, TMPDIR=str(long), XDG_RUNTIME_DIR=str(braces),
        ) as command:  # fmt: skip
            eventually(lambda: list(braces.glob("pdqn-*/coordinator")))
            assert command.wait() == 0
        summary = json.loads((command.directory / "run" / "summary.json").read_text())
        assert (summary["exit_reason"], sum(summary["restarts"].values())) == ("steps", 0)
        assert not [*long.iterdir(), *braces.iterdir()]
