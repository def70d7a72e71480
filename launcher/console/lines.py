"""Lines, JSON objects and the closing summary of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from launcher.console.dashboard import STATE_STYLES
from launcher.coordinator.places import unnumbered
from launcher.metrics.reached import beside_nearest, evaluation_score
from launcher.metrics.roster import MemberGroup, states_of
from launcher.metrics.snapshot import Snapshot, nearest_of
from launcher.numbers import duration, number, percent, plural, size, uncertainty
from launcher.strict_json import to_json
from pdqn.gap import closed_text
from pdqn.text import printable

_MOST_REASONS = 3
# Of the ends of transitions, in the closing lines.
_ALWAYS_SHOWN = ("sent", "received", "lost")


def progress_line(snapshot: Snapshot) -> str:
    """Format everything that matters in a snapshot as one line of plain text."""
    return printable("  ".join(part for part in _parts(snapshot) if part))


def brief_line(snapshot: Snapshot) -> str:
    """Format what a person looks at most often as one short line."""
    return printable("  ".join(part for part in _brief_parts(snapshot) if part))


def _brief_parts(snapshot: Snapshot) -> Iterator[str]:
    yield f"[{duration(snapshot.elapsed_seconds)}]"
    yield "" if snapshot.stage == "running" else snapshot.stage
    yield f"waits for {snapshot.waiting_for}" if snapshot.waiting_for else ""
    if snapshot.progress is not None:
        yield f"{percent(snapshot.progress)}, {duration(snapshot.remaining_seconds)} left"
    yield _counted(snapshot, "episodes", "episodes", "actor/episodes_per_second")
    yield _counted(snapshot, "steps", "environment_steps", "time/fps")
    yield next(_learning_parts(snapshot), "")
    yield _evaluation_part(snapshot)


def _parts(snapshot: Snapshot) -> Iterator[str]:
    yield f"[{duration(snapshot.elapsed_seconds)}]"
    yield "" if snapshot.stage == "running" else snapshot.stage
    yield "NOT ENCRYPTED" if snapshot.insecure else ""
    yield f"waits for {snapshot.waiting_for}" if snapshot.waiting_for else ""
    if snapshot.progress is not None:
        yield f"{percent(snapshot.progress)}, {duration(snapshot.remaining_seconds)} left"
    yield _counted(snapshot, "episodes", "episodes", "actor/episodes_per_second")
    yield _counted(snapshot, "env steps", "environment_steps", "time/fps")
    yield _counted(snapshot, "learner steps", "learner_steps", "learner/steps_per_second")
    yield f"wire {snapshot.text('replay/bytes_per_second')}"
    ratio = snapshot.text("replay/samples_per_insert")
    yield f"samples/insert {ratio} of {snapshot.text('replay/samples_per_insert_target')}"
    yield f"lag {snapshot.text('learner/policy_lag')}"
    yield from _learning_parts(snapshot)
    stored, held = snapshot.amount("replay/size"), size(snapshot.amount("replay/stored_bytes"))
    yield f"buffer {number(int(stored))} of {snapshot.text('replay/capacity')}, {held}"
    yield _evaluation_part(snapshot)
    yield snapshot.expectation
    yield "; ".join(_members_part(role, states) for role, states in _states(snapshot).items())
    yield snapshot.bottleneck
    yield snapshot.replay_waits
    rejected = sum(snapshot.rejected.values())
    lost = int(snapshot.amount("system/transitions_lost"))
    yield f"restarts {snapshot.restarts}, lost {lost}, rejected {rejected}{_reasons(snapshot)}"
    if snapshot.value("replay/priorities_clipped"):
        yield f"priorities clipped {snapshot.text('replay/priorities_clipped')}"
    yield f"first error: {snapshot.first_error}" if snapshot.first_error else ""


def _reasons(snapshot: Snapshot) -> str:
    """List what was rejected most often, and of whom where that is known."""
    most = sorted(snapshot.rejected.items(), key=lambda item: -item[1])[:_MOST_REASONS]
    return f" ({', '.join(f'{reason} {count}' for reason, count in most)})" if most else ""


def _counted(snapshot: Snapshot, label: str, total: str, rate: str) -> str:
    return f"{label} {snapshot.text(total)} ({snapshot.text(rate)})"


def _learning_parts(snapshot: Snapshot) -> Iterator[str]:
    rows = [
        (snapshot.headline, snapshot.headline_figure or ""),
        ("return", "rollout/ep_rew_mean"),
        ("length", "rollout/ep_len_mean"),
        ("loss", "train/loss"),
        ("q", "train/q_mean"),
        ("epsilon", "rollout/exploration_rate"),
        *snapshot.own_figures,
    ]
    for label, name in rows:
        if snapshot.value(name) is not None:
            yield f"{label} {snapshot.text(name)}"


def _evaluation_part(snapshot: Snapshot) -> str:
    if snapshot.evaluation is None:
        return ""
    name, score, error = evaluation_score(snapshot.evaluation)
    spread = "" if error is None else f" +-{uncertainty(error)}"
    baselines = ", ".join(f"{k} {number(v)}" for k, v in snapshot.evaluation.baselines.items())
    text = f"eval {name} {number(score)}{spread}" + (f" ({baselines})" if baselines else "")
    beside = beside_nearest(snapshot.evaluation.nearest, "+-")
    closed = closed_text(score, snapshot.evaluation.baselines)
    return ", ".join(part for part in (text, beside, closed) if part)


def _states(snapshot: Snapshot) -> dict[str, Counter[str]]:
    """Count the members of each role in each state; a host counts once, in its worst state.

    Each part of a run that joins by itself is a host to the coordinator. A Dask worker has several.
    """
    states: defaultdict[str, Counter[str]] = defaultdict(Counter)
    hosts: defaultdict[str, list[MemberGroup]] = defaultdict(list)
    for group in snapshot.groups:
        if group.role == "host" and group.count == 1:  # others are many hosts in one group
            hosts[unnumbered(group.host)].append(group)
        else:
            states[group.role].update(group.states)
    for groups in hosts.values():
        states["host"][max(states_of(groups), key=list(STATE_STYLES).index)] += 1
    return dict(sorted(states.items()))


def _members_part(role: str, states: Counter[str]) -> str:
    if len(states) == 1 and states.total() == 1:
        return f"{role} {next(iter(states))}"
    return f"{role}s " + ", ".join(f"{count} {state}" for state, count in states.items())


def progress_map(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as plain data, with members counted by role and state and without history."""
    left_out = ("members", "groups", "history")
    values = {f.name: getattr(snapshot, f.name) for f in fields(snapshot) if f.name not in left_out}
    evaluation = snapshot.evaluation
    values["evaluation"] = None if evaluation is None else dict(vars(evaluation))
    values["members"] = _states(snapshot)
    return values


