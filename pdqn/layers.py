"""Layers of settings: text, TOML and environment variables become a checked configuration."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Literal

from pdqn.arguments import plain_arguments
from pdqn.config import Config
from pdqn.errors import UsageError
from pdqn.text import is_utf8

Layer = Mapping[str, Mapping[str, Any]]

LARGEST_INTEGER = (1 << 63) - 1  # the largest that messages and other readers of TOML hold
_MOST_SHOWN = 500  # characters of a value that is refused
_WHOLE = re.compile(r"([+-]?\d+(?:\.\d+)?(?:[eE]\+?\d{1,2})?)([kKMGT]?)", re.ASCII)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_OF_TIME = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MOST_DIGITS = 25  # so that a decimal holds all of them
_OF_SERVICE = re.compile(r"_SERVICE_(HOST|PORT\w*)|_PORT_\d+_(TCP|UDP|SCTP)\w*")

# In a run directory: the configuration as filled in for the machine, and as a person wrote it.
CONFIG, CONFIGURED = "config.toml", "configured.toml"


_SECTIONS: dict[str, type] = {
    f.name: typing.get_type_hints(Config)[f.name] for f in dataclasses.fields(Config)
}


def build(*layers: tuple[str, Layer]) -> Config:
    """Merge named layers, lowest first, check every value, and return the configuration.

    Args:
        layers: pairs of a layer's name as a person knows it ("option", "file run.toml") and its
            values, ``{section: {key: value}}``. Strings are converted to the key's type. Arguments
            of the environment are added to those of lower layers if these are for the same
            environment.

    Raises:
        UsageError: a section or key is unknown, or a value is not accepted. The message names the
            key, the value, the layer, and the accepted values.
    """
    merged: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for source, layer in layers:
        _forget_other_environment(merged, layer)
        for section, values in layer.items():
            known = _known_keys(section, source)
            for key, value in values.items():
                if key not in known:
                    raise UsageError(
                        f"{source}: unknown key {section}.{key}; "
                        f"{section} has {', '.join(sorted(known))}"
                    )
                converted = _convert(f"{section}.{key}", value, known[key], source)
                _check_text(f"{source}: {section}.{key}", converted)
                if isinstance(converted, dict):  # each layer may add some of the arguments
                    converted = {**merged[section].get(key, {}), **converted}
                merged[section][key] = converted
    return Config(**{section: _SECTIONS[section](**values) for section, values in merged.items()})


def _forget_other_environment(merged: dict[str, dict[str, Any]], layer: Layer) -> None:
    """Drop the lower layers' arguments for an environment that this layer replaces."""
    before, now = merged["run"].get("env"), layer.get("run", {}).get("env")
    if before is not None and now is not None and now != before:
        for section in ("run", "evaluation"):
            merged[section].pop("env_args", None)


def from_map(values: Layer, here: Layer | None = None) -> Config:
    """Read the configuration that ``Config.to_map`` wrote, with the same checks as any other input.

    Args:
        values: the result of ``Config.to_map``.
        here: settings of this host, which override them.
    """
    return build(("received configuration", values), ("this host", here or {}))


