"""The run at one moment: the only thing that consoles are given to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from launcher.numbers import in_unit
from pdqn.figures import find, rollout_name

MemberState = Literal["starting", "alive", "late", "restarting", "stopped", "dead"]
_STATES = frozenset(get_args(MemberState))
_MOST = 1e300  # what is not below it counts as infinite


@dataclass(frozen=True)
class MemberView:
    """One role of the run, or one of its hosts where there are several.

    Attributes:
        role: actor, replay, learner, evaluator or host.
        host: name of its host, distinct from those of other hosts.
        state: starting (no report yet), alive, late (reports overdue), restarting, stopped
            (ended as asked), dead (given up).
        activity: what it does or waits for, in a few words ("waits for the learner").
        cpu_percent: of one core, since its last report; of a host, of all its cores.
        memory_bytes: resident set; of a host, what is in use.
    """

    role: str
    index: int
    host: str
    pid: int
    state: MemberState
    activity: str = ""
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    restarts: int = 0

    def to_map(self) -> dict[str, Any]:
        """Return plain data; a load that is not finite is 0."""
        return {**vars(self), "cpu_percent": _finite(self.cpu_percent) or 0.0}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> MemberView:
        """Check and read a member of a snapshot.

        Raises:
            TypeError, KeyError, ValueError: a field is missing, or of another type.
        """
        if values["state"] not in _STATES:
            raise ValueError(f"{values['state']!r:.40} is not a state")
        return cls(
            _text(values["role"]),
            _whole(values["index"]),
            _text(values["host"]),
            _whole(values["pid"]),
            values["state"],
            _text(values["activity"]),
            _number(values["cpu_percent"]),
            _whole(values["memory_bytes"]),
            _whole(values["restarts"]),
        )


@dataclass(frozen=True)
class EvaluationView:
    """The latest greedy evaluation on held-out seeds.

    Attributes:
        parameter_version: learner steps of the evaluated parameters.
        return_error: standard error of ``return_mean``.
        metrics: mean of the environment's headline metric, if it has one.
        baselines: mean score of the environment's baselines on the same seeds, by name in words.
    """

    parameter_version: int
    episodes: int
    return_mean: float
    return_error: float
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)

    def to_map(self) -> dict[str, Any]:
        """Return plain data; None for numbers that are not finite."""
        scores = {
            name: {key: _finite(value) for key, value in getattr(self, name).items()}
            for name in ("metrics", "baselines")
        }
        errors = {name: _finite(getattr(self, name)) for name in ("return_mean", "return_error")}
        return {**vars(self), **errors, **scores}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> EvaluationView:
        """Check and read an evaluation of a snapshot.

        Raises:
            TypeError, KeyError, ValueError: a field is missing, or of another type.
        """
        return cls(
            _whole(values["parameter_version"]),
            _whole(values["episodes"]),
            _score(values["return_mean"]),
            _score(values["return_error"]),
            {_text(name): _score(value) for name, value in values["metrics"].items()},
            {_text(name): _score(value) for name, value in values["baselines"].items()},
        )


@dataclass(frozen=True)
class Snapshot:
    """The whole run at one moment.

    Attributes:
        stage: starting, running, paused, stopping or done.
        waiting_for: what the run cannot start without, in words; empty once all is there.
        progress: share of the nearest limit (episodes, steps or time); None without a limit.
        remaining_seconds: estimate until that limit.
        headline: name of the environment's headline metric, if it has one.
        figures: present values by their names in ``pdqn.figures``; None where not known.
        replay_waits: the side of replay that waits, its cause and its duration, in words
            ("inserts wait 43% (learner is behind, 3 s)"); empty while neither waits.
        bottleneck: who limits whom, in words ("learner-bound: actors wait 43%").
        restarts: of all roles.
        rejected: messages that replay refused, by reason.
        first_error: first line of the first error of the run, and the log that contains it.
        insecure: what leaves the launcher's host is neither encrypted nor authenticated.
        history: recent values of the drawn figures by name, oldest first, for sparklines; None
            where a value was not finite.
    """

    run_dir: str
    env: str
    mode: str
    seed: int
    stage: str
    waiting_for: str
    elapsed_seconds: float
    progress: float | None
    remaining_seconds: float | None
    headline: str | None
    figures: Mapping[str, float | None]
    replay_waits: str
    bottleneck: str
    evaluation: EvaluationView | None
    members: tuple[MemberView, ...]
    restarts: int
    rejected: Mapping[str, int]
    first_error: str | None
    history: Mapping[str, tuple[float | None, ...]]
    insecure: bool = False

    def value(self, name: str) -> float | None:
        """Return a figure; None where it is not known."""
        return self.figures.get(name)

    def amount(self, name: str) -> float:
        """Return a figure to calculate with; 0 where it is not known or not finite."""
        return _finite(self.value(name)) or 0

    def text(self, name: str) -> str:
        """Return a figure in its unit, as people read it."""
        figure = find(name)
        return in_unit(self.value(name), figure.unit if figure else "")

    @property
    def headline_figure(self) -> str | None:
        """Name of the headline metric's figure, once an episode has told it."""
        name = self.headline and rollout_name(self.headline)
        return name if name and self.value(name) is not None else None

    def to_map(self) -> dict[str, Any]:
        """Return plain data for a process that watches; None for numbers that are not finite."""
        return {
            **vars(self),
            "figures": {name: _finite(value) for name, value in self.figures.items()},
            "evaluation": None if self.evaluation is None else self.evaluation.to_map(),
            "members": [member.to_map() for member in self.members],
            "rejected": dict(self.rejected),
            "history": {name: [*map(_finite, series)] for name, series in self.history.items()},
        }

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Snapshot:
        """Check and read what ``to_map`` of another process returned.

        Raises:
            TypeError, KeyError, ValueError: a field is missing, or of another type.
        """
        texts = ("run_dir", "env", "mode", "stage", "waiting_for", "replay_waits", "bottleneck")
        evaluation = values["evaluation"]
        return cls(
            **{name: _text(values[name]) for name in texts},
            seed=_whole(values["seed"]),
            elapsed_seconds=_number(values["elapsed_seconds"]),
            progress=_number_or_none(values["progress"]),
            remaining_seconds=_number_or_none(values["remaining_seconds"]),
            headline=_text_or_none(values["headline"]),
            figures={_text(n): _number_or_none(v) for n, v in values["figures"].items()},
            evaluation=None if evaluation is None else EvaluationView.from_map(evaluation),
            members=tuple(map(MemberView.from_map, values["members"])),
            restarts=_whole(values["restarts"]),
            rejected={_text(reason): _whole(n) for reason, n in values["rejected"].items()},
            first_error=_text_or_none(values["first_error"]),
            history={
                _text(name): tuple(map(_number_or_none, series))
                for name, series in values["history"].items()
            },
            insecure=values["insecure"] is True,
        )


def _finite(value: float | None) -> float | None:
    """Replace what JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is not a number")
    # Comparing is exact: a whole number that no float holds would not even be tested otherwise.
    if not -_MOST < value < _MOST:
        raise ValueError(f"{str(value)[:40]} is not finite")
    return value


def _number_or_none(value: Any) -> float | None:
    return None if value is None else _number(value)


def _score(value: Any) -> float:
    """Check a number of an evaluation, which may not be finite where the environment's was not."""
    return math.nan if value is None else _number(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is not a whole number")
    return int(_number(value))
