"""Permission to run what a file, or the head of a run, names: environments and networks.

A name ``module:factory`` makes Python import a module and call a function of it. A registered
environment or a built-in network of an installed package needs no permission. All else does: by
name, or for everything.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import shlex
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from pdqn import layers
from pdqn.config import Config
from pdqn.errors import NotTrustedError, UsageError
from pdqn.layers import CONFIG, Layer
from pdqn.text import printable

# Texts that a library could import: module:name, and package.module.name.
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_].*", re.DOTALL)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_MOST_SHOWN = 80


class Ways(NamedTuple):
    """The ways in which a person gives permission; ``{}`` stands for the name."""

    environment: str = "--env {}, or --trust"
    network: str = "--network {}, or --trust"
    everything: str = "--trust"


ON_LAUNCH = Ways(network="--set network.kind={}, or --trust")
IN_PYTHON = Ways("trust=True", "trust=True", "trust=True")


@dataclass(frozen=True)
class Trust:
    """The names that a person lets others use here.

    Attributes:
        environments: environments that may be made, as ``run.env`` names them.
        networks: networks that may be built, as ``network.kind`` names them.
        everything: whether any code may run.
        ways: how the person can permit more, for the refusals.
    """

    environments: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    everything: bool = False
    ways: Ways = Ways()

    def check_environment(self, whose: str, env_id: str, *env_args: Mapping[str, Any]) -> None:
        """Refuse an environment that would run code without permission. Imports nothing.

        The arguments of an environment that the person has named are data to it. Only a text
        ``module:name`` among them still needs permission for everything. The arguments of other
        environments must not look like ``package.module.name`` either.

        Args:
            whose: beginning of the message: the file or the address, with a colon.
            env_id: name of the environment.
            env_args: keyword arguments that it is to get.

        Raises:
            NotTrustedError: the message shows the name, and what to type.
        """
        if self.everything:
            return
        named = env_id in self.environments
        if ":" in env_id and not named:
            raise self._refusal(whose, "its environment", env_id, self.ways.environment)
        for arguments in env_args:
            for key, text in _texts(arguments):
                if _CODE.fullmatch(text):
                    raise self._refusal(whose, f"its argument {shown(key)}", text)
                if _DOTTED.fullmatch(text) and not named:
                    way = self.ways.environment.format(_quoted(env_id))
                    raise self._refusal(whose, f"its argument {shown(key)}", text, way)

    def check_network(self, whose: str, kind: str) -> None:
        """Refuse a network that would run code without permission. Imports nothing.

        Raises:
            NotTrustedError: the message shows the name, and what to type.
        """
        if ":" in kind and not self.everything and kind not in self.networks:
            raise self._refusal(whose, "its network", kind, self.ways.network)

    def _refusal(self, whose: str, what: str, name: str, way: str = "") -> NotTrustedError:
        way = (way or self.ways.everything).format(_quoted(name))
        verb = "could" if "argument" in what else "would"
        return NotTrustedError(
            f"{whose} {what} is {shown(name)}, which {verb} run code; if you trust it, give {way}"
        )


NOTHING, EVERYTHING = Trust(), Trust(everything=True)


def names_code(env_id: str, kind: str, *env_args: Mapping[str, Any]) -> bool:
    """Tell whether an environment, a network or an argument is a ``module:name``."""
    texts = (text for arguments in env_args for _, text in _texts(arguments))
    return ":" in env_id or ":" in kind or any(map(_CODE.fullmatch, texts))


def own_config(run_dir: Path) -> Config | None:
    """Read the configuration of a run directory of this user's own; None if it is not one.

    Raises:
        UsageError: the configuration cannot be read.
    """
    path = run_dir / CONFIG
    if not (is_own(run_dir) and is_own(path)):
        return None
    layer, own = read_settings(path)
    return layers.build((f"file {path}", layers.of_run(layer))) if own else None


def read_settings(path: Path) -> tuple[Layer, bool]:
    """Read a layer from a TOML file; return it, and whether the file is this user's own.

    Raises:
        UsageError: see ``read_toml``.
    """
    try:
        with path.open("rb") as file:
            return layers.read_toml(path, file), is_own(file)
    except OSError as error:
        raise UsageError(f"configuration file {path}: {error}") from error


def is_own(file: Path | IO[bytes]) -> bool:
    """Tell whether a file is there, is this user's, and cannot be written by anybody else.

    Args:
        file: its path, or the open file. Only of that one it is certain that what is read is what
            was looked at: whoever can write a directory above may exchange the file in between.
    """
    try:
        found = file.stat() if isinstance(file, Path) else os.fstat(file.fileno())
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not _others_may_write(found)


def _others_may_write(found: os.stat_result) -> bool:
    """Tell whether another user may write a file; a group of this user alone has no others."""
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_private_group(found.st_gid)


def _is_private_group(gid: int) -> bool:
    """Tell whether a group has this user's name and no other members, as many systems make one."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    is_named = gid == user.pw_gid and group.gr_name == user.pw_name
    return is_named and set(group.gr_mem) <= {user.pw_name}


def shown(text: str) -> str:
    """Return a text as a line that does nothing to a terminal, cut to 80 characters."""
    line = printable(text)
    return line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}..."


def _quoted(name: str) -> str:
    """Quote a name for a shell; a name that would not fit in the message is left out."""
    fits = shown(name) == name
    return shlex.quote(name) if fits else "NAME"


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in plain data with the key that it is under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, str(name))
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from _texts(part, key)