def read_toml(path: Path, file: IO[bytes] | None = None) -> Layer:
    """Read a layer from a TOML file.

    Args:
        path: of the file.
        file: the same, if it is open.

    Raises:
        UsageError: the file cannot be read, is not TOML, or has values outside a section.
    """
    try:
        content = path.read_bytes() if file is None else file.read()
        values = _loads(content.decode("utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise UsageError(f"configuration file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"configuration file {path}: it is not a text in UTF-8; save it as one"
        ) from error
    except ValueError as error:
        raise UsageError(f"configuration file {path}: {error}") from error
    for section, content in values.items():
        if isinstance(content, list) and section in _SECTIONS:
            raise UsageError(f"configuration file {path}: {section} is a list; write [{section}]")
        if not isinstance(content, dict):
            raise UsageError(f"configuration file {path}: {section} is outside a [section]")
    return values


def of_run(values: Layer) -> Layer:
    """Add the settings that a file of an earlier version lacks, with their meaning at that time.

    Args:
        values: ``config.toml`` or ``configured.toml`` of a run, or its network in a model file.
    """
    before = {"images": "dtype", "fold_frames": False}
    return {**values, "network": {**before, **values.get("network", {})}}


def from_environment(variables: Mapping[str, str]) -> Layer:
    """Read a layer from ``PDQN_SECTION__KEY`` variables."""
    layer: dict[str, dict[str, Any]] = {}
    for name, value in variables.items():
        if not name.startswith("PDQN_"):
            continue
        section, separator, key = name.removeprefix("PDQN_").lower().partition("__")
        if separator:
            layer.setdefault(section, {})[key] = value
            continue
        if _is_of_service(name, value):
            continue
        if meant := next((s for s in _SECTIONS if section.startswith(f"{s}_")), None):
            key = section.removeprefix(f"{meant}_")
            raise UsageError(
                f"environment variable {name}: two underscores are needed after the section: "
                f"PDQN_{meant.upper()}__{key.upper()}"
            )
    return layer


def _is_of_service(name: str, value: str) -> bool:
    """Tell whether Kubernetes made a variable for a service whose name begins with ``pdqn``."""
    return bool(_OF_SERVICE.search(name)) or value.startswith(("tcp://", "udp://", "sctp://"))


def from_assignments(assignments: Iterable[str]) -> Layer:
    """Read a layer from ``section.key=value`` strings."""
    layer: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not key:
            raise UsageError(f"--set {assignment}: expected section.key=value")
        layer.setdefault(section, {})[key] = value.strip()
    return layer


def parse_value(text: str) -> Any:
    """Parse a text as a TOML value such as ``64`` or ``true``; return other texts unchanged.

    ``True`` and ``False`` have their meaning in Python. Dates stay texts, because no setting
    accepts a date.

    Raises:
        ValueError: it is a value that Python does not read, see ``_loads``.
    """
    if text in ("True", "False"):
        return text == "True"
    try:
        parsed = _loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A text of several lines may be more than one value.
    is_value = len(parsed) == 1 and not _holds_time(parsed["value"])
    return parsed["value"] if is_value else text


def _loads(text: str) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ValueError: it is not TOML, has a number of thousands of digits, or lists nested too deeply.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # Python's limit, which it explains to programmers
        raise ValueError("it has a number of thousands of digits") from None
    except RecursionError:
        raise ValueError("it has lists or tables that are nested too deeply") from None


def _holds_time(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_holds_time, value.values() if isinstance(value, dict) else value))
    return isinstance(value, datetime.date | datetime.time)


def whole_number(text: str) -> int:
    """Read a whole number as people write it: ``100000``, ``100_000``, ``1e5``, ``100k``, ``1.5M``.

    Raises:
        ValueError: the text is not a whole number.
        OverflowError: it is larger than any setting can be.
    """
    match = _WHOLE.fullmatch(text.strip().replace("_", ""))
    if match is None:
        raise ValueError(f"{text!r:.80} is not a whole number")
    digits, unit = match.groups()
    number = Decimal(digits) * _UNITS[unit.upper()]
    if len(digits) > _MOST_DIGITS or number > LARGEST_INTEGER:
        raise OverflowError(f"{text:.80}; expected a whole number from 1 to {LARGEST_INTEGER}")
    if number != number.to_integral_value():
        raise ValueError(f"{text!r:.80} is not a whole number")
    return int(number)


def seconds_of(text: str) -> float:
    """Read a duration: a number of seconds, or a number with a unit: 90s, 10m, 2h, 1d.

    Raises:
        ValueError: the text is not a duration.
    """
    plain = text.strip().lower()
    number = plain[:-1] if plain[-1:] in _OF_TIME else plain
    try:
        seconds = float(number) * _OF_TIME.get(plain[-1:], 1.0)
    except ValueError:
        raise ValueError(f"{text!r} is not a duration; write 90s, 10m, 2h or 1d") from None
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text!r}; expected a finite time above zero: 90s, 10m, 2h or 1d")
    return seconds


