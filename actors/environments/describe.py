"""The spec of an environment, from one instance: made, reset and stepped as an actor would.

``making`` finds the makers for a name. This module derives the spec from one instance. ``vector``
makes the batch that actors step.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from actors.environments.examination import Examination
from actors.environments.fields import fields_of
from actors.environments.finite import Fault
from actors.environments.guard import EnvironmentFailedError, close_quietly
from actors.environments.infos import RESERVED
from actors.environments.interface import (
    check_spaces,
    fault_behind,
    told_with_place,
)
from actors.environments.making import Makers, attribute, makers
from actors.environments.masks import info_of_reset, tells_mask, with_mask_observed
from actors.environments.naming import advice_for_unknown
from actors.environments.rollouts import told_rollouts, with_rollouts_observed
from actors.environments.states import StateError
from actors.environments.vector import VectorEnvironment, native_batch
from pdqn.errors import UsageError, first_line
from pdqn.specs import ACTION_MASK, UNSEEN, EnvironmentSpec, FieldSpec

_log = logging.getLogger("environment")
# Errors of gymnasium.make and of constructors for arguments that they do not accept.
_NOT_MADE = (
    gymnasium.error.Error, TypeError, ValueError, ImportError, AssertionError, LookupError,
)  # fmt: skip


def describe_environment(
    env_id: str, env_args: Mapping[str, Any], frame_stack: int = 1
) -> EnvironmentSpec:
    """Examine an environment; return its spec, with frames stacked over ``frame_stack`` steps.

    Raises:
        UsageError: see ``examine_environment``.
    """
    return examine_environment(env_id, env_args).spec.stacked(frame_stack)


def examine_environment(env_id: str, env_args: Mapping[str, Any]) -> Examination:
    """Make, reset and step an environment once, in its own batch if it has one.

    Args:
        env_id: gymnasium id, ``module:id``, or ``module:factory``.
        env_args: keyword arguments of the environment.

    Raises:
        UsageError: it cannot be made, its spaces are not supported, or no actor could use its
            observations; the message gives the reason.
    """
    with contextmanager(examining)(env_id, env_args) as found:
        return found


def examining(env_id: str, env_args: Mapping[str, Any]) -> Iterator[Examination]:
    """Examine an environment, and close it once the findings are taken."""
    with _refused(env_id):
        made = makers(env_id, env_args)
        one = _one(env_id, made)
        with _closed_if_refused(one), _explained(one):
            check_spaces(one)
            spec = _spec_of(env_id, one)
            told = _told_about_maps(one) if spec.circle_placement else {}
            batch = _batch_around(one, made, spec)
        with _quiet(), closing(batch):
            found = _try_once(batch, one if made.vector is None else None)
            yield dataclasses.replace(found, **told)


@contextmanager
def _refused(env_id: str) -> Iterator[None]:
    """Convert any error of an environment to one line."""
    try:
        yield
    except UsageError:
        raise
    except gymnasium.error.Error as error:
        advice = "" if _is_registered(env_id) else advice_for_unknown(env_id, gymnasium.registry)
        said = first_line(error)
        if advice:
            said = f"{said.partition(' Did you mean')[0].rstrip('.')}; {advice}"
        raise UsageError(f"environment {env_id}: {said}") from error
    except _NOT_MADE as error:
        said = told_with_place(error, with_type=isinstance(error, LookupError))
        raise UsageError(f"environment {env_id}: {said}") from error
    except EnvironmentFailedError as error:
        # The original error of the environment, which the guard has counted.
        said = told_with_place(error.__context__ or error)
        raise UsageError(f"environment {env_id}: {said}") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"environment {env_id}: {told_with_place(error)}") from error


def _is_registered(env_id: str) -> bool:
    return env_id.rpartition(":")[2] in gymnasium.registry


@contextmanager
def _explained(env: Any) -> Iterator[None]:
    """Replace an error that gymnasium or pdqn raised by the fault of the environment behind it.

    Args:
        env: the environment to look into; None for none.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        failed = isinstance(error, EnvironmentFailedError)
        cause = error.__context__ if failed and error.__context__ is not None else error
        with _quiet():
            fault = fault_behind(env, cause)
        if fault is not None:
            raise fault from error
        raise


