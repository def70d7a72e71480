"""A Dask cluster as a place for roles: its workers, and the processes that run in them."""

from __future__ import annotations

import contextlib
import importlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.hosts.dask.answers import RoleEnd, WorkerDescription
from launcher.hosts.dask.assignment import ClusterWorker
from pdqn.errors import UsageError, first_line
from pdqn.transport import route_to

LOCAL = "local"
_CONNECT_SECONDS = 10.0
_DESCRIBE_SECONDS = 150.0
_LOOK_SECONDS, _ANSWER_SECONDS = 2.0, 2.0
_GONE_SECONDS = 10.0
_ENDING_SECONDS = 3.0
_NO_ANSWER = "the worker does not answer"
_TOPIC = "all"


@dataclass(frozen=True)
class Ending:
    """The end of a process in a worker.

    Attributes:
        key: the key with which it was started.
        cause: in words.
        tail: the end of what it wrote to standard error.
    """

    key: str
    cause: str
    tail: str = ""


class DaskCluster:
    """A connection to a scheduler. Use it from one thread; Dask's own thread runs beside it.

    Args:
        where: ``tcp://HOST:PORT`` of a scheduler, its scheduler file, or ``local`` for one that is
            started here, with a worker for every core, at most four.
        python: interpreter on the workers that has pdqn.
        slots: number of actors for each worker; None for one per thread.

    Raises:
        UsageError: Dask is not installed, or there is no such cluster.
    """

    def __init__(self, where: str, python: str, slots: int | None = None) -> None:
        try:
            self._distributed = importlib.import_module("distributed")
            self._task = importlib.import_module("launcher.hosts.dask.task")
            cloudpickle = importlib.import_module("cloudpickle")
        except ModuleNotFoundError as error:
            raise UsageError("--dask needs Dask: pip install 'pdqn[dask]'") from error
        cloudpickle.register_pickle_by_value(self._task)
        self._where, self._python, self._slots = where, python, slots
        self._local: Any = None
        self._client = self._connect()
        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._workers: dict[str, ClusterWorker] = {}
        self._gpus: dict[str, int] = {}
        self._hosts: dict[str, str] = {}
        self._futures: dict[str, Any] = {}
        self._excluded: set[str] = set()
        self._next_look = 0.0
        self._heard = time.monotonic()
        self._client.subscribe_topic(_TOPIC, self._events.put)
        self._look()

    @property
    def address(self) -> str:
        """The scheduler's address."""
        return str(self._client.scheduler.address)

    @property
    def is_encrypted(self) -> bool:
        """Return whether only holders of a certificate can reach the scheduler."""
        return urlsplit(self.address).scheme in ("tls", "wss")

    @property
    def workers(self) -> dict[str, ClusterWorker]:
        """The present workers, by address."""
        return self._workers

    @property
    def is_loopback(self) -> bool:
        """Return whether the scheduler and all workers are on this host."""
        return all(_host(address).startswith("127.") for address in (self.address, *self._workers))

    @property
    def own_address(self) -> str:
        """This host's address on its route to the scheduler."""
        return "127.0.0.1" if self.is_loopback else route_to(f"tcp://{_netloc(self.address)}")

    @property
    def gone_seconds(self) -> float:
        """The time since the scheduler last answered."""
        return time.monotonic() - self._heard

    @property
    def is_heard(self) -> bool:
        """Return whether there is a connection to the scheduler now."""
        return self._client.status == "running"

    @property
    def is_gone(self) -> bool:
        """Return whether the scheduler is gone for good."""
        return self._client.status in ("closed", "closing") or self.gone_seconds > _GONE_SECONDS

    def describe(self) -> dict[str, WorkerDescription]:
        """Ask each worker what its machine has, and leave out those that fail from now on.

        A worker fails if it does not answer, or if its interpreter has no pdqn.

        Returns:
            The description of each worker, by its address.

        Raises:
            UsageError: the scheduler is gone.
        """
        self._look()
        descriptions = self._ask_all()
        if not self.is_heard:
            raise UsageError(f"--dask {self._where}: the scheduler does not answer any more")
        self._gpus = {a: len(d.gpus) for a, d in descriptions.items()}
        self._hosts = {d.hostname: _host(a) for a, d in descriptions.items() if d.hostname}
        self._excluded |= {a for a, d in descriptions.items() if d.error}
        self._look()
        return descriptions

    def host_of(self, name: str) -> str:
        """Return the host that a named machine has in its workers' addresses; else the name."""
        return self._hosts.get(name, name)

    def exclude(self, worker: str) -> None:
        """Treat a worker as gone: nothing can be kept alive there."""
        self._excluded.add(worker)
        self._look()

    def poll(self) -> bool:
        """Note which workers came and went; return whether anything changed."""
        changed = False
        while not self._events.empty():
            _, event = self._events.get()
            action = event.get("action") if isinstance(event, dict) else None
            changed |= action in ("add-worker", "remove-worker")
        if changed or time.monotonic() >= self._next_look:
            before = self._workers
            self._look()
            changed = before != self._workers
        return changed

    def start(self, key: str, worker: str, command: list[str], first_line: str) -> None:
        """Start a process in a worker, and nowhere else."""
        secret = self._task.Secret(first_line)
        self._futures[key] = self._submit(
            worker, self._task.hold_role, key, [self._python, *command], secret, key=key
        )

    def stop(self, key: str) -> None:
        """Stop a process; ``endings`` will not list it."""
        future = self._futures.pop(key, None)
        if future is not None:
            # Cancelling waits for the scheduler, which may hang; the run must not.
            threading.Thread(target=future.cancel, daemon=True).start()

    def endings(self) -> list[Ending]:
        """List the processes that ended since the last call without being stopped."""
        done = [key for key, future in self._futures.items() if future.done()]
        return [self._ending(key, self._futures.pop(key)) for key in done]

    def close(self) -> None:
        """Stop what does not end by itself within seconds, and leave the cluster as it was."""
        deadline = time.monotonic() + _ENDING_SECONDS
        while time.monotonic() < deadline and not all(f.done() for f in self._futures.values()):
            time.sleep(0.05)
        for key in list(self._futures):
            self.stop(key)
        self._client.close(timeout=5)
        if self._local is not None:
            self._local.close()

    def remove_files(self) -> None:
        """Remove the files of a local cluster, when this process ends at once."""
        if self._local is not None:
            self._local.remove_files()

    def _ending(self, key: str, future: Any) -> Ending:
        if future.status != "finished":
            return Ending(key, f"its worker: {future.status}")
        try:
            # The result is still on the worker, which may hang by now.
            end = RoleEnd.of(future.result(timeout=_ANSWER_SECONDS))
        except (OSError, TimeoutError, self._distributed.CancelledError):
            return Ending(key, _NO_ANSWER)
        if end is None:
            return Ending(key, "its worker gave an answer that cannot be read")
        return Ending(key, f"exit code {end.code}", end.tail)

    def _submit(
        self, worker: str, task: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """Submit a task to one worker, which runs nowhere else; wait for nothing."""
        only = {"workers": [worker], "allow_other_workers": False, "pure": False, "retries": 0}
        return self._client.submit(task, *arguments, **only, **options)

    def _ask_all(self) -> dict[str, WorkerDescription]:
        """Ask all workers at once what their machines have, and wait for all answers together."""
        describe = self._task.describe_worker
        asked = {self._submit(worker, describe, self._python): worker for worker in self._workers}
        found = dict.fromkeys(self._workers, WorkerDescription(error=_NO_ANSWER))
        answers = self._distributed.as_completed(
            list(asked),
            loop=self._client.loop,
            with_results=True,
            raise_errors=False,
            timeout=_DESCRIBE_SECONDS,
        )
        with contextlib.suppress(TimeoutError):
            for future, answer in answers:
                found[asked[future]] = WorkerDescription.of(answer)
        for future in asked:
            future.release()  # tasks that have not run yet are thereby dropped
        return found

    def _connect(self) -> Any:
        # This class reports what matters in fewer words than Dask. Each of Dask's loggers has its
        # own level.
        for name in list(logging.root.manager.loggerDict):
            if name.partition(".")[0] == "distributed":
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
        arguments: dict[str, Any] = {"address": self._where}
        if self._where == LOCAL:
            self._local = importlib.import_module("launcher.hosts.dask.local").LocalCluster()
            arguments = {"address": self._local.cluster}
        elif not self._where.startswith(("tcp://", "tls://")):
            if not Path(self._where).is_file():
                raise UsageError(
                    f"--dask {self._where}: expected tcp://HOST:PORT of a scheduler, an existing "
                    f"scheduler file, or {LOCAL}"
                )
            arguments = {"scheduler_file": self._where}
        try:
            return self._distributed.Client(**arguments, timeout=_CONNECT_SECONDS, name="pdqn")
        except (OSError, ValueError, TimeoutError) as error:
            reason = first_line(error)
            raise UsageError(f"--dask {self._where}: no scheduler answers ({reason})") from error

    def _look(self) -> None:
        """Ask the scheduler which workers there are."""
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if not self.is_heard:
            return
        try:
            identity = self._client.scheduler.identity
            found = self._client.sync(identity, n_workers=-1, callback_timeout=_ANSWER_SECONDS).get(
                "workers"
            )
        except (OSError, TimeoutError, ValueError):
            return
        if found is None:
            return
        self._heard = time.monotonic()
        self._workers = {
            address: ClusterWorker(
                address,
                _host(address),
                self._slots or int(worker["nthreads"]),
                self._gpus.get(address, 0),
            )
            for address, worker in found.items()
            if address not in self._excluded
        }


def _netloc(address: str) -> str:
    return urlsplit(address).netloc


def _host(address: str) -> str:
    return urlsplit(address).hostname or address
