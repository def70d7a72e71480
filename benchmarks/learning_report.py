"""Table and pictures of ``docs/learning.md``, from the result files of ``benchmarks.learning``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from benchmarks.learning_cases import Case, System, cases
from benchmarks.learning_results import (
    COLUMNS,
    Result,
    above,
    band,
    first_at,
    later_half_means,
    mean_and_error,
    read_all,
    stays_from,
)

START = "<!-- results: written by python -m benchmarks.learning report -->"
END = "<!-- end of results -->"
NOT_RUN = "not run yet"
GREEDY = "exact_greedy"
# Okabe and Ito's palette, which people with any colour blindness can tell apart.
COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00"),
    *("#CC79A7", "#56B4E9", "#000000", "#F0E442"),
)
_HEAD = ("case", "system", "result", "seeds", "wall time", "commit", "command")
_LABELS = {"environment_steps": "environment steps", "wall_seconds": "wall time, seconds"}


def report(folder: Path, document: Path) -> None:
    """Write the table into the document, and the pictures into a folder of the same name."""
    found = read_all(folder)
    pictures = document.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    drawn = []
    for case in cases():
        mine = [result for result in found if result.case == case.name]
        if any(len(result.curve) > 1 for result in mine):
            picture(case, mine, pictures / f"{case.name}.png")
            drawn.append(case)
    text = document.read_text(encoding="utf-8")
    document.write_text(replaced(text, section(found, drawn)), encoding="utf-8")
    print(f"{document}: {len(found)} results, {len(drawn)} pictures")


def replaced(text: str, inner: str) -> str:
    """Replace the text between the markers.

    Raises:
        ValueError: the text does not have both markers, in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the document lacks {END if start else START}")
    return f"{before}{START}\n\n{inner}\n{END}{after}"


def section(found: Sequence[Result], drawn: Iterable[Case]) -> str:
    """Build the table, then heading, note and picture for each case that has one."""
    rows = [row for case in cases() for row in rows_of(case, found)]
    lines = [f"| {' | '.join(row)} |" for row in (_HEAD, ["---"] * len(_HEAD), *rows)]
    for case in drawn:
        lines += ["", f"### {case.title}", ""]
        if case.note:
            lines += [case.note, ""]
        lines += [f"![{case.title}](learning/{case.name}.png)"]
    return "\n".join(lines) + "\n"


def rows_of(case: Case, found: Sequence[Result]) -> list[list[str]]:
    """Build a row for each system of a case."""
    mine = [result for result in found if result.case == case.name]
    texts = dict(zip((s.name for s in case.systems), figures(case, mine), strict=True))
    return [row(case, s, [r for r in mine if r.system == s.name], texts) for s in case.systems]


def row(case: Case, system: System, mine: Sequence[Result], texts: dict[str, str]) -> list[str]:
    """Build the cells of one row."""
    if not mine:
        return [case.name, system.name, NOT_RUN, "-", "-", "-", "-"]
    seeds = " ".join(str(result.seed) for result in mine)
    wall = duration(statistics.mean(result.wall_seconds for result in mine))
    cores = sorted({f"{result.cores} cores" for result in mine})
    commits = sorted({result.commit for result in mine})
    commands = sorted({without_seed(result) for result in mine})
    return [
        case.name,
        system.name,
        texts[system.name],
        seeds,
        f"{wall}, {' and '.join(cores)}",
        " ".join(f"`{name}`" for name in commits),
        "<br>".join(f"`{command}`" for command in commands),
    ]


def without_seed(result: Result) -> str:
    """Return the command without its seed, short enough for a cell."""
    return result.command.replace(f"--seed {result.seed}", "--seed SEED").replace("|", "\\|")


def duration(seconds: float) -> str:
    """Write a duration as ``42 s`` or ``15.2 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def figures(case: Case, mine: Sequence[Result]) -> list[str]:
    """Describe the result of each system of a case; empty for one that has not run."""
    groups = [[r for r in mine if r.system == system.name] for system in case.systems]
    if case.measure == "curves":
        means = later_half_means(
            [[r.curve for r in group] for group in groups], COLUMNS.index(case.over)
        )
        return [range_text(values) if values else "" for values in means]
    measures = {
        "threshold": lambda group: threshold_text(case.threshold, group),
        "return": return_text,
        "baseline": baseline_text,
        "throughput": throughput_text,
    }
    return [measures[case.measure](group) if group else "" for group in groups]


def threshold_text(threshold: float, group: Sequence[Result]) -> str:
    """Write median and range of the seconds until the return stays, and the number of seeds."""
    times = [math.inf if (t := stays_from(r.curve, threshold)) is None else t for r in group]
    reached = sum(math.isfinite(t) for t in times)
    words = f"{reached} of {len(times)} stay at {threshold:g}"
    if reached:
        words = f"{_median_text(times)}; {words}"
    first = [first_at(r.curve, threshold) for r in group]
    words += f"; first evaluation there: {_median_text(first)}"
    played = all("evaluation" in r.final for r in group)
    return f"{words}; after the run, {return_text(group)}" if played else words


def _median_text(times: Sequence[float]) -> str:
    median, least, most = map(_seconds, (statistics.median(times), min(times), max(times)))
    return f"median {median} ({least} to {most})"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if math.isfinite(value) else "never"


def return_text(group: Sequence[Result]) -> str:
    """Write mean and standard error of the final policies' returns, and the return of each seed."""
    values = [result.final_return for result in group]
    each = ", ".join(f"{value:.4g}" for value in values)
    return f"return {_with_error(values)} ({each})"


