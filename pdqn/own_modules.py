"""Imports of a person's own modules, also where their packages have the names of pdqn's.

pdqn's packages are called actors, launcher, learner and replay, and many people call theirs the
same. Python knows one module of a name. The person's package is therefore loaded under another
name: ``own_actors`` for their ``actors``. Import statements find it there, according to the module
that they are in: a person's get theirs, pdqn's get pdqn's. No statement is treated in this way
unless the path has another package of such a name.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import resolve_name, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

TAKEN = ("actors", "launcher", "learner", "replay")
PACKAGES = ("pdqn", *TAKEN)
ROOT = Path(__file__).resolve().parent.parent  # the folder of the five packages
_PREFIX = "own_"
_LIBRARIES = tuple(
    sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_import_statement, _import_function = builtins.__import__, importlib.import_module
_own: dict[str, ModuleSpec] = {}  # the person's packages, and modules, of the taken names


def import_module(name: str) -> ModuleType:
    """Import a module that a person has named: theirs before pdqn's of the same name.

    Raises:
        ImportError: there is no such module, or it cannot be imported.
    """
    _find_own()
    return _chosen(name, {}, _import_function)


def _find_own() -> None:
    """Look for a person's packages of the taken names; if there are any, mind the imports."""
    for name in TAKEN:
        if name not in _own and (spec := _another(name)) is not None:
            _own[name] = spec
    if _own and builtins.__import__ is not _import:
        sys.meta_path.append(_Finder())  # pyright: ignore[reportArgumentType] - a protocol
        builtins.__import__ = _import
        importlib.import_module = _import_by_name


def _another(name: str) -> ModuleSpec | None:
    """Find a module or package of this name on the path that is not pdqn's."""
    for entry in sys.path:
        spec = PathFinder.find_spec(name, [entry or str(Path.cwd())])
        if spec is None:
            continue
        folders = list(spec.submodule_search_locations or ())
        places = [Path(place).resolve() for place in (spec.origin, *folders) if place]
        ours = any(place.is_relative_to(ROOT / name) for place in places)
        # A folder without modules, such as one of recordings, is not a package.
        if not ours and (spec.origin or any(any(Path(f).glob("*.py")) for f in folders)):
            return spec
    return None


class _Finder:
    """A finder of the person's packages by the names under which they are loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find a package; its own modules are found as Python finds any."""
        found = _own.get(fullname.removeprefix(_PREFIX)) if fullname.startswith(_PREFIX) else None
        if path is not None or found is None:
            return None
        folders = found.submodule_search_locations
        if found.origin is None:  # a package without __init__.py
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = list(folders or ())
            return spec
        return spec_from_file_location(
            fullname,
            found.origin,
            submodule_search_locations=None if folders is None else list(folders),
        )


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Any = (),
    level: int = 0,
) -> ModuleType:
    """Import as a statement does."""
    if level or name.partition(".")[0] not in _own:
        return _import_statement(name, globals, locals, fromlist, level)
    return _chosen(
        name, globals or {}, lambda one: _import_statement(one, globals, locals, fromlist)
    )


def _import_by_name(name: str, package: str | None = None) -> ModuleType:
    """Import as ``importlib.import_module`` does."""
    name = resolve_name(name, package)
    if name.partition(".")[0] not in _own:
        return _import_function(name)
    return _chosen(name, sys._getframe(1).f_globals, _import_function)


def _chosen(
    name: str, importer: Mapping[str, Any], load: Callable[[str], ModuleType]
) -> ModuleType:
    """Load the module that an importer means by a name, whose first part may be taken.

    Libraries get pdqn's module, and a person's where pdqn has none: gymnasium imports the entry
    points of both.
    """
    importer_top = str(importer.get("__name__")).partition(".")[0]
    if name.partition(".")[0] not in _own or importer_top in PACKAGES:
        return load(name)
    names = [_PREFIX + name, name]
    if str(importer.get("__file__")).startswith(_LIBRARIES):
        names.reverse()
    try:
        return load(names[0])
    except ModuleNotFoundError as error:
        if not _is_lacking(names[0], error):
            raise
    return load(names[1])


def _is_lacking(name: str, error: ModuleNotFoundError) -> bool:
    """Tell whether this module, or a package around it, is the one that was not found."""
    return f"{name}.".startswith(f"{error.name}.")


def is_there(name: str) -> bool:
    """Tell whether a module of this name could be imported; nothing is."""
    return any(PathFinder.find_spec(name, [entry or os.curdir]) for entry in sys.path)
