"""From the keyword arguments of ``pdqn.train`` to settings and options of ``pdqn launch``."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pdqn import layers
from pdqn.config import Config
from pdqn.driver.callables import name_of
from pdqn.errors import UsageError
from pdqn.layers import Layer

Env = str | Callable[..., Any] | None
# The settings of each section.
_KEYS = {section: [*vars(part)] for section, part in vars(Config()).items()}
_SECTIONS, _OF_RUN = _KEYS.keys(), _KEYS["run"]
# Options of ``pdqn launch`` that set what has another name in the file.
_SHORT = {"actors": ("actor", "count"), "envs_per_actor": ("actor", "envs_per_actor"),
          "replays": ("replay", "shards")}  # fmt: skip


@dataclass
class Request:
    """A program's request for a run.

    Attributes:
        layers: named settings, lowest first.
        arguments: further arguments of ``pdqn launch``.
        folders: folders in which the run's processes find the program's modules.
    """

    layers: list[tuple[str, Layer]] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """Arguments of ``pdqn.train`` beside settings; each is an option of ``pdqn launch``.

    Attributes:
        preset: settings of a known algorithm.
        config: a TOML file, or its content as a dict.
        run_dir: the directory of the run.
        resume: a run directory to go on with.
        force: run what the check advises against.
        trust: run whatever code another person's file names.
    """

    preset: str | None = None
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None
    run_dir: str | os.PathLike[str] | None = None
    resume: str | os.PathLike[str] | None = None
    force: bool = False
    trust: bool = False

    def arguments(self) -> list[str]:
        """Return the arguments of the command."""
        named = {"--preset": self.preset, "--run-dir": self.run_dir, "--resume": self.resume}
        if not isinstance(self.config, Mapping):
            named["--config"] = self.config
        given = [(name, os.fspath(value)) for name, value in named.items() if value is not None]
        flags = {"--force": self.force, "--trust": self.trust}
        return [
            *(text for pair in given for text in pair),
            *(f for f, is_on in flags.items() if is_on),
        ]


def request(
    env: Env, time: float | str | None, options: Options, given: Mapping[str, Any]
) -> Request:
    """Check what a program asks for, and put it in the words of the command.

    Args:
        env: the environment, or None for the default or that of a file.
        time: seconds, or a text such as ``90s``.
        options: whatever has an option of its own.
        given: settings: sections as dicts, settings of ``[run]`` by their names alone.

    Raises:
        UsageError: a name is not known, or a value is not accepted.
    """
    asked = Request(arguments=options.arguments())
    layer = _layer("argument", given)
    if env is not None:
        layer.setdefault("run", {})["env"] = env
    if time is not None:
        layer.setdefault("run", {})["time_seconds"] = _seconds(time)
    named = [("argument", layer)]
    if isinstance(options.config, Mapping):
        named.insert(0, ("config", _layer("config", options.config)))
    for name, one in named:
        _name_callables(one, asked)
        asked.layers.append((name, _plain(name, one)))
    return asked


def _layer(source: str, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort settings into sections."""
    layer = _sections(source, {k: v for k, v in given.items() if k in _SECTIONS})
    for name, value in given.items():
        if name in _SECTIONS:
            continue
        section, key = ("run", name) if name in _OF_RUN else _SHORT.get(name, ("", ""))
        if not section:
            raise UsageError(f"{source}: unknown setting {name}{_advice(name)}")
        if key in layer.get(section, {}):
            raise UsageError(f"{source}: {name} is given twice: also as {section}={{{key!r}: ...}}")
        layer.setdefault(section, {})[key] = value
    return layer


def _sections(source: str, values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Copy settings by section; a network may be given alone."""
    layer: dict[str, dict[str, Any]] = {}
    for section, content in values.items():
        if section == "network" and callable(content):
            layer[section] = {"kind": content}
        elif isinstance(content, Mapping):
            layer[section] = dict(content)
        else:
            raise UsageError(
                f"{source}: {section} = {content!r:.80}; expected a dict of its settings, such as "
                f"{section}={{{_first_key(section)!r}: ...}}"
            )
    return layer


def _first_key(section: str) -> str:
    return _KEYS.get(section, ("key",))[0]


def _advice(name: str) -> str:
    """Say where a setting belongs, or which name is meant."""
    homes = [section for section, keys in _KEYS.items() if name in keys]
    if homes:
        return "; write " + " or ".join(f"{section}={{{name!r}: ...}}" for section in homes)
    known = [*_OF_RUN, *_KEYS, *_SHORT, "time", *(f.name for f in dataclasses.fields(Options))]
    every = known + [key for keys in _KEYS.values() for key in keys]
    close = difflib.get_close_matches(name, every, 1)
    if not close:
        return "; pdqn settings lists all settings"
    where = "" if close[0] in known else _advice(close[0]).replace("; write", ":")
    return f"; did you mean {close[0]}{where}?"


def _seconds(time: float | str) -> float:
    try:
        return layers.seconds_of(time if isinstance(time, str) else str(float(time)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"argument: time: {error}") from None


def _name_callables(layer: Mapping[str, dict[str, Any]], asked: Request) -> None:
    """Replace functions and classes by the names under which other processes import them."""
    for section, key in (("run", "env"), ("network", "kind")):
        value = layer.get(section, {}).get(key)
        if value is not None and not isinstance(value, str):
            what = "environment" if key == "env" else "network"
            if not callable(value):
                raise UsageError(
                    f"{what} {value!r:.80} is neither a name nor a function that makes one; give "
                    f"{'CartPole-v1' if key == 'env' else 'mlp'}, or my_module.make"
                )
            layer[section][key], folder = name_of(what, value)
            if folder is not None and folder not in asked.folders:
                asked.folders.append(folder)


def _plain(name: str, layer: Layer) -> Layer:
    """Check a layer, and convert its values to what JSON holds."""
    config = layers.build((name, layer))
    return {
        section: {key: getattr(getattr(config, section), key) for key in values}
        for section, values in layer.items()
    }
