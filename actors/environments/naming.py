"""Names of environments as beginners write them, and arguments that a factory does not accept."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pdqn import own_modules
from pdqn.errors import UsageError

# The games of many tutorials. ale-py knows the others, where it is installed.
_GAMES = (
    "Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone "
    "BeamRider Berzerk Bowling Boxing Breakout Carnival Centipede ChopperCommand CrazyClimber "
    "Defender DemonAttack DoubleDunk ElevatorAction Enduro FishingDerby Freeway Frostbite "
    "Gopher Gravitar Hero IceHockey Jamesbond JourneyEscape Kangaroo Krull KungFuMaster "
    "MontezumaRevenge MsPacman NameThisGame Phoenix Pitfall Pong Pooyan PrivateEye Qbert "
    "Riverraid RoadRunner Robotank Seaquest Skiing Solaris SpaceInvaders StarGunner Tennis "
    "TimePilot Tutankham UpNDown Venture VideoPinball WizardOfWor YarsRevenge Zaxxon"
)
_ATARI = re.compile(r"(ALE/)?(\w+?)(-ram)?(NoFrameskip|Deterministic)?(-v\d+)?")
_INSTALL = "python -m pip install 'pdqn[atari]'"


def check_name(env_id: str) -> None:
    """Refuse a path, or half of a name, before anything is imported by it.

    Raises:
        UsageError: with the name to write instead.
    """
    module, colon, name = env_id.rpartition(":")
    bare = env_id.strip().removesuffix("()")
    if bare != env_id or not env_id:
        meant = f"write {bare}" if bare else "write an id such as CartPole-v1, or my_module:make"
        raise UsageError(f"environment {env_id!r}: not a name; {meant}")
    if not colon and not env_id.endswith(".py") and not env_id.startswith((".", "/", "~")):
        return
    if not colon:
        module, name = env_id, ""
    if module.endswith(".py") or "/" in module or module.startswith(".") or "\\" in module:
        problem, advice = "a path is not a module", _of_path(module, name)
    elif not module.strip():
        problem, advice = "no module before the colon", f"write my_module:{name or 'make'}"
    elif not name.strip():
        problem = "no name after the colon"
        advice = f"write {module}:NAME, where NAME is {_NAMED}"
    else:
        return
    raise UsageError(f"environment {env_id}: {problem}; {advice}")


_NAMED = "the function or class in it that makes the environment"


def _of_path(module: str, name: str) -> str:
    """Advise what to write for the path of a file."""
    path = PurePosixPath(module.replace("\\", "/"))
    inside = [part for part in path.parts if part != "."]
    inside[-1:] = [inside[-1].removesuffix(".py")] if inside else []
    written, where = name or "NAME", ""
    if path.is_absolute() or ".." in inside or "~" in inside:
        where = f" in the folder {path.parent}"
        inside = inside[-1:]
    meant = f"write {'.'.join(inside) or 'my_module'}:{written}"
    return f"{meant}{where}" if name else f"{meant}{where}, where NAME is {_NAMED}"


def advice_for_unknown(env_id: str, registered: Iterable[str]) -> str:
    """Advise what to write for an unregistered name, which may have its module before it."""
    _, colon, name = env_id.rpartition(":")
    advice = _advice_for(name, registered)
    if not advice and not colon:
        advice = f"if a module registers it, write that before it: my_module:{name}"
    return advice


def _advice_for(env_id: str, registered: Iterable[str]) -> str:
    """Advise what to write for an id that is not registered, or "" without any advice."""
    known = list(registered)
    match = _ATARI.fullmatch(env_id)
    if match is not None and not env_id.startswith("MinAtar"):
        _, written, ram, old, _ = match.groups()
        games = {game.lower(): game for game in (*_GAMES.split(), *_games_of(known))}
        game = games.get(written.lower(), written if old else None)
        if game is not None:
            seen = "frames are observed, not the memory; " if ram else ""
            install = "" if own_modules.is_there("ale_py") else f" ({_INSTALL})"
            return f"{seen}write ALE/{game}-v5{install}"
    head, dot, tail = env_id.rpartition(".")
    if dot and tail.isidentifier() and all(part.isidentifier() for part in head.split(".")):
        return f"for {tail} in the module {head}, write {head}:{tail}"
    if env_id.isidentifier() and (own_modules.is_there(env_id) or _of_this_folder(env_id)):
        return f"for the module {env_id}, write {env_id}:NAME, where NAME is {_NAMED}"
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(env_id.lower(), lower, 3, 0.75)
    if not close:  # the version may be missing
        close = [name for name in lower if name.rpartition("-v")[0] == env_id.lower()]
    return f"write {' or '.join(lower[name] for name in close)}" if close else ""


def _games_of(registered: Iterable[str]) -> list[str]:
    return [name[len("ALE/") : -len("-v5")] for name in registered if name.startswith("ALE/")]


def check_arguments(env_id: str, factory: Callable[..., Any], env_args: Mapping[str, Any]) -> None:
    """Refuse arguments that a factory does not accept, and the lack of those that it needs.

    Raises:
        UsageError: with the arguments that it accepts.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # native code has none
        return
    try:
        signature.bind(**env_args)
    except TypeError as error:
        parameters = signature.parameters.values()
        problem, called = str(error), f"{env_id.rpartition(':')[2]}()"
        accepted = [
            p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        lacking = [
            p.name
            for p in parameters
            if p.name in accepted and p.default is p.empty and p.name not in env_args
        ]
        advice = f"it accepts {', '.join(accepted)}" if accepted else "it accepts none"
        if lacking and not set(env_args) - set(accepted):
            problem = f"needs the argument {', '.join(lacking)}"
            advice = f"give {' '.join(f'--env-arg {name}=...' for name in lacking)}"
        raise UsageError(f"environment {env_id}: {called} {problem}; {advice}") from error


def hidden_module(name: str) -> str:
    """Advise about a module of the current directory that another of its name hides, or ""."""
    mine = _of_this_folder(name)
    file = getattr(sys.modules.get(name), "__file__", None)
    if mine is None or file is None or Path(file).resolve() in (mine, mine / "__init__.py"):
        return ""
    return f"; another module {name} ({file}) hides your {mine.name}, so rename yours"


def _of_this_folder(name: str) -> Path | None:
    """Return the module or package of this name in the current directory; None without one."""
    file, folder = Path.cwd() / f"{name}.py", Path.cwd() / name
    if file.is_file():
        return file
    return folder if name and folder.is_dir() and any(folder.glob("*.py")) else None


def advice_for_import(error: ImportError) -> str:
    """Advise what to do about a module that is not there; "" without any advice."""
    name = str(error.name or "")
    top = name.partition(".")[0]
    if hidden := hidden_module(top):
        return hidden
    if top in own_modules.TAKEN:
        taken = ", ".join(own_modules.TAKEN)
        return f"; pdqn has packages {taken}, so rename yours if it is called {top}"
    if not isinstance(error, ModuleNotFoundError) or own_modules.is_there(top):
        return ""
    here = [path.stem for path in Path.cwd().glob("*.py")]
    close = difflib.get_close_matches(top, here, 1)
    return f"; did you mean {close[0]}?" if close else ""
