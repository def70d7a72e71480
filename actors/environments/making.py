"""Makers of environments by name: gymnasium ids, modules, factories, Atari, MinAtar."""

from __future__ import annotations

import difflib
import inspect
import logging
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
from actors.environments.interface import told_with_place
from actors.environments.naming import (
    advice_for_import,
    check_arguments,
    check_name,
    hidden_module,
)
from pdqn import own_modules
from pdqn.errors import UsageError, with_place
from pdqn.specs import ATARI_NAMESPACE

MINATAR = "MinAtar/"
_log = logging.getLogger("environment")


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
            ``vector``, a function of (num_envs, **env_args), makes a batch. If the factory is a
            class, ``vector`` must be a static or class method whose first parameter is called
            num_envs, or a class of batches: all else belongs to its instances.
        env_args: keyword arguments of the environment.

    Raises:
        UsageError: the module or factory, or a package that the environment needs, is missing.
    """
    registration.register()
    check_name(env_id)
    if env_id.startswith(ATARI_NAMESPACE):
        game = partial(atari.make_vector, env_id)
        check_arguments(env_id, partial(game, 1), env_args)
        return Makers(None, partial(game, **env_args))
    if env_id.startswith(MINATAR):
        _register_minatar(env_id)
    module_name, _, name = env_id.rpartition(":")
    factory = _factory(env_id, module_name, name) if module_name else None
    if factory is not None:
        check_arguments(env_id, factory, env_args)
        vector = _vector_of(factory)
        return Makers(
            partial(factory, **env_args), None if vector is None else partial(vector, **env_args)
        )
    return Makers(partial(gymnasium.make, env_id, **env_args), _native(env_id, name, env_args))


def attribute(env: Any, name: str) -> Any:
    """Read an attribute of an environment, or of its outermost wrapper that has it; or None.

    Only what an object or its class defines counts: some objects answer to every name.
    """
    try:
        return _read(env, name)
    except Exception:  # noqa: BLE001 - a property may raise anything
        _log.exception("the attribute %s of an environment cannot be read", name)
        return None


def baselines_of(env: Any, method: str = "baselines") -> Callable[[list[int]], Any] | None:
    """Return an environment's method ``baselines(seeds)``; None if it has no such method.

    ``bounds(seeds)`` and ``searches(seeds)`` are methods of the same kind.

    A property of this name may raise anything.
    """
    compute = _read(env, method)
    return compute if callable(compute) and _accepts(compute, [0]) else None


def _read(env: Any, name: str) -> Any:
    seen: set[int] = set()
    while isinstance(env, gymnasium.Env | VectorEnv) and id(env) not in seen:
        seen.add(id(env))
        try:
            inspect.getattr_static(env, name)
            return getattr(env, name)
        except AttributeError:
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
        module = own_modules.import_module(module_name)
    except ImportError as error:
        said = told_with_place(error, with_type=False)
        raise UsageError(f"environment {env_id}: {said}{advice_for_import(error)}") from error
    except SystemExit as error:
        raise UsageError(
            f"environment {env_id}: importing {module_name} ended the program "
            f"({with_place(error)}{_parser(error)}); put what only a script does below "
            "`if __name__ == '__main__':`"
        ) from error
    factory: Any = getattr(module, name, None)
    if callable(factory):
        return factory
    if isinstance(factory, gymnasium.Env | VectorEnv):
        raise UsageError(
            f"environment {env_id}: {name} is an environment, not what makes one; write "
            f"def make(): return {type(factory).__name__}(...) in {module_name}, and "
            f"{module_name}:make here"
        )
    if name.isidentifier() and not _registered(name):
        close = difflib.get_close_matches(name, [n for n, v in vars(module).items() if callable(v)])
        meant = f"; did you mean {' or '.join(close)}?" if close else hidden_module(module_name)
        raise UsageError(
            f"environment {env_id}: {module_name} has no function {name}, and registers no "
            f"environment of this name{meant}"
        )
    return None


def _vector_of(factory: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the factory's function that makes a batch; None if its ``vector`` is another thing."""
    try:
        found = inspect.getattr_static(factory, "vector")
    except AttributeError:
        return None
    vector: Any = getattr(factory, "vector", None)
    if isinstance(factory, type):
        batches = isinstance(found, type) and issubclass(found, VectorEnv)
        if not batches and not isinstance(found, staticmethod | classmethod):
            return None
        if not batches and _first_parameter(vector) != "num_envs":
            return None
    return vector if callable(vector) else None


def _first_parameter(function: Callable[..., Any]) -> str:
    try:
        return next(iter(inspect.signature(function).parameters), "")
    except (TypeError, ValueError):
        return ""


def _accepts(function: Callable[..., Any], *arguments: Any) -> bool:
    """Tell whether a function can be called with these arguments, as far as it tells."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # native code has no signature
        return True
    return True


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
