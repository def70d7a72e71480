"""Numbers from the infos of a batch: one for each environment, of the keys that pdqn reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.environments.interface import InterfaceError, is_number, number, shown
from pdqn.episodes import MAX_METRIC_NAME, MAX_METRICS
from pdqn.text import is_printable

SUGGESTED, METRICS = "suggested_action", "metrics"
# gymnasium's batches, or pdqn's guard, put something else under these keys.
FAILED, METRICS_DROPPED = "environment_failed", "environment_metrics_dropped"
RESERVED = ("final_info", "final_obs", FAILED)


def headlines(infos: Mapping[str, Any], name: str, num_envs: int) -> NDArray[np.float64]:
    """Read the headline metric, float64[num_envs]; NaN where the infos do not have it.

    Raises:
        InterfaceError: it is not a number.
    """
    values, odd = _numbers(infos, name, num_envs)
    if odd:
        raise no_number(name, odd)
    return values


def own_metrics(given: Any) -> tuple[dict[str, float], int]:
    """Read ``info["metrics"]`` of one environment at the end of an episode.

    Returns:
        Finite numbers by name, at most ``MAX_METRICS``. Then the number of values left out: of
        another kind, with another name than a short text, or beyond that.
    """
    told: dict[str, float] = {}
    try:
        items = list(given.items())
    except Exception:  # noqa: BLE001 - of any object that is not a mapping
        return told, 1
    for name, value in items:
        is_name = isinstance(name, str) and is_printable(name) and not name.startswith("_")
        if is_name and 0 < len(name) <= MAX_METRIC_NAME and len(told) < MAX_METRICS:
            number_given = number(value) if is_number(value) else math.nan
            if math.isfinite(number_given):
                told[name] = number_given
    return told, len(items) - len(told)


def final_metrics(
    infos: Mapping[str, Any], ended: NDArray[np.bool_]
) -> tuple[dict[int, dict[str, float]], int]:
    """Read the own metrics of the episodes of a batch that have just ended.

    Args:
        infos: those of the step.
        ended: bool[num_envs], whether an episode ended.

    Returns:
        the metrics by the index of the environment, and the number of those left out.
    """
    final = infos.get("final_info", {}) if ended.any() else {}
    if (given := final.get(METRICS)) is None:
        return {}, 0
    if not isinstance(given, Mapping):
        return {}, 1
    by_guards, _ = _numbers(final, METRICS_DROPPED, len(ended))
    columns, dropped = {}, int(np.nansum(by_guards))
    for name in given:
        if isinstance(name, str) and not name.startswith("_"):
            columns[name], odd = _numbers(given, name, len(ended))
            dropped += bool(odd)
    found: dict[int, dict[str, float]] = {}
    for env in np.flatnonzero(ended).tolist():
        row = {name: values[env] for name, values in columns.items() if not np.isnan(values[env])}
        told, left_out = own_metrics(row)
        dropped += left_out
        if told:
            found[env] = told
    return found, dropped


def no_number(name: str, text: str) -> InterfaceError:
    """Make the error for a headline metric that is not a number."""
    return InterfaceError(
        f'info["{name}"] is {text}; headline_metric = "{name}" makes it the score, so one number '
        "is needed"
    )


def checked_scores(
    scores: Any, count: int, method: str = "baselines"
) -> dict[str, NDArray[np.float64]]:
    """Check the scores of an environment's baselines: ``count`` numbers by each name.

    Raises:
        InterfaceError: they are something else.
    """
    try:
        checked = {str(name): np.asarray(each, np.float64) for name, each in scores.items()}
    except Exception:  # noqa: BLE001 - of any object that is not a mapping, or not of numbers
        checked = None
    if checked is None or any(each.shape != (count,) for each in checked.values()):
        raise InterfaceError(
            f"{method}(seeds) gave {shown(scores)}; a dict of names and scores is needed, one "
            f"score for each of the {count} seeds"
        )
    return checked


def suggestions(
    infos: Mapping[str, Any], num_envs: int, first_action: int, num_actions: int
) -> tuple[NDArray[np.int64] | None, str]:
    """Read an expert's actions.

    Returns:
        They are int64[num_envs], 0 .. num_actions - 1, and -1 where there is none; None if there is
        none at all. The text shows a suggestion that is not an action, if there is one; such a one
        counts as none.
    """
    if SUGGESTED not in infos:
        return None, ""
    values, odd = _numbers(infos, SUGGESTED, num_envs)
    actions = values - first_action
    is_action = (actions >= 0) & (actions < num_actions) & (actions == np.floor(actions))
    meant = np.isfinite(values) & ~is_action & (values != -1)
    if meant.any():
        odd = odd or f"{values[meant][0]:g}"
    if odd and not is_action.any():
        return None, odd
    suggested = np.full(num_envs, -1, np.int64)
    suggested[is_action] = actions[is_action].astype(np.int64)
    return suggested, odd


def _numbers(infos: Mapping[str, Any], name: str, num_envs: int) -> tuple[NDArray[np.float64], str]:
    """Read one number for each environment; NaN for none. Show one that is not a number."""
    values = np.full(num_envs, np.nan)
    if name not in infos:
        return values, ""
    known = np.asarray(infos.get(f"_{name}", np.ones(num_envs, bool)), bool)
    try:
        given = np.asarray(infos[name])
    except Exception:  # noqa: BLE001 - lists of different lengths, and any object's own conversion
        return values, shown(infos[name])
    if given.shape[:1] != (num_envs,):
        return values, shown(infos[name])
    if given.dtype.kind in "biuf" and given.ndim == 1:
        values[known] = given[known]
        return values, ""
    odd = ""
    for index in np.flatnonzero(known):
        value = given[index]
        if value is not None and is_number(value):
            values[index] = number(value)
        elif value is not None:  # None for environments without the key
            odd = odd or shown(value)
    return values, odd
