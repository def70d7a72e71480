"""Functions and classes of a program as the names by which a run's processes import them.

The processes of a run share no memory with the program, and nothing is pickled for them. They
import the module of a function, so it has to be in a file, and at the top level of that.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdqn.errors import UsageError

_CELL = "%%writefile my_code.py"


def name_of(setting: str, function: Callable[..., Any]) -> tuple[str, str | None]:
    """Return the name ``module:function`` of a function or class, and its module's folder.

    Args:
        setting: what it is given for, for errors.
        function: the function or class.

    Returns:
        the name, and the folder that a run's processes must search for modules; None if they
        search it anyway.

    Raises:
        UsageError: no other process could import it. The message says what to do.
    """
    qualified = getattr(function, "__qualname__", None)
    module_name = getattr(function, "__module__", None)
    if not isinstance(qualified, str) or not isinstance(module_name, str):
        raise _refusal(setting, repr(function)[:80], "it is neither a function nor a class")
    if not qualified.isidentifier():
        kind = "a lambda" if "<lambda>" in qualified else "inside a function or class"
        raise _refusal(setting, qualified, f"it is {kind}")
    module = sys.modules.get(module_name)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        where = "in a notebook" if module_name == "__main__" else "in no file"
        raise _refusal(setting, qualified, f"it is defined {where}")
    if getattr(module, qualified, None) is not function:
        raise _refusal(setting, qualified, f"{module_name} has another {qualified}")
    path = Path(file).resolve()
    importable = _importable_name(module, module_name, path)
    if importable is None:
        raise _refusal(setting, qualified, f"{path.name} is not a name that Python imports")
    return f"{importable}:{qualified}", _folder(path, importable)


def _importable_name(module: Any, name: str, path: Path) -> str | None:
    """Return the name by which others import a module; a script's is that of its file."""
    if name != "__main__":
        return name
    spec = getattr(module, "__spec__", None)  # of python -m package.module
    if spec is not None and spec.name:
        return spec.name.removesuffix(".__main__")
    return path.stem if path.suffix == ".py" and path.stem.isidentifier() else None


def _folder(path: Path, name: str) -> str | None:
    levels = name.count(".") + (path.name == "__init__.py")
    folder = path.parents[levels]
    searched = {
        Path.cwd(),
        *(Path(sysconfig.get_path(n)) for n in ("stdlib", "purelib", "platlib")),
    }
    entries = {Path(entry or ".").resolve() for entry in sys.path}
    # A module that an import hook has found needs no folder.
    return str(folder) if folder in entries - {one.resolve() for one in searched} else None


def _refusal(setting: str, name: str, reason: str) -> UsageError:
    return UsageError(
        f"{setting} {name}: the processes of a run cannot import it, because {reason}; write it at "
        f"the top level of a module, such as my_code.py (in a notebook: {_CELL}), import it from "
        "there, and give that"
    )
