"""What is sent to the workers of a Dask cluster."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

task = pytest.importorskip("launcher.dask_task", reason="needs pdqn[dask]")


def test_a_key_is_in_no_representation_of_a_task():
    secret = task.Secret("the key")
    assert secret.text == "the key"
    assert "the key" not in repr({"task": (task.hold_role, ("key", ["python"], secret))})


def test_another_runs_registration_ends_nothing_of_this_one():
    assert task.RoleProcesses.idempotent


def test_an_interpreter_that_is_not_there_is_an_answer_and_no_error():
    assert "no/such" in task.describe_worker("/no/such/python")["error"]


def test_a_task_that_is_cancelled_while_its_process_starts_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
):
    distributed = pytest.importorskip("distributed")
    starting, cancelled = threading.Event(), threading.Event()
    started: list[Any] = []

    def start_late(*arguments: Any, **options: Any) -> Any:
        starting.set()
        assert cancelled.wait(30)
        started.append(popen(*arguments, **options))
        return started[-1]

    popen = subprocess.Popen
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
        client.register_plugin(task.RoleProcesses())
        monkeypatch.setattr(subprocess, "Popen", start_late)
        command = [sys.executable, "-c", "import sys; sys.stdin.read()"]
        arguments = ("role", command, task.Secret("x"))
        future = client.submit(task.hold_role, *arguments, key="role", pure=False)
        assert starting.wait(30)
        (worker,) = cluster.workers.values()
        future.cancel()
        eventually(lambda: worker.state.tasks["role"].state == "cancelled")
        cancelled.set()
        eventually(lambda: started and started[0].poll() is not None)
        eventually(lambda: not worker.plugins[task.PLUGIN].processes)
