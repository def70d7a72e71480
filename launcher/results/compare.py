"""The comparison that ``pdqn plot RUN RUN ...`` draws: runs side by side, with bands over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from launcher.results.checks import check_output
from launcher.results.training import (
    PICTURE_FORMATS,
    Floats,
    Metrics,
    drawable,
    marker_of,
    read_metrics,
    save_picture,
    smoothed,
    ticks,
)
from launcher.rundir import CONFIG, CONFIGURED, STRUCTURAL
from pdqn.errors import UsageError
from pdqn.layers import of_run, read_toml

_POINTS = 200
_SHORT_LABEL = 60  # characters of a label of which two fit side by side
_LONG_LABEL = 200
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
_SINCE = "seconds since the first environment step"
_SEED = ("run", "seed")
# Runs that differ in these alone differ by chance and patience alone.
_NOT_COMPARED = (_SEED, ("run", "episodes"), ("run", "steps"), ("run", "time_seconds"))

Settings = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Group:
    """Runs of the same settings.

    Attributes:
        label: the settings in which they differ from other groups, and how many they are.
        runs: the metrics of each.
    """

    label: str
    runs: tuple[Metrics, ...]


def draw_comparison(run_dirs: Sequence[Path], path: Path) -> list[Group]:
    """Draw runs side by side; those that differ only by their seed become one band.

    Args:
        run_dirs: the runs' directories.
        path: the picture; its ending gives the format.

    Raises:
        UsageError: the picture cannot be written, a directory holds no run, or the runs are scored
            by different metrics.
    """
    check_output("--out", path, PICTURE_FORMATS)
    groups, figure = comparison_figure(run_dirs)
    save_picture(figure, path, dpi=110)
    return groups


def comparison_figure(run_dirs: Sequence[Path]) -> tuple[list[Group], Figure]:
    """Draw the comparison of ``draw_comparison``; return its groups of runs and the figure.

    Raises:
        UsageError: a directory holds no run, or the runs are scored by different metrics.
    """
    groups = grouped(run_dirs)
    names = {metrics.score[0] for group in groups for metrics in group.runs}
    if len(names) > 1:
        raise UsageError(f"cannot compare runs that are scored by {' and by '.join(sorted(names))}")
    name, training, evaluation = groups[0].runs[0].score
    panels = [
        (f"{name}, evaluated", evaluation, "environment_steps", "environment steps"),
        (f"{name}, evaluated", evaluation, "time_seconds", _SINCE),
        (f"{name} in training", training, "environment_steps", "environment steps"),
        ("environment steps/s", "time/fps", "time_seconds", _SINCE),
    ]
    figure = Figure(figsize=(14, 9), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    grid: NDArray[Any] = figure.subplots(2, 2)
    for axes, (title, key, over, label) in zip(grid.flat, panels, strict=True):
        _draw_panel(axes, groups, key, over)
        axes.set(title=title, xlabel=label)
    handles, labels = grid.flat[0].get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) <= _SHORT_LABEL else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return groups, figure


def grouped(run_dirs: Sequence[Path]) -> list[Group]:
    """Group runs by their settings, in the order given; seeds and limits make no difference.

    Raises:
        UsageError: a directory holds no run.
    """
    settings = [_settings(run_dir) for run_dir in run_dirs]
    keys = set().union(*settings).difference(_NOT_COMPARED)
    different = {key for key in keys if len({repr(s.get(key)) for s in settings}) > 1}
    members: dict[str, list[tuple[Any, Metrics]]] = {}
    for run_dir, values in zip(run_dirs, settings, strict=True):
        label = ", ".join(f"{s}.{k} = {values.get((s, k), 'auto')}" for s, k in sorted(different))
        members.setdefault(label, []).append((values.get(_SEED), read_metrics(run_dir)))
    return [
        Group(
            f"{label or run_dirs[0].name} ({_count([seed for seed, _ in runs])})",
            tuple(metrics for _, metrics in runs),
        )
        for label, runs in members.items()
    ]


def band(series: Iterable[tuple[Floats, Floats]]) -> tuple[Floats, Floats, Floats, Floats]:
    """Combine the curves of several runs on common points: (x, mean, least, largest).

    The points lie where every curve has values: a mean over fewer runs would jump. All arrays are
    empty if the curves have no stretch in common, or if there are fewer than two.
    """
    known = [(x, y) for x, y in series if len(x)]
    start = max((x[0] for x, _ in known), default=0.0)
    end = min((x[-1] for x, _ in known), default=0.0)
    if len(known) < 2 or end <= start:
        nothing = np.empty(0)
        return nothing, nothing, nothing, nothing
    points = np.linspace(start, end, _POINTS)
    curves = np.array([np.interp(points, x, y) for x, y in known])
    return points, curves.mean(0), curves.min(0), curves.max(0)


def _settings(run_dir: Path) -> Settings:
    path = run_dir / CONFIGURED
    if not path.is_file() or not (run_dir / "metrics.jsonl").is_file():
        raise UsageError(f"{run_dir} is not a run directory (needs {CONFIGURED} and metrics.jsonl)")
    values, chosen = (_flat(of_run(read_toml(file))) for file in (path, run_dir / CONFIG))
    # A resumed run has these as they were chosen for it; in any other run they may be open.
    return {**values, **{name: chosen[name] for name in STRUCTURAL if name in chosen}}


def _flat(values: Mapping[str, Mapping[str, Any]]) -> Settings:
    return {(s, key): value for s, section in values.items() for key, value in section.items()}


def _draw_panel(axes: Axes, groups: Sequence[Group], key: str, over: str) -> None:
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter(ticks())
    for index, group in enumerate(groups):
        _draw_group(axes, group, key, over, _COLOURS[index % len(_COLOURS)])
    for index, (name, level) in enumerate(_levels(groups, key).items()):
        axes.axhline(level, color="#888888", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name} {level:.3g}", (1, level), (-4, 3 - 14 * (index % 2)),
            ("axes fraction", "data"), textcoords="offset points", ha="right", color="#555555",
        )  # fmt: skip


def _draw_group(axes: Axes, group: Group, key: str, over: str, colour: str) -> None:
    """Draw the mean of the runs within their band, or the runs themselves if they have none."""
    curves = [_curve(metrics, key, over) for metrics in group.runs]
    points, mean, least, largest = band(curves)
    if len(points):
        axes.fill_between(points, least, largest, color=colour, alpha=0.2, linewidth=0)
        curves = [(points, mean)]
    axes.plot(
        [], [], color=colour, linewidth=2, label=drawable(group.label, _LONG_LABEL)
    )  # once, however many curves
    for x, y in curves:
        axes.plot(x, y, color=colour, linewidth=2, marker=marker_of(x))


def _curve(metrics: Metrics, key: str, over: str) -> tuple[Floats, Floats]:
    """Return a curve to draw: evaluations, which are few and means already, are not smoothed."""
    x, y = metrics.series(key, over)
    if over == "time_seconds":
        # What a machine imports and plans before the first step is the same for all settings.
        x = np.maximum(x - metrics.began_seconds, 0.0)
    return x, y if key.startswith("eval/") else smoothed(y)


def _levels(groups: Sequence[Group], key: str) -> dict[str, float]:
    """Return the baselines of a panel of scores, if they are the same for all runs."""
    metrics = groups[0].runs[0]
    if key not in metrics.score or any(
        other.baselines != metrics.baselines for group in groups for other in group.runs
    ):
        return {}
    return metrics.baselines


def _count(seeds: Sequence[Any]) -> str:
    """Count runs by their seeds, and call them "seeds" only if no two have the same one."""
    word = "seed" if None not in seeds and len(set(seeds)) == len(seeds) else "run"
    return f"one {word}" if len(seeds) == 1 else f"{len(seeds)} {word}s"
