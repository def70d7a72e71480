"""Entry point of the command ``pdqn``, which is also ``python -m pdqn``."""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("actors", "launcher", "learner", "replay")


def main() -> None:
    """Run a command, unless somebody else's packages are in the place of pdqn's."""
    # Python's own handler would print a traceback, or be caught by a module that is imported.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    _leave_current_directory()
    try:
        _put_packages_first()
        # Imported late: most users of this package do not need the launcher.
        from launcher.cli.main import run_program
    except ImportError as error:
        sys.exit(f"pdqn: {error}{_overwritten()}")
    run_program()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End this process, which has only begun to import modules, in one line."""
    os.write(2, b"pdqn: interrupted\n")
    os._exit(130)


def _leave_current_directory() -> None:
    """Search the current directory no longer: ``python -m`` searches it before all others.

    A person's ``launcher`` in it would be taken for pdqn's. Their environments are looked for there
    later, once they have named one.
    """
    try:
        here = Path.cwd()
    except OSError:  # it has been removed
        return
    if not sys.flags.safe_path and here != _ROOT and sys.path[:1] in ([""], [str(here)]):
        del sys.path[0]


def _put_packages_first() -> None:
    """Search pdqn's folder first if another package of the same name comes before one of pdqn's.

    That may be a person's own, by ``PYTHONPATH``, or another distribution's. ``pdqn.own_modules``
    still finds it for the person's environment.
    """
    if any(_place_of(name) != _ROOT / name for name in _PACKAGES):
        sys.path.insert(0, str(_ROOT))
        # Also in the processes of a run, which begin with this variable.
        given = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *([given] if given else [])])


def _place_of(name: str) -> Path | None:
    found = find_spec(name)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    return Path(folders[0]).resolve() if folders else None


def _overwritten() -> str:
    """Name the distributions that have installed packages of the same names, if there are any."""
    from importlib import metadata

    owners = metadata.packages_distributions()
    others = {o for name in _PACKAGES for o in owners.get(name, []) if o != "pdqn"}
    if not others:
        return ""
    listed = ", ".join(sorted(others))
    return (
        f"; pdqn has packages {', '.join(_PACKAGES)}, and so has {listed}: install pdqn in an "
        "environment of its own"
    )


if __name__ == "__main__":  # a run's processes also import this module
    main()
