"""Pictures from a run's metrics.

Everything is drawn with Matplotlib's objects: no pyplot, no global state, no display.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, PercentFormatter
from numpy.typing import NDArray

from launcher.numbers import compact
from launcher.results.checks import check_output
from launcher.rundir import EVENTS, STATE_FILE, SUMMARY
from pdqn.atomic import replacing
from pdqn.figures import BY_NAME, rollout_name
from pdqn.gap import closed_text
from pdqn.objects import map_in, parse_object
from pdqn.text import printable

Floats = NDArray[np.float64]

PICTURE = "training_results.png"
PICTURE_FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
_X = "environment_steps"
_BASELINE = "eval/baseline/"
_RECENT = "episodes_recent"
_MOST_EVENTS = 20_000  # a run with more of them before its first step is drawn with its start-up
_MOST_DRAWN = 60  # characters of a name
_LEAST_ROWS = 3  # for which the panel of bars has room
_SMOOTHED_PARTS = 30  # the smoothing window is this fraction of a series

# Okabe and Ito's palette, whose colours differ under any kind of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#555555"
_BASELINE_COLOURS = (RED, GREEN, PURPLE, ORANGE, SKY)


@dataclass(frozen=True)
class Metrics:
    """The metrics that a run has written.

    Attributes:
        lines: of ``metrics.jsonl``, oldest first.
        summary: the content of ``summary.json``.
        began_seconds: time from the run's start to its first environment step; 0 if not known.
        recent: scores of the last episodes in training.
        headline: name of the environment's headline metric, if it has one.
    """

    lines: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    recent: tuple[Any, ...] = ()
    headline: str | None = None
    began_seconds: float = 0.0

    def series(self, key: str, over: str = _X) -> tuple[Floats, Floats]:
        """Return ``over`` and ``key``, float64[n] each, of the lines where both are finite."""
        pairs = [
            (line[over], line[key])
            for line in self.lines
            if _is_finite(line.get(over)) and _is_finite(line.get(key))
        ]
        array = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        return array[:, 0], array[:, 1]

    def last(self, key: str) -> Any:
        """Return the newest value that is not null."""
        values = (line[key] for line in reversed(self.lines) if line.get(key) is not None)
        return next(values, None)

    @property
    def score(self) -> tuple[str, str, str]:
        """The measure of how good the policy is: its name, its training and evaluation keys."""
        headline = self.headline
        if headline is None:
            return "return", "rollout/ep_rew_mean", "eval/return_mean"
        return drawable(headline), rollout_name(headline), f"eval/{headline}"

    @property
    def evaluation_error_key(self) -> str:
        """The key of the standard error that belongs to the evaluation key of ``score``."""
        headline = self.headline
        return "eval/return_error" if headline is None else f"eval/{headline}_error"

    @property
    def baselines(self) -> dict[str, float]:
        """The newest score of every baseline, by its name in words."""
        keys = {key for line in self.lines for key in line if key.startswith(_BASELINE)}
        values = {
            drawable(key.removeprefix(_BASELINE).replace("_", " ")): self.last(key)
            for key in sorted(keys)
        }
        return {name: float(value) for name, value in values.items() if _is_finite(value)}


def read_metrics(run_dir: Path) -> Metrics:
    """Read what a run has written so far, without lines that were cut off."""
    lines, written = _read_lines(run_dir / "metrics.jsonl")
    state = map_in(read_object(run_dir / STATE_FILE), "metrics")
    summary = read_object(run_dir / SUMMARY)
    recent = _list_in(state, "distribution") or written
    began = _first_step_seconds(run_dir / EVENTS)
    return Metrics(tuple(lines), summary, tuple(recent), _headline(state, summary), began)


def _first_step_seconds(path: Path) -> float:
    """Read from a run's events when its environments took their first step; 0 if not known."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in itertools.islice(file, _MOST_EVENTS):
            event = parse_object(line.decode("utf-8", "replace"))
            if event.get("event") == "first_step" and event.get("text") == _X:
                seconds: Any = event.get("seconds")
                return float(seconds) if _is_finite(seconds) else 0.0
    return 0.0


