"""From the roles' reports to figures of the whole run. Pure: time is an argument."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from launcher.coordinator.snapshot import DRAWN, EvaluationView
from pdqn.messages import Evaluation, Report

_WINDOW_SECONDS = 10.0
_RECENT_EPISODES = 100  # as stable-baselines3 averages them
_DISTRIBUTION_EPISODES = 500
_HISTORY_POINTS = 240
_WAITS_AT_ALL = 0.005  # share of time from which it is not 0%
# Counters: priorities of transitions that are gone, messages that went nowhere or could not be
# used, and learner steps that would have spoilt the parameters.
_DROPPED = (
    ("replay", "priorities_ignored"),
    ("replay", "requests_dropped"),
    ("replay", "answers_undeliverable"),
    ("replay", "tallies_ignored"),
    ("actor", "episode_details_dropped"),
    ("learner", "steps_skipped"),
    ("learner", "answers_rejected"),
    ("learner", "priorities_dropped"),
)

# Reports that a role had no room for, and messages to it that it could not read.
_DROPPED_BY_ALL = ("reports_dropped", "control_rejected")

Counters = dict[str, float]


@dataclass(frozen=True)
class MemberKey:
    """One incarnation of one role."""

    role: str
    index: int
    incarnation: int


@dataclass
class _Mark:
    """Totals at one moment, to take rates from."""

    time: float
    totals: dict[tuple[str, str], float] = field(default_factory=dict)


class RunMetrics:
    """Figures of the whole run, made from the reports of its roles."""

    def __init__(self, headline: str | None) -> None:
        self._headline = headline
        # Of the sessions before this one; what was on its way when the last one was killed is lost.
        self._seconds_before, self._missing_before = 0.0, 0
        self._last: dict[MemberKey, Counters] = {}
        self._totals: defaultdict[tuple[str, str], float] = defaultdict(float)
        self._gauges: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
        self._marks: deque[_Mark] = deque(maxlen=64)
        self._scores: deque[float] = deque(maxlen=_RECENT_EPISODES)
        self._lengths: deque[int] = deque(maxlen=_RECENT_EPISODES)
        self._headlines: deque[float] = deque(maxlen=_RECENT_EPISODES)
        self._distribution: deque[float] = deque(maxlen=_DISTRIBUTION_EPISODES)
        self._history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=_HISTORY_POINTS))
        self._first_step: float | None = None
        self._last_step: float | None = None
        self._expected_since: float | None = None
        self._learner_steps = 0
        self.evaluation: Evaluation | None = None
        self._new_evaluations: list[Evaluation] = []

    def get_state(self) -> dict[str, Any]:
        """Return as plain data what a later session goes on from, and what pictures read."""
        return {
            "totals": [[role, name, value] for (role, name), value in self._totals.items()],
            "active_seconds": self.active_seconds(),
            "learner_steps": self._learner_steps,
            "scores": list(self._scores),
            "lengths": list(self._lengths),
            "headlines": list(self._headlines),
            "distribution": list(self._distribution),
            "evaluation": None if self.evaluation is None else self.evaluation.to_map(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``get_state`` gave in an earlier session."""
        for role, name, value in state["totals"]:
            self._totals[role, name] = float(value)
        self._seconds_before = float(state["active_seconds"])
        self._missing_before = self._unseen()
        self._learner_steps = int(state["learner_steps"])
        self._scores.extend(state["scores"])
        self._lengths.extend(state["lengths"])
        self._headlines.extend(state["headlines"])
        self._distribution.extend(state["distribution"])
        evaluation = state["evaluation"]
        self.evaluation = None if evaluation is None else Evaluation.from_map(evaluation)

    def reject(self, kind: str) -> None:
        """Count a message that the coordinator refused, by its kind."""
        self._totals["coordinator", "control_rejected"] += 1
        self._totals["coordinator", f"control_rejected/{kind}"] += 1

    def ingest(self, key: MemberKey, report: Report, now: float) -> None:
        """Take in one report of one role."""
        counters = report.counters
        before = self._last.get(key, {})
        for name, value in counters.items():
            grown = value - before.get(name, 0.0)
            self._totals[key.role, name] += grown
            if name == "environment_steps" and key.role == "actor" and grown > 0:
                if self._first_step is None:  # the steps of this report began before it
                    self._first_step = now if self._expected_since is None else self._expected_since
                self._last_step = now
        self._last[key] = counters
        gauges = report.gauges
        self._gauges[key.role][key.index] = gauges
        if key.role == "learner":
            self._learner_steps = int(gauges.get("learner_steps", self._learner_steps))
        for episode in report.episodes:
            self._add_episode(*episode)
        if report.evaluation is not None:
            self.evaluation = report.evaluation
            self._new_evaluations.append(report.evaluation)

    def forget(self, role: str, index: int) -> None:
        """A role is gone: its gauges no longer count; its counters do."""
        self._gauges[role].pop(index, None)

    def tick(self, now: float) -> None:
        """Mark the present, about once a second."""
        self._marks.append(_Mark(now, dict(self._totals)))
        drawn = DRAWN if self._headline is None else DRAWN | {f"rollout/{self._headline}"}
        for name, value in self.current().items():
            if name in drawn and value is not None:
                self._history[name].append(value)

    def counted(self, key: MemberKey) -> Mapping[str, float]:
        """The counters of one incarnation, as it reported them last."""
        return self._last.get(key, {})

    def total(self, role: str, name: str) -> float:
        """A counter over all incarnations of all of a role."""
        return self._totals[role, name]

    def _of_all_roles(self, name: str) -> float:
        return sum(total for (_, counted), total in self._totals.items() if counted == name)

    def control_rejected(self) -> dict[str, int]:
        """Count the control messages that were refused, by their kind."""
        prefix = "control_rejected/"
        counted: Counter[str] = Counter()
        for (_, name), value in self._totals.items():
            if name.startswith(prefix):
                counted[name.removeprefix(prefix)] += int(value)
        return dict(counted)

    def rejected(self) -> dict[str, int]:
        """Messages that replay refused, by reason."""
        prefix = "rejected/"
        return {
            name.removeprefix(prefix): int(value)
            for (role, name), value in self._totals.items()
            if role == "replay" and name.startswith(prefix)
        }

    def gauge(self, role: str, name: str) -> float | None:
        """Mean of a gauge over the present members of a role."""
        values = [g[name] for g in self._gauges[role].values() if name in g]
        return sum(values) / len(values) if values else None

    def gauge_sum(self, role: str, name: str) -> float | None:
        """Sum of a gauge over the present members of a role."""
        values = [g[name] for g in self._gauges[role].values() if name in g]
        return sum(values) if values else None

    def gauge_max(self, role: str, name: str) -> float | None:
        """Largest of a gauge over the present members of a role."""
        return max((g[name] for g in self._gauges[role].values() if name in g), default=None)

    def gauge_min(self, role: str, name: str) -> float | None:
        """Smallest of a gauge over the present members of a role."""
        return min((g[name] for g in self._gauges[role].values() if name in g), default=None)

    def member_gauges(self, role: str, index: int) -> dict[str, float]:
        """All gauges of one member."""
        return self._gauges[role].get(index, {})

    def rate(self, role: str, name: str) -> float:
        """Growth of a counter per second, over the last ten seconds or so."""
        if len(self._marks) < 2:
            return 0.0
        newest = self._marks[-1]
        oldest = next(m for m in self._marks if newest.time - m.time <= _WINDOW_SECONDS)
        if oldest is newest:
            oldest = self._marks[-2]
        grown = newest.totals.get((role, name), 0.0) - oldest.totals.get((role, name), 0.0)
        return grown / max(1e-9, newest.time - oldest.time)

    def ratio(self, numerator: tuple[str, str], denominator: tuple[str, str]) -> float:
        """Ratio of two totals; 0 before there is anything to divide by."""
        divisor = self._totals[denominator]
        return self._totals[numerator] / divisor if divisor else 0.0

    def current(self) -> dict[str, float | None]:
        """Present values by metric name, without evaluation; None where nothing is known yet."""
        loss_sum = self.rate("learner", "loss_sum")
        learned = self.rate("learner", "learner_steps") - self.rate("learner", "steps_skipped")
        values: dict[str, float | None] = {
            "rollout/ep_rew_mean": _mean(self._scores),
            "rollout/ep_len_mean": _mean(self._lengths),
            "rollout/exploration_rate": self.gauge("actor", "epsilon"),
            "rollout/exploration_rate_min": self.gauge_min("actor", "epsilon_min"),
            "rollout/exploration_rate_max": self.gauge_max("actor", "epsilon_max"),
            "rollout/guidance": self.gauge("actor", "guidance"),
            "actor/environment_failures": self.total("actor", "environment_failures"),
            "train/loss": loss_sum / learned if learned > 0 else None,
            "train/q_mean": self.gauge("learner", "q_mean"),
            "train/gradient_norm": self.gauge("learner", "gradient_norm"),
            "train/learning_rate": self.gauge("learner", "learning_rate"),
            "train/importance_sampling_exponent": self.gauge(
                "learner", "importance_sampling_exponent"
            ),
            "time/fps": self.rate("actor", "environment_steps"),
            "actor/episodes_per_second": self.rate("actor", "episodes"),
            "actor/wait_share": self.actors_wait(),
            "replay/size": self.gauge_sum("replay", "size"),
            "replay/stored_bytes": self.gauge_sum("replay", "stored_bytes"),
            "replay/samples_per_insert": self.samples_per_insert(),
            "replay/samples_per_insert_target": self.gauge("replay", "limiter_target"),
            "replay/limiter_balance": self.gauge("replay", "limiter_balance"),
            "replay/inserts_blocked_share": self.replay_blocked("inserts"),
            "replay/samples_blocked_share": self.replay_blocked("samples"),
            "replay/blocked_for_seconds": self.gauge_max("replay", "blocked_for_seconds"),
            "replay/inserts_per_second": self.rate("replay", "transitions_received"),
            "replay/samples_per_second": self.rate("replay", "samples"),
            "replay/bytes_per_second": self.rate("replay", "bytes_received"),
            **{f"{role}/{name}": self.total(role, name) for role, name in _DROPPED},
            **{f"system/{name}": self._of_all_roles(name) for name in _DROPPED_BY_ALL},
            "learner/steps_per_second": self.rate("learner", "learner_steps"),
            "learner/micro_batch_size": self.gauge("learner", "micro_batch_size"),
            "learner/wait_share": self.learner_waits(),
            "learner/shared_memory": self.gauge("learner", "shared_memory"),
            "learner/policy_lag": self.policy_lag(),
            "system/lost": self.lost_so_far(),
            "system/gpu_percent": self.gauge("learner", "gpu_percent"),
            "system/gpu_memory_bytes": self.gauge("learner", "gpu_memory_bytes"),
        }
        if self._headline is not None:
            values[f"rollout/{self._headline}"] = _mean(self._headlines)
        return values

    def line(self, elapsed_seconds: float, capacity: int) -> dict[str, Any]:
        """A line of metrics.jsonl: numbers alone, since a run has a hundred thousand lines a week.

        The scores of the last episodes, which pictures draw, are in the state.
        """
        return {
            "time_seconds": round(elapsed_seconds, 3),
            **self.counts(),
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
        for name, (difference, error) in evaluation.differences.items():
            line[f"eval/difference/{name}"] = difference
            line[f"eval/difference/{name}_error"] = error
        return line

    def counts(self) -> dict[str, int]:
        """The counters that everything is plotted over."""
        return {
            "environment_steps": int(self._totals["actor", "environment_steps"]),
            "episodes": int(self._totals["actor", "episodes"]),
            "learner_steps": self.learner_steps(),
        }

    def learner_steps(self) -> int:
        """Steps behind the learner's present parameters: a restart may go back a little."""
        return self._learner_steps

    def samples_per_insert(self) -> float:
        """Transitions sampled for each one inserted, over the whole run."""
        return self.ratio(("replay", "samples"), ("replay", "transitions_received"))

    def policy_lag(self) -> float:
        """Mean of learner_steps - parameter_version when transitions were inserted."""
        return self.ratio(("replay", "policy_lag_sum"), ("replay", "transitions_received"))

    def actors_wait(self) -> float:
        """Share of the actors' time spent waiting for replay."""
        return min(1.0, self.rate("actor", "wait_seconds") / max(1, len(self._gauges["actor"])))

    def learner_waits(self) -> float:
        """Share of the learner's time spent waiting for batches."""
        return min(1.0, self.rate("learner", "wait_seconds"))

    def replay_blocked(self, side: Literal["inserts", "samples"]) -> float:
        """Share of the replays' time that inserts or samples spent waiting for the other side."""
        seconds = self.rate("replay", f"{side}_blocked_seconds")
        return min(1.0, seconds / max(1, len(self._gauges["replay"])))

    def replay_waits(self, min_size: int) -> str:
        """Say which side is blocked in replay, by what and for how long; empty while neither is.

        Args:
            min_size: transitions inserted before the first sample.
        """
        inserts, samples = self.replay_blocked("inserts"), self.replay_blocked("samples")
        if max(inserts, samples) < _WAITS_AT_ALL:
            return ""
        if inserts >= samples:
            what, share, why = "inserts", inserts, "learner is behind"
        elif self._totals["replay", "samples"] == 0:
            what, share, why = "samples", samples, f"fills to {min_size:,}"
        else:
            what, share, why = "samples", samples, "actors are behind"
        seconds = self.gauge_max("replay", "blocked_for_seconds") or 0.0
        since = f", {seconds:.0f} s" if seconds >= 1 else ""
        return f"{what} wait {share:.0%} ({why}{since})"

    def lost_so_far(self) -> int:
        """TransitionBatches that are known to be missing; transitions are counted at the end."""
        return int(self._totals["replay", "batches_missing"])

    def history(self) -> dict[str, tuple[float, ...]]:
        """Recent values of what consoles draw, by metric name."""
        return {name: tuple(values) for name, values in self._history.items()}

    def headline(self) -> tuple[str, float] | None:
        """Name and recent mean of the headline metric."""
        value = _mean(self._headlines)
        return None if self._headline is None or value is None else (self._headline, value)

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
        )

    def take_evaluations(self) -> list[Evaluation]:
        """Evaluations that came since the last call."""
        new, self._new_evaluations = self._new_evaluations, []
        return new

    def in_flight(self) -> int:
        """Transitions that were sent and have not been seen by replay; exact once actors left."""
        return max(0, self._unseen() - self._missing_before)

    def _unseen(self) -> int:
        """Sent less seen, over all sessions.

        What came twice was sent, and counted by its actor, once; what strangers sent, never.
        """
        seen = sum(
            self._totals["replay", f"transitions_{name}"] for name in ("received", "refused")
        )
        return int(self._totals["actor", "transitions_sent"] - seen)

    def expect_steps(self, now: float) -> None:
        """Expect environments to step from now on."""
        self._expected_since = now

    @property
    def moves(self) -> bool:
        """True once environments have stepped in this session, and rates are known."""
        return self._first_step is not None and len(self._marks) >= 2

    def seconds_without_steps(self, now: float) -> float:
        """Time since the last step, or since steps are expected; 0 while they are not."""
        if self._expected_since is None:
            return 0.0
        return now - max(self._expected_since, self._last_step or 0.0)

    def seconds_since_first_step(self, now: float) -> float:
        """Time since the first environment step, in this session and those before it."""
        here = 0.0 if self._first_step is None else now - self._first_step
        return self._seconds_before + here

    def active_seconds(self) -> float:
        """Time from the first environment step to the last, as reported, over all sessions."""
        if self._first_step is None or self._last_step is None:
            return self._seconds_before
        return self._seconds_before + self._last_step - self._first_step

    def bottleneck(self) -> str:
        """Say who limits whom."""
        actors, learner = self.actors_wait(), self.learner_waits()
        if max(actors, learner) < 0.1:
            return "balanced: nobody waits"
        if actors >= learner:
            return f"learner-bound: actors wait {actors:.0%}"
        return f"actor-bound: learner waits {learner:.0%}"

    def summary(self) -> dict[str, Any]:
        """The measured part of summary.json."""
        seconds = self.active_seconds()
        counts = self.counts()
        return {
            **counts,
            "active_seconds": seconds,
            "episodes_per_second": _per(counts["episodes"], seconds),
            "environment_steps_per_second": _per(counts["environment_steps"], seconds),
            "learner_steps_per_second": _per(self.total("learner", "learner_steps"), seconds),
            "samples_per_insert": self.samples_per_insert(),
            "policy_lag_mean": self.policy_lag(),
            "environment": {
                "return_mean": _mean(self._scores),
                "metrics": {} if (headline := self.headline()) is None else dict([headline]),
            },
            "eval": None if self.evaluation is None else self.evaluation.to_map(),
            "control_rejected": self.control_rejected(),
            "environment_failures": int(self.total("actor", "environment_failures")),
            "transitions": {
                "sent": int(self.total("actor", "transitions_sent")),
                "received": int(self.total("replay", "transitions_received")),
                "lost": self.in_flight() + max(0, self._missing_before),
                "duplicate": int(self.total("replay", "transitions_duplicate")),
                "rejected": int(self.total("replay", "transitions_rejected")),
                "unsent": int(self.total("actor", "transitions_unsent")),
            },
            "bytes_per_transition": {
                "wire": self.ratio(
                    ("replay", "bytes_received"), ("replay", "transitions_received")
                ),
                "stored": self._stored_per_transition(),
            },
        }

    def _stored_per_transition(self) -> float:
        size = self.gauge_sum("replay", "size")
        return (self.gauge_sum("replay", "stored_bytes") or 0.0) / size if size else 0.0

    def _add_episode(self, score: float, length: int, headline: float | None) -> None:
        self._scores.append(float(score))
        self._lengths.append(int(length))
        if headline is not None:
            self._headlines.append(float(headline))
        self._distribution.append(float(score if headline is None else headline))


def _mean(values: deque[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def _per(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0
