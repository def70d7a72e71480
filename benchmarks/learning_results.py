"""Result files of ``benchmarks.learning``, and the arithmetic on them. Pure, apart from files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COLUMNS = ("environment_steps", "wall_seconds", "return_mean", "return_error")
STAY_EVALUATIONS = 3
_GRID = 200


@dataclass(frozen=True)
class Result:
    """What one system did in one case with one seed.

    Attributes:
        case: its name.
        system: its name.
        seed: of the run.
        command: that a person would type; RUN is the run's folder.
        commit: of this repository; a ``+`` says that files had changed since.
        date: of the run, ISO 8601, UTC.
        cores: that the machine had.
        wall_seconds: from the start of the process to its end.
        curve: of every evaluation, the values of ``COLUMNS``. Seconds count from the start of the
            process; a peer's leave its evaluations out.
        final: figures of the end, by name; ``evaluation`` is that of the final policy.
        baselines: of the environment on the maps of the curve's evaluations, by name.
    """

    case: str
    system: str
    seed: int
    command: str
    commit: str
    date: str
    cores: int
    wall_seconds: float
    curve: list[list[float]]
    final: dict[str, Any] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)

    @property
    def final_return(self) -> float:
        """Mean return of the final policy: of the evaluation after the run if there is one."""
        if evaluation := self.final.get("evaluation"):
            return float(evaluation["return_mean"])
        return self.curve[-1][2] if self.curve else math.nan


def result_path(folder: Path, case: str, system: str, seed: int) -> Path:
    """Where the result of a run is kept."""
    return folder / case / f"{system.replace(' ', '-')}-seed{seed}.json"


def write(folder: Path, result: Result) -> Path:
    """Write one result; a file is whole or not there."""
    path = result_path(folder, result.case, result.system, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(result)
    curve = ",\n".join(f"  {json.dumps(rounded(point))}" for point in values.pop("curve"))
    text = json.dumps(rounded(values), indent=1).removesuffix("\n}")
    unfinished = path.with_suffix(".part")
    unfinished.write_text(f'{text},\n "curve": [\n{curve}\n ]\n}}\n', encoding="utf-8")
    return unfinished.replace(path)


def rounded(value: Any) -> Any:
    """The same plain data with six significant digits, which keeps the files small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> Result:
    """Read one result.

    Raises:
        ValueError: the file is no result; the message names it.
    """
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result: {error}") from error


def read_all(folder: Path) -> list[Result]:
    """Every result in a folder, by case, system and seed."""
    found = [read(path) for path in sorted(folder.glob("*/*.json"))]
    return sorted(found, key=lambda result: (result.case, result.system, result.seed))


def curve_of_metrics(lines: Iterable[dict[str, Any]], offset_seconds: float) -> list[list[float]]:
    """The evaluations in the lines of ``metrics.jsonl``.

    An evaluation is written when it ends, but belongs to the parameters that it started with: its
    environment steps are those at the learner step that these parameters come from.

    Args:
        lines: of the file, oldest first.
        offset_seconds: from the start of the process to the zero of the file's clock.
    """
    lines = list(lines)
    learner = [line["learner_steps"] for line in lines]
    environment = [line["environment_steps"] for line in lines]
    return [
        [
            min(
                float(np.interp(line["eval/parameter_version"], learner, environment)),
                float(line["environment_steps"]),
            ),
            line["time_seconds"] + offset_seconds,
            line["eval/return_mean"],
            line["eval/return_error"],
        ]
        for line in lines
        if line.get("eval/return_mean") is not None
    ]


def baselines_of_metrics(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The environment's baselines on the seeds of the evaluations; none before the first."""
    prefix = "eval/baseline/"
    found: dict[str, float] = {}
    for line in lines:
        found |= {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
    return found


def above(result: Result, baseline: str) -> Result:
    """The same with a curve of differences from a baseline on the same maps.

    What maps differ by is left out of it, the standard errors too.
    """
    level = result.baselines[baseline]
    return replace(result, curve=[[*p[:2], p[2] - level, 0.0] for p in result.curve])


def stays_from(curve: Sequence[Sequence[float]], threshold: float) -> float | None:
    """Seconds at the first evaluation from which on all reach the threshold, up to the last.

    None when fewer than ``STAY_EVALUATIONS`` do: one good evaluation at the end is no stay.
    """
    reached = 0
    for point in reversed(curve):
        if point[2] < threshold:
            break
        reached += 1
    return curve[-reached][1] if reached >= STAY_EVALUATIONS else None


def first_at(curve: Sequence[Sequence[float]], threshold: float) -> float:
    """Seconds at the first evaluation that reaches the threshold; infinite if none does."""
    return next((point[1] for point in curve if point[2] >= threshold), math.inf)


def band(curves: Sequence[Sequence[Sequence[float]]], column: int) -> dict[str, Floats]:
    """The mean over seeds and their range, where all curves reach.

    Args:
        curves: of each seed, points as in ``Result.curve``; empty ones are left out.
        column: of the horizontal axis; its values must not fall.

    Returns:
        ``x``, ``mean``, ``low`` and ``high``, float64[n]; empty when no axis values are shared.
    """
    arrays = [np.asarray(curve, np.float64) for curve in curves if len(curve)]
    first = max((a[0, column] for a in arrays), default=0.0)
    last = min((a[-1, column] for a in arrays), default=-1.0)
    if last < first:
        return dict.fromkeys(("x", "mean", "low", "high"), np.empty(0))
    x = np.linspace(first, last, _GRID)
    y = np.asarray([np.interp(x, a[:, column], a[:, 2]) for a in arrays])  # [seeds, x]
    return {"x": x, "mean": y.mean(0), "low": y.min(0), "high": y.max(0)}


def later_half_means(
    groups: Sequence[Sequence[Sequence[Sequence[float]]]], column: int
) -> list[list[float]]:
    """Of every curve the mean return over the later half of the stretch that all curves share.

    Args:
        groups: of every system, the curves of its seeds.
        column: of the horizontal axis.
    """
    every = [np.asarray(curve, np.float64) for group in groups for curve in group if len(curve)]
    first = max((a[0, column] for a in every), default=0.0)
    last = min((a[-1, column] for a in every), default=0.0)
    x = np.linspace((first + last) / 2, last, _GRID)

    def mean(curve: Sequence[Sequence[float]]) -> float:
        array = np.asarray(curve, np.float64)
        return float(np.interp(x, array[:, column], array[:, 2]).mean())

    return [[mean(curve) for curve in group if len(curve)] for group in groups]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is nan."""
    if not values:
        return math.nan, math.nan
    array = np.asarray(values, np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)
