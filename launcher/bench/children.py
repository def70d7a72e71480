"""Processes of a benchmark, which end with it without a word."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from pdqn.errors import RunError

_LAST_SECONDS = 5.0
_PARENT_SECONDS = 1.0


def start(target: Callable[..., object], *args: Any) -> BaseProcess:
    """Start a process that runs a function, and that nobody waits for once this one ends."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_run, args=(target, *args), daemon=True)
    process.start()
    return process


@contextmanager
def process_of(
    target: Callable[[Connection], object],
) -> Iterator[tuple[BaseProcess, Connection]]:
    """Run a function of a pipe in a process until the block ends."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = start(target, there)
    there.close()
    try:
        yield process, here
        here.close()
        process.join(_LAST_SECONDS)
    finally:
        here.close()
        end(process)


def end(process: BaseProcess) -> None:
    """End a process at once, if it has not ended."""
    if process.is_alive():
        process.kill()
    process.join()


def _run(target: Callable[..., object], *args: Any) -> None:
    # The benchmark decides what Ctrl-C means, and ends its processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        target(*args)
    except (OSError, EOFError, RunError):
        if not _is_alone():
            raise


def _is_alone() -> bool:
    """Return whether the benchmark has ended, which explains that nobody answers."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.sentinel in wait([parent.sentinel], _PARENT_SECONDS)
