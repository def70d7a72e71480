"""What runs inside the workers of a Dask cluster. It is sent there by value.

Workers need nothing of this package: a role is a process of its own, of an interpreter that has it.
In a worker's thread it would share the interpreter's lock with the worker's heartbeat.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from typing import Any

from distributed import WorkerPlugin, get_worker, secede

PLUGIN = "pdqn-roles-1"
_POLL_SECONDS = 0.1
_LEAVE_SECONDS = 14.0  # the process itself takes less, unless it hangs
_TAIL_BYTES = 4000
# Of the nanny, for threads of the worker; a learner must not inherit it.
_LEFT_OUT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class RoleProcesses(WorkerPlugin):
    """The processes of a worker's tasks; none of them outlives its task, or the worker."""

    name = PLUGIN
    # Another run's registration must not tear this one down, and end its processes.
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin with none."""
        self.lock = threading.Lock()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def transition(self, key: Any, start: str, finish: str, **_: Any) -> None:
        """End the process of a task that was cancelled."""
        if finish in ("cancelled", "released", "forgotten"):
            self.end(str(key))

    def teardown(self, worker: Any) -> None:
        """The worker ends."""
        for key in list(self.processes):
            self.end(key)

    def end(self, key: str) -> None:
        """Ask the process of a task to leave: its pipe comes to its end."""
        with self.lock:
            process = self.processes.pop(key, None)
        if process is not None and process.stdin is not None:
            process.stdin.close()


class Secret:
    """A text that no representation shows: Dask logs the arguments of tasks that fail."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        """Not the text."""
        return "Secret(...)"


def hold_role(key: str, command: list[str], first_line: Secret) -> dict[str, Any]:
    """Be there as long as a role's process is; how it ended.

    Args:
        key: of this task.
        command: that starts the process.
        first_line: what the process reads first; then it leaves when its input ends.

    Returns:
        ``code``, ``pid``, and ``tail``, the end of what it wrote to standard error.
    """
    plugin: Any = get_worker().plugins[PLUGIN]
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
        with plugin.lock:
            plugin.processes[key] = process
        if not _is_wanted(key):  # cancelled before the plugin knew of the process
            plugin.end(key)
        secede()
        assert process.stdin is not None
        try:
            process.stdin.write(first_line.text.encode() + b"\n")
            process.stdin.flush()
        except (OSError, ValueError):
            pass  # it has ended already, and has said why; or its pipe was closed just now
        while process.poll() is None and key in plugin.processes:
            time.sleep(_POLL_SECONDS)
        try:
            code = process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        plugin.end(key)
        errors.seek(max(0, errors.tell() - _TAIL_BYTES))
        tail = errors.read().decode(errors="replace")
    return {"code": code, "pid": process.pid, "tail": tail}


def _is_wanted(key: str) -> bool:
    """Whether a task that runs here has not been cancelled."""
    task = get_worker().state.tasks.get(key)
    return task is not None and task.state in ("executing", "long-running")


def describe_worker(python: str) -> dict[str, Any]:
    """What a worker's machine has: cores, GPUs, and the version of pdqn that an interpreter has."""
    code = (
        "import json, os, pdqn, platform\n"
        "from launcher.hardware import detect\n"
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