def _one(env_id: str, made: Makers) -> Any:
    """Make one environment, or a batch of one if there is no single form."""
    if made.single is not None:
        env = _single(made.single)
    else:
        assert made.vector is not None
        env = made.vector(1)
    if not isinstance(env, gymnasium.Env if made.vector is None else gymnasium.Env | VectorEnv):
        raise UsageError(f"environment {env_id}: {_another_thing(env)}")
    return env


def _single(make: Callable[[], Any]) -> Any:
    """Make one environment; if gymnasium's checker refuses it, say why in other words."""
    try:
        return make()
    except Exception as error:
        if not isinstance(make, partial) or make.func is not gymnasium.make:
            raise
        with _quiet():
            try:
                env = make(disable_env_checker=True)
            except Exception:  # noqa: BLE001 - then it was not the checker
                raise error from None
            fault = fault_behind(env, error)
            close_quietly(env)
        if fault is not None:
            raise fault from error
        raise


def _another_thing(made: Any) -> str:
    """Describe what was made instead of an environment, and what to change."""
    name, said = type(made).__name__, "not a gymnasium.Env"
    if made is None:
        return f"it made None, {said}: does the function return the environment?"
    if isinstance(made, type):
        return f"it made the class {made.__name__}, {said}: return {made.__name__}(), an instance"
    libraries = {kind.__module__.partition(".")[0] for kind in type(made).__mro__}
    if "gym" in libraries:
        advice = "it is of the old package gym; write import gymnasium as gym"
    elif "pettingzoo" in libraries:
        advice = "pdqn trains one agent; give it an environment of one"
    elif isinstance(made, VectorEnv) or "stable_baselines3" in libraries:
        advice = "it is a batch; pdqn makes its own batch, from a function that makes one of them"
    elif inspect.iscoroutine(made):
        made.close()  # or Python warns that nobody awaited it
        advice = "write def, not async def, before the function that makes the environment"
    elif inspect.isgenerator(made):
        advice = "write return, not yield, before the environment"
    elif isinstance(made, tuple | list):
        advice = "return the environment alone"
    else:
        advice = f"derive it: class {name}(gymnasium.Env)"
    return f"it made {name}, {said}: {advice}"


@contextmanager
def _closed_if_refused(env: Any) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with _quiet():
            close_quietly(env)
        raise


def _spec_of(env_id: str, one: Any) -> EnvironmentSpec:
    """Read the attributes and the spaces of one environment, or of a batch of one."""
    headline = attribute(one, "headline_metric")
    if not isinstance(headline, str) or not headline:
        headline = None  # somebody else's attribute of this name
    if headline in RESERVED:
        raise UsageError(
            f"environment {env_id}: headline_metric = {headline!r} is a key of gymnasium's and "
            "pdqn's own; choose another for it"
        )
    placement = attribute(one, "circle_placement") is True
    info = info_of_reset(one)
    masked, rollouts = tells_mask(one, info), told_rollouts(info, batch=isinstance(one, VectorEnv))
    fields, num_actions, first_action = _spaces_of(env_id, one, masked, rollouts)
    return EnvironmentSpec(env_id, fields, num_actions, headline, first_action, placement)


def _told_about_maps(one: Any) -> dict[str, Any]:
    """Read what circle placement tells of a person's own maps, by the field of the findings."""
    about, episodes = attribute(one, "about"), attribute(one, "held_out_episodes")
    told: dict[str, Any] = {"about": about} if isinstance(about, str) else {}
    return told | ({"held_out_episodes": episodes} if type(episodes) is int else {})


def _spaces_of(
    env_id: str, env: Any, masked: bool, rollouts: int
) -> tuple[tuple[FieldSpec, ...], int, int]:
    """Read the spaces: the fields, the number of actions, and the first action."""
    shown = with_rollouts_observed(with_mask_observed(env) if masked else env, rollouts)
    batch = isinstance(shown, VectorEnv)
    actions = shown.single_action_space if batch else shown.action_space
    num_actions, first_action = _actions(env_id, actions)
    fields = fields_of(env_id, shown.single_observation_space if batch else shown.observation_space)
    _check_mask(env_id, fields, num_actions)
    if all(field.name in UNSEEN for field in fields):
        raise UsageError(f"environment {env_id} shows nothing but its action mask")
    return fields, num_actions, first_action


