"""What is sent to the workers of a Dask cluster."""

from __future__ import annotations

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
