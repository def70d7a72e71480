"""A sweep as ``pdqn sweep --show`` prints and draws it: trials, and which settings matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from launcher.numbers import number, percent
from launcher.results.training import BLUE, GREY, drawable, save_picture, ticks
from launcher.studies.listing import in_columns
from launcher.studies.sweep import open_study, shown, trial_directory
from launcher.terminal import echo
from pdqn.text import printable

if TYPE_CHECKING:
    import optuna

PICTURE = "sweep.png"


def show_sweep(directory: Path) -> int:
    """Print the trials, the best first, and draw their scores; return the exit code.

    Raises:
        UsageError: there is no sweep in this directory, or Optuna is not installed.
    """
    study = open_study(directory)
    for line in trial_lines(study, directory):
        echo(line)
    weights = importances(study)
    for name, share in weights.items():
        echo(f"importance  {percent(share):>4}  {name}")
    if not weights:
        echo("importance  not known: it takes three complete trials with different scores")
    echo(save_picture(sweep_figure(study, weights), directory / PICTURE, dpi=110))
    return 0


def trial_lines(study: optuna.Study, directory: Path) -> Iterator[str]:
    """Return a line for each trial, in columns: those that came to their end first, the best first.

    Args:
        study: the study.
        directory: its folder.
    """
    sign = -1.0 if study.direction.name == "MAXIMIZE" else 1.0
    trials = study.get_trials(deepcopy=False)

    def rank(trial: optuna.trial.FrozenTrial) -> tuple[bool, bool, float]:
        done = trial.state.name == "COMPLETE"
        return not done, trial.value is None, sign * (trial.value or 0.0)

    rows = [["trial", "state", "score", "settings", "run"]]
    for trial in sorted(trials, key=rank):
        last = max(trial.intermediate_values, default=None)
        value = trial.value if last is None else trial.intermediate_values[last]
        settings = ", ".join(f"{name}={shown(v)}" for name, v in trial.params.items())
        run = str(trial_directory(directory, trial.number))
        rows.append(
            [str(trial.number), trial.state.name.lower(), number(value), printable(settings), run]
        )
    return in_columns(rows)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return each setting's share in what decides the score; empty if trials do not tell."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    if len(done) < 3 or len({trial.value for trial in done}) < 2:
        return {}
    try:
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (RuntimeError, ValueError, ZeroDivisionError):
        return {}
    whole = sum(found.values())
    return {name: value / whole for name, value in found.items()} if whole > 0 else {}


def sweep_figure(study: optuna.Study, weights: dict[str, float]) -> Figure:
    """Draw the score of each trial, and the importance of each setting."""
    figure = Figure(figsize=(13, 5), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    trials = [t for t in study.get_trials(deepcopy=False) if t.value is not None]
    for state, colour in (("COMPLETE", BLUE), ("PRUNED", GREY)):
        drawn = [trial for trial in trials if trial.state.name == state]
        scores: list[Any] = [trial.value for trial in drawn]
        left.scatter([t.number for t in drawn], scores, color=colour, label=state.lower())
    left.set(title="trials", xlabel="trial", ylabel="score")
    left.yaxis.set_major_formatter(ticks())
    left.legend(frameon=False)
    names = sorted(weights, key=lambda name: weights[name])
    right.barh([drawable(n) for n in names], [weights[n] for n in names], color=BLUE, height=0.6)
    right.set(title="importance of each setting" if names else "importance: not known yet")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, color="#DDDDDD", linewidth=0.7)
        axes.set_axisbelow(True)
    return figure
