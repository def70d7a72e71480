"""The recorder of a run's figures, in metrics.jsonl, in TensorBoard and in other sinks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from launcher.results.scalars import ScalarWriter
from launcher.run.sinks import Sink
from launcher.rundir import METRICS, RunDirectory
from launcher.unwritten import Unwritten


class Recorder:
    """A writer of lines of metrics; the x axis of TensorBoard is environment_steps.

    Args:
        run_dir: the run's.
        unwritten: records the files that cannot be written.
        sinks: further receivers of the lines.
    """

    def __init__(
        self, run_dir: RunDirectory, unwritten: Unwritten, sinks: Iterable[Sink] = ()
    ) -> None:
        self._run_dir = run_dir
        self._unwritten = unwritten
        self._sinks = tuple(sinks)
        self._scalars = ScalarWriter(run_dir.path / "tensorboard")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line everywhere."""
        with self._unwritten.attempt(METRICS):
            self._run_dir.metrics(line)
        for sink in self._sinks:
            sink.write(line)
        figures = {name: v for name, v in line.items() if isinstance(v, int | float)}
        with self._unwritten.attempt("tensorboard"):
            self._scalars.folder = self._run_dir.path / "tensorboard"
            self._scalars.write(figures, line["environment_steps"])

    def close(self) -> None:
        """Close TensorBoard's file and the sinks."""
        self._scalars.close()
        for sink in self._sinks:
            sink.close()
