"""Progress of commands on standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher import progress as reporting
from launcher.progress import progress

Eventually = Callable[..., Any]


def test_a_short_command_says_nothing(capsys: pytest.CaptureFixture[str]):
    with progress(lambda: "plays"):
        pass
    assert capsys.readouterr().err == ""


def test_what_no_one_watches_is_not_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reporting, "_FIRST_SECONDS", 0.0)
    with progress(lambda: pytest.fail("a file takes standard error")):
        pass
    assert capsys.readouterr().err == ""


def test_a_long_command_tells_from_time_to_time_what_it_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, eventually: Eventually
):
    monkeypatch.setattr(reporting, "_is_watched", lambda: True)
    monkeypatch.setattr(reporting, "_FIRST_SECONDS", 0.01)
    monkeypatch.setattr(reporting, "_PERIOD_SECONDS", 0.01)
    done, lines = 0, list[str]()

    def told(words: str) -> bool:
        lines.extend(capsys.readouterr().err.splitlines())
        return any(line.startswith(words) for line in lines)

    with progress(lambda: f"plays {done} of 2"):
        eventually(lambda: told("pdqn: plays 0 of 2, 0:"))
        done = 1
        eventually(lambda: told("pdqn: plays 1 of 2, 0:"))
