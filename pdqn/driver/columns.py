"""The lines of a run's metrics.jsonl as columns: one table of training, one of evaluations."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pdqn.objects import parse_object

_EVALUATION = "eval/parameter_version"  # every evaluation's line has it, and no other


def read_lines(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the complete lines of a file of JSON objects.

    Args:
        path: the file; it may not exist yet.
        start: the byte to begin at.

    Returns:
        the objects, and the byte after the last complete line.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], start
    end = content.rfind(b"\n") + 1
    # A disk that was full may have cut a line.
    return [
        found for line in content[:end].splitlines() if (found := parse_object(line))
    ], start + end


def is_evaluation(line: Mapping[str, Any]) -> bool:
    """Tell whether a line is an evaluation's."""
    return _EVALUATION in line


def table(lines: Iterable[Mapping[str, Any]], frame: bool | None = None) -> Any:
    """Make columns of lines.

    Args:
        lines: numbers by name.
        frame: True for a pandas DataFrame, False for a dict of arrays; by default a DataFrame if
            pandas is installed.

    Returns:
        float64[lines] by name, in the order in which the names occur; NaN where a line lacks it.
    """
    rows = list(lines)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: np.array([as_number(row.get(name)) for row in rows]) for name in names}
    if frame is None:
        frame = importlib.util.find_spec("pandas") is not None
    if not frame:
        return columns
    import pandas  # pyright: ignore[reportMissingImports, reportMissingModuleSource]

    return pandas.DataFrame(columns)


def as_number(value: Any) -> float:
    """Return a figure as a number; NaN for one that is not known."""
    return float(value) if isinstance(value, int | float) else math.nan
