"""Makers of environments by name: gymnasium ids, modules, factories, Atari, MinAtar."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.vector import VectorEnv

from actors.environments import atari, registration
from pdqn.errors import UsageError, with_place
from pdqn.specs import ATARI_NAMESPACE

MINATAR = "MinAtar/"


@dataclass(frozen=True)
class Makers:
    """Functions that make an environment; at least one of the two.

    Attributes:
        single: function that makes one environment.
        vector: function that makes a batch of a given size that resets within a step
            (``SAME_STEP``).
    """

    single: Callable[[], Any] | None
    vector: Callable[[int], VectorEnv] | None


def makers(env_id: str, env_args: Mapping[str, Any]) -> Makers:
    """Find the functions that make an environment.

    Args:
        env_id: a gymnasium id, ``module:id`` or ``module:factory``. Importing the module registers
            the id. The factory makes an environment from the arguments. Its optional attribute
            ``vector``, a function of (num_envs, **env_args), makes a batch.
        env_args: keyword arguments of the environment.

    Raises:
        UsageError: the module or factory, or a package that the environment needs, is missing.
    """
    registration.register()
    if env_id.startswith(ATARI_NAMESPACE):
        return Makers(None, partial(atari.make_vector, env_id, **env_args))
    if env_id.startswith(MINATAR):
        _register_minatar(env_id)
    module_name, _, name = env_id.rpartition(":")
    factory = _factory(env_id, module_name, name) if module_name else None
    if factory is not None:
        vector = getattr(factory, "vector", None)
        return Makers(
            partial(factory, **env_args), None if vector is None else partial(vector, **env_args)
        )
    return Makers(partial(gymnasium.make, env_id, **env_args), _native(env_id, name, env_args))


def attribute(env: Any, name: str) -> Any:
    """Read an attribute of an environment, or of its outermost wrapper that has it; or None."""
    while env is not None:
        if hasattr(env, name):
            return getattr(env, name)
        env = getattr(env, "env", None)
    return None


def package_versions(env_id: str) -> dict[str, str]:
    """Look up the versions of the installed packages that an environment comes from, by name."""
    module = env_id.rpartition(":")[0]
    if not module:
        registration.register()
        spec = gymnasium.registry.get(env_id)
        module = spec.entry_point if spec is not None and isinstance(spec.entry_point, str) else ""
    prefixes = {ATARI_NAMESPACE: "ale_py", MINATAR: "minatar"}
    known = next((package for start, package in prefixes.items() if env_id.startswith(start)), None)
    top = known or module.partition(":")[0].partition(".")[0]
    names = ["gymnasium", *metadata.packages_distributions().get(top, [])]
    return {name: metadata.version(name) for name in names}


def _factory(env_id: str, module_name: str, name: str) -> Callable[..., Any] | None:
    """Find the module's function of this name; None if it names a registered environment."""
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"environment {env_id}: {error}") from error
    except SystemExit as error:
        raise UsageError(
            f"environment {env_id}: importing {module_name} ended the program "
            f"({with_place(error)}{_parser(error)}); put what only a script does below "
            "`if __name__ == '__main__':`"
        ) from error
    factory: Any = getattr(module, name, None)
    if callable(factory):
        return factory
    if name.isidentifier() and not _registered(name):
        raise UsageError(
            f"environment {env_id}: {module_name} has no function {name}, and registers no "
            "environment of this name"
        )
    return None


def _parser(error: SystemExit) -> str:
    """Say that a script's parser did not know the arguments of ours, if that was the reason."""
    files = {Path(frame.filename).name for frame in traceback.extract_tb(error.__traceback__)}
    return ", its own argparse" if "argparse.py" in files else ""


def _registered(name: str) -> bool:
    return any(name in (key, spec.name) for key, spec in gymnasium.registry.items())


def _native(
    env_id: str, name: str, env_args: Mapping[str, Any]
) -> Callable[[int], VectorEnv] | None:
    entry = gymnasium.registry.get(name)  # None for an id without its version
    if entry is None or entry.vector_entry_point is None:
        return None
    return partial(gymnasium.make_vec, env_id, vectorization_mode="vector_entry_point", **env_args)


def _register_minatar(env_id: str) -> None:
    if any(name.startswith(MINATAR) for name in gymnasium.registry):
        return
    try:
        from minatar.gym import register_envs  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"environment {env_id} needs minatar: python -m pip install 'pdqn[minatar]'"
        ) from error
    register_envs()
