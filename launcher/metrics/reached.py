"""Sentences about evaluations: how far the policy is, and which parameters are the best. Pure."""

from __future__ import annotations

import math

from launcher.metrics.snapshot import EvaluationView, nearest_of
from launcher.numbers import number, uncertainty
from pdqn.gap import closed_gap
from pdqn.messages import Evaluation
from pdqn.model_head import BEST_MODEL
from pdqn.paired import is_above


def reached(evaluation: Evaluation) -> str:
    """Say whether the policy is better than exact greedy, or else than its nearest baseline.

    It is better or worse if the difference, paired by episode, is at least two standard errors from
    0. Empty if the environment has no baseline.
    """
    nearest = nearest_of(evaluation.differences)
    if nearest is None:
        return ""
    name, mean, error = nearest
    headline = next(iter(evaluation.metrics), "return")
    where = _where(evaluation, "map" if headline == "coverage" else "episode")
    if is_above(mean, error):
        amount = measured(mean, error)
        if headline == "coverage":
            return f"the policy covers {amount} more than {name} {where}{_share(evaluation)}"
        return f"the policy's {headline} is {amount} above that of {name} {where}"
    if mean == error == 0.0:
        return f"the policy is as good as {name} {where}; train longer"
    verdict = "worse than" if is_above(-mean, error) else "not better than"
    yet = "" if verdict == "worse than" else " yet"
    return (
        f"the policy is {verdict} {name}{yet}: {measured(mean, error, '+')} {where}; train longer"
    )


def best_kept(evaluation: Evaluation) -> str:
    """Say whose parameters are kept as the best; empty if it is not known, or was the only one."""
    version, score = evaluation.best_version, evaluation.best
    if version is None or score is None:
        return ""
    of = f"of learner step {version} ({next(iter(evaluation.metrics), 'return')} {number(score)})"
    if not evaluation.best_is_first:
        return f"{BEST_MODEL} has the parameters {of}"
    if version == evaluation.parameter_version:
        return ""
    return (
        f"no evaluation was above the first one by two standard errors, so {BEST_MODEL} keeps the "
        f"first parameters, {of}"
    )


def measured(mean: float, error: float, sign: str = "") -> str:
    """Format a mean and its standard error with the digits that the error leaves: 0.0026 ± 0.0003.

    Args:
        mean: the mean.
        error: its standard error; 0 if it has none, which is left out.
        sign: ``+`` to write the sign of a mean above 0.
    """
    if error == 0.0:
        return ("+" if sign and mean > 0 else "") + number(mean)
    exponent = math.floor(math.log10(error))
    # An error that begins with 1 has two digits: 0.001 would be anything up to half as much more.
    digits = max(0, -exponent + (error < 2 * 10.0**exponent))
    rounded = round(mean, digits) + 0.0  # not -0.0
    return f"{rounded:{sign}.{digits}f} ± {error:.{digits}f}"


def _where(evaluation: Evaluation, noun: str) -> str:
    count = evaluation.episodes - evaluation.unscored
    if count == 1:
        return f"on 1 held-out {noun}, which says little of others"
    return f"on {count} held-out {noun}s"


def gap_closed(evaluation: Evaluation) -> float | None:
    """Return the share of the provable gap that an evaluation's policy has closed, if known."""
    score = next(iter(evaluation.metrics.values()), evaluation.return_mean)
    return closed_gap(score, evaluation.baselines)


def _share(evaluation: Evaluation) -> str:
    share = gap_closed(evaluation)
    return "" if share is None else f": {share:.0%} of the provable gap"


def evaluation_score(evaluation: EvaluationView) -> tuple[str, float, float | None]:
    """Return name, value and, if known, standard error of the score to compare with baselines."""
    if not evaluation.metrics:
        return "return", evaluation.return_mean, evaluation.return_error
    name, value = next(iter(evaluation.metrics.items()))
    same = math.isclose(value, evaluation.return_mean, rel_tol=1e-4, abs_tol=1e-9)
    return name, value, evaluation.return_error if same else None


def beside_nearest(nearest: tuple[str, float, float] | None, sign: str) -> str:
    """Phrase how far a policy is from the nearest baseline; empty without baselines.

    Args:
        nearest: the baseline's name, the mean difference and its standard error.
        sign: sign before the standard error.
    """
    if nearest is None:
        return ""
    name, mean, error = nearest
    return f"{mean:+.2g} {sign}{uncertainty(error)} beside {name}"
