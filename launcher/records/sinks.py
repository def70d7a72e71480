"""Further receivers of a run's figures while it runs: Weights & Biases, and Prometheus.

Neither may stop or slow a run: each reports a failure once and tries again, and the run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import netrc
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from launcher.about import read_about
from launcher.plan.machine import port_error
from launcher.rundir import replace_text
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.figures import find

WANDB_ID = "wandb_id"
_ID = re.compile(r"[\w-]{1,64}")
_MOST_LINES = 1000
_LEAVE_SECONDS = 5.0
_FIRST_RETRY_SECONDS, _LARGEST_RETRY_SECONDS = 30.0, 600.0

Say = Callable[[str], None]


class Sink(Protocol):
    """A receiver of the lines of metrics.jsonl as they are written."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line and return at once, even if the line gets lost."""
        ...

    def close(self) -> None:
        """Take no more lines, and finish within seconds."""
        ...


def make_sinks(config: Config, run_dir: Path, say: Say) -> list[Sink]:
    """Make the sinks that the configuration asks for.

    Args:
        config: the run's.
        run_dir: the run's directory.
        say: shows a line to the person.

    Raises:
        UsageError: the port cannot be bound.
    """
    sinks: list[Sink] = []
    if config.system.wandb:
        sinks.append(WandbSink(config, run_dir, say))
    if config.system.metrics_port:
        sinks.append(PrometheusSink(config.system.metrics_host, config.system.metrics_port))
    return sinks


def check_sinks(config: Config) -> None:
    """Refuse sinks that could not work.

    Raises:
        UsageError: a package is missing, with the command that installs it, or the port is taken.
    """
    wanted = {
        "wandb": (config.system.wandb, "system.wandb = true", "wandb"),
        "prometheus_client": (config.system.metrics_port, "system.metrics_port", "prometheus"),
    }
    for module, (asked, setting, extra) in wanted.items():
        if asked and importlib.util.find_spec(module) is None:
            raise UsageError(
                f"{setting} needs {module}: python -m pip install 'pdqn[{extra}]', or leave it out"
            )
    if config.system.metrics_port:
        host, port = config.system.metrics_host, config.system.metrics_port
        if error := port_error(host, port):
            raise UsageError(f"--metrics-port {port}: {host}: {error}")


