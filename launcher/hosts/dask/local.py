"""A Dask cluster of this host, which no other user of the host can reach.

Whoever talks to a scheduler or a worker can run code there. So every connection has Dask's TLS,
with a certificate that exists only in memory. Dask's HTTP servers, which it starts even without
dashboards, are left out. Workers import modules from their scratch folder. Dask would put it into a
folder in /tmp even if another user has made that; here only this user can open it.
"""

from __future__ import annotations

import logging
import signal
import tempfile
from pathlib import Path
from typing import Any

import dask.config as dask_config
from distributed import Nanny, Scheduler, Security, SpecCluster, Worker

from launcher.folders import Folder
from launcher.plan.machine import detect
from pdqn.errors import UsageError
from pdqn.process import OF_GROUP

_MOST_WORKERS = 4
_CLOSE_SECONDS = 10


class _Scheduler(Scheduler):
    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start none: it would answer everybody."""


class _Worker(Worker):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        # Only the launcher decides what Ctrl-C means, which reaches the whole process group.
        for number in OF_GROUP:
            signal.signal(number, signal.SIG_IGN)
        super().__init__(*arguments, **options)

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start none: it would answer everybody."""


class LocalCluster:
    """A scheduler in this process, and workers as processes, since roles are their children.

    Attributes:
        cluster: Dask's object, for a client.

    Raises:
        UsageError: the package that makes the certificate is missing.
    """

    def __init__(self) -> None:
        security = _security()
        cores = detect().cores
        workers = min(_MOST_WORKERS, cores)
        shared = {
            "host": "127.0.0.1",
            "protocol": "tls://",
            "security": security,
            "dashboard": False,
        }
        options = {
            **shared,
            "nthreads": max(1, cores // workers),
            "worker_class": _Worker,
            "silence_logs": logging.WARNING,
        }
        self._folder = tempfile.TemporaryDirectory(prefix="pdqn-", ignore_cleanup_errors=True)
        self._open = Folder(Path(self._folder.name))
        self._open.mark()
        with dask_config.set({"temporary-directory": self._folder.name}):
            self.cluster: Any = SpecCluster(
                scheduler={"cls": _Scheduler, "options": {**shared, "port": 0}},
                workers={index: {"cls": Nanny, "options": options} for index in range(workers)},
                security=security,
            )

    def close(self) -> None:
        """End the workers and the scheduler, and remove their files."""
        self.cluster.close(timeout=_CLOSE_SECONDS)
        self.remove_files()

    def remove_files(self) -> None:
        """Remove the files alone, when this process ends at once and its workers with it."""
        self._open.close()
        self._folder.cleanup()


def _security() -> Security:
    try:
        return Security.temporary()
    except ImportError as error:
        raise UsageError(
            "--dask local needs cryptography, to keep other users of this host out: "
            "pip install 'pdqn[dask]'"
        ) from error
