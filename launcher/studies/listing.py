"""The list of runs that ``pdqn ls`` prints: what each is, how far it came, and whether it lives."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.about import ORIGIN, read_about, read_json
from launcher.numbers import duration, number
from launcher.rundir import CONFIGURED, METRICS, SNAPSHOT, SUMMARY, is_open
from launcher.terminal import echo, echo_json
from pdqn.arguments import same
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.layers import of_run, read_toml
from pdqn.objects import map_in
from pdqn.text import printable

_DEEPEST = 3  # folders below the one that is listed
_MOST_RUNS = 5000
_NOT_SETTINGS = {
    ("run", "env"), ("run", "seed"), ("run", "episodes"), ("run", "steps"),
    ("run", "time_seconds"),
}  # fmt: skip

Settings = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Listed:
    """A run as it is listed.

    Attributes:
        path: its directory.
        name: as a person calls it; empty if it has no name.
        state: lives, done, interrupted, failed, or killed.
        differs: its settings by name, as far as listed runs differ in them.
        progress: share of its nearest limit; None if it has none, or it is not known.
        score: newest evaluated score, or the return in training; None without any.
        score_error: standard error of an evaluated score.
        score_name: ``return``, or the headline metric of its environment.
    """

    path: str
    name: str
    tags: tuple[str, ...]
    env: str
    seed: int
    state: str
    differs: Mapping[str, Any]
    seconds: float
    environment_steps: float
    progress: float | None
    score_name: str
    score: float | None
    score_error: float | None

    @property
    def score_text(self) -> str:
        """The score with its name and standard error; ``-`` without any."""
        if self.score is None:
            return "-"
        error = "" if self.score_error is None else f" ± {self.score_error:.2g}"
        return f"{self.score_name} {number(self.score)}{error}"


def list_runs(
    directory: Path, tags: Sequence[str] = (), env: str | None = None, *, as_json: bool = False
) -> int:
    """Print the runs below a directory, oldest first; return the exit code.

    Args:
        directory: where to look.
        tags: only runs that have all of these.
        env: only runs of this environment.
        as_json: print JSON.

    Raises:
        UsageError: there is no such directory.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    listed = [
        run
        for run in runs_below(directory)
        if set(tags) <= set(run.tags) and env in (None, run.env)
    ]
    if as_json:
        echo_json([asdict(run) for run in listed], indent=2)
    elif listed:
        for line in _lines(listed):
            echo(line)
    else:
        echo(f"there are no such runs in {directory}", err=True)
    return 0


def runs_below(directory: Path) -> list[Listed]:
    """List the runs in a directory and below it, oldest first."""
    found = list(_find(directory))
    settings = {path: _settings(path) for path in found}
    known = {path: flat for path, flat in settings.items() if flat}
    differing = _differing(known.values())
    runs = [_listed(path, directory, flat, differing) for path, flat in known.items()]
    return [run for _, run in sorted(zip(map(_started, known), runs, strict=True), key=_first)]


def _first(pair: tuple[float, Listed]) -> tuple[float, str]:
    return pair[0], pair[1].path


def _find(directory: Path) -> Iterator[Path]:
    """Yield the directories of runs, of which none is within another."""
    folders, count = [(directory, 0)], 0
    while folders:
        folder, depth = folders.pop()
        if (folder / CONFIGURED).is_file():
            yield folder
            count += 1
            if count >= _MOST_RUNS:
                return
            continue
        if depth < _DEEPEST:
            try:
                below = [Path(e.path) for e in os.scandir(folder) if e.is_dir()]
            except OSError:
                continue
            folders += [(one, depth + 1) for one in below]


def _settings(path: Path) -> Settings:
    """Read a run's settings as a person set them; nothing if they cannot be read."""
    try:
        values = of_run(read_toml(path / CONFIGURED))
    except (UsageError, OSError):
        return {}
    return {(section, key): value for section in values for key, value in values[section].items()}


