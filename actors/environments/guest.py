"""The process as an environment wants it, and as our own code needs it.

An environment runs in the process that acts, learns or evaluates. It may turn switches that hold
for all of it: gradients off, another default dtype, warnings as errors. Each side keeps its own
settings: an environment finds its own when it is called again, and our code never sees them.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import numpy as np

from pdqn import handlers
from pdqn.errors import Interrupted, type_and_first_line

_SIGNALS_SECONDS = 0.1

_Switch = tuple[Callable[[], Any], Callable[[Any], object]]


class EnvironmentQuitError(RuntimeError):
    """The end of a call of an environment by something that is not an ``Exception``."""


def _set_numpy_errors(how: Mapping[str, Any]) -> None:
    np.seterr(**how)


def _filter_warnings(filters: tuple[Any, ...]) -> None:
    warnings.resetwarnings()  # which also makes Python forget what it has looked up
    warnings.filters[:] = filters  # pyright: ignore[reportIndexIssue]


_PYTHONS: tuple[_Switch, ...] = (
    (np.geterr, _set_numpy_errors),
    (lambda: tuple(warnings.filters), _filter_warnings),
)


def _torchs() -> list[_Switch]:
    """List torch's switches, if this process uses it; the last one is slow to read."""
    if "torch" not in sys.modules:
        return []
    import torch

    def set_device(device: torch.device) -> None:
        # Without any, torch need not look at it in every call.
        torch.set_default_device(None if device.type == "cpu" else device)

    return [
        (torch.is_grad_enabled, torch.set_grad_enabled),
        (torch.get_default_dtype, torch.set_default_dtype),
        (torch.get_num_threads, torch.set_num_threads),
        (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        (torch.get_default_device, set_device),
    ]


class Guest:
    """A context for calls of one environment, or batch: within it, its own settings hold.

    Our signal handlers return after it. Something that is not an ``Exception`` ends the context as
    an ``EnvironmentQuitError``, but for a person's interrupt.
    """

    def __init__(self) -> None:
        self._switches: list[_Switch] = [*_PYTHONS, *_torchs()]
        self._theirs: dict[int, Any] = {}
        self._ours: list[Any] = []
        self._logs: tuple[int, list[logging.Handler]] = (0, [])
        self._signals_due = 0.0

    def settle(self) -> None:
        """Leave out what is too slow for every call, once the environment is made."""
        last = len(self._switches) - 1
        if last >= len(_PYTHONS) and last not in self._theirs:
            self._switches.pop()
        self._signals_due = 0.0
        self._take_signals()

    def __enter__(self) -> None:
        """Turn the switches as the environment left them."""
        self._ours = [read() for read, _ in self._switches]
        self._logs = logging.root.manager.disable, logging.root.handlers[:]
        for which, value in self._theirs.items():
            self._switches[which][1](value)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Turn them as they were, and remember how the environment left them."""
        for which, (read, turn) in enumerate(self._switches):
            left, ours = read(), self._ours[which]
            if left != ours:
                self._theirs[which] = left
                turn(ours)
            else:
                self._theirs.pop(which, None)
        self._repair_logs()
        self._take_signals()
        if error is not None and not isinstance(error, Exception | Interrupted):
            raise EnvironmentQuitError(type_and_first_line(error)) from error

    def _repair_logs(self) -> None:
        """Let our log lines be written, within its calls too; it may have handlers of its own."""
        disabled, wanted = self._logs
        if logging.root.manager.disable != disabled:
            logging.disable(disabled)
        if logging.root.handlers != wanted:
            for handler in wanted:
                logging.root.addHandler(handler)  # once

    def _take_signals(self) -> None:
        """Install our handlers again: now and then, or after every call if they were replaced."""
        now = time.monotonic()
        if now >= self._signals_due:
            replaced = handlers.install_again()
            self._signals_due = now if replaced else now + _SIGNALS_SECONDS
