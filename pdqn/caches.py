"""Folders for caches, in particular of compiled code: none that another user can have made first.

Code is run from such a folder. In a directory that everybody may write to, anybody can guess its
name. It is used there only if it belongs to this user and nobody else can rename it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_TORCH, _NUMBA, _MATPLOTLIB = "TORCHINDUCTOR_CACHE_DIR", "NUMBA_CACHE_DIR", "MPLCONFIGDIR"
_SHARED_MEMORY = Path("/dev/shm")


def keep_caches_private() -> None:
    """Have other packages keep their caches in this user's folder; a person's own settings stay.

    Torch would use a folder in /tmp with a name that anybody can guess, and run what is there.
    Numba and Matplotlib look into the home directory, and need help only if that is of no use.
    """
    at_home = _of_home()
    folder = at_home or _of_temporary_directory()
    if folder is None:
        return
    needed = {_TORCH: "torchinductor"}
    if at_home is None:
        needed |= {_NUMBA: "numba", _MATPLOTLIB: "matplotlib"}
    for name, part in needed.items():
        if not os.environ.get(name) and may_write(folder / part):
            os.environ[name] = str(folder / part)


def own_cache() -> Path | None:
    """Return the folder of this user's caches, made if necessary; None if there is none.

    It is ``pdqn`` in ``XDG_CACHE_HOME`` or ``~/.cache``, or else one of the temporary directory
    or of the shared memory.
    """
    return _of_home() or _of_temporary_directory()


def may_write(folder: Path) -> bool:
    """Tell whether this process can make files in a folder, which is made if necessary."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, ValueError):  # a name that this locale cannot write is a ValueError
        return False
    return True


def _of_home() -> Path | None:
    found = (base / "pdqn" for base in _homes() if _is_private(base / "pdqn"))
    return next(found, None)


def _of_temporary_directory() -> Path | None:
    name = f"cache-pdqn-{os.geteuid()}"
    found = (around / name for around in _shared_directories() if _is_private(around / name))
    return next(found, None)


def _shared_directories() -> Iterator[Path]:
    """Yield directories that all users may share, in the order of preference."""
    with contextlib.suppress(OSError):
        around = Path(tempfile.gettempdir())
        if around != Path.cwd():  # Python's last resort
            yield around
    # Where a container's files are read-only, this can usually still be written.
    if _SHARED_MEMORY.is_dir():
        yield _SHARED_MEMORY


def _homes() -> Iterator[Path]:
    """Yield directories for this user's caches, those that have an absolute path."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():
        yield given
    home = os.environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:  # as in a container that was started with some number
            return
    if Path(home).is_absolute():
        yield Path(home) / ".cache"


def _is_private(folder: Path) -> bool:
    """Tell whether only this user can write into a folder, or put another one in its place."""
    if not may_write(folder):
        return False
    own, around = folder.lstat(), folder.parent.stat()
    if not stat.S_ISDIR(own.st_mode) or own.st_uid != os.geteuid() or own.st_mode & 0o022:
        return False
    fixed = not around.st_mode & stat.S_IWOTH or bool(around.st_mode & stat.S_ISVTX)
    return fixed and around.st_uid in (0, os.geteuid())
