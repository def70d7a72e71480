"""The code that Dask runs on the workers of a cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

task = pytest.importorskip("launcher.hosts.dask.task", reason="needs pdqn[dask]")


def test_a_key_is_in_no_representation_of_a_task():
    secret = task.Secret("the key")
    assert secret.text == "the key"
    assert "the key" not in repr({"task": (task.hold_role, ("key", ["python"], secret))})


def test_an_interpreter_that_is_not_there_is_an_answer_and_no_error():
    assert "no/such" in task.describe_worker("/no/such/python")["error"]


# Ends when its input ends.
COMMAND = [sys.executable, "-c", "import sys; sys.stdin.read()"]


class Held:
    """A worker in this process, and the roles that it starts."""

    def __init__(self, cluster: Any, client: Any, started: list[Any]) -> None:
        (self.worker,) = cluster.workers.values()
        self.cluster, self._client, self.started = cluster, client, started

    def hold(self) -> None:
        """Start a role on the worker."""
        arguments = ("role", COMMAND, task.Secret("x"))
        self.future = self._client.submit(task.hold_role, *arguments, key="role", pure=False)

    def has_ended(self) -> bool:
        return bool(self.started) and self.started[0].poll() is not None


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    distributed = pytest.importorskip("distributed")
    started: list[Any] = []

    def start(command: Any, **options: Any) -> Any:
        process = popen(command, **options)
        if command == COMMAND:  # Dask starts other processes
            started.append(process)
        return process

    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    where = {
        "n_workers": 1,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "worker_dashboard_address": None,
        "local_directory": str(tmp_path),
    }
    with (
        distributed.LocalCluster(processes=False, **where) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield Held(cluster, client, started)


def test_a_task_that_is_cancelled_while_its_process_starts_leaves_none(
    held: Held, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
):
    starting, cancelled = threading.Event(), threading.Event()
    start = subprocess.Popen

    def start_late(command: Any, **options: Any) -> Any:
        if command == COMMAND:
            starting.set()
            assert cancelled.wait(30)
        return start(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start_late)
    held.hold()
    assert starting.wait(30)
    held.future.cancel()
    eventually(lambda: held.worker.state.tasks["role"].state == "cancelled")
    cancelled.set()
    eventually(held.has_ended)


def test_a_task_that_is_cancelled_ends_its_process(held: Held, eventually: Callable[..., Any]):
    held.hold()
    eventually(lambda: held.started)
    held.future.cancel()
    eventually(held.has_ended)
    eventually(lambda: "role" not in held.worker.state.tasks)


def test_a_worker_that_closes_ends_its_processes(held: Held, eventually: Callable[..., Any]):
    held.hold()
    eventually(lambda: held.started)
    held.cluster.scale(0)
    eventually(held.has_ended)