def _headline(state: dict[str, Any], summary: dict[str, Any]) -> str | None:
    """Return the name of the headline metric, as a run has written it down.

    Runs of an earlier version name it only with its values: those of the newest evaluation and of
    the summary. One that has neither is drawn by its return.
    """
    if "headline" in state:
        return state["headline"] if isinstance(state["headline"], str) else None
    for told in (map_in(state, "evaluation"), map_in(summary, "environment")):
        for name in map_in(told, "metrics"):
            return name
    return None


def plot_training(run_dir: Path, path: Path | None = None) -> Path:
    """Draw the curves of a run from ``metrics.jsonl``, at any time; return the picture's path.

    Args:
        run_dir: the run's directory.
        path: the picture; by default ``training_results.png`` in that directory.

    Raises:
        UsageError: the picture cannot be written there, or in that format.
    """
    if path is not None:
        check_output("--out", path, PICTURE_FORMATS)
    figure = training_figure(read_metrics(run_dir), run_dir.name)
    return save_picture(figure, path or run_dir / PICTURE, dpi=110)


def save_picture(figure: Figure, path: Path, dpi: int) -> Path:
    """Write a figure in the format of its ending; a reader sees the old picture or the new one."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=dpi)
    return path


def training_figure(metrics: Metrics, name: str) -> Figure:
    """Draw the six panels."""
    figure = Figure(figsize=(16, 9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)
    figure.suptitle(drawable(_title(metrics, name)), fontsize=15, fontweight="bold")
    panels: tuple[Callable[[Axes, Metrics], bool], ...] = (
        _draw_score, _draw_loss, _draw_throughput,
        _draw_evaluation, _draw_distribution, _draw_buffer,
    )  # fmt: skip
    grid: NDArray[Any] = figure.subplots(2, 3)
    for axes, draw in zip(grid.flat, panels, strict=True):
        _style(axes)
        if not draw(axes, metrics):
            _say_no_data(axes)
    return figure


def drawable(text: str, most: int = _MOST_DRAWN) -> str:
    """Prepare a text of a run's files for a picture: short, printable, and not a formula."""
    return printable(text)[:most].replace("$", r"\$")


# ---- panels: each draws itself, and returns whether there was anything to draw ----


def _draw_score(axes: Axes, metrics: Metrics) -> bool:
    name, training_key, evaluation_key = metrics.score
    axes.set_title(f"{name} in training and evaluation")
    x, y = metrics.series(training_key)
    if len(x):
        _draw_raw_and_smoothed(axes, x, y, SKY, BLUE, label="training")
    points, scores = metrics.series(evaluation_key)
    if len(points):
        errors = _errors_at(metrics, points)
        axes.errorbar(
            points, scores, errors, color="black", marker="o", markersize=4, linewidth=1.2,
            capsize=3, label="evaluation",
        )  # fmt: skip
    if not len(x) and not len(points):
        return False
    _draw_levels(axes, metrics.baselines)
    _label_steps(axes)
    axes.set_ylabel(name)
    _put_legend(axes)
    return True


def _draw_loss(axes: Axes, metrics: Metrics) -> bool:
    axes.set_title("loss")
    x, y = metrics.series("train/loss")
    if not len(x):
        return False
    _draw_raw_and_smoothed(axes, x, y, ORANGE, RED)
    if np.all(y > 0):
        axes.set_yscale("log")
    _label_steps(axes)
    axes.set_ylabel("loss")
    return True


def _draw_throughput(axes: Axes, metrics: Metrics) -> bool:
    axes.set_title("throughput")
    return _draw_twins(axes, metrics, ("actor/episodes_per_second", BLUE), ("time/fps", RED))


