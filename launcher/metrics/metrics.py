"""From the roles' reports to figures of the whole run. Pure: time is an argument."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from launcher.metrics.allowance import Allowance
from launcher.metrics.bounds import LARGEST, LARGEST_REAL
from launcher.metrics.counters import Counters, Gauges, MemberKey
from launcher.metrics.episodes import NewEpisodes, RecentEpisodes
from launcher.metrics.ledger import Ledger, state_of_sums
from launcher.metrics.reached import best_kept, gap_closed, reached
from launcher.metrics.snapshot import EvaluationView, nearest_of
from pdqn import figures
from pdqn.checks import MAX_NAME
from pdqn.figures import Figure
from pdqn.messages import Evaluation, Report

_HISTORY_POINTS = 240
# Characters of an evaluation's line without any names, and of one name's number and its error.
_EVALUATION, _VALUE = 400, 40
# Characters of such lines: a hundred or more at once, later 86 MB a day.
_EVALUATION_LINES = (200_000, 1_000)


class RunMetrics:
    """Figures of the whole run, made from the reports of its roles.

    Args:
        headline: name of the environment's headline metric, if it has one.

    Attributes:
        counters: what the roles have counted.
        ledger: what became of each transition.
        evaluation: the newest one, if there is any.
        new_episodes: those since whoever writes them has taken them.
    """

    def __init__(self, headline: str | None) -> None:
        self._headline = headline
        self._figures = {figure.name: figure for figure in figures.computed(headline)}
        self._seconds_before = 0.0  # of the sessions before this one
        self.counters = Counters()
        self.ledger = Ledger()
        self._gauges = Gauges()
        self._episodes = RecentEpisodes()
        self._drawn = [name for name, figure in self._figures.items() if figure.drawn]
        self.new_episodes = NewEpisodes()
        self._history: dict[str, deque[float]] = {
            name: deque(maxlen=_HISTORY_POINTS) for name in self._drawn
        }
        self._first_step: float | None = None
        self._last_step: float | None = None
        self._expected_since: float | None = None
        self._learner_steps = 0
        self.evaluation: Evaluation | None = None
        self._new_evaluations: list[Evaluation] = []
        # By role: what others send does not take the place of what the evaluator finds.
        self._evaluation_lines = defaultdict(lambda: Allowance(*_EVALUATION_LINES))

    def get_state(self) -> dict[str, Any]:
        """Return as plain data what a later session goes on from, and what pictures read."""
        return {
            "totals": self.counters.get_state(),
            "ledger": self.ledger.get_state(),
            "active_seconds": self.active_seconds(),
            "learner_steps": self._learner_steps,
            **self._episodes.get_state(),
            "evaluation": None if self.evaluation is None else self.evaluation.to_map(),
            "headline": self._headline,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` gave in an earlier session."""
        self.counters.set_state(state["totals"])
        self._seconds_before = float(state["active_seconds"])
        # Versions before the ledger kept the sums alone.
        self.ledger.set_state(state.get("ledger") or state_of_sums(self.counters.total))
        self._learner_steps = int(state["learner_steps"])
        self._episodes.set_state(state)
        evaluation = state["evaluation"]
        self.evaluation = None if evaluation is None else Evaluation.from_map(evaluation)

    def count(self, name: str, times: int = 1) -> None:
        """Count something that the coordinator itself has seen."""
        self.counters.count("coordinator", name[:MAX_NAME], times)

    def ingest(self, key: MemberKey, report: Report, now: float) -> None:
        """Take in one report of one role."""
        before, steps = self.counters.add(key, report.counters), "environment_steps"
        if key.role == "actor" and report.counters.get(steps, 0) > before.get(steps, 0):
            if self._first_step is None:  # the steps of this report began before it
                self._first_step = now if self._expected_since is None else self._expected_since
            self._last_step = now
        self.counters.drop(key.role, self._gauges.put(key.role, key.index, report.gauges))
        self.counters.drop(key.role, self.ledger.ingest(key, report))
        if key.role == "learner":
            steps = self._gauges.of(key.role, key.index).get("learner_steps", self._learner_steps)
            self._learner_steps = int(max(0.0, min(LARGEST, steps)))
        for episode in report.episodes:
            if max(abs(episode.score), abs(episode.headline or 0.0)) <= LARGEST_REAL:
                self.counters.drop(key.role, self._episodes.add(episode))
                self.new_episodes.add(key.index, episode)
            else:
                self.counters.drop(key.role, 1)
        if report.evaluation is not None:
            size, lines = _line_characters(report.evaluation), self._evaluation_lines[key.role]
            if size > lines.left(now):
                self.counters.reject("evaluation")
                return
            lines.use(size, now)
            self.evaluation = report.evaluation
            self._new_evaluations.append(report.evaluation)

    def forget(self, role: str, index: int) -> None:
        """A role is gone: its gauges no longer count; its counters do."""
        self._gauges.forget(role, index)
        if role == "replay":
            self.ledger.shard_is_away(index)

    def tick(self, now: float) -> None:
        """Mark the present, about once a second."""
        self.counters.mark(now)
        self._gauges.refresh()
        for name in self._drawn:
            value, values = self._compute(self._figures[name]), self._history[name]
            if value is not None:
                values.append(value)
        for name, value in self._own().items():
            self._history.setdefault(name, deque(maxlen=_HISTORY_POINTS)).append(value)

    def counted(self, key: MemberKey) -> Mapping[str, float]:
        """The counters of one incarnation, as it reported them last."""
        return self.counters.counted(key)

    def total(self, role: str, name: str) -> float:
        """A counter over all incarnations of all of a role."""
        return self.counters.total(role, name)

    def rejected(self) -> dict[str, int]:
        """Return the messages that replay refused, and requests that anybody did, by reason."""
        return self.counters.starting_with("replay", "rejected/") | self.counters.refused()

    def gauge(self, role: str, name: str) -> float | None:
        """Return the mean of a gauge over the present members of a role."""
        return self._gauges.mean(role, name)

    def member_gauges(self, role: str, index: int) -> Mapping[str, float]:
        """Return all gauges of one member."""
        return self._gauges.of(role, index)

    def value(self, name: str) -> float | None:
        """Return a figure that is computed from reports; None where nothing is known yet.

        Raises:
            KeyError: there is no such figure.
        """
        self._gauges.refresh()
        return self._compute(self._figures[name])

    def current(self) -> dict[str, float | None]:
        """Return the values of all figures that are computed from reports, by name.

        Gauges over several members are as of the last tick, or as a member last came or went.
        """
        known = {name: self._compute(figure) for name, figure in self._figures.items()}
        return known | self._own()

    def _own(self) -> dict[str, float]:
        """Return the figures of the environment's own metrics, by name."""
        return {figures.info_name(name): v for name, v in self._episodes.metrics().items()}

    def _compute(self, figure: Figure) -> float | None:
        role, source, counters = figure.role, figure.source, self.counters
        match figure.kind:
            case "total":
                return int(counters.total(role, source))
            case "time":
                return round(counters.total(role, source), 3)
            case "rate":
                return counters.rate(role, source)
            case "share":
                return min(1.0, counters.rate(role, source) / max(1, self._gauges.count(role)))
            case "ratio":
                return _ratio(counters.total, figure) or 0.0
            case "recent_ratio":
                return _ratio(counters.rate, figure)
            case "episodes":
                return self._episodes.mean(source)
            case "newest":
                return self._learner_steps
            case "mean" | "sum" | "min" | "max":
                return self._gauges.over_members(figure.kind, role, source)
            case "ledger":
                return getattr(self.ledger.balance(), source)
            case "told":
                raise KeyError(figure.name)

    def line(self, elapsed_seconds: float, capacity: int) -> dict[str, float | None]:
        """Return a line of metrics.jsonl: numbers alone, a hundred thousand lines a week.

        Args:
            elapsed_seconds: since the run began.
            capacity: transitions that all shards of replay store.
        """
        self._gauges.refresh()
        return {
            "time_seconds": round(elapsed_seconds, 3),
            **self.current(),
            "replay/capacity": capacity,
        }

    def evaluation_line(self, evaluation: Evaluation, elapsed_seconds: float) -> dict[str, Any]:
        """The line of metrics.jsonl of an evaluation."""
        line: dict[str, Any] = {
            "time_seconds": round(elapsed_seconds, 3),
            **self.counts(),
            "eval/parameter_version": evaluation.parameter_version,
            "eval/episodes": evaluation.episodes,
            "eval/return_mean": evaluation.return_mean,
            "eval/return_error": evaluation.return_error,
            "eval/best": evaluation.best,
        }
        for name, value in evaluation.metrics.items():
            line[f"eval/{name}"] = value
            line[f"eval/{name}_error"] = evaluation.errors[name]
        for name, value in evaluation.baselines.items():
            line[f"eval/baseline/{name}"] = value
        if (share := gap_closed(evaluation)) is not None:
            line["eval/gap_closed"] = share
        for name, (difference, error) in evaluation.differences.items():
            line[f"eval/difference/{name}"] = difference
            line[f"eval/difference/{name}_error"] = error
        return line

    def counts(self) -> dict[str, int]:
        """Return the counters that everything is plotted over."""
        return {
            "environment_steps": int(self.total("actor", "environment_steps")),
            "episodes": int(self.total("actor", "episodes")),
            "learner_steps": self.learner_steps(),
        }

    def learner_steps(self) -> int:
        """Return the steps behind the learner's parameters: a restart may go back a little."""
        return self._learner_steps

    def history(self) -> dict[str, tuple[float, ...]]:
        """Return the recent values of the figures that consoles draw, by name."""
        return {name: tuple(values) for name, values in self._history.items()}

    def evaluation_view(self) -> EvaluationView | None:
        """The latest evaluation."""
        if self.evaluation is None:
            return None
        e = self.evaluation
        return EvaluationView(
            e.parameter_version,
            e.episodes,
            e.return_mean,
            e.return_error,
            e.metrics,
            {name.replace("_", " "): value for name, value in e.baselines.items()},
            nearest_of(e.differences),
        )

    def take_evaluations(self) -> list[Evaluation]:
        """Evaluations that came since the last call."""
        new, self._new_evaluations = self._new_evaluations, []
        return new

    def in_flight(self) -> int:
        """Count transitions that were sent and may still reach replay, for the end of a run.

        Of an actor that was killed, nobody knows what is on its way, until every replay has
        settled whatever has come.
        """
        sent, dead = self.ledger.awaited()
        if dead:
            self._gauges.refresh()
        drained = dead and self._gauges.over_members("min", "replay", "drained")
        return sent if drained else sent + dead

    def expect_steps(self, now: float) -> None:
        """Expect environments to step from now on."""
        self._expected_since = now

    @property
    def moves(self) -> bool:
        """True once environments have stepped in this session, and rates are known."""
        return self._first_step is not None and self.counters.marked

    def seconds_without_steps(self, now: float) -> float:
        """Return the time since the last step, or since steps are expected; else 0."""
        if self._expected_since is None:
            return 0.0
        return now - max(self._expected_since, self._last_step or 0.0)

    def seconds_since_first_step(self, now: float) -> float:
        """Return the time since the first environment step, in all sessions."""
        here = 0.0 if self._first_step is None else now - self._first_step
        return self._seconds_before + here

    def active_seconds(self) -> float:
        """Return the time from the first environment step to the last, in all sessions."""
        if self._first_step is None or self._last_step is None:
            return self._seconds_before
        return self._seconds_before + self._last_step - self._first_step

    def summary(self) -> dict[str, Any]:
        """Return the measured part of summary.json."""
        seconds = self.active_seconds()
        counts = self.counts()
        headline = self._episodes.mean("headline") if self._headline else None
        return {
            **counts,
            "active_seconds": seconds,
            "episodes_per_second": _per(counts["episodes"], seconds),
            "environment_steps_per_second": _per(counts["environment_steps"], seconds),
            "learner_steps_per_second": _per(self.total("learner", "learner_steps"), seconds),
            "samples_per_insert": self.value("replay/samples_per_insert"),
            "policy_lag_mean": self.value("learner/policy_lag"),
            "environment": {
                "return_mean": self.value("rollout/ep_rew_mean"),
                "metrics": ({} if headline is None else {self._headline: headline})
                | self._episodes.metrics(),
            },
            "eval": None if self.evaluation is None else _summary_of(self.evaluation),
            "refused": self.counters.refused(),
            "control_rejected": self.counters.starting_with("all", "control_rejected/"),
            "environment_failures": self.value("actor/environment_failures"),
            "steps_not_finite": self.counters.starting_with("actor", "not_finite/"),
            "priorities_clipped": self.value("replay/priorities_clipped"),
            "transitions_expired": self.value("replay/transitions_expired"),
            "transitions": {
                **self.ledger.balance()._asdict(),
                "duplicate": int(self.total("replay", "transitions_duplicate")),
                "rejected": int(self.total("replay", "transitions_rejected")),
                "unsent": int(self.total("actor", "transitions_unsent")),
            },
            "bytes_per_transition": {
                "wire": _per(
                    self.total("replay", "bytes_received"),
                    self.total("replay", "transitions_received"),
                ),
                "stored": _per(
                    self.value("replay/stored_bytes") or 0.0, self.value("replay/size") or 0.0
                ),
            },
        }


def _ratio(measure: Callable[[str, str], float], figure: Figure) -> float | None:
    """Divide a source by its divisors: all of the first, less the others."""
    first, *others = (measure(figure.role, name) for name in figure.per)
    divisor = first - sum(others)
    return measure(figure.role, figure.source) / divisor if divisor > 0 else None


def _summary_of(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as plain data, with the share of the provable gap, and in words."""
    share = gap_closed(evaluation)
    words = {"reached": reached(evaluation), "best_model": best_kept(evaluation)}
    return evaluation.to_map() | words | ({} if share is None else {"gap_closed": share})


def _line_characters(evaluation: Evaluation) -> int:
    """Estimate the characters of an evaluation's line: each of its names comes with an error."""
    maps = (evaluation.metrics, evaluation.baselines, evaluation.differences)
    return _EVALUATION + 2 * sum(_VALUE + len(name) for values in maps for name in values)


def _per(amount: float, divisor: float) -> float:
    return amount / divisor if divisor > 0 else 0.0
