"""Compilation of functions to machine code, kept on disk where this process may write.

Numba itself refuses to import a function when it finds no folder, and raises when a cache is
damaged or its disk is full. A cache saves seconds; nothing may fail for lack of one.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

from numba import njit
from numba.core import config
from numba.core.caching import FunctionCache

from pdqn import caches

Function = TypeVar("Function", bound=Callable[..., Any])
_settings: Any = config  # numba makes its attributes from environment variables


@overload
def compiled(function: Function) -> Function: ...


@overload
def compiled(
    *, reassociates: bool = ..., borrows: bool = ...
) -> Callable[[Function], Function]: ...


def compiled(function: Any = None, *, reassociates: bool = False, borrows: bool = False) -> Any:
    """Have numba compile a function at its first call, without Python's global lock.

    The machine code is cached beside the source, or else in this user's cache, if either can be
    written. ``NUMBA_CACHE_DIR`` names another folder.

    Args:
        function: the function.
        reassociates: sums may be taken in another order, and divisions by zero give infinities.
            Only such loops use a processor's vectors. The order is the same in every run.
        borrows: the function makes no arrays, so that it need not count references to those that
            it is given. Where small functions take tuples of arrays, counting is most of the time.
    """
    if function is None:
        return functools.partial(_compiled, reassociates=reassociates, borrows=borrows)
    return _compiled(function, reassociates=reassociates, borrows=borrows)


def _compiled(function: Callable[..., Any], *, reassociates: bool, borrows: bool) -> Any:
    options: dict[str, Any] = (
        {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy"} if reassociates else {}
    )
    if borrows:
        options["_nrt"] = False  # numba marks functions of its own in this way
    dispatcher: Any = njit(nogil=True, **options)(function)
    folder = _folder_for(Path(inspect.getfile(function)).parent)
    if folder is None or _settings.DISABLE_JIT:
        return dispatcher
    before = _settings.CACHE_DIR
    _settings.CACHE_DIR = folder
    # Other folders would be tried after this one, such as one that is called ~.
    try:
        with contextlib.suppress(RuntimeError, OSError, UnicodeError):
            dispatcher._cache = _Cache(function)
    finally:
        _settings.CACHE_DIR = before
    return dispatcher


class _Cache(FunctionCache):
    """The cached machine code of one function; what cannot be read or written is not cached."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load the code for some types; None if there is none that can be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - a file that was cut off can raise anything
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the code for some types, if there is room for it."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)


@functools.cache
def _folder_for(source: Path) -> str | None:
    """Return numba's ``CACHE_DIR`` for functions in a folder; None if they cannot be cached.

    An empty one stands for the folder ``__pycache__`` beside the source.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given and caches.may_write(Path(given)):
        return given
    if caches.may_write(source / "__pycache__"):
        return ""
    own = caches.own_cache()
    return None if own is None else str(own / "numba")
