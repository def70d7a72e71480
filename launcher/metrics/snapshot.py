"""The run at one moment: the only thing that consoles are given to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from launcher.metrics.roster import (
    MemberGroup,
    MemberView,
    Roster,
    as_number,
    as_number_or_none,
    as_text,
    as_text_or_none,
    as_whole,
)
from launcher.numbers import in_unit
from pdqn.checks import as_prose, as_tuple, check_finite, check_whole, refusal
from pdqn.figures import find, info_name, rollout_name
from pdqn.gap import FROM
from pdqn.messages import Kinds, Message, Over
from pdqn.text import printable
from pdqn.wire import WireError

_MAX_TEXT = 10_000
_TEXTS = ("run_dir", "env", "mode", "stage", "waiting_for", "replay_waits", "bottleneck")


@dataclass(frozen=True)
class EvaluationView:
    """The latest greedy evaluation on held-out seeds.

    Attributes:
        parameter_version: learner steps of the evaluated parameters.
        return_error: standard error of ``return_mean``.
        metrics: mean of the environment's headline metric, if it has one.
        baselines: mean score of the environment's baselines on the same seeds, by name in words.
        nearest: name of the baseline to compare with, the policy's mean difference from it, and
            the standard error, paired by seed. It is exact greedy, or else that of the nearest
            score; None without baselines.
    """

    parameter_version: int
    episodes: int
    return_mean: float
    return_error: float
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    nearest: tuple[str, float, float] | None = None

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> EvaluationView:
        """Check and read an evaluation of a snapshot.

        Raises:
            TypeError, KeyError, WireError: a field is missing, or of another type.
        """
        return cls(
            as_whole(values["parameter_version"]),
            as_whole(values["episodes"]),
            as_number(values["return_mean"]),
            as_number(values["return_error"]),
            {as_text(name): as_number(value) for name, value in values["metrics"].items()},
            {as_text(name): as_number(value) for name, value in values["baselines"].items()},
            _nearest(values["nearest"]),
        )


def nearest_of(differences: Mapping[str, Sequence[float]]) -> tuple[str, float, float] | None:
    """Return the difference from the nearest baseline, as in ``EvaluationView.nearest``.

    Exact greedy is the one to compare with where it is known. Bounds do not count: no policy is to
    be compared with them.

    Args:
        differences: mean and standard error of the difference from each baseline.
    """
    policies = {name: of for name, of in differences.items() if not name.endswith("_bound")}
    if not policies:
        return None
    greedy = FROM.replace(" ", "_")
    name = greedy if greedy in policies else min(policies, key=lambda name: abs(policies[name][0]))
    mean, error = policies[name]
    return name.replace("_", " "), mean, error


def _nearest(value: Any) -> tuple[str, float, float] | None:
    if value is None:
        return None
    name, mean, error = value
    return as_text(name), as_number(mean), as_number(error)


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
        members: one by one: all but actors, and as many actors as ``MOST_LISTED`` leaves room for.
        insecure: other processes join neither encrypted nor authenticated.
        groups: all members, by role and host.
        history: recent values of the drawn figures by name, oldest first, for sparklines; None
            where a value was not finite.
        expectation: when the policy can be expected above exact greedy, in words; empty once it
            was, and where that is not known.
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
    groups: tuple[MemberGroup, ...] = ()
    expectation: str = ""

    def __post_init__(self) -> None:
        """Group the members, where there are no more than are listed, and clean the texts."""
        for name in (*_TEXTS, "headline", "first_error", "expectation"):
            if (text := getattr(self, name)) is not None:
                object.__setattr__(self, name, printable(text))
        if not self.groups:
            object.__setattr__(self, "groups", Roster.of(self.members).groups)

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

    @property
    def own_figures(self) -> list[tuple[str, str]]:
        """The environment's own metrics that are known: each name, and its figure's."""
        prefix = info_name("")
        return [
            (name.removeprefix(prefix), name)
            for name, value in self.figures.items()
            if name.startswith(prefix) and value is not None
        ]

    def to_map(self) -> dict[str, Any]:
        """Return plain data for a process that watches; None for numbers that are not finite."""
        return {
            **vars(self),
            "figures": {name: _finite(value) for name, value in self.figures.items()},
            "evaluation": None if self.evaluation is None else dict(vars(self.evaluation)),
            "members": [dict(vars(member)) for member in self.members],
            "groups": [dict(vars(group)) for group in self.groups],
            "rejected": dict(self.rejected),
            "history": {name: [*map(_finite, series)] for name, series in self.history.items()},
        }

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Snapshot:
        """Check and read what ``to_map`` of another process returned.

        Raises:
            TypeError, KeyError, WireError: a field is missing, or of another type.
        """
        evaluation = values["evaluation"]
        return cls(
            **{name: as_text(values[name]) for name in _TEXTS},
            seed=as_whole(values["seed"]),
            elapsed_seconds=as_number(values["elapsed_seconds"]),
            progress=as_number_or_none(values["progress"]),
            remaining_seconds=as_number_or_none(values["remaining_seconds"]),
            headline=as_text_or_none(values["headline"]),
            figures={
                printable(as_text(n)): as_number_or_none(v) for n, v in values["figures"].items()
            },
            evaluation=None if evaluation is None else EvaluationView.from_map(evaluation),
            members=tuple(map(MemberView.from_map, values["members"])),
            groups=tuple(map(MemberGroup.from_map, values["groups"])),
            restarts=as_whole(values["restarts"]),
            rejected={as_text(reason): as_whole(n) for reason, n in values["rejected"].items()},
            first_error=as_text_or_none(values["first_error"]),
            history={
                as_text(name): tuple(map(as_number_or_none, series))
                for name, series in values["history"].items()
            },
            insecure=values["insecure"] is True,
            # Runs of an earlier version, which ``watch`` shows as well, do not have it.
            expectation=as_text(values.get("expectation", "")),
        )


def _finite(value: float | None) -> float | None:
    """Replace what JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Seen(Message):
    """The run as those see it who watch from elsewhere.

    Attributes:
        snapshot: the newest; None before there is one.
        said: lines that the run has shown so far.
        messages: the newest of them, oldest first: (elapsed seconds, text).
    """

    KIND = "seen"

    snapshot: Snapshot | None = None
    said: int = 0
    messages: tuple[tuple[float, str], ...] = ()

    def __post_init__(self) -> None:
        """Check the fields."""
        check_whole(self.said, "said")
        for message in as_tuple(self.messages, "messages"):
            if not isinstance(message, list | tuple) or len(message) != 2:
                raise refusal(message, "a message", "seconds and a text")
            check_finite(message[0], "a message's seconds")
        told = tuple(
            (seconds, as_prose(text, "a message's text", _MAX_TEXT))
            for seconds, text in self.messages
        )
        object.__setattr__(self, "messages", told)

    def to_map(self) -> dict[str, Any]:
        """Convert to plain data."""
        snapshot = None if self.snapshot is None else self.snapshot.to_map()
        return super().to_map() | {"snapshot": snapshot}

    @classmethod
    def from_map(cls, content: Mapping[str, Any]) -> Self:
        """Check plain data and make a message of it."""
        snapshot = content.get("snapshot")
        try:
            found = None if snapshot is None else Snapshot.from_map(snapshot)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise WireError("malformed", f"the snapshot: {error!r:.120}") from None
        return super().from_map({**content, "snapshot": found})


TO_CONSOLE: Kinds = {kind.KIND: kind for kind in (Seen, Over)}
