"""Completions of what follows --env and --set, for shells. Nothing of a run is imported."""

from __future__ import annotations

import importlib
import importlib.util

import click

from pdqn import layers


def settings(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """List the settings that begin like this, or one setting's values where they are few."""
    name, equals, value = begun.partition("=")
    if not equals:
        return [f"{known}=" for known, *_ in layers.settings() if known.startswith(name)]
    values = next((_values(words) for known, *_, words in layers.settings() if known == name), [])
    return [f"{name}={one}" for one in values if one.startswith(value)]


def environments(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """List the ids of registered environments that begin like this."""
    import gymnasium

    importlib.import_module("actors.environments.registration")
    if begun.startswith("M") and importlib.util.find_spec("minatar") is not None:
        importlib.import_module("minatar.gym").register_envs()
    if begun.startswith("A") and importlib.util.find_spec("ale_py") is not None:
        importlib.import_module("ale_py")
    return sorted(known for known in gymnasium.registry if known.startswith(begun))


def _values(accepted: str) -> list[str]:
    """Return the values that the description of a setting lists; none of a number's or a text's."""
    if accepted == "true or false":
        return ["true", "false"]
    first, _, rest = accepted.partition("one of ")
    return rest.split(", ") if not first else []
