"""The interrupts that end a run in order, and those that end it at once."""

from __future__ import annotations

import signal

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
