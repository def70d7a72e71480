"""The tasks that run inside the workers of a Dask cluster, where they are sent by value.

Workers need nothing from this package: a role is a separate process, whose interpreter has it. In a
worker's thread a role would share the interpreter's lock with the worker's heartbeat. Nothing is
set up there in advance, since that would wait for every worker of the cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from typing import Any

from distributed import Status, get_worker, secede

_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 14.0  # the process itself takes less, unless it hangs
_TAIL_BYTES = 4000
# Dask's nanny sets these for the worker's threads; a learner must not inherit them.
_LEFT_OUT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Secret:
    """A text that its representation hides: Dask logs the arguments of tasks that fail."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Return a placeholder for the text."""
        return "Secret(...)"


def hold_role(key: str, command: list[str], first_line: Secret) -> dict[str, Any]:
    """Start a role's process, wait for its end, and return how it ended.

    The process outlives neither its task nor the worker. Its input ends when the task is cancelled,
    when the worker closes, and when the worker's own process ends for any reason.

    Args:
        key: this task's.
        command: starts the process.
        first_line: what the process reads first; it leaves when its input ends.

    Returns:
        ``code``, ``pid``, and ``tail``, the end of what it wrote to standard error.
    """
    worker = get_worker()
    # At once: a closing worker waits for tasks that have not seceded, and keeps them from it.
    secede()
    environment = {k: v for k, v in os.environ.items() if k not in _LEFT_OUT}
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return {"code": 127, "pid": 0, "tail": f"{command[0]}: {error.strerror}"}
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already, and has said why
            process.stdin.write(first_line.text.encode() + b"\n")
            process.stdin.flush()
        while process.poll() is None and _is_wanted(worker, key):
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            code = process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        errors.seek(max(0, errors.tell() - _TAIL_BYTES))
        tail = errors.read().decode(errors="replace")
    return {"code": code, "pid": process.pid, "tail": tail}


def _is_wanted(worker: Any, key: str) -> bool:
    """Tell whether a task that runs here has not been cancelled, and its worker goes on."""
    task = worker.state.tasks.get(key)
    runs = task is not None and task.state in ("executing", "long-running")
    return runs and worker.status not in (Status.closing, Status.closed, Status.failed)


def describe_worker(python: str) -> dict[str, Any]:
    """Describe a worker's machine: cores, memory, GPUs, and the pdqn that an interpreter has."""
    code = (
        "import json, os, pdqn, platform\n"
        "from launcher.plan.machine import detect\n"
        "m = detect()\n"
        "print(json.dumps({'pdqn': pdqn.__version__, 'python': platform.python_version(), "
        "'cores': m.cores, 'memory_bytes': m.ram_available_bytes, "
        "'gpus': [g.name for g in m.gpus], 'hostname': m.hostname}))"
    )
    try:
        done = subprocess.run(
            [python, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"{python}: {error}"}
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        return {"error": f"{python}: {last}"}
    return json.loads(done.stdout)