def dumps(values: Mapping[str, Any]) -> str:
    """Write one line of strict JSON, without NaN and infinity."""
    line = to_json(values, separators=(",", ":"), default=str)
    return line.replace("\x7f", "\\u007f")  # the one control character that JSON allows


def _restarts(summary: Mapping[str, Any]) -> str:
    failures = summary.get("environment_failures")
    text = _counts(summary.get("restarts"))
    text = f"{text}; {plural(failures, 'environment failure')}" if failures else text
    faults: Mapping[str, Any] = summary.get("steps_not_finite") or {}
    return f"{text}; steps that are not finite: {_counts(faults)}" if faults else text


def summary_rows(summary: Mapping[str, Any], error: str | None) -> list[tuple[str, str]]:
    """Describe how the run went: what was done, how fast, how well, and what went wrong."""
    rows = [
        ("done" if error is None else "failed", _done(summary)),
        ("rates", _rates(summary)),
        ("training", _scores(summary.get("environment"))),
        ("evaluation", _scores(summary.get("eval"))),
        ("reached", _in_words(summary, "reached")),
        ("best", _in_words(summary, "best_model")),
        ("transitions", _counts(_shown(summary.get("transitions") or {}))),
        ("restarts", _restarts(summary)),
        ("security", "NOT ENCRYPTED" if summary.get("insecure") else ""),
        ("results", str(summary.get("run_dir") or "")),
        ("warning", str(summary.get("warning") or "")),
        ("files", "; ".join(map(str, summary.get("unwritten") or ()))),
        ("error", error or ""),
    ]
    return [(title, text) for title, text in rows if text]


def _in_words(summary: Mapping[str, Any], name: str) -> str:
    """Return a sentence about the evaluation, in the signs of the lines around it."""
    sentence: str = (summary.get("eval") or {}).get(name, "")
    return sentence.replace("±", "+-")


def _done(summary: Mapping[str, Any]) -> str:
    names = {"episodes": "episode", "environment_steps": "environment step"}
    names["learner_steps"] = "learner step"
    parts = [plural(summary[key], noun) for key, noun in names.items() if key in summary]
    text = ", ".join(parts)
    if "wall_seconds" in summary:
        text += f" in {duration(summary['wall_seconds'])}"
    return text + (f" ({summary['exit_reason']})" if summary.get("exit_reason") else "")


def _rates(summary: Mapping[str, Any]) -> str:
    names = {
        "episodes_per_second": "episodes/s",
        "environment_steps_per_second": "environment steps/s",
        "learner_steps_per_second": "learner steps/s",
        "samples_per_insert": "samples/insert",
        "policy_lag_mean": "learner steps of policy lag",
    }
    return ", ".join(
        f"{number(summary[key])} {noun}" for key, noun in names.items() if key in summary
    )


def _scores(values: Mapping[str, Any] | None) -> str:
    if not values or values.get("return_mean") is None:
        return ""
    scores = {**values.get("metrics", {}), "return": values["return_mean"]}
    text = ", ".join(f"{name} {number(value)}" for name, value in scores.items())
    baselines = ", ".join(f"{k} {number(v)}" for k, v in values.get("baselines", {}).items())
    text += f" over {plural(values['episodes'], 'episode')}" if "episodes" in values else ""
    text += f"; baselines: {baselines}" if baselines else ""
    beside = beside_nearest(nearest_of(values.get("differences", {})), "+-")
    score = next(iter(values.get("metrics", {}).values()), values["return_mean"])
    closed = closed_text(score, values.get("baselines", {}))
    return "; ".join(part for part in (text, beside, closed) if part)


def _shown(transitions: Mapping[str, int]) -> dict[str, int]:
    """Pick the counts that the closing lines show: some always, the others if they are not 0."""
    others = {name: count for name, count in transitions.items() if count}
    if others.get("made") == others.get("sent"):
        others.pop("made", None)
    always = {name: transitions[name] for name in _ALWAYS_SHOWN if name in transitions}
    shown = {**always, **others}
    return {name.replace("_", " "): count for name, count in shown.items()}


def _counts(values: Mapping[str, int] | None) -> str:
    return ", ".join(f"{number(count)} {name}" for name, count in (values or {}).items())
