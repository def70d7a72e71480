"""Torch compiles into a folder of the user's own."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from launcher.caches import keep_caches_private

NAME = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Set first, so that what a test sets is undone.
    monkeypatch.setenv(NAME, "")
    monkeypatch.delenv(NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_compiled_code_goes_to_a_folder_that_only_its_user_can_open(tmp_path: Path):
    keep_caches_private()
    folder = Path(os.environ[NAME])
    assert folder.is_relative_to(tmp_path / "cache")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_without_that_variable_it_is_in_the_home_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    keep_caches_private()
    assert Path(os.environ[NAME]).is_relative_to(tmp_path / ".cache")


def test_a_setting_of_the_persons_own_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(NAME, "/somewhere")
    keep_caches_private()
    assert os.environ[NAME] == "/somewhere"


def test_without_a_folder_of_ones_own_nothing_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    (tmp_path / "cache").touch()
    keep_caches_private()
    assert NAME not in os.environ
