"""Compiled code is cached in a folder of the user's own, or not at all."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba.core.errors import NumbaError

from pdqn.caches import keep_caches_private, may_write, own_cache
from pdqn.jit import _settings, compiled

TORCH, NUMBA, MATPLOTLIB = NAMES = ("TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR", "MPLCONFIGDIR")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in NAMES:
        # Set first, so that what a test sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr("pdqn.caches._SHARED_MEMORY", tmp_path / "shm")


def leave_without_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))


def test_compiled_code_goes_to_a_folder_that_only_its_user_can_open(tmp_path: Path):
    keep_caches_private()
    folder = Path(os.environ[TORCH])
    assert folder.is_relative_to(tmp_path / "cache")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert NUMBA not in os.environ
    assert MATPLOTLIB not in os.environ


@pytest.mark.parametrize("given", [None, "", "relative"])
def test_without_that_variable_it_is_in_the_home_directory(
    given: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    keep_caches_private()
    assert Path(os.environ[TORCH]).is_relative_to(tmp_path / "home" / ".cache")


def test_a_setting_of_the_persons_own_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    leave_without_home(monkeypatch, tmp_path)
    for name in NAMES:
        monkeypatch.setenv(name, "/somewhere")
    keep_caches_private()
    assert {os.environ[name] for name in NAMES} == {"/somewhere"}


def test_without_a_home_all_caches_are_in_the_temporary_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    leave_without_home(monkeypatch, tmp_path)
    keep_caches_private()
    for name in NAMES:
        folder = Path(os.environ[name])
        assert folder.is_relative_to(tmp_path / "tmp")
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("variables", [{}, {"HOME": "relative"}, {"HOME": ""}])
def test_a_user_without_an_entry_and_without_a_home_gets_no_folder_named_by_a_tilde(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def unknown(_uid: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    found = own_cache()
    assert found is not None
    assert found.is_relative_to(tmp_path / "tmp")
    assert {path.name for path in tmp_path.iterdir()} == {"tmp"}


def test_where_only_shared_memory_can_be_written_all_caches_are_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    leave_without_home(monkeypatch, tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    (tmp_path / "shm").mkdir()
    keep_caches_private()
    assert all(Path(os.environ[name]).is_relative_to(tmp_path / "shm") for name in NAMES)


def test_without_any_folder_nothing_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    leave_without_home(monkeypatch, tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    keep_caches_private()
    assert not {*NAMES} & {*os.environ}


def test_a_folder_of_the_temporary_directory_must_be_the_users_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    leave_without_home(monkeypatch, tmp_path)
    around, mine = tmp_path / "tmp", tmp_path / "tmp" / f"cache-pdqn-{os.geteuid()}"
    assert own_cache() == mine
    mine.chmod(0o777)  # somebody else may have put code there
    assert own_cache() is None
    mine.chmod(0o700)
    around.chmod(0o777)  # somebody else may put another folder there
    assert own_cache() is None
    around.chmod(0o1777)
    assert own_cache() == mine
    mine.rename(tmp_path / "elsewhere")
    mine.symlink_to(tmp_path / "elsewhere")
    assert own_cache() is None


def test_the_working_directory_does_not_stand_in_for_a_temporary_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    leave_without_home(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path / "tmp")
    assert own_cache() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_that_another_user_made_first_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    leave_without_home(monkeypatch, tmp_path)
    (tmp_path / "tmp").chmod(0o1777)
    mine = tmp_path / "tmp" / f"cache-pdqn-{os.geteuid()}"
    mine.mkdir(0o700)
    os.chown(mine, 65534, 65534)
    assert own_cache() is None


SOURCE = """
from pdqn.jit import _settings, compiled

@compiled
def twice(values):
    return values * 2
