"""The key files of a run between hosts: who may take part, and how each proves who it is.

A directory holds them::

    head.key        the run's own key pair; ``pdqn launch --keys DIRECTORY`` reads it
    NAME.key        a key pair for another host, and the run's public key; copy it there and
                    give it to ``--key``
    allowed.toml    public keys that are let in, by name

Key files are secret: they are made for their owner alone, and refused when others can read them.
"""

from __future__ import annotations

import math
import os
import re
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w
import zmq

from pdqn.errors import UsageError
from pdqn.transport import KeyPair

HEAD, ALLOWED = "head.key", "allowed.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
_LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class HostKey:
    """What a key file holds.

    Attributes:
        name: in the list of those who are let in.
        keys: the host's own.
        head: public key of the run.
    """

    name: str
    keys: KeyPair
    head: str


def make_keys(directory: Path, names: tuple[str, ...]) -> list[Path]:
    """Make the run's keys, if there are none, and a key file for each name; the files made.

    Raises:
        UsageError: a name that is no name or is taken, or a directory that cannot be written to.
    """
    for name in names:
        if not _NAME.fullmatch(name) or f"{name}.key" == HEAD:
            raise UsageError(f"{name!r} is no name for a key; expected letters, digits, - _ and .")
        if (directory / f"{name}.key").exists():
            raise UsageError(f"{directory / f'{name}.key'} exists; revoke it first, with --revoke")
    made = []
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (directory / HEAD).exists():
            _write_secret(directory / HEAD, {"name": "head", **_new_pair()})
            made.append(directory / HEAD)
        head = read_head(directory).public
        for name in names:
            pair = _new_pair()
            _write_secret(directory / f"{name}.key", {"name": name, **pair, "head": head})
            _allow(directory, read_allowed(directory) | {name: pair["public"]})
            made.append(directory / f"{name}.key")
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from error
    return made


def revoke(directory: Path, name: str) -> None:
    """Let a key in no longer; its file is removed here.

    Raises:
        UsageError: there is no such key.
    """
    allowed = read_allowed(directory)
    if name not in allowed:
        known = ", ".join(sorted(allowed)) or "none"
        raise UsageError(f"{directory / ALLOWED} has no key {name!r}; it has {known}")
    del allowed[name]
    _allow(directory, allowed)
    (directory / f"{name}.key").unlink(missing_ok=True)


def read_head(directory: Path) -> KeyPair:
    """The run's own keys.

    Raises:
        UsageError: no such file, or one that others can read, or that holds no keys.
    """
    return _pair(directory / HEAD, _read_secret(directory / HEAD))


def read_key(path: Path) -> HostKey:
    """A host's key file.

    Raises:
        UsageError: no such file, or one that others can read, or that holds no keys.
    """
    return _host_key(path, _read_secret(path))


def parse_key(text: str) -> HostKey:
    """What a key file's text holds.

    Raises:
        UsageError: no keys.
    """
    try:
        return _host_key(Path("key"), tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the text of a key file is none: {error}") from error


def read_allowed(directory: Path) -> dict[str, str]:
    """Public keys that are let in, by name.

    Raises:
        UsageError: the file can be written by others, or cannot be read.
    """
    path = directory / ALLOWED
    try:
        if path.stat().st_mode & 0o022:
            raise UsageError(f"{path}: others can write to it; chmod 600 {path}")
        keys = tomllib.loads(path.read_text(encoding="utf-8")).get("keys", {})
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not all(_is_key(key) for key in keys.values()):
        raise UsageError(f"{path}: not every value is a public key; expected NAME = KEY")
    return dict(keys)


class AllowedClients:
    """The public keys that are let in, as the file has them from moment to moment.

    Args:
        directory: of the run's keys.

    Raises:
        UsageError: there are no keys, or they cannot be trusted.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._head = read_head(directory).public
        self._next_look = 0.0
        self.clients = self._read()

    def look(self) -> frozenset[str]:
        """Read the file again, once a second at most.

        A file that cannot be trusted or read lets in nobody but the run itself.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            try:
                self.clients = self._read()
            except UsageError:
                self.clients = frozenset([self._head])
        return self.clients

    def settle(self) -> None:
        """Keep to who is let in now: the file may go."""
        self._next_look = math.inf

    def _read(self) -> frozenset[str]:
        return frozenset([self._head, *read_allowed(self._directory).values()])


def _host_key(path: Path, content: dict[str, object]) -> HostKey:
    head = content.get("head")
    if not _is_key(head):
        raise UsageError(f"{path} names no run that it is for; expected a file made by pdqn keys")
    return HostKey(str(content.get("name")), _pair(path, content), str(head))


def _new_pair() -> dict[str, str]:
    public, secret = zmq.curve_keypair()
    return {"public": public.decode("ascii"), "secret": secret.decode("ascii")}


def _allow(directory: Path, keys: dict[str, str]) -> None:
    temporary = directory / f".{ALLOWED}.{os.getpid()}"
    _write_own(temporary, tomli_w.dumps({"keys": keys}))
    temporary.replace(directory / ALLOWED)


def _write_secret(path: Path, content: dict[str, str]) -> None:
    text = f"# Secret: copy it to its host in a safe way only.\n{tomli_w.dumps(content)}"
    _write_own(path, text)


def _write_own(path: Path, text: str) -> None:
    """Make a file that is its owner's from the first moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _read_secret(path: Path) -> dict[str, object]:
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise UsageError(f"{path}: others can read it (mode {mode:04o}); chmod 600 {path}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such key file; pdqn keys makes them, on the head") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: no key file ({error})") from error


def _pair(path: Path, content: dict[str, object]) -> KeyPair:
    public, secret = content.get("public"), content.get("secret")
    pair = KeyPair(str(public), str(secret))
    if not _is_key(public) or not _is_key(secret) or not _belong_together(pair):
        raise UsageError(f"{path}: no key file; expected one made by pdqn keys")
    return pair


def _belong_together(pair: KeyPair) -> bool:
    return zmq.curve_public(pair.secret.encode("ascii")).decode("ascii") == pair.public


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None
