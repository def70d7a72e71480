"""Writes a run's figures where they are kept: metrics.jsonl and TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorboard.summary import Writer

from launcher.rundir import RunDirectory

_NOT_SCALARS = {"episodes_recent"}


class Recorder:
    """Appends lines of metrics; the x axis of TensorBoard is environment_steps."""

    def __init__(self, run_dir: RunDirectory) -> None:
        self._run_dir = run_dir
        self._writer = Writer(str(run_dir.path / "tensorboard"))

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line to both."""
        self._run_dir.metrics(line)
        step = line["environment_steps"]
        for name, value in line.items():
            if isinstance(value, int | float) and name not in _NOT_SCALARS:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._writer.close()