def _draw_buffer(axes: Axes, metrics: Metrics) -> bool:
    axes.set_title("replay buffer and policy lag")
    x, size = metrics.series("replay/size")
    capacity = metrics.last("replay/capacity")
    lag = ("learner/policy_lag", RED)
    if not len(x) or not _is_finite(capacity) or capacity <= 0:
        return _draw_line(axes, metrics, lag)
    axes.fill_between(x, size / capacity, color=SKY, alpha=0.35, linewidth=0)
    axes.plot(x, size / capacity, color=BLUE, linewidth=2, marker=marker_of(x))
    axes.set_ylim(0, 1.05)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel(f"full, of {compact(capacity)} transitions", color=BLUE)
    _label_steps(axes)
    if len(metrics.series(lag[0])[0]):
        _draw_line(_twin(axes), metrics, lag)
    return True


def _draw_distribution(axes: Axes, metrics: Metrics) -> bool:
    name = metrics.score[0]
    axes.set_title(f"{name} of the last episodes in training")
    values = [value for value in metrics.recent if _is_finite(value)]
    if not values:
        return False
    mean = float(np.mean(values))
    axes.hist(values, bins=_bins(values), color=SKY, edgecolor="white")
    axes.axvline(mean, color=BLUE, linewidth=2, label=f"mean {mean:.4g}, {len(values)} episodes")
    axes.set_xlabel(name)
    axes.set_ylabel("episodes")
    _put_legend(axes)
    return True


def _draw_evaluation(axes: Axes, metrics: Metrics) -> bool:
    name, _, key = metrics.score
    axes.set_title("last evaluation beside the baselines")
    points, scores = metrics.series(key)
    if not len(points):
        return False
    bars = {"policy": float(scores[-1]), **metrics.baselines}
    names = sorted(bars, key=lambda bar: bars[bar])
    error = float(_errors_at(metrics, points)[-1])
    colours = [BLUE if bar == "policy" else "#BBBBBB" for bar in names]
    axes.barh(names, [bars[bar] for bar in names], color=colours, height=0.6)
    axes.errorbar(bars["policy"], "policy", xerr=error, color="black", capsize=5, linewidth=1.5)
    _write_values(axes, [(bars[bar], error if bar == "policy" else 0.0) for bar in names])
    axes.grid(visible=False, axis="y")
    # A single bar would fill the panel.
    missing = max(0.0, _LEAST_ROWS - len(names))
    axes.set_ylim(-0.6 - missing / 2, len(names) - 0.4 + missing / 2)
    closed = closed_text(bars["policy"], metrics.baselines)
    axes.set_xlabel(
        "\n".join(filter(None, (f"{name} (bar of the policy: standard error)", closed)))
    )
    return True


# ---- parts of panels ----


def _draw_raw_and_smoothed(
    axes: Axes, x: Floats, y: Floats, raw: str, smooth: str, linestyle: str = "-", label: str = ""
) -> None:
    axes.plot(x, y, color=raw, alpha=0.4, linewidth=1, label=label)
    means = smoothed(y)
    name = label and "smoothed"
    axes.plot(
        x, means, color=smooth, linewidth=2, linestyle=linestyle, marker=marker_of(x), label=name
    )


def marker_of(x: Floats) -> str:
    """Choose a marker: a line of one or two points is invisible or says little without one."""
    return "o" if len(x) < 3 else ""


def _put_legend(axes: Axes) -> None:
    """Add a legend in one row, and make room for it above the data."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.12 * (high - low))
    axes.legend(loc="upper left", ncols=3, fontsize=9, framealpha=1, edgecolor="none")


def _draw_levels(axes: Axes, levels: dict[str, float]) -> None:
    """Draw named horizontal lines, each labelled at its end."""
    for index, (name, level) in enumerate(levels.items()):
        colour = _BASELINE_COLOURS[index % len(_BASELINE_COLOURS)]
        axes.axhline(level, color=colour, linestyle="--", linewidth=1.3)
        axes.annotate(
            f"{name} {level:.3g}", (1, level), (-4, 3), ("axes fraction", "data"),
            textcoords="offset points", ha="right", va="bottom", color=colour, fontsize=10,
        )  # fmt: skip


def _draw_twins(
    axes: Axes, metrics: Metrics, left: tuple[str, str], right: tuple[str, str]
) -> bool:
    """Draw two metrics of different scale, each with its own axis and colour."""
    if not _draw_line(axes, metrics, left):
        return _draw_line(axes, metrics, right)
    if len(metrics.series(right[0])[0]):
        _draw_line(_twin(axes), metrics, right, linestyle="--")
    return True


def _draw_line(axes: Axes, metrics: Metrics, line: tuple[str, str], linestyle: str = "-") -> bool:
    name, colour = line
    x, y = metrics.series(name)
    if not len(x):
        return False
    _draw_raw_and_smoothed(axes, x, y, colour, colour, linestyle=linestyle)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(_label(name), color=colour)
    axes.yaxis.set_major_formatter(ticks())
    _label_steps(axes)
    return True


def _label(name: str) -> str:
    """A rate's unit says what it is: ``episodes/s``; others are named: ``policy lag (...)``."""
    unit = BY_NAME[name].unit
    return unit if unit.endswith("/s") else f"{name.rpartition('/')[2].replace('_', ' ')} ({unit})"


