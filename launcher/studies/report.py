"""The page that ``pdqn report`` writes: what runs did, for somebody who was not there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.about import ORIGIN, read_about, read_json
from launcher.numbers import duration, number, size
from launcher.results.checks import check_output
from launcher.results.compare import comparison_figure
from launcher.results.training import read_metrics, training_figure
from launcher.rundir import CONFIG, CONFIGURED, EVENTS, METRICS, SUMMARY, replace_text
from launcher.studies.listing import Listed, runs_below
from launcher.studies.page import document, drawing, folded, picture, table, text
from pdqn.arguments import same
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.gap import closed_text
from pdqn.layers import of_run, read_toml
from pdqn.objects import map_in, parse_object

_PICTURES = ("strategy.png",)
_FILMS = ("*.gif", "*.webp")
_MOST_PICTURE = 8 << 20  # bytes of a picture or film in the page
_MOST_EVENTS, _MOST_EVENT_BYTES = 200, 4 << 20
# Every run has hundreds of these, which tell a reader little.
_QUIET = {"seeds"}


def write_report(run_dirs: Sequence[Path], path: Path, title: str = "") -> None:
    """Write one page about runs.

    Args:
        run_dirs: the runs' directories.
        path: the page.
        title: its title; by default the names of the runs.

    Raises:
        UsageError: the page cannot be written there, or a directory holds no run.
    """
    check_output("--out", path, (".html", ".htm"))
    for run_dir in run_dirs:
        if not (run_dir / CONFIGURED).is_file() or not (run_dir / METRICS).is_file():
            raise UsageError(f"{run_dir} is not a run directory (needs {CONFIGURED}, {METRICS})")
    listed = [runs_below(run_dir)[0] for run_dir in run_dirs]
    title = title or ", ".join(run.name or Path(run.path).name for run in listed)
    body = [f"<h1>{text(title)}</h1>"]
    if len(run_dirs) > 1:
        body += _overview(run_dirs, listed)
    for index, (run_dir, run) in enumerate(zip(run_dirs, listed, strict=True), 1):
        body += _run(run_dir, run, index)
    body.append(f"<footer>Written by pdqn report, {time.strftime('%Y-%m-%d %H:%M')}</footer>")
    replace_text(path, document(title, body))


def _overview(run_dirs: Sequence[Path], listed: Sequence[Listed]) -> Iterator[str]:
    """Yield a table of all runs, and their curves side by side where they have the same score."""
    head = ("run", "environment", "seed", "state", "time", "steps", "score")
    yield table(
        [
            (run.name or Path(run.path).name, run.env, run.seed, run.state,
             duration(run.seconds), number(run.environment_steps), run.score_text)
            for run in listed
        ],
        head,
    )  # fmt: skip
    try:
        _, figure = comparison_figure(run_dirs)
    except UsageError as error:
        yield f"<p>{text(error)}</p>"
        return
    yield drawing(figure, 0, "curves of all runs")


def _run(run_dir: Path, run: Listed, index: int) -> Iterator[str]:
    """Yield the part about one run."""
    about, summary = read_about(run_dir), read_json(run_dir / SUMMARY)
    yield f"<h2>{text(run.name or run_dir.name)}</h2>"
    if about.tags:
        yield "<p>" + "".join(f'<span class="tag">{text(tag)}</span>' for tag in about.tags)
    for sentence in about.notes:
        yield f'<p class="note">{text(sentence)}</p>'
    yield from _results(run, summary)
    metrics = read_metrics(run_dir)
    yield drawing(training_figure(metrics, run_dir.name), index, f"curves of {run_dir.name}")
    yield from _evaluation(summary)
    yield from _pictures(run_dir)
    yield from _settings(run_dir)
    yield from _origin(run_dir)
    yield from _events(run_dir)


def _results(run: Listed, summary: Mapping[str, Any]) -> Iterator[str]:
    bad = " bad" if run.state in ("failed", "killed") else ""
    yield f'<p>{text(run.env)}, seed {run.seed}: <span class="state{bad}">{run.state}</span></p>'
    for name in ("error", "warning"):
        if summary.get(name):
            yield f'<p class="bad">{text(summary[name])}</p>'
    rows = [
        ("score", run.score_text),
        ("time", duration(run.seconds)),
        ("environment steps", number(run.environment_steps)),
    ]
    for name, key in (
        ("episodes", "episodes"),
        ("learner steps", "learner_steps"),
        ("environment steps per second", "environment_steps_per_second"),
        ("samples per insert", "samples_per_insert"),
        ("mode", "mode"),
        ("actors", "actors"),
        ("sessions", "sessions"),
    ):
        if isinstance(value := summary.get(key), int | float | str):
            rows.append((name, value if isinstance(value, str) else number(value)))
    for sentence in (summary.get("reached"), summary.get("best_model")):
        if isinstance(sentence, str) and sentence:
            yield f"<p>{text(sentence)}.</p>"
    yield table(rows)


def _evaluation(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the last evaluation beside its baselines."""
    found = summary.get("eval")
    if not isinstance(found, dict):
        return
    yield "<h3>Last evaluation</h3>"
    name = next(iter(map_in(found, "metrics")), None)
    score: Any = map_in(found, "metrics").get(name) if name else found.get("return_mean")
    error: Any = map_in(found, "errors").get(name) if name else found.get("return_error")
    baselines = {k: v for k, v in map_in(found, "baselines").items() if _is_number(v)}
    rows: list[tuple[object, ...]] = [("policy", _plus_minus(score, error), "")]
    for baseline, value in baselines.items():
        pair: Any = map_in(found, "differences").get(baseline)
        paired = isinstance(pair, list | tuple) and len(pair) == 2
        difference = _plus_minus(*pair, sign="+") if paired else ""
        rows.append((str(baseline).replace("_", " "), number(value), difference))
    yield table(rows, ("", name or "return", "policy - this"))
    words = {str(key).replace("_", " "): float(value) for key, value in baselines.items()}
    if _is_number(score) and (closed := closed_text(float(score), words)):
        yield f"<p>{text(closed)}</p>"
    if _is_number(episodes := found.get("episodes")):
        yield f"<p>{number(episodes)} held-out episodes; ± standard errors, differences by seed</p>"


