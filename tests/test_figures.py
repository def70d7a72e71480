"""The table of figures, and everything that uses its names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from test_console import SHOWN, lines_of, snapshot
from test_metrics import evaluation_of

from launcher.console.lines import progress_line
from launcher.metrics.counters import MemberKey
from launcher.metrics.ledger import Balance
from launcher.metrics.metrics import RunMetrics
from launcher.numbers import in_unit
from pdqn.figures import BASELINE, BY_NAME, FIGURES, HEADLINE, Figure, computed, find
from pdqn.messages import Episode, Evaluation, Report

ROOT = Path(__file__).parent.parent


class Recording(Mapping[str, float | None]):
    """Figures that remember which of them were looked up."""

    def __init__(self, figures: Mapping[str, float | None]) -> None:
        self.figures = figures
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> float | None:
        self.asked.add(name)
        return self.figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.figures)

    def __len__(self) -> int:
        return len(self.figures)


def named(name: str) -> str:
    """Fill in the names that an environment gives."""
    return name.replace(HEADLINE, "coverage").replace(BASELINE, "random")


def is_of_evaluation(figure: Figure) -> bool:
    return figure.role == "evaluator" and figure.kind == "told"


def test_a_line_of_metrics_has_every_figure_that_no_evaluation_tells() -> None:
    metrics = RunMetrics("coverage")
    episodes = (Episode(1.0, 1, 0.5, {"random": 1.0}),)  # a metric of the environment's own
    metrics.ingest(MemberKey("actor", 0, 0), Report(episodes=episodes), 1.0)
    line = metrics.line(1.0, capacity=50)
    expected = {named(figure.name) for figure in FIGURES if not is_of_evaluation(figure)}
    assert set(line) == expected


def test_a_line_of_an_evaluation_has_every_figure_that_it_tells() -> None:
    yardsticks = {"exact_greedy": 0.15, "dual_bound": 0.35}
    told = evaluation_of(3.0)
    told["baselines"] = told["baselines"] | yardsticks
    line = RunMetrics("coverage").evaluation_line(Evaluation.from_map(told), 1.0)
    assert line["eval/gap_closed"] == pytest.approx(0.5)
    line = {name: line[name] for name in line if name.split("/")[-1] not in yardsticks}
    counts = {"time_seconds", "environment_steps", "episodes", "learner_steps"}
    expected = {named(figure.name) for figure in FIGURES if is_of_evaluation(figure)}
    assert set(line) == expected | counts


def test_without_a_headline_metric_there_is_no_figure_of_it() -> None:
    names = {figure.name for figure in computed(None)}
    assert names == {figure.name for figure in computed("coverage")} - {"rollout/coverage"}


def test_a_name_with_the_environments_own_names_is_found() -> None:
    assert len(BY_NAME) == len(FIGURES), "each name is there once"
    for figure in FIGURES:
        assert find(figure.name) is figure
        assert find(named(figure.name)) is figure
    assert find("rollout/") is None
    assert find("learner/lag") is None


def test_figures_are_computed_from_what_roles_report() -> None:
    text = "".join(
        path.read_text(encoding="utf-8")
        for package in ("pdqn", "actors", "replay", "learner")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "figures.py"
    )
    for figure in computed("coverage"):
        if figure.kind == "episodes":
            continue
        if figure.kind == "ledger":
            assert figure.source in Balance._fields
            continue
        for source in (figure.source, *figure.per):
            # Replay has a clock for each side and builds the names from the sides'.
            known = f'"{source}"' in text or source.endswith("s_blocked_seconds")
            assert known, f"no role reports {source}, the source of {figure.name}"


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_consoles_look_up_figures_of_the_table_and_draw_the_history_that_is_kept(
    width: int, height: int
) -> None:
    figures, history = Recording(SHOWN), Recording({})
    view = snapshot(3, history=history)
    object.__setattr__(view, "figures", figures)
    lines_of(view, width, height)
    progress_line(view)
    assert len(figures.asked) > 20
    assert [name for name in figures.asked if find(name) is None] == []
    drawn = {named(figure.name) for figure in FIGURES if figure.drawn}
    assert history.asked == drawn


def test_values_are_written_in_their_unit() -> None:
    assert in_unit(29.4e6, "bytes/s") == "29.4 MB/s"
    assert in_unit(5.43e9, "bytes") == "5.43 GB"
    assert in_unit(0.43, "share") == "43%"
    assert in_unit(943.1, "episodes/s") == "943/s"
    assert in_unit(12.4, "learner steps") == in_unit(12.4, "") == "12.4"
    assert [in_unit(None, unit) for unit in ("", "share", "bytes")] == ["-", "-", "-"]


def test_the_documentation_lists_every_figure_with_its_unit() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    section = text.split("\n## Figures\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{f.name}` | {f.unit or '-'} | {f.doc} |" for f in FIGURES]