"""


def twice_in(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Import and call a compiled function in a new process, which prints its result."""
    code = "import numpy, source; print(source.twice(numpy.arange(3)))"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_that_was_named_is_used(tmp_path: Path):
    (tmp_path / "source.py").write_text(SOURCE)
    named = tmp_path / "named"
    assert twice_in(tmp_path, NUMBA_CACHE_DIR=str(named)).stdout == "[0 2 4]\n"
    assert list(named.glob("*/*.nbi"))
    assert not list(tmp_path.glob("__pycache__/*.nbi"))


def test_a_damaged_cache_is_made_again(tmp_path: Path):
    (tmp_path / "source.py").write_text(SOURCE)
    assert twice_in(tmp_path).stdout == "[0 2 4]\n"
    for kind in ("nbi", "nbc"):
        (file,) = tmp_path.glob(f"__pycache__/*.{kind}")
        whole = file.read_bytes()
        file.write_bytes(b"")
        assert twice_in(tmp_path).stdout == "[0 2 4]\n"
        (file,) = tmp_path.glob(f"__pycache__/*.{kind}")
        assert len(file.read_bytes()) > len(whole) // 2


def test_a_cache_that_cannot_be_written_any_more_does_no_harm(tmp_path: Path):
    def three_times(values: np.ndarray) -> np.ndarray:
        return values * 3

    function = compiled(three_times)
    cache = function._cache  # pyright: ignore[reportFunctionMemberAccess]
    cache._cache_file._cache_path = str(tmp_path / "gone")
    cache._cache_file._index_path = str(tmp_path / "gone" / "index.nbi")
    assert function(np.arange(3)).tolist() == [0, 3, 6]


def test_functions_are_compiled_without_any_cache(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pdqn.jit._folder_for", lambda _source: None)

    def four_times(values: np.ndarray) -> np.ndarray:
        return values * 4

    assert compiled(four_times)(np.arange(3)).tolist() == [0, 4, 8]


def test_the_choice_leaves_numbas_own_setting_as_it_was():
    def same(value: int) -> int:
        return value

    before = _settings.CACHE_DIR
    compiled(same)
    assert before == _settings.CACHE_DIR


def test_a_name_that_cannot_be_written_is_not_writable(tmp_path: Path):
    assert not may_write(tmp_path / "a\0b")
    assert may_write(tmp_path / "new" / "folder")


READ_ONLY = "mount -o remount,bind,ro / && mount -t tmpfs -o ro none /dev/shm && exec "


def read_only(*command: str) -> list[str]:
    """Return a command that runs where no file can be written; a separate /tmp may be writable."""
    return ["unshare", "--mount", "sh", "-c", f'{READ_ONLY} "$@"', "sh", *command]


@pytest.fixture
def _mounts() -> None:
    if subprocess.run(read_only("true"), capture_output=True, check=False).returncode:
        pytest.skip("needs root's right to mount")


@pytest.mark.usefixtures("_mounts")
def test_everything_is_imported_where_nothing_can_be_written():
    code = (
        "import learner.process, actors.process, actors.evaluator, replay.process\n"
        "import launcher.cli.main, pdqn.discs\n"
        "print('imported', pdqn.discs.half_widths(2).tolist())"
    )
    done = subprocess.run(
        read_only(sys.executable, "-c", code),
        env={**os.environ, "HOME": "/nonexistent", "TMPDIR": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "imported [0, 1, 2, 1, 0]\n", done.stderr


def test_functions_that_borrow_arrays_may_not_make_any():
    @compiled(borrows=True)
    def first_of(arrays: Any, wanted: float) -> int:
        for i in range(len(arrays[0])):
            if arrays[0][i] == wanted:
                return arrays[1][i]
        return -1

    @compiled(borrows=True)
    def of_new_array(arrays: Any) -> float:
        return np.empty(len(arrays))[0]

    arrays = (np.ones(2), np.arange(2))
    assert (first_of(arrays, 1.0), first_of(arrays, 3.0)) == (0, -1)
    with pytest.raises(NumbaError, match="array passed into"):
        of_new_array(arrays)
