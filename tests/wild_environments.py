"""Environments that do to their process what simulators and their libraries do.

Commands under test find this module in the directory that they are started in.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from environments_of_people import Walk


class Doing(Walk):
    """A walk that does something to its process when it is made, reset and stepped."""

    def __init__(self, does: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.does = does
        self.does()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.does()
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self.does()
        return super().step(action)


def turn_everything() -> None:
    """Turn every switch that an environment could turn by mistake."""
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(3)
    torch.use_deterministic_algorithms(True)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    logging.disable()
    logging.root.handlers.clear()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def take_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if threading.current_thread() is threading.main_thread():
            signal.signal(number, signal.SIG_IGN)


def speak() -> None:
    """Print from Python, past Python, and on standard error."""
    print("loading a level")  # noqa: T201
    os.write(1, b"from C\n")
    print("a warning", file=sys.stderr)  # noqa: T201


class Elsewhere(Doing):
    """An environment in the folder of its simulator, whose thread outlives it."""

    def __init__(self, folder: str) -> None:
        super().__init__(speak)
        atexit.register(print, "goodbye")
        os.chdir(folder)
        take_signals()
        if not any(thread.name == "its own" for thread in threading.enumerate()):
            threading.Thread(target=time.sleep, args=(600,), name="its own").start()


class Timeout(BaseException):
    """The time limit of a simulator's own library."""


class Quits(Walk):
    """An environment whose every other episode is ended by this."""

    def __init__(self, how: str = "Timeout") -> None:
        super().__init__()
        self._how, self._episodes = how, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._episodes += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        if self._episodes % 2 == 0:
            raise {
                "Timeout": Timeout("a frame took too long"),
                "KeyboardInterrupt": KeyboardInterrupt(),
                "SystemExit": SystemExit(3),
                "CancelledError": asyncio.CancelledError(),
                "GeneratorExit": GeneratorExit(),
            }[self._how]
        return super().step(action)


class Unclosed(Walk):
    """An environment that cannot be closed: it raises, quits, or hangs."""

    def __init__(self, how: str = "raises") -> None:
        super().__init__()
        self._how = how

    def close(self) -> None:
        if self._how == "hangs":
            time.sleep(600)
        raise Timeout("the simulator does not answer")


class Watchdog(Walk):
    """An environment for a main thread: with a handler of SIGALRM, or with asyncio's loop."""

    def __init__(self, kind: str = "alarm") -> None:
        super().__init__()
        if kind == "alarm":
            signal.signal(signal.SIGALRM, lambda *_: None)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.loop = asyncio.get_event_loop()


class Turning(Doing):
    """A walk that turns every switch of its process."""

    def __init__(self) -> None:
        super().__init__(lambda: turn_everything())


class Judged(Walk):
    """A walk with baselines of some kind."""

    def __init__(self, baselines: str = "good", path: str = "") -> None:
        super().__init__()
        self._kind, self._path = baselines, Path(path)

    @property
    def baselines(self) -> Any:
        if self._kind == "property":
            raise KeyError("baselines")
        return self._judge

    @property
    def bounds(self) -> Any:
        return self._bound if self._kind == "bounded" else None

    @property
    def searches(self) -> Any:
        return self._search if self._kind == "bounded" else None

    def _search(self, seeds: Any) -> Any:
        return {"annealing_1s": [float(os.nice(0))] * len(seeds)}

    def _bound(self, seeds: Any) -> Any:
        if self._path.exists():
            raise ZeroDivisionError("of no bound")
        return {"dual_bound": [2.0] * len(seeds)}

    def _judge(self, seeds: Any) -> Any:
        match self._kind:
            case "raises":
                raise ZeroDivisionError("of nothing")
            case "quits":
                sys.exit(3)
            case "ends":
                os._exit(3)
            case "list":
                return [0.5] * len(seeds)
            case "words":
                return {"standing still": ["half"] * len(seeds)}
            case "few":
                return {"standing still": [0.5]}
            case "nan":
                return {"standing still": [float("nan")] * len(seeds)}
            case "hangs":
                time.sleep(600)
            case "waits":
                deadline = time.monotonic() + 60
                while not self._path.exists():
                    assert time.monotonic() < deadline, "the evaluator is silent"
                    time.sleep(0.02)
        return {"standing still": np.full(len(seeds), 0.5)}


class Moody(Walk):
    """A walk that fails at every step, if its argument says so."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self._fails = fails

    def step(self, action: Any) -> Any:
        if self._fails:
            raise Timeout("the license server is busy")
        return super().step(action)


class Everything(Watchdog):
    """A walk whose library does all of it at once."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        speak()
        os.chdir(folder)
        take_signals()
        turn_everything()
        self._steps = 0
        threading.Thread(target=time.sleep, args=(600,)).start()

    def step(self, action: Any) -> Any:
        self._steps += 1
        if self._steps == 50:
            raise Timeout("a frame took too long")
        return super().step(action)

    def close(self) -> None:
        raise Timeout("the simulator does not answer")
