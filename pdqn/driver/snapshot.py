"""A run at one moment, as a program sees it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pdqn.driver.columns import as_number
from pdqn.figures import BY_NAME, find

if TYPE_CHECKING:
    from pdqn.driver.run import Run


class Snapshot(Mapping[str, float]):
    """Figures of a run by their names in metrics.jsonl, and its stage.

    ``snapshot["rollout/ep_rew_mean"]`` is NaN while the figure is not known, so that every
    comparison with it is false. Figures of the newest evaluation are among them (``eval/...``).

    Attributes:
        run: the run.
        stage: starting, running, paused, stopping or done.
        elapsed_seconds: time since the run began.
        progress: share of the nearest limit; None without a limit.
        remaining_seconds: estimate until that limit; None if it is not known.
        line: the most important figures as a line of text.
    """

    def __init__(
        self, run: Run, progress: Mapping[str, Any], evaluation: Mapping[str, Any]
    ) -> None:
        self.run = run
        self.stage = str(progress.get("stage", "starting"))
        self.elapsed_seconds = float(progress.get("elapsed_seconds", 0.0))
        self.progress: float | None = progress.get("progress")
        self.remaining_seconds: float | None = progress.get("remaining_seconds")
        self.line = str(progress.get("line", ""))
        of_evaluation = {k: v for k, v in evaluation.items() if k.startswith("eval/")}
        figures = {**progress.get("figures", {}), **of_evaluation}
        figures["time_seconds"] = self.elapsed_seconds
        self._figures = {name: as_number(value) for name, value in figures.items()}

    def __getitem__(self, name: str) -> float:
        """Return a figure; NaN while it is not known.

        Raises:
            KeyError: there is no figure of this name.
        """
        if name in self._figures:
            return self._figures[name]
        if find(name) is None:
            close = difflib.get_close_matches(name, [*BY_NAME, *self._figures], 3)
            raise KeyError(f"{name}; did you mean {' or '.join(close)}?" if close else name)
        return math.nan

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the figures that the run has reported."""
        return iter(self._figures)

    def __len__(self) -> int:
        """Return the number of those."""
        return len(self._figures)

    def __repr__(self) -> str:
        """Return the line of the most important figures."""
        return f"<{self.stage}: {self.line}>"