def _twin(axes: Axes) -> Axes:
    twin = axes.twinx()
    twin.spines[["top", "left"]].set_visible(False)
    return twin


def _write_values(axes: Axes, bars: Sequence[tuple[float, float]]) -> None:
    for row, (value, error) in enumerate(bars):
        text = f"{value:.3g} ± {error:.2g}" if error else f"{value:.3g}"
        # At the end of the bar: beyond 0, where all bars begin, there is no room.
        below = value < 0
        axes.annotate(
            text, (value - error if below else value + error, row), (-6 if below else 6, 0),
            textcoords="offset points", va="center", ha="right" if below else "left",
        )  # fmt: skip
    axes.margins(x=0.35)


def _style(axes: Axes) -> None:
    axes.title.set_fontsize(13)
    axes.tick_params(labelsize=10)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_steps(axes: Axes) -> None:
    axes.set_xlabel("environment steps")
    axes.xaxis.set_major_formatter(ticks())


def ticks() -> FuncFormatter:
    """Make a formatter of ticks: 0.5, 1500 as 1.5k, 2M."""
    return FuncFormatter(lambda value, _: compact(value))


def _say_no_data(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(
        0.5, 0.5, "no data yet", transform=axes.transAxes, ha="center", va="center",
        color=GREY, fontsize=13,
    )  # fmt: skip


def _title(metrics: Metrics, name: str) -> str:
    environment = metrics.summary.get("environment")
    env = environment.get("id") if isinstance(environment, dict) else metrics.summary.get("env")
    if not env:
        return name
    seed = metrics.summary.get("seed")
    return str(env) if seed is None else f"{env}, seed {seed}"


# ---- numbers ----


def smoothed(values: Floats) -> Floats:
    """Return a centred moving mean; at the ends, the mean of what there is."""
    window = max(1, len(values) // _SMOOTHED_PARTS) * 2 + 1
    if len(values) < window:
        return values
    ones = np.ones(window)
    counts = np.convolve(np.ones_like(values), ones, "same")
    return np.convolve(values, ones, "same") / counts


def _errors_at(metrics: Metrics, points: Floats) -> Floats:
    """Return the standard errors of the evaluations at these steps; 0 if none was written."""
    known = dict(zip(*metrics.series(metrics.evaluation_error_key), strict=True))
    return np.array([known.get(point, 0.0) for point in points])


def _bins(values: Sequence[float]) -> int:
    return int(min(40, max(5, math.sqrt(len(values)) * 1.5)))


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


# ---- files ----


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Read the objects on a file's lines, and the newest scores of episodes among them.

    Earlier versions wrote the scores with every line: only the newest are kept in memory.
    """
    lines: list[dict[str, Any]] = []
    recent: list[Any] = []
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            found = parse_object(line.decode("utf-8", "replace"))
            recent = _list_in(found, _RECENT) or recent
            found.pop(_RECENT, None)
            if found:
                # The lines of a long run have millions of names between them, and few different.
                lines.append({sys.intern(name): value for name, value in found.items()})
    return lines, recent


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object; an empty one where it is missing or damaged."""
    try:
        return parse_object(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return {}


def _list_in(value: Any, name: str) -> list[Any]:
    """Return the list of that name in an object; empty if there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []
