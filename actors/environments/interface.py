"""gymnasium's interface, as a person's environment keeps it: each fault in the words of a teacher.

A fault names the method of the person's class, its value, and the values that are needed.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from pdqn.casting import as_array
from pdqn.errors import first_line, frames_of, own_place, type_and_first_line
from pdqn.own_modules import PACKAGES

_RESET = "return observation, info"
_STEP = "return observation, reward, terminated, truncated, info"
_METHODS = {
    "reset": "def reset(self, *, seed=None, options=None)",
    "step": "def step(self, action)",
}
_SPACES = {
    "observation_space": "spaces.Box(low, high, shape, dtype)",
    "action_space": "spaces.Discrete(n)",
}
_LIBRARIES = ("gymnasium", "numpy", *PACKAGES)
_SHOWN_CHARACTERS = 60
# Every step looks at these. Unions of types, and abstract ones such as Mapping alone, are slower.
_NUMBERS = (bool, int, float, np.bool_, np.integer, np.floating)
_USUAL_NUMBERS = frozenset({float, int, bool, np.float64, np.float32, np.int64, np.bool_})
_TRUTHS = frozenset({bool, np.bool_})
_SEQUENCES = (tuple, list)
_MAPPINGS = (dict, Mapping)


class InterfaceError(ValueError):
    """A fault of an environment, told with the method or class to change, and its place."""


class CheckedEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Wrapper that checks what reset and step give, and copies observations.

    A reset may reuse the environment's own array. Lists and Python numbers become arrays of the
    space's dtype.
    """

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; an environment that does not know options is not given any."""
        given: dict[str, Any] = {"seed": seed}
        if options is not None:
            given["options"] = options
        observation, info = reset_result(self.env, self.env.reset(**given))
        return self._copied("reset", observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step."""
        observation, *others = step_result(self.env, self.env.step(action))
        return (self._copied("step", observation), *others)  # pyright: ignore[reportReturnType]

    @cached_property
    def _space(self) -> gymnasium.Space[Any]:
        """The space of observations, for which gymnasium's wrappers ask each other."""
        return self.observation_space

    def _copied(self, method: str, observation: Any) -> Any:
        space = self._space
        if (
            type(observation) is np.ndarray
            and observation.dtype == space.dtype
            and observation.shape == space.shape
        ):
            return observation.copy()  # nearly always
        try:
            return _copied(observation, space)
        except InterfaceError as error:
            raise InterfaceError(f"{error}: {_given_by(self.env, method, 'observation')}") from None


def reset_result(env: Any, result: Any) -> tuple[Any, Any]:
    """Return the observation and the info that an environment's reset gave.

    Raises:
        InterfaceError: it gave something else.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        said = f"gave {_count(result)}"
        if result is not None and not (isinstance(result, tuple) and len(result) > 2):
            said = f"gave only an observation ({shown(result)}): the old gym interface"
        raise _fault(env, "reset", said, _RESET)
    observation, info = result
    if not isinstance(info, Mapping):
        old = "" if info is None else ", or only an observation: the old gym interface"
        raise _fault(env, "reset", f"gave {shown(info)} as its info{old}", f"{_RESET}, {_DICT}")
    return observation, info


_DICT = "where info is a dict such as {}"


def step_result(env: Any, result: Any) -> tuple[Any, float, bool, bool, Any]:
    """Return the five values that an environment's step gave.

    Raises:
        InterfaceError: it gave something else.
    """
    if not isinstance(result, _SEQUENCES) or len(result) != 5:
        said = f"gave {_count(result)}"
        if isinstance(result, tuple | list) and len(result) == 4:
            said += " (observation, reward, done, info): the old gym interface"
        raise _fault(env, "step", said, _STEP)
    observation, reward, terminated, truncated, info = result
    if (
        type(reward) in _USUAL_NUMBERS
        and type(terminated) in _TRUTHS
        and type(truncated) in _TRUTHS
        and type(info) is dict
    ):
        return observation, float(reward), bool(terminated), bool(truncated), info
    if not isinstance(info, _MAPPINGS):
        raise _fault(env, "step", f"gave {shown(info)} as its info", f"{_STEP}, {_DICT}")
    if not is_number(reward):
        said = f"gave {shown(reward)} as its reward"
        raise _fault(env, "step", said, f"{_STEP}, where reward is one number", "reward")
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not is_number(value):
            needed = f"{_STEP}, where {name} is True or False"
            raise _fault(env, "step", f"gave {shown(value)} as {name}", needed)
    return observation, number(reward), bool(number(terminated)), bool(number(truncated)), info


def number(value: Any) -> float:
    """Convert a value of which ``is_number`` is true."""
    if isinstance(value, _NUMBERS):
        return float(value)
    try:
        return float(np.asarray(value).item())
    except Exception:  # noqa: BLE001 - such as a tensor of a GPU, or with a gradient
        return float(value)


def is_number(value: Any) -> bool:
    """Tell whether a value is one real number or truth value, in any form that numpy knows."""
    if isinstance(value, _NUMBERS):
        return True
    try:
        array = np.asarray(value)
    except Exception:  # noqa: BLE001 - any object's own conversion
        return _is_float(value)
    if array.size != 1:
        return False
    if array.dtype.kind in "biuf":
        return True
    # Fractions and decimals are numbers that numpy keeps as objects.
    return array.dtype == object and hasattr(type(array.item()), "__float__")


def _is_float(value: Any) -> bool:
    try:
        float(value)
    except Exception:  # noqa: BLE001 - any object's own conversion
        return False
    return True


def check_spaces(env: Any) -> None:
    """Check that an environment, or a batch, has its two spaces before its first reset.

    Raises:
        InterfaceError: one is missing, or is not a space of gymnasium.
    """
    author = type(env)
    if isinstance(env, gymnasium.Wrapper) and "env" not in vars(env):
        raise InterfaceError(
            f"{author.__name__}.__init__() does not call super().__init__(env)"
            f"{_place(author.__init__)}"
        )
    for name, example in _SPACES.items():
        attribute = f"single_{name}" if isinstance(env, VectorEnv) else name
        needed = f"set it in {author.__name__}.__init__(), such as self.{attribute} = {example}"
        try:
            space = getattr(env, attribute)
        except (AttributeError, NotImplementedError):
            inner = getattr(env, "env", None) if isinstance(env, gymnasium.Wrapper) else None
            if inner is not None:
                check_spaces(inner)
            raise InterfaceError(
                f"{author.__name__} has no {attribute} before its first reset; {needed}"
                f"{_place(author.__init__)}"
            ) from None
        if not isinstance(space, gymnasium.Space):
            author = type(env.unwrapped)
            said = f"the class {space.__name__}" if isinstance(space, type) else shown(space)
            if type(space).__module__.partition(".")[0] == "gym":
                said = f"{space}, a space of the old package gym; import spaces from gymnasium"
            raise InterfaceError(
                f"{author.__name__}.{attribute} is {said}, not a space of gymnasium, such as "
                f"{example}{_place(author.__init__)}"
            )


def fault_behind(env: Any, error: BaseException) -> InterfaceError | None:
    """Look for the person's class behind an error that gymnasium's or our code raised.

    Each wrapper is reset and stepped once, from the inside out.
    """
    if isinstance(error, InterfaceError) or not isinstance(env, gymnasium.Env):
        return None
    if not _is_raised_by_library(error):
        return None
    levels = [env]
    while isinstance(levels[-1], gymnasium.Wrapper) and "env" in vars(levels[-1]):
        levels.append(levels[-1].env)
    try:
        for level in reversed(levels):
            _try_level(level)
    except InterfaceError as fault:
        return fault
    except Exception:  # noqa: BLE001 - the first error says more
        return None
    return None


def _try_level(env: gymnasium.Env[Any, Any]) -> None:
    check_spaces(env)
    for method, definition in _METHODS.items():
        _check_method(env, method, definition)
    _, info = reset_result(env, env.reset(seed=0))
    action: Any = getattr(env.action_space, "start", 0)
    mask = info.get("action_mask")
    if isinstance(mask, np.ndarray) and mask.ndim == 1 and mask.any():
        action += mask.argmax()
    step_result(env, env.step(action))


def _check_method(env: gymnasium.Env[Any, Any], method: str, definition: str) -> None:
    """Check that a method is there, and takes what gymnasium gives it."""
    function = getattr(type(env), method)
    if function is getattr(gymnasium.Env, method):
        raise InterfaceError(
            f"{type(env).__name__} has no method {method}; add {definition}"
            f"{_place(type(env).__init__)}"
        )
    given = {"seed": 0, "options": None} if method == "reset" else {}
    try:
        inspect.signature(getattr(env, method)).bind(*(() if given else (0,)), **given)
    except TypeError as error:
        said = f"cannot be called as gymnasium calls it ({error})"
        raise _fault(env, method, said, f"write {definition}") from None
    except ValueError:  # native code has no signature
        return


def told_with_place(error: BaseException, *, with_type: bool = True) -> str:
    """Return the first line of an error, and the innermost place in a person's own file, if any."""
    if isinstance(error, InterfaceError):  # whose text is whole
        return str(error)
    said = type_and_first_line(error) if with_type or not str(error) else first_line(error)
    if isinstance(error, SyntaxError):  # whose text has its place already
        said = f"{type(error).__name__}: {error.msg}"
    place = own_place(frames_of(error), or_any=False)
    return f"{said} ({place})" if place else said