def _batch_around(one: Any, made: Makers, spec: EnvironmentSpec) -> VectorEnvironment:
    """Make the batch of one that an actor would step.

    It takes over the existing environment, unless that has its own batch.
    """
    if made.single is None:
        return VectorEnvironment(spec, {}, 1, made=Makers(None, lambda _: one))
    try:
        native = native_batch(made, 1, spec)
    except UsageError:
        raise
    except Exception as error:
        said = told_with_place(error)
        raise UsageError(f"environment {spec.id}: its own batch cannot be made: {said}") from error
    if native is None:
        return VectorEnvironment(spec, {}, 1, made=Makers(lambda: one, None))
    with _closed_if_refused(native):
        _check_batch(native, spec)
        one.close()
        return VectorEnvironment(spec, {}, 1, made=Makers(None, lambda _: native))


def _check_batch(native: VectorEnv, spec: EnvironmentSpec) -> None:
    """Reject a batch that observes or acts differently from a single environment."""
    if native.num_envs != 1:
        raise UsageError(
            f"environment {spec.id}: its batch for num_envs=1 has {native.num_envs} environments; "
            "make as many as num_envs says"
        )
    fields, num_actions, first_action = _spaces_of(spec.id, native, spec.masked, spec.rollouts)
    if (fields, num_actions, first_action) != (spec.fields, spec.num_actions, spec.first_action):
        raise UsageError(
            f"environment {spec.id}: its batch has the observations {_listed(fields)} and "
            f"{num_actions} actions, a single one {_listed(spec.fields)} and {spec.num_actions}"
        )


def _try_once(batch: VectorEnvironment, env: Any) -> Examination:
    """Reset it and step it as an actor does; one error now is better than one from every actor.

    Args:
        batch: the batch, which is closed afterwards.
        env: the environment in it to look into after an error; None for none.
    """
    with _explained(env):
        first = batch.reset([0])
        _check_finite(batch.spec, batch.unusable)
        suggested_first = batch.suggested is not None
        mask = first.get(ACTION_MASK)
        step = batch.step(np.zeros(1, np.int64) if mask is None else mask.argmax(axis=1))
        _check_finite(batch.spec, step.faults or batch.unusable)
        suggests = suggested_first or step.suggested is not None
        return Examination(batch.spec, suggests, batch.odd_suggestion, _unsaved(batch))


def _unsaved(batch: VectorEnvironment) -> str:
    """Return the reason why the state of a batch cannot be saved; empty if it can."""
    try:
        batch.get_state()
    except StateError as error:
        return str(error)
    return ""


def _check_finite(spec: EnvironmentSpec, faults: Mapping[int, Fault]) -> None:
    for fault in faults.values():
        raise UsageError(
            f"environment {spec.id}: its {fault.kind} is not finite from the start; no network "
            "could learn from that"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and tracebacks, which belong in an actor's log, off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _log.disabled = True
        try:
            yield
        finally:
            _log.disabled = False


def _listed(fields: tuple[FieldSpec, ...]) -> str:
    return ", ".join(f"{f.name} {f.dtype}{list(f.shape)}" for f in fields)


def _actions(env_id: str, space: gymnasium.Space[Any]) -> tuple[int, int]:
    """Return the number of actions, and the first one."""
    if not isinstance(space, spaces.Discrete):
        raise UsageError(
            f"environment {env_id} has the actions {space}; only Discrete is supported: a "
            f"Q-network has one value for each of a finite set of actions{_made_discrete(space)}"
        )
    return int(space.n), int(space.start)


def _made_discrete(space: gymnasium.Space[Any]) -> str:
    """Advise how to make an action space discrete."""
    if isinstance(space, spaces.Box):
        return "; choose a few of them, for example with gymnasium.wrappers.DiscretizeAction"
    if isinstance(space, spaces.MultiDiscrete):
        number = int(np.prod(space.nvec, dtype=object))
        return f"; number all {number} combinations, as spaces.Discrete({number})"
    return ""


def _check_mask(env_id: str, fields: tuple[FieldSpec, ...], num_actions: int) -> None:
    for field in fields:
        if field.name == ACTION_MASK and field.shape != (num_actions,):
            raise UsageError(
                f"environment {env_id} has an {ACTION_MASK} of shape {list(field.shape)}; "
                f"one value for each of its {num_actions} actions is needed"
            )
