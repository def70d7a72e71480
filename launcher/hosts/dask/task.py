"""What runs inside the workers of a Dask cluster. It is sent there by value.

Workers need nothing of this package: a role is a process of its own, of an interpreter that has it.
In a worker's thread it would share the interpreter's lock with the worker's heartbeat. Nothing is
set up there beforehand, which would wait for every worker of the cluster.
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
# Of the nanny, for threads of the worker; a learner must not inherit it.
_LEFT_OUT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Secret:
    """A text that no representation shows: Dask logs the arguments of tasks that fail."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Not the text."""
        return "Secret(...)"


def hold_role(key: str, command: list[str], first_line: Secret) -> dict[str, Any]:
    """Be there as long as a role's process is; how it ended.

    The process outlives neither its task nor the worker: its input ends when the task is cancelled,
    when the worker closes, and when the worker's own process ends, however that happens.

    Args:
        key: of this task.
        command: that starts the process.
        first_line: what the process reads first; then it leaves when its input ends.

    Returns:
        ``code``, ``pid``, and ``tail``, the end of what it wrote to standard error.
    """
    worker = get_worker()
    # First: a worker that closes waits for those that have not, and keeps them from doing so.
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
    """Whether a task that runs here has not been cancelled, and its worker goes on."""
    task = worker.state.tasks.get(key)
    runs = task is not None and task.state in ("executing", "long-running")
    return runs and worker.status not in (Status.closing, Status.closed, Status.failed)


def describe_worker(python: str) -> dict[str, Any]:
    """What a worker's machine has: cores, GPUs, and the version of pdqn that an interpreter has."""
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
