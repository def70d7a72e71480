"""The recorder of a run's figures, in metrics.jsonl, in TensorBoard and in other sinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tensorboard.summary import Writer

from launcher.run.sinks import Sink
from launcher.rundir import RunDirectory


class Recorder:
    """A writer of lines of metrics; the x axis of TensorBoard is environment_steps.

    Args:
        run_dir: the run's.
        sinks: further receivers of the lines.
    """

    def __init__(self, run_dir: RunDirectory, sinks: Iterable[Sink] = ()) -> None:
        self._run_dir = run_dir
        self._sinks = tuple(sinks)
        self._writer = Writer(str(run_dir.path / "tensorboard"))

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line everywhere."""
        self._run_dir.metrics(line)
        for sink in self._sinks:
            sink.write(line)
        step = line["environment_steps"]
        for name, value in line.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close TensorBoard's file and the sinks."""
        self._writer.close()
        for sink in self._sinks:
            sink.close()
