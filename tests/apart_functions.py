"""Functions that do to their process what environments do."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator


class OddError(BaseException):
    pass


def add(one: int, other: int) -> int:
    sys.stdout.write("adding\n")
    return one + other


def raise_it(name: str) -> None:
    sys.stdout.write("about to raise\n")
    raise {"KeyError": KeyError, "Odd": OddError, "KeyboardInterrupt": KeyboardInterrupt}[name](1)


def leave() -> None:
    sys.stderr.write("usage: me [-h]\nme: error: no such option\n")
    sys.exit(2)


def end(how: str) -> None:
    os.write(1, b"the simulator has no licence\n")
    if how == "exit":
        os._exit(7)
    if how == "segfault":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    sys.stdout.write("loading level 1\n")
    while True:
        time.sleep(0.1)


def print_much() -> int:
    for _ in range(300):
        os.write(1, b"x" * 9999 + b"\n")
    return 5


def keep_going() -> int:
    threading.Thread(target=time.sleep, args=(600,)).start()
    atexit.register(time.sleep, 600)
    return subprocess.Popen(["sleep", "600"]).pid


def answer_and_never_close() -> Iterator[int]:
    yield 4
    time.sleep(600)


def read_line() -> str:
    return input()


def handle_signals() -> tuple[bool, bool]:
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return ignored, os.getpgid(0) == os.getpid()


def whole(size: int) -> list[int]:
    return [os.getpid()] * size
