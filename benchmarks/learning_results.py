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
    """The result of one system in one case with one seed.

    Attributes:
        case: name of the case.
        system: name of the system.
        seed: of the run.
        command: as a person would type it; RUN is the run's folder.
        commit: of this repository; a ``+`` marks changed files.
        date: of the run, ISO 8601, UTC.
        cores: of the machine.
        wall_seconds: from the start of the process to its end.
        curve: the values of ``COLUMNS`` for every evaluation. Seconds count from the start of the
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
    """Return the path of a run's result."""
    return folder / case / f"{system.replace(' ', '-')}-seed{seed}.json"


def write(folder: Path, result: Result) -> Path:
    """Write one result; a file is whole or does not exist."""
    path = result_path(folder, result.case, result.system, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    values = dataclasses.asdict(result)
    curve = ",\n".join(f"  {json.dumps(rounded(point))}" for point in values.pop("curve"))
    text = json.dumps(rounded(values), indent=1).removesuffix("\n}")
    unfinished = path.with_suffix(".part")
    unfinished.write_text(f'{text},\n "curve": [\n{curve}\n ]\n}}\n', encoding="utf-8")
    return unfinished.replace(path)


def rounded(value: Any) -> Any:
    """Round plain data to six significant digits, which keeps the files small."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def read(path: Path) -> Result:
    """Read one result.

    Raises:
        ValueError: the file is not a result; the message names it.
    """
    try:
        return Result(**json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a result: {error}") from error


def read_all(folder: Path) -> list[Result]:
    """Read every result in a folder, by case, system and seed."""
    found = [read(path) for path in sorted(folder.glob("*/*.json"))]
    return sorted(found, key=lambda result: (result.case, result.system, result.seed))


def curve_of_metrics(lines: Iterable[dict[str, Any]], offset_seconds: float) -> list[list[float]]:
    """Extract the evaluations from the lines of ``metrics.jsonl``.

    An evaluation is written when it ends, but belongs to the parameters that it started with. Its
    environment steps are therefore those at the learner step of these parameters.

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
    """Extract the environment's baselines on the evaluation seeds; none before the first."""
    prefix = "eval/baseline/"
    found: dict[str, float] = {}
    for line in lines:
        found |= {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}
    return found


def above(result: Result, baseline: str) -> Result:
    """Return a result whose curve is the difference from a baseline on the same maps.

    The pairing removes the variation between maps, also from the standard errors.
    """
    level = result.baselines[baseline]
    return replace(result, curve=[[*p[:2], p[2] - level, 0.0] for p in result.curve])


def stays_from(curve: Sequence[Sequence[float]], threshold: float) -> float | None:
    """Return the seconds at the first evaluation from which on all reach the threshold.

    None when fewer than ``STAY_EVALUATIONS`` do: one good evaluation at the end does not count.
    """
    reached = 0
    for point in reversed(curve):
        if point[2] < threshold:
            break
        reached += 1
    return curve[-reached][1] if reached >= STAY_EVALUATIONS else None


def first_at(curve: Sequence[Sequence[float]], threshold: float) -> float:
    """Return the seconds at the first evaluation that reaches the threshold, or infinity."""
    return next((point[1] for point in curve if point[2] >= threshold), math.inf)


def band(curves: Sequence[Sequence[Sequence[float]]], column: int) -> dict[str, Floats]:
    """Return mean and range over seeds, where all curves have values.

    Args:
        curves: of each seed, points as in ``Result.curve``; empty ones are left out.
        column: of the horizontal axis; its values must not fall.

    Returns:
        ``x``, ``mean``, ``low`` and ``high``, float64[n]; empty when the curves share no x.
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
    """Return each curve's mean return over the later half of the range that all share.

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
    """Return the mean and its standard error; the error of one value is nan."""
    if not values:
        return math.nan, math.nan
    array = np.asarray(values, np.float64)
    error = array.std(ddof=1) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return float(array.mean()), float(error)