def settings() -> Iterable[tuple[str, Any, str, str]]:
    """List every setting as (name, default, documentation, accepted values), in order."""
    for section, kind in _SECTIONS.items():
        hints = typing.get_type_hints(kind)
        for item in dataclasses.fields(kind):
            default = {} if item.default is dataclasses.MISSING else item.default
            accepted = _accepted(hints[item.name], item.metadata)
            yield f"{section}.{item.name}", default, item.metadata["doc"], accepted


def _known_keys(section: str, source: str) -> dict[str, tuple[Any, Mapping[str, Any]]]:
    if section not in _SECTIONS:
        raise UsageError(f"{source}: unknown section {section}; there are {', '.join(_SECTIONS)}")
    hints = typing.get_type_hints(_SECTIONS[section])
    return {f.name: (hints[f.name], f.metadata) for f in dataclasses.fields(_SECTIONS[section])}


def _convert(name: str, value: Any, known: tuple[Any, Mapping[str, Any]], source: str) -> Any:
    kind, bounds = known
    accepted = _accepted(kind, bounds)
    if _may_be_auto(kind):
        if value is None or value == "auto":
            return None
        kind = _other_than_auto(kind)
    try:
        converted = _as_type(value, kind)
        if bounds["check"] is not None:
            bounds["check"](converted)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, OverflowError) and kind is int and bounds["at_most"] is None:
            accepted = _accepted(known[0], {**bounds, "at_most": LARGEST_INTEGER})
        raise UsageError(f"{source}: {name} = {_shown(value)}; expected {accepted}") from None
    if isinstance(converted, dict):
        return _arguments(name, converted, source)
    if isinstance(converted, (int, float)) and not _within(converted, bounds):
        raise UsageError(f"{source}: {name} = {value}; expected {accepted}")
    return converted


def _shown(value: Any) -> str:
    """Write a value as Python does, and no more of it than a person reads."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _arguments(name: str, values: Mapping[Any, Any], source: str) -> dict[str, Any]:
    try:
        return plain_arguments(name, values)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None


def _check_text(name: str, value: Any) -> None:
    """Refuse a text that no file and no message can hold, as from a terminal that is not UTF-8."""
    if isinstance(value, str) and not is_utf8(value):
        raise UsageError(f"{name} = {value!r}; expected a text in UTF-8")


def _as_type(value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError
        return value
    if kind is bool:
        return _as_bool(value)
    if kind is int:
        return _as_int(value)
    if kind is float:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    if kind is str:
        return str(value)
    table = parse_value(value) if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise TypeError
    return dict(table)


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    named = {"true": True, "false": False}
    if str(value).lower() not in named:
        raise ValueError
    return named[str(value).lower()]


def _as_int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    number = whole_number(value) if isinstance(value, str) else int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError
    if number > LARGEST_INTEGER:
        raise OverflowError
    if number < -LARGEST_INTEGER:
        raise ValueError
    return number


def _within(value: float, bounds: Mapping[str, Any]) -> bool:
    return (
        math.isfinite(value)
        and (bounds["at_least"] is None or value >= bounds["at_least"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["at_most"] is None or value <= bounds["at_most"])
    )


def _may_be_auto(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _other_than_auto(kind: Any) -> Any:
    return next(option for option in typing.get_args(kind) if option is not types.NoneType)


def _accepted(kind: Any, bounds: Mapping[str, Any]) -> str:
    """Describe the accepted values of a setting in words."""
    if _may_be_auto(kind):
        return f"{_describe(_other_than_auto(kind), bounds)} or auto"
    return _describe(kind, bounds)


def _describe(kind: Any, bounds: Mapping[str, Any]) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    if kind is bool:
        return "true or false"
    if kind not in (int, float):
        return bounds["words"] if kind is str else "a table such as {level = 3, fast = true}"
    words = ["a whole number" if kind is int else "a number"]
    names = {"at_least": "of at least", "above": "above", "at_most": "and at most"}
    words += [f"{text} {bounds[key]}" for key, text in names.items() if bounds[key] is not None]
    return " ".join(words)
