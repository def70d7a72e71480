"""The run at one moment: the only thing that consoles are given to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pdqn.checks import as_tuple, check_finite, check_text, check_whole, refusal
from pdqn.messages import Kinds, Message, Over
from pdqn.wire import WireError

# The series that consoles draw, beside that of the headline metric.
DRAWN = frozenset(
    {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "rollout/exploration_rate",
        "train/loss",
        "train/q_mean",
        "actor/episodes_per_second",
        "time/fps",
        "learner/steps_per_second",
        "learner/policy_lag",
    }
)
_MAX_TEXT = 10_000
MemberState = Literal["starting", "alive", "late", "restarting", "stopped", "dead"]


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


@dataclass(frozen=True)
class Snapshot:
    """The whole run at one moment. Rates are over the last ten seconds or so.

    Attributes:
        stage: starting, running, paused, stopping or done.
        waiting_for: what the run cannot start without, in words; empty once all is there.
        progress: share of the nearest limit (episodes, steps or time); None without a limit.
        remaining_seconds: estimate until that limit.
        headline: name and recent mean of the environment's headline metric.
        inserts_blocked: share of the replays' time in which inserts had to wait.
        samples_blocked: share of the replays' time in which samples had to wait.
        replay_waits: which of them waits for what and since when, in words ("inserts wait 43%
            (learner is behind, 3 s)"); empty while none does.
        actors_wait: share of the actors' time spent waiting for replay to take their data.
        learner_waits: share of the learner's time spent waiting for batches.
        bottleneck: who limits whom, in words ("learner-bound: actors wait 43%").
        rejected: messages that replay refused, by reason.
        first_error: first line of the first error of the run, and the log that contains it.
        insecure: what leaves the launcher's host is neither encrypted nor authenticated.
        history: series of recent values by metric name, oldest first, for sparklines; keys are
            the metric names of metrics.jsonl such as ``rollout/ep_rew_mean`` and ``train/loss``.
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
    episodes: int
    environment_steps: int
    learner_steps: int
    episodes_per_second: float
    environment_steps_per_second: float
    learner_steps_per_second: float
    samples_per_second: float
    inserts_per_second: float
    bytes_per_second: float
    samples_per_insert: float
    samples_per_insert_target: float
    policy_lag: float
    return_mean: float | None
    headline: tuple[str, float] | None
    episode_length: float | None
    loss: float | None
    q_mean: float | None
    epsilon: float | None
    buffer_size: int
    buffer_capacity: int
    buffer_bytes: int
    inserts_blocked: float
    samples_blocked: float
    replay_waits: str
    actors_wait: float
    learner_waits: float
    bottleneck: str
    evaluation: EvaluationView | None
    members: tuple[MemberView, ...]
    restarts: int
    lost: int
    rejected: dict[str, int]
    first_error: str | None
    history: dict[str, tuple[float, ...]]
    insecure: bool = False

    def to_map(self) -> dict[str, Any]:
        """Return plain data for a process that watches."""
        history = {name: list(series) for name, series in self.history.items()}
        return dataclasses.asdict(dataclasses.replace(self, history={})) | {"history": history}

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Snapshot:
        """Read what ``to_map`` returned, in this process or another one.

        Raises:
            TypeError, KeyError, ValueError: this version does not write such data.
        """
        evaluation = values["evaluation"]
        return cls(
            **{
                **values,
                "headline": None if values["headline"] is None else tuple(values["headline"]),
                "evaluation": None if evaluation is None else EvaluationView(**evaluation),
                "members": tuple(MemberView(**member) for member in values["members"]),
                "history": {name: tuple(series) for name, series in values["history"].items()},
            }
        )


@dataclass(frozen=True)
class Seen(Message):
    """The run as watchers see it from elsewhere.

    Attributes:
        snapshot: the newest; None before there is one.
        said: number of lines that the run has shown so far.
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
            check_text(message[1], "a message's text", _MAX_TEXT)
        told = tuple((seconds, text) for seconds, text in self.messages)
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
