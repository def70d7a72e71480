"""The file of a sweep: which settings are tried, how often, and how trials are chosen. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from pdqn.errors import UsageError
from pdqn.text import printable

SAMPLERS, PRUNERS = ("tpe", "random", "grid"), ("none", "median", "halving", "hyperband")
DIRECTIONS = ("maximize", "minimize")
_MOST_TRIALS = 100_000
_RANGE = {"low", "high", "log", "step"}


@dataclass(frozen=True)
class Parameter:
    """A setting that trials choose.

    Attributes:
        name: ``section.key``.
        choices: the values to choose from; empty for a range.
        low, high: bounds of a range, which are part of it; whole numbers give whole numbers.
        log: whether the range is divided by its logarithm.
        step: distance of the values; None for all of them.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> Any:
        """Have a trial of Optuna choose a value."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep's file.

    Attributes:
        trials: how many are run, those that were pruned or have failed included.
        search: the settings that trials choose.
        env: environment of all trials.
        options: further options of ``pdqn launch`` for all trials.
        settings: settings of all trials by name.
        direction: whether the highest or the lowest score is the best.
        sampler: how values are chosen.
        pruner: how trials that are worse than others are ended early.
        warmup: evaluations of a trial before it may be pruned.
        startup: trials that come to their end before others may be pruned.
        seed: of the sampler.
    """

    trials: int
    search: tuple[Parameter, ...]
    env: str = ""
    options: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None
    direction: Literal["maximize", "minimize"] = "maximize"
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["none", "median", "halving", "hyperband"] = "median"
    warmup: int = 1
    startup: int = 4
    seed: int = 0

    def options_of(self, values: Mapping[str, Any]) -> list[str]:
        """Return the options of ``pdqn launch`` for a trial that has chosen these values."""
        chosen = {**(self.settings or {}), **values}
        settings = [part for name in chosen for part in ("--set", f"{name}={_toml(chosen[name])}")]
        return [*(["--env", self.env] if self.env else []), *self.options, *settings]


def sweep_of(name: str, content: Mapping[str, Any], known: Collection[str]) -> Sweep:
    """Check the content of a sweep's file.

    Args:
        name: of the file.
        content: as TOML has it.
        known: names of all settings.

    Raises:
        UsageError: a key is unknown or missing, or a value cannot be used.
    """
    accepted = {field.name for field in fields(Sweep)}
    for key in content:
        if key not in accepted:
            raise UsageError(f"{name}: unknown key {printable(key)}; known: {_listed(accepted)}")
    search = content.get("search")
    if not isinstance(search, dict) or not search:
        raise UsageError(f"{name}: [search] is missing: it has a table for each setting to try")
    parameters = tuple(_parameter(f"{name}: search", key, search[key], known) for key in search)
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise UsageError(f"{name}: settings: expected a table of settings")
    for key in settings:
        _check_name(f"{name}: settings", key, known)
    values: dict[str, Any] = {
        **content, "search": parameters, "settings": dict(settings),
        "options": _texts(f"{name}: options", content.get("options", [])),
    }  # fmt: skip
    for key, choices in (("direction", DIRECTIONS), ("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if key in values and values[key] not in choices:
            raise UsageError(f"{name}: {key} = {values[key]!r}; expected {_listed(choices)}")
    if not isinstance(values.get("env", ""), str):
        raise UsageError(f"{name}: env = {values['env']!r}; expected a name")
    for key, least in (("trials", 1), ("warmup", 0), ("startup", 0), ("seed", 0)):
        if key == "trials" or key in values:
            _check_whole(f"{name}: {key}", values.get(key), least)
    sweep = Sweep(**values)
    if sweep.sampler == "grid" and not all(parameter.choices for parameter in parameters):
        raise UsageError(f"{name}: sampler = 'grid': every setting needs choices")
    return sweep


def _parameter(where: str, key: str, table: Any, known: Collection[str]) -> Parameter:
    """Check the table of one setting."""
    _check_name(where, key, known)
    where = f"{where}.{key}"
    if not isinstance(table, dict) or not table.keys() <= {*_RANGE, "choices"}:
        raise UsageError(f"{where}: expected a table with choices, or with low, high, log and step")
    if "choices" in table:
        choices = table["choices"]
        if table.keys() & _RANGE or not isinstance(choices, list) or not choices:
            raise UsageError(f"{where}: choices: expected a list of values, and no range beside it")
        if not all(isinstance(value, bool | int | float | str) for value in choices):
            raise UsageError(f"{where}: choices: expected numbers, texts, true or false")
        return Parameter(key, tuple(choices))
    low: Any = table.get("low")
    high: Any = table.get("high")
    log, step = table.get("log", False), table.get("step")
    if not (_is_number(low) and _is_number(high) and low < high):
        raise UsageError(f"{where}: low = {low}, high = {high}; expected two numbers, low < high")
    if not isinstance(log, bool) or (log and (low <= 0 or step is not None)):
        raise UsageError(f"{where}: log = {log}; true needs low > 0, and no step")
    if step is not None and not (_is_number(step) and step > 0):
        raise UsageError(f"{where}: step = {step}; expected a number above 0")
    return Parameter(key, (), low, high, log, step)


def _check_name(where: str, key: str, known: Collection[str]) -> None:
    if key not in known:
        raise UsageError(
            f'{where}: there is no setting {printable(key)}; write "section.key", as pdqn settings '
            "lists them"
        )


def _check_whole(where: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST_TRIALS:
        raise UsageError(f"{where} = {value}; expected a whole number from {least} up")


def _texts(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UsageError(f'{where}: expected a list of texts, such as ["--time", "60s"]')
    return tuple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