def _is_raised_by_library(error: BaseException) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    top = str(frames[-1].f_globals.get("__name__")).partition(".")[0] if frames else ""
    return top in _LIBRARIES


# ---- words ----


def _fault(env: Any, method: str, said: str, needed: str, *others: str) -> InterfaceError:
    name, place = _author(env, method, *others)
    return InterfaceError(f"{name}() {said}; {needed}{place}")


def _given_by(env: Any, *methods: str) -> str:
    name, place = _author(env, *methods)
    return f"{name}() gave it{place}"


def _author(env: Any, *methods: str) -> tuple[str, str]:
    """Find the outermost class of a person that has one of these methods; return it and its place.

    Without one, it is the innermost environment's class.
    """
    while True:
        for kind in type(env).__mro__:
            method = next((m for m in methods if m in vars(kind)), None)
            if kind.__module__.partition(".")[0] != "gymnasium" and method is not None:
                return f"{kind.__name__}.{method}", _place(vars(kind)[method])
        if not isinstance(env, gymnasium.Wrapper) or "env" not in vars(env):
            kind = type(env)
            return f"{kind.__name__}.{methods[0]}", _place(getattr(kind, methods[0], None))
        env = env.env


def _place(function: Any) -> str:
    """Return the file and line of a function, in brackets; empty for native code."""
    code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
    return "" if code is None else f" ({code.co_filename}:{code.co_firstlineno})"


def shown(value: Any) -> str:
    """Show a value in one short line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _count(result: Any) -> str:
    if result is None:
        return "None, as a function without a return does"
    if isinstance(result, tuple | list):
        return f"{len(result)} values"
    return f"one value ({shown(result)})"


# ---- observations ----


def _copied(observation: Any, space: gymnasium.Space[Any], name: str = "observation") -> Any:
    """Copy an observation as its space has it: Dicts, Tuples and arrays of its dtype."""
    if isinstance(space, spaces.Dict):
        return {
            key: _copied(_part(observation, key, name, space), part, f"{name}[{key!r}]")
            for key, part in space.items()
        }
    if isinstance(space, spaces.Tuple):
        if not isinstance(observation, tuple | list | np.ndarray) or (
            len(observation) != len(space.spaces)
        ):
            needed = f"a tuple of {len(space.spaces)} is needed for {space}"
            raise InterfaceError(f"the {name} is {shown(observation)}; {needed}")
        return tuple(
            _copied(part, inner, f"{name}[{index}]")
            for index, (part, inner) in enumerate(zip(observation, space.spaces, strict=True))
        )
    return _copied_array(observation, space, name)


def _part(observation: Any, key: str, name: str, space: spaces.Dict) -> Any:
    try:
        return observation[key]
    except Exception:  # noqa: BLE001 - of any object that is not a mapping
        keys = ", ".join(map(repr, space.spaces))
        had = (
            f"has no key {key!r}"
            if isinstance(observation, Mapping)
            else f"is {shown(observation)}"
        )
        raise InterfaceError(f"the {name} {had}; its space has the keys {keys}") from None


def _copied_array(observation: Any, space: gymnasium.Space[Any], name: str) -> NDArray[Any]:
    assert space.dtype is not None, "fields have one"
    try:
        return as_array(observation, space.dtype, space.shape or ())
    except ValueError:
        raise InterfaceError(_not_in(observation, space, name)) from None


def _not_in(observation: Any, space: gymnasium.Space[Any], name: str) -> str:
    """Tell the fault of an observation that its space does not have."""
    convert: Callable[..., Any] = np.array
    try:
        array = convert(observation)
    except Exception as error:  # noqa: BLE001 - lists of different lengths, an object's conversion
        # torch says what to write for a tensor of a GPU, or with a gradient.
        return f"the {name} {shown(observation)} is not an array ({first_line(error)})"
    is_cast = isinstance(observation, np.ndarray) and not np.can_cast(
        array.dtype, space.dtype or object, "same_kind"
    )
    if array.dtype.kind in "biuf" and (array.shape != space.shape or is_cast):
        said = f"an {name} {array.dtype}{list(array.shape)} is not in {space}"
        if array.shape != space.shape:
            return said
        return f"{said}; convert it by .astype(np.{space.dtype}), or give the space its dtype"
    return f"the {name} {shown(observation)} is not in {space}"