def _plus_minus(mean: Any, error: Any, sign: str = "") -> str:
    if not _is_number(mean):
        return "-"
    shown = f"{mean:{sign}.4g}"
    return f"{shown} ± {error:.2g}" if _is_number(error) else shown


def _pictures(run_dir: Path) -> Iterator[str]:
    """Yield the strategy and films that lie in a run's directory, unless they are too large."""
    films = sorted(path for ending in _FILMS for path in run_dir.glob(ending))
    for path in (*(run_dir / name for name in _PICTURES), *films):
        if not path.is_file():
            continue
        if path.stat().st_size > _MOST_PICTURE:
            left_out = size(path.stat().st_size)
            yield f"<p>{text(path.name)} has {left_out}, and is left out of this page.</p>"
            continue
        yield f"<h3>{text(path.stem)}</h3>{picture(path, path.stem)}"


def _settings(run_dir: Path) -> Iterator[str]:
    """Yield the settings that differ from the defaults, and all of them to open."""
    yield "<h3>Settings</h3>"
    try:
        values, defaults = of_run(read_toml(run_dir / CONFIGURED)), Config().to_map()
        chosen = (run_dir / CONFIG).read_text(encoding="utf-8")
    except (UsageError, OSError) as error:
        yield f"<p>{text(error)}</p>"
        return
    rows = [
        (f"{section}.{key}", value)
        for section, keys in values.items()
        for key, value in keys.items()
        if not same(value, defaults.get(section, {}).get(key))
    ]
    yield table(rows) if rows else "<p>All are the defaults.</p>"
    yield folded("all settings, as filled in for the machine", f"<pre>{text_lines(chosen)}</pre>")


def text_lines(value: str) -> str:
    """Escape a text of several lines."""
    return "\n".join(map(text, value.splitlines()))


def _origin(run_dir: Path) -> Iterator[str]:
    """Yield the machine, the commit and the command."""
    found = read_json(run_dir / ORIGIN)
    if not found:
        return
    yield "<h3>Machine</h3>"
    machine = map_in(found, "machine")
    rows: list[tuple[object, ...]] = []
    if _is_number(clock := found.get("clock")):
        rows.append(("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(clock))))
    command = found.get("command")
    if isinstance(command, list) and command:
        rows.append(("command", " ".join(["pdqn", *map(str, command[1:])])))
    rows.append(("pdqn", f"{found.get('pdqn', '?')} {found.get('commit', '')}"))
    if found.get("own_commit"):
        rows.append(("commit of the directory", found["own_commit"]))
    rows.append(("host", f"{machine.get('hostname', '?')}, {machine.get('system', '?')}"))
    rows.append(("cores", machine.get("cores", "?")))
    if _is_number(memory := machine.get("ram_total_bytes")):
        rows.append(("memory", size(memory)))
    gpus = machine.get("gpus")
    names = [g.get("name", "?") for g in gpus if isinstance(g, dict)] if gpus else []
    rows.append(("GPU", ", ".join(map(str, names)) or "none"))
    versions = ", ".join(
        f"{name} {version}" for name, version in map_in(machine, "versions").items()
    )
    rows.append(("software", versions))
    yield table(rows)


def _events(run_dir: Path) -> Iterator[str]:
    """Yield the newest events, to open."""
    path = run_dir / EVENTS
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MOST_EVENT_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    events = [event for line in lines if (event := parse_object(line))]
    rows = [
        (duration(event.get("time_seconds")), event.get("event", "?"), _details(event))
        for event in events[-_MOST_EVENTS:]
        if event.get("event") not in _QUIET
    ]
    left_out = f", the last {_MOST_EVENTS} of {len(events)}" if len(events) > _MOST_EVENTS else ""
    yield "<h3>Events</h3>"
    yield folded(f"events{left_out}", table(rows, ("time", "event", "")))


def _details(event: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in event.items() if k not in ("time_seconds", "clock", "event")}
    return ", ".join(f"{key} {value}" for key, value in rest.items())[:500]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