def _differing(all_settings: Iterable[Settings]) -> set[tuple[str, str]]:
    """Return the settings in which runs of one environment differ."""
    groups: dict[Any, list[Settings]] = {}
    for settings in all_settings:
        groups.setdefault(settings.get(("run", "env")), []).append(settings)
    return {
        key
        for group in groups.values()
        for key in set().union(*group).difference(_NOT_SETTINGS)
        if any(not same(one.get(key), group[0].get(key)) for one in group)
    }


def _listed(
    path: Path, directory: Path, settings: Settings, differing: set[tuple[str, str]]
) -> Listed:
    about, summary, lives = read_about(path), read_json(path / SUMMARY), is_open(path)
    snapshot = map_in(read_json(path / SNAPSHOT), "snapshot")
    defaults = Config().to_map()
    differs = {
        f"{section}.{key}": settings[section, key]
        for section, key in sorted(differing & settings.keys())
        if not same(settings[section, key], defaults.get(section, {}).get(key))
    }
    figures = map_in(snapshot, "figures")
    told = summary if summary and not lives else {}
    seconds = _number(told.get("wall_seconds")) or _number(snapshot.get("elapsed_seconds")) or 0.0
    steps = _number(told.get("environment_steps")) or _number(figures.get("environment_steps"))
    shown = path.relative_to(directory) if path != directory else Path(path.name)
    return Listed(
        printable(str(directory / shown)),
        about.name,
        about.tags,
        printable(str(settings.get(("run", "env"), "?"))),
        int(_number(settings.get(("run", "seed"))) or 0),
        _state(told, lives=lives),
        differs,
        seconds,
        steps or 0.0,
        1.0 if has_ended(told) else _number(snapshot.get("progress")),
        *_score(told, snapshot),
    )  # fmt: skip


def _state(summary: Mapping[str, Any], *, lives: bool) -> str:
    if lives:
        return "lives"
    if not summary:
        return "killed"
    if summary.get("error"):
        return "failed"
    return "interrupted" if summary.get("exit_reason") == "interrupted" else "done"


def has_ended(summary: Mapping[str, Any]) -> bool:
    """Return whether the run of a summary came to its limit or its goal."""
    return summary.get("exit_reason") not in (None, "interrupted", "failed")


def _score(
    summary: Mapping[str, Any], snapshot: Mapping[str, Any]
) -> tuple[str, float | None, float | None]:
    """Return the name of the score, its newest value, and its standard error if evaluated."""
    evaluation = map_in(summary, "eval") or map_in(snapshot, "evaluation")
    metrics, errors = map_in(evaluation, "metrics"), map_in(evaluation, "errors")
    for name, value in metrics.items():
        return printable(name)[:40], _number(value), _number(errors.get(name))
    if evaluation:
        score = _number(evaluation.get("return_mean"))
        return "return", score, _number(evaluation.get("return_error"))
    trained = map_in(summary, "environment").get("return_mean")
    figures = map_in(snapshot, "figures")
    return "return", _number(trained) or _number(figures.get("rollout/ep_rew_mean")), None


def _lines(listed: Sequence[Listed]) -> Iterator[str]:
    """Lay the runs out in columns, of which those without any content are left out."""
    rows = [["run", "name", "env", "seed", "settings", "state", "time", "steps", "score"]]
    for run in listed:
        called = " ".join(filter(None, [run.name, *(f"#{tag}" for tag in run.tags)]))
        progress = "" if run.progress is None or run.state != "lives" else f" {run.progress:.0%}"
        settings = ", ".join(f"{name}={value}" for name, value in run.differs.items())
        rows.append([
            run.path, called, run.env, str(run.seed), printable(settings)[:120],
            run.state + progress, duration(run.seconds), number(run.environment_steps),
            run.score_text.removeprefix("return "),
        ])  # fmt: skip
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return in_columns([*zip(*columns, strict=True)])


def in_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line for each row, with cells of a column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _started(path: Path) -> float:
    """Return when a run was started, or when its first file was written."""
    clock = _number(read_json(path / ORIGIN).get("clock"))
    try:
        return clock or (path / METRICS).stat().st_ctime
    except OSError:
        return 0.0


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