def range_text(values: Sequence[float]) -> str:
    """Write mean and range of the later halves of the seeds' curves."""
    each = f"{min(values):.4g} to {max(values):.4g}"
    return f"later half {statistics.mean(values):.4g} ({each})"


def baseline_text(group: Sequence[Result]) -> str:
    """Compare the final policies with exact greedy by map; the curve's end if not evaluated."""
    if any("evaluation" not in result.final for result in group):
        return return_text(group)
    return "<br>".join(one_baseline(result) for result in group)


def one_baseline(result: Result) -> str:
    """Write return, share of exact greedy's, and paired difference with its standard error."""
    evaluation = result.final["evaluation"]
    mean, error = evaluation["return_mean"], evaluation["return_error"]
    words = f"{mean:.4f} ± {error:.4f}"
    for name, value in evaluation.get("baselines", {}).items():
        if name == GREEDY:
            difference, uncertainty = evaluation["differences"][name]
            paired = f"paired {difference:+.4f} ± {uncertainty:.4f}"
            return f"{words}; {mean / value:.1%} of exact greedy ({value:.4f}); {paired}"
    return words


def throughput_text(group: Sequence[Result]) -> str:
    """Write rates and the last evaluated return."""
    rates = [
        statistics.mean(result.final[f"{name}_per_second"] for result in group)
        for name in ("environment_steps", "samples")
    ]
    steps, samples = rates
    return f"{steps:,.0f} environment steps/s, {samples:,.0f} samples/s; {return_text(group)}"


def _with_error(values: Sequence[float]) -> str:
    mean, error = mean_and_error(values)
    return f"{mean:.4g} ± {error:.2g}" if math.isfinite(error) else f"{mean:.4g}"


# ---- pictures ----


def picture(case: Case, mine: Sequence[Result], path: Path) -> None:
    """Draw the curves of a case: the mean over seeds, and their range."""
    figure = Figure(figsize=(7.0, 4.2), dpi=120, layout=ConstrainedLayoutEngine())
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    what = "evaluated return"
    if case.measure == "baseline":
        mine, what = [above(r, GREEDY) for r in mine if r.baselines], "return above exact greedy's"
    for system, colour in zip(case.systems, COLOURS, strict=False):
        draw(axes, case, [r for r in mine if r.system == system.name], system.name, colour)
    draw_references(axes, case)
    axes.set(title=case.title, xlabel=_LABELS[case.over], ylabel=what)
    axes.title.set_fontsize(11)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8, framealpha=0.8)
    figure.savefig(path)


def draw(axes: Axes, case: Case, mine: Sequence[Result], label: str, colour: str) -> None:
    """Draw one system: a line and a band, or for one seed each evaluation's standard error."""
    curves = [result.curve for result in mine if result.curve]
    column = COLUMNS.index(case.over)
    if len(curves) == 1:
        x, mean, error = ([p[i] for p in curves[0]] for i in (column, 2, 3))
        low = [m - e for m, e in zip(mean, error, strict=True)]
        high = [m + e for m, e in zip(mean, error, strict=True)]
        seeds = "1 seed, ± standard error" if any(error) else "1 seed"
    elif curves:
        shared = band(curves, column)
        x, mean, low, high = (shared[name] for name in ("x", "mean", "low", "high"))
        seeds = f"mean and range of {len(curves)} seeds"
    else:
        return
    if case.measure == "baseline":
        draw_final(axes, [r for r in mine if r.curve], column, colour)
    axes.plot(x, mean, color=colour, linewidth=1.6, label=f"{label} ({seeds})")
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def draw_final(axes: Axes, mine: Sequence[Result], column: int, colour: str) -> None:
    """Draw the final policies' paired differences, from more maps than the curves, with errors."""
    for result in mine:
        if evaluation := result.final.get("evaluation"):
            difference, error = evaluation["differences"][GREEDY]
            label = f"seed {result.seed}, at the end on {evaluation['episodes']} maps"
            axes.errorbar(
                result.curve[-1][column], difference, error, color=colour, fmt="o", capsize=3,
                markersize=4, label=label,
            )  # fmt: skip


def draw_references(axes: Axes, case: Case) -> None:
    """Draw the reference of a policy: the threshold, or exact greedy."""
    level = {"threshold": case.threshold, "baseline": 0.0}.get(case.measure)
    if level is not None:
        axes.axhline(level, color="#555555", linestyle="--", linewidth=1)
