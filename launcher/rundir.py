"""The run directory: where everything that a run leaves behind goes."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pdqn.config import Config
from pdqn.errors import UsageError


class RunDirectory:
    """Paths and appenders of one run.

    Raises:
        UsageError: the directory cannot be written, or holds another run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.logs = path / "logs"
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "config.toml").exists():
                raise UsageError(f"run directory {path} already holds a run; choose another")
            self.logs.mkdir(exist_ok=True)
            (path / "checkpoints").mkdir(exist_ok=True)
            self._metrics = self.metrics_path.open("a", encoding="utf-8")
            self._events = (path / "events.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"run directory {path} cannot be written: {error.strerror}") from error
        self._started = time.monotonic()

    def log_path(self, role: str, index: int) -> Path:
        """The log of one role."""
        return self.logs / f"{role}-{index}.log"

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration."""
        (self.path / "config.toml").write_text(config.to_toml(), encoding="utf-8")

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Append to metrics.jsonl."""
        _append(self._metrics, line)

    def event(self, kind: str, **details: Any) -> None:
        """Append to events.jsonl, with the time since the start and the time of day."""
        stamp = {"time_seconds": round(time.monotonic() - self._started, 3), "clock": time.time()}
        _append(self._events, {**stamp, "event": kind, **details})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, whole or not at all."""
        temporary = self.path / f".summary.{os.getpid()}"
        temporary.write_text(json.dumps(_plain(summary), indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.path / "summary.json")

    def close(self) -> None:
        """Close the appenders."""
        self._metrics.close()
        self._events.close()


def default_path(env_id: str, seed: int) -> Path:
    """``runs/<env>__seed<seed>__<time>``."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", env_id)
    return Path("runs") / f"{name}__seed{seed}__{time.strftime('%Y%m%d-%H%M%S')}"


def _append(file: TextIO, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(_plain(line)) + "\n")
    file.flush()


def _plain(value: Any) -> Any:
    """The same without NaN and infinity, which are no JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
