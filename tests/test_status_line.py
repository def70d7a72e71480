"""The line that a command shows on a terminal before it has anything else to show."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from launcher import status_line
from launcher.terminal import echo

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_it_is_there_at_once_and_says_what_is_done_now(monkeypatch: pytest.MonkeyPatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with status_line.showing("reads the settings"):
        assert screen.getvalue() == f"{CLEAR}pdqn: reads the settings"
        status_line.doing("looks at \x1b[2J")
        assert screen.getvalue().endswith(f"{CLEAR}pdqn: looks at \\x1b[2J")
        echo("a warning", err=True)
        assert f"{CLEAR}a warning\n" in screen.getvalue()
    assert screen.getvalue().endswith(CLEAR)
    before = screen.getvalue()
    status_line.doing("nothing any more")
    assert screen.getvalue() == before


def test_it_goes_on_while_its_command_is_busy(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(status_line, "_PERIOD_SECONDS", 0.01)
    with status_line.showing("imports"):
        eventually(lambda: screen.getvalue().count("pdqn: imports") > 3)


def test_files_and_programs_do_not_get_it(monkeypatch: pytest.MonkeyPatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    with status_line.showing("imports"):
        status_line.doing("plans")
    assert file.getvalue() == ""