class WandbSink:
    """Weights & Biases, behind a thread and a bounded queue: its network may be slow."""

    def __init__(self, config: Config, run_dir: Path, say: Say) -> None:
        self._config, self._run_dir, self._say = config, run_dir, say
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST_LINES)
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure = ""
        self._id = _id_of(run_dir)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Queue a line; drop it if the queue is full."""
        self._tell()
        scalars = {k: v for k, v in line.items() if isinstance(v, int | float)}
        try:
            self._lines.put_nowait(scalars)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Send what is queued, for a few seconds at most."""
        try:
            self._lines.put(None, timeout=_LEAVE_SECONDS)
            self._thread.join(_LEAVE_SECONDS)
        except queue.Full:
            self._drop_all()
            self._lines.put(None)
        self._tell()
        if self._dropped:
            self._say(f"Weights & Biases did not take {self._dropped} lines")

    def _drop_all(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._lines.get_nowait()
                self._dropped += 1

    def _tell(self) -> None:
        """Report what the other thread has met, from the run's own thread."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._say(self._news.get_nowait())

    def _run(self) -> None:
        """Send lines to the end; after a failure, try again from time to time."""
        pause_seconds = _FIRST_RETRY_SECONDS
        while True:
            try:
                self._send_all()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on
                failure = f"{type(error).__name__}: {error}"
                if failure != self._failure:
                    self._news.put(f"Weights & Biases takes no more: {failure}")
                self._failure = failure
            else:
                return
            if not self._leave_out(pause_seconds):
                return
            pause_seconds = min(_LARGEST_RETRY_SECONDS, 2 * pause_seconds)

    def _leave_out(self, seconds: float) -> bool:
        """Leave lines out for a time; return False if the last one has come."""
        ends = time.monotonic() + seconds
        with contextlib.suppress(queue.Empty):
            while (left := ends - time.monotonic()) > 0:
                if self._lines.get(timeout=left) is None:
                    return False
                self._dropped += 1
        return True

    def _send_all(self) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        if os.environ.get("WANDB_MODE", "online") == "online" and not _has_wandb_key():
            raise RuntimeError("not logged in; run wandb login, or set WANDB_MODE=offline")
        run = wandb.init(
            **_named(self._config, self._run_dir, os.environ),
            # After a failure, and when this run is resumed, the same run goes on there.
            id=self._id,
            resume="allow",
            dir=str(self._run_dir),
            config=self._config.to_map(),
            # The terminal is the console's: wandb must not capture, show or ask anything there.
            settings=wandb.Settings(console="off", silent=True),
        )
        run.define_metric("*", step_metric="environment_steps")
        if self._failure:
            self._news.put(f"Weights & Biases takes lines again, {self._dropped} were left out")
            self._failure = ""
        while (line := self._lines.get()) is not None:
            self._dropped += 1  # until it is sent
            run.log(line)
            self._dropped -= 1
        run.finish()


def _id_of(run_dir: Path) -> str:
    """Return the id that a run has there, which its directory keeps for later sessions."""
    if given := os.environ.get("WANDB_RUN_ID"):
        return given
    path = run_dir / WANDB_ID
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if _ID.fullmatch(known := path.read_text(encoding="utf-8").strip()):
            return known
    made = uuid.uuid4().hex
    with contextlib.suppress(OSError):  # the run goes on; a later session is another one there
        replace_text(path, f"{made}\n")
    return made


def _named(config: Config, run_dir: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a run's project, group, name and tags there.

    What a person sets for this run overrides the usual variables, which wandb reads itself where
    an argument is left out.
    """
    about, system = read_about(run_dir), config.system
    name = about.name or ("" if variables.get("WANDB_NAME") else run_dir.name)
    project = system.wandb_project or ("" if variables.get("WANDB_PROJECT") else "pdqn")
    tags = [*filter(None, variables.get("WANDB_TAGS", "").split(",")), *about.tags]
    notes = "" if variables.get("WANDB_NOTES") else "\n".join(about.notes)
    found = {"project": project, "group": system.wandb_group, "name": name, "notes": notes}
    return {key: value for key, value in found.items() if value} | ({"tags": tags} if tags else {})


def _has_wandb_key() -> bool:
    """Tell whether there is a key; without one, wandb would ask for it on the terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


class PrometheusSink:
    """The newest figures as gauges on an HTTP port, for Prometheus to scrape.

    Raises:
        UsageError: the port cannot be bound.
    """

    def __init__(self, host: str, port: int) -> None:
        import prometheus_client

        self._line: dict[str, float] = {}
        registry = prometheus_client.CollectorRegistry()
        registry.register(self)  # pyright: ignore[reportArgumentType]
        try:
            server = prometheus_client.start_http_server(port, host, registry)
        except OSError as error:
            raise UsageError(f"--metrics-port {port}: {host}: {error.strerror}") from error
        self._server, self._thread = server

    def collect(self) -> Iterator[Any]:
        """Yield the newest figures; called from the server's thread."""
        from prometheus_client.core import GaugeMetricFamily

        for name, value in self._line.items():
            yield GaugeMetricFamily(metric_name(name), _documentation(name), value=value)

    def write(self, line: Mapping[str, Any]) -> None:
        """Update the figures; evaluations come in separate lines."""
        finite = {k: v for k, v in line.items() if isinstance(v, int | float) and math.isfinite(v)}
        # Replaced as a whole: the other thread sees the old one or the new one.
        self._line = {**self._line, **finite}

    def close(self) -> None:
        """Give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_LEAVE_SECONDS)


def _documentation(name: str) -> str:
    """Return a figure's name, line of documentation and unit."""
    figure = find(name)
    if figure is None:
        return name
    return f"{name}: {figure.doc}" + (f" [{figure.unit}]" if figure.unit else "")


def metric_name(name: str) -> str:
    """Convert a metric's name for Prometheus: ``time/fps`` becomes ``pdqn_time_fps``."""
    return "pdqn_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
