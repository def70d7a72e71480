"""The figures of a run: one table of names, sources and units that everything else looks up.

metrics.jsonl, TensorBoard, Prometheus, consoles, pictures and the summary use these names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

# Parts of names that the environment gives: its headline metric, and its baselines and metrics.
HEADLINE, BASELINE = "HEADLINE", "NAME"

Kind = Literal[
    "total",  # of a counter, since the run began
    "time",  # of a counter of seconds, since the run began
    "rate",  # growth of a counter per second, over the last ten seconds
    "share",  # growth of a counter of seconds, per second and member of the role; at most 1
    "ratio",  # of two totals; 0 before there is anything to divide by
    "recent_ratio",  # of two rates; unknown while nothing grows
    "newest",  # of a gauge; it stays known while its role is away
    "mean", "sum", "min", "max",  # of a gauge, over the present members of the role
    "episodes",  # mean over the newest finished episodes
    "ledger",  # of the balance of all transitions
    "told",  # by the launcher or by an evaluation: not computed from reports
]  # fmt: skip
Role = Literal["actor", "replay", "learner", "evaluator", "all", "launcher"]


@dataclass(frozen=True)
class Figure:
    """One figure of a run.

    Attributes:
        name: as in metrics.jsonl. HEADLINE and NAME stand for names of the environment's.
        role: of the processes that report its source.
        kind: how the figure is computed from its source.
        source: name of the counter or gauge; for episodes, of their attribute.
        unit: of the value, in words; empty for a plain number.
        doc: one line for people.
        per: counters of the same role that ratios divide by; those after the first are taken off.
        drawn: whether consoles draw its recent values.
    """

    name: str
    role: Role
    kind: Kind
    source: str
    unit: str
    doc: str
    per: tuple[str, ...] = ()
    drawn: bool = False


FIGURES = (
    Figure("time_seconds", "launcher", "told", "", "seconds", "time since the run began"),
    Figure("environment_steps", "actor", "total", "environment_steps", "environment steps",
           "steps of all environments since the run began"),
    Figure("episodes", "actor", "total", "episodes", "episodes", "finished since the run began"),
    Figure("learner_steps", "learner", "newest", "learner_steps", "learner steps",
           "steps behind the present parameters"),
    # ---- rollout: of the episodes in training ----
    Figure("rollout/ep_rew_mean", "actor", "episodes", "score", "",
           "return of the last 100 episodes, which explore", drawn=True),
    Figure("rollout/ep_len_mean", "actor", "episodes", "length", "environment steps",
           "length of the last 100 episodes", drawn=True),
    Figure("rollout/HEADLINE", "actor", "episodes", "headline", "",
           "the environment's headline metric at the end of the last 100 episodes", drawn=True),
    Figure("rollout/exploration_rate", "actor", "mean", "epsilon", "probability",
           "epsilon, mean over the actors", drawn=True),
    Figure("rollout/exploration_rate_min", "actor", "min", "epsilon_min", "probability",
           "lower end of the ladder of epsilons"),
    Figure("rollout/exploration_rate_max", "actor", "max", "epsilon_max", "probability",
           "upper end of the ladder of epsilons"),
    Figure("rollout/guidance", "actor", "mean", "guidance", "probability",
           "probability that an exploring action follows the environment's suggestion"),
    Figure("info/NAME", "actor", "episodes", "metrics", "",
           "the environment's own info[\"metrics\"][NAME] at the end of the last 100 episodes"),
    # ---- train: of the newest learner steps ----
    Figure("train/loss", "learner", "recent_ratio", "loss_sum", "",
           "mean loss of the learner steps in the last ten seconds, without skipped ones",
           per=("learner_steps", "steps_skipped"), drawn=True),
    Figure("train/q_mean", "learner", "mean", "q_mean", "",
           "mean Q of the actions in the newest SampleBatch", drawn=True),
    Figure("train/gradient_norm", "learner", "mean", "gradient_norm", "",
           "gradient norm before clipping"),
    Figure("train/learning_rate", "learner", "mean", "learning_rate", "", "learning rate in force"),
    Figure("train/importance_sampling_exponent", "learner", "mean", "importance_sampling_exponent",
           "", "importance-sampling exponent in force"),
    # ---- speed and waiting, over the last ten seconds ----
    Figure("time/fps", "actor", "rate", "environment_steps", "environment steps/s",
           "steps of all environments, over the last ten seconds", drawn=True),
    Figure("actor/episodes_per_second", "actor", "rate", "episodes", "episodes/s",
           "episodes of all actors, over the last ten seconds", drawn=True),
    Figure("actor/wait_share", "actor", "share", "wait_seconds", "share",
           "part of the actors' time spent waiting for replay"),
    Figure("actor/environment_failures", "actor", "total", "environment_failures", "episodes",
           "episodes dropped because their environment failed"),
    Figure("actor/steps_not_finite", "actor", "total", "steps_not_finite", "environment steps",
           "steps left out because an observation or a reward is not finite"),
    Figure("actor/episode_details_dropped", "actor", "total", "episode_details_dropped", "episodes",
           "episodes without score and length, for which a report had no room"),
    Figure("actor/cpu_seconds", "actor", "time", "cpu_seconds", "seconds",
           "CPU time of all actors since the run began, start-up included"),
    # ---- replay ----
    Figure("replay/size", "replay", "sum", "size", "transitions",
           "transitions stored in all shards"),
    Figure("replay/capacity", "launcher", "told", "", "transitions",
           "most transitions that all shards store"),
    Figure("replay/stored_bytes", "replay", "sum", "stored_bytes", "bytes",
           "memory of the stored transitions"),
    Figure("replay/samples_per_insert", "replay", "ratio", "samples", "",
           "transitions sampled for each one inserted, over the whole run",
           per=("transitions_received",)),
    Figure("replay/samples_per_insert_target", "replay", "mean", "limiter_target", "",
           "samples per insert that the limiter aims at"),
    Figure("replay/limiter_balance", "replay", "mean", "limiter_balance", "transitions",
           "samples that inserted transitions still allow; below 0 where samples are ahead"),
    Figure("replay/inserts_blocked_share", "replay", "share", "inserts_blocked_seconds", "share",
           "part of the replays' time in which inserts wait for samples"),
    Figure("replay/samples_blocked_share", "replay", "share", "samples_blocked_seconds", "share",
           "part of the replays' time in which samples wait for inserts"),
    Figure("replay/blocked_for_seconds", "replay", "max", "blocked_for_seconds", "seconds",
           "time since the present wait of inserts or samples began"),
    Figure("replay/inserts_per_second", "replay", "rate", "transitions_received", "transitions/s",
           "transitions inserted, over the last ten seconds"),
    Figure("replay/samples_per_second", "replay", "rate", "samples", "transitions/s",
           "transitions sampled, over the last ten seconds"),
    Figure("replay/bytes_per_second", "replay", "rate", "bytes_received", "bytes/s",
           "bytes received from actors, over the last ten seconds"),
    Figure("replay/priorities_ignored", "replay", "total", "priorities_ignored", "priorities",
           "new priorities of transitions that were overwritten meanwhile"),
    Figure("replay/priorities_clipped", "replay", "total", "priorities_clipped", "priorities",
           "priorities, of new transitions and of updates, lowered to replay.priority_max"),
    Figure("replay/transitions_expired", "replay", "total", "transitions_expired", "transitions",
           "stored transitions that became older than replay.max_age"),
    Figure("replay/requests_dropped", "replay", "total", "requests_dropped", "messages",
           "requests of the learner beyond the number that may wait"),
    Figure("replay/answers_undeliverable", "replay", "total", "answers_undeliverable", "messages",
           "answers to a learner that had gone"),
    Figure("replay/tallies_ignored", "replay", "total", "tallies_ignored", "messages",
           "tallies that the learner meant for an earlier incarnation of replay"),
    Figure("replay/transitions_recovered", "replay", "total", "transitions_recovered",
           "transitions", "transitions that restarted replays took over from their journals"),
    Figure("replay/journal_bytes", "replay", "sum", "journal_bytes", "bytes",
           "size of the journals; 0 without one"),
    Figure("replay/journal_failures", "replay", "total", "journal_failures", "",
           "attempts at writing the journal that failed"),
    Figure("replay/journal_damaged", "replay", "total", "journal_damaged", "",
           "damaged places of journals that restarted replays have read"),
    Figure("replay/cpu_seconds", "replay", "time", "cpu_seconds", "seconds",
           "CPU time of all replays since the run began, start-up included"),
    # ---- learner ----
    Figure("learner/steps_per_second", "learner", "rate", "learner_steps", "learner steps/s",
           "learner steps, over the last ten seconds", drawn=True),
    Figure("learner/micro_batch_size", "learner", "mean", "micro_batch_size", "transitions",
           "transitions that the learner computes at once"),
    Figure("learner/wait_share", "learner", "share", "wait_seconds", "share",
           "part of the learner's time spent waiting for SampleBatches"),
    Figure("learner/shared_memory", "learner", "mean", "shared_memory", "",
           "1 where SampleBatches come through shared memory, else 0"),
    Figure("learner/policy_lag", "replay", "ratio", "policy_lag_sum", "learner steps",
           "age of the acting parameters when transitions were inserted, over the whole run",
           per=("transitions_received",), drawn=True),
    Figure("learner/steps_skipped", "learner", "total", "steps_skipped", "learner steps",
           "learner steps skipped because they would have spoilt the parameters"),
    Figure("learner/answers_rejected", "learner", "total", "answers_rejected", "messages",
           "answers of replay that the learner could not read"),
    Figure("learner/priorities_dropped", "learner", "total", "priorities_dropped", "priorities",
           "new priorities for shards that are gone"),
    Figure("learner/cpu_seconds", "learner", "time", "cpu_seconds", "seconds",
           "CPU time of the learner since the run began, start-up included"),
    # ---- system ----
    Figure("system/lost", "replay", "total", "batches_missing", "TransitionBatches",
           "TransitionBatches that never came"),
    Figure("system/transitions_waiting", "all", "ledger", "waiting", "transitions",
           "transitions made that are still at their actors, or on their way to replay"),
    Figure("system/transitions_lost", "all", "ledger", "lost", "transitions",
           "transitions that were neither stored nor refused, and that nothing can bring any more"),
    Figure("system/transitions_died", "all", "ledger", "died", "transitions",
           "transitions that died with actors that were killed"),
    Figure("system/transitions_stored_twice", "all", "ledger", "stored_twice", "transitions",
           "transitions that two shards have stored, after one of them had ended"),
    Figure("system/reports_dropped", "all", "total", "reports_dropped", "messages",
           "reports to the coordinator for which a role had no room"),
    Figure("system/control_rejected", "all", "total", "control_rejected", "messages",
           "control messages that their receiver refused"),
    Figure("system/figures_dropped", "all", "total", "figures_dropped", "figures",
           "figures that were dropped: not finite, too large, or with too many names"),
    Figure("system/gpu_percent", "learner", "mean", "gpu_percent", "percent",
           "load of the learner's GPU"),
    Figure("system/gpu_memory_bytes", "learner", "mean", "gpu_memory_bytes", "bytes",
           "memory in use on the learner's GPU"),
    Figure("evaluator/cpu_seconds", "evaluator", "time", "cpu_seconds", "seconds",
           "CPU time of the evaluator since the run began, start-up included"),
    # ---- eval: of one evaluation, on lines of their own ----
    Figure("eval/parameter_version", "evaluator", "told", "", "learner steps",
           "steps behind the evaluated parameters"),
    Figure("eval/episodes", "evaluator", "told", "", "episodes", "episodes on held-out seeds"),
    Figure("eval/return_mean", "evaluator", "told", "", "", "mean return of the greedy policy"),
    Figure("eval/return_error", "evaluator", "told", "", "", "standard error of the return"),
    Figure("eval/best", "evaluator", "told", "", "",
           "score of the evaluation whose parameters are in best_model.pth"),
    Figure("eval/baseline/NAME", "evaluator", "told", "", "",
           "score of the environment's baseline NAME on the same seeds"),
    Figure("eval/gap_closed", "evaluator", "told", "", "",
           "share of the gap from exact greedy to the dual bound; absent unless both are known"),
    Figure("eval/difference/NAME_error", "evaluator", "told", "", "",
           "standard error of the difference from the baseline"),
    Figure("eval/difference/NAME", "evaluator", "told", "", "",
           "score of the policy minus that of the baseline, paired by seed"),
    Figure("eval/HEADLINE_error", "evaluator", "told", "", "",
           "standard error of the headline metric"),
    Figure("eval/HEADLINE", "evaluator", "told", "", "",
           "mean of the environment's headline metric"),
)  # fmt: skip

BY_NAME: Mapping[str, Figure] = {figure.name: figure for figure in FIGURES}
_PATTERNS = tuple(
    (re.compile(re.sub(f"{HEADLINE}|{BASELINE}", ".+", figure.name)), figure)
    for figure in FIGURES
    if HEADLINE in figure.name or BASELINE in figure.name
)


def find(name: str) -> Figure | None:
    """Return the figure of this name, with HEADLINE and NAME filled in or not; None without one."""
    if found := BY_NAME.get(name):
        return found
    return next((figure for pattern, figure in _PATTERNS if pattern.fullmatch(name)), None)


def computed(headline: str | None) -> Iterator[Figure]:
    """Yield the figures that are computed from reports.

    Args:
        headline: name of the environment's headline metric, which takes the place of HEADLINE.
    """
    for figure in FIGURES:
        if figure.kind == "told" or (HEADLINE in figure.name and headline is None):
            continue
        if BASELINE in figure.name:  # which names there are is known once episodes have ended
            continue
        yield dataclasses.replace(figure, name=figure.name.replace(HEADLINE, headline or ""))


def info_name(metric: str) -> str:
    """Return the name of the figure of one of the environment's own metrics."""
    return f"info/{metric}"


def rollout_name(headline: str) -> str:
    """Return the name of the headline metric's figure in training."""
    return f"rollout/{headline}"
