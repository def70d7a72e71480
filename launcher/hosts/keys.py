"""The key files of a run across hosts: which hosts may take part, and proof of their identity.

A directory holds them::

    head.key        the run's own key pair; ``pdqn launch --keys DIRECTORY`` reads it
    NAME.key        a key pair for another host, and the run's public key; copy it there and
                    give it to ``--key``
    allowed.toml    public keys that may join, by name, and the roles that they may take

A run without such a directory makes one in its own. ``local.key`` there is for commands of the same
user on the same host.

A key may take the role ``actor`` unless other roles are named when it is made (``NAME:ROLE,ROLE``).
The launcher's own key may take every role.

Key files are secret: only their owner can read them, and a file that others can read is refused.
So is a directory that others can open, or that belongs to somebody else.

A key file is first written as a *draft*; then its key is listed, and then the draft gets its name.
A file that exists is therefore complete and its key is listed, unless its revocation was
interrupted. A listed key without a file has a draft if making it was interrupted; otherwise
somebody has moved the file away. A draft whose key is not listed is useless: the next call for its
file replaces it.

Concurrent calls take turns by a lock on ``.lock``: each sees what the previous one listed.
"""

from __future__ import annotations

import math
import os
import re
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tomli_w
import zmq

from pdqn.clients import DEFAULT_ROLES, EVERY_ROLE, KEY_ROLES, Client, Clients
from pdqn.errors import UsageError
from pdqn.locking import take_lock
from pdqn.silence import ListeningClock
from pdqn.transport import KeyPair

HEAD, ALLOWED, _LOCK = "head.key", "allowed.toml", ".lock"
# The directory of keys that a run makes for itself, in its own.
KEYS = "keys"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}")
_LOOK_SECONDS = 1.0
# A list that cannot be read for this long may be one that is just being written.
_PATIENCE_SECONDS = 5.0
# Other calls take milliseconds: a process that has the lock for longer hangs.
_LOCK_TRIES, _LOCK_SECONDS = 250, 0.02


@dataclass(frozen=True)
class HostKey:
    """The content of a key file.

    Attributes:
        name: the host's, in the list of keys that may join.
        keys: the host's own pair.
        head: public key of the run.
    """

    name: str
    keys: KeyPair
    head: str


@dataclass(frozen=True)
class _List:
    """The list of keys: public keys by name, and roles of those that have other than actor."""

    keys: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def clients(self) -> dict[str, Client]:
        return {
            key: Client(name, self.roles.get(name, DEFAULT_ROLES))
            for name, key in self.keys.items()
        }

    def with_key(self, name: str, key: str) -> _List:
        return _List({**self.keys, name: key}, self.roles)

    def with_roles(self, roles: Mapping[str, frozenset[str] | None]) -> _List:
        """Set roles; None leaves those of a listed key, and is the default for another one."""
        others = {n: r for n, r in self.roles.items() if n not in roles or n in self.keys}
        return _List(self.keys, {**others, **{n: r for n, r in roles.items() if r is not None}})

    def without(self, name: str) -> _List:
        keys = {n: key for n, key in self.keys.items() if n != name}
        return _List(keys, {n: roles for n, roles in self.roles.items() if n != name})


def make_keys(directory: Path, names: tuple[str, ...]) -> list[Path]:
    """Make the run's keys, if there are none, and a key file for each name.

    This also finishes what an interrupted call has begun.

    Args:
        directory: the run's keys.
        names: ``NAME``, or ``NAME:ROLE,ROLE``. A key that exists takes these roles from now on.

    Returns:
        The files made.

    Raises:
        UsageError: a name that is not valid or is taken, an unknown role, or a directory that
            cannot be written to.
    """
    roles = dict(map(_name_and_roles, names))
    with _changing(directory, make=True):
        return _make_keys(directory, roles)


def _name_and_roles(text: str) -> tuple[str, frozenset[str] | None]:
    """Split ``NAME:ROLE,ROLE``; a bare ``NAME`` has None for the roles.

    Raises:
        UsageError: a name that cannot name a key, or an unknown role.
    """
    name, colon, listed = text.partition(":")
    if not _is_name(name):
        raise UsageError(f"{text!r} cannot name a key; expected letters, digits, - _ and .")
    if not colon:
        return name, None
    roles = frozenset(listed.split(","))
    if unknown := sorted(roles - EVERY_ROLE):
        raise UsageError(
            f"{text!r}: {unknown[0]!r} is not a role; expected NAME:ROLE,ROLE with roles of "
            f"{', '.join(KEY_ROLES)}"
        )
    return name, roles


def ensure_key(directory: Path, name: str) -> Path:
    """Return the key file of a name, for every role; make it if there is none.

    Raises:
        UsageError: the file belongs to another run, or the directory cannot be written to or
            trusted.
    """
    path = _key_path(directory, name)
    with _changing(directory, make=True):
        # A file whose key is not listed may be left from an interrupted revocation.
        if not path.exists() or name not in read_allowed(directory):
            _make_keys(directory, {name: EVERY_ROLE})
    return path


def revoke(directory: Path, name: str) -> None:
    """Stop admitting a key, and remove its file here.

    Raises:
        UsageError: there is no such key, or its file cannot be removed.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: there is no such directory of keys")
    path = _key_path(directory, name)
    with _changing(directory):
        allowed = _read_list(directory) or _List()
        if name in allowed.keys:
            _allow(directory, allowed.without(name))
        elif not _is_name(name) or not _is_left_over(path):
            known = ", ".join(sorted(allowed.keys)) or "none"
            raise UsageError(f"{directory / ALLOWED} has no key {name!r}; it has {known}")
        for each in (_draft(path), path):
            each.unlink(missing_ok=True)


def check_private(directory: Path) -> None:
    """Check that nobody else can open or replace what a directory of keys holds.

    A directory that is missing passes: reading from it reports that.

    Raises:
        UsageError: it belongs to another user, or others can open it.
    """
    try:
        status = directory.stat()
    except OSError:
        return
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"{directory} belongs to another user (uid {status.st_uid}); keys are read only from "
            "a directory of your own"
        )
    if status.st_mode & 0o077:
        mode = status.st_mode & 0o777
        raise UsageError(
            f"{directory}: others can open it (mode {mode:04o}); chmod 700 {directory}"
        )


def read_head(directory: Path) -> KeyPair:
    """Read the run's own keys.

    Raises:
        UsageError: there is no such file, others can read it or open the directory, or it holds no
            keys.
    """
    check_private(directory)
    return _pair(directory / HEAD, _read_secret(directory / HEAD))


def read_key(path: Path) -> HostKey:
    """Read a host's key file.

    Raises:
        UsageError: there is no such file, others can read it, or it holds no keys.
    """
    return _host_key(path, _read_secret(path))


def parse_key(text: str) -> HostKey:
    """Parse the text of a key file.

    Raises:
        UsageError: it holds no keys.
    """
    try:
        return _host_key(Path("key"), tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the text of the key file is not TOML: {error}") from error


def described(directory: Path) -> list[str]:
    """List the keys that may join, each with its roles, for a person.

    Raises:
        UsageError: as from ``read_allowed``.
    """
    clients = (_read_list(directory) or _List()).clients
    return [client.described for client in clients.values()]


def read_allowed(directory: Path) -> dict[str, str]:
    """Read the public keys that may join, by name.

    Raises:
        UsageError: the file can be written by others, or cannot be read.
    """
    return dict((_read_list(directory) or _List()).keys)


class AllowedClients:
    """The public keys that may join, as the file lists them from moment to moment.

    Args:
        directory: the run's keys.

    Attributes:
        clients: the keys and their roles, the run's own among them.
        trouble: why the file could not be read at the last look, and what follows from that;
            empty if it could.

    Raises:
        UsageError: there are no keys, or they cannot be trusted.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._head = read_head(directory).public
        self._next_look = 0.0
        self._looking = ListeningClock(_PATIENCE_SECONDS)
        self._read_at = self._looking.seconds
        self._has_list = False
        self.clients = self._read()
        self.trouble = ""

    def look(self) -> Clients:
        """Read the file again, at most once a second, and return the clients by public key.

        If the file cannot be read or trusted, the last good list stays in force for five seconds.
        The file may just be half-written, or the head short of descriptors. After that, only the
        run itself may join.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + _LOOK_SECONDS
            self._looking.turn()
            try:
                self.clients, self.trouble = self._read(), ""
                self._read_at = self._looking.seconds
            except UsageError as error:
                self._do_without(str(error))
        return self.clients

    def settle(self) -> None:
        """Keep the present list for good, so that the file can be removed."""
        self._next_look = math.inf

    @property
    def _own(self) -> dict[str, Client]:
        return {self._head: Client("head", EVERY_ROLE)}

    def _read(self) -> Clients:
        allowed = _read_list(self._directory)
        if allowed is None and self._has_list:
            raise UsageError(f"{self._directory / ALLOWED} has no list of keys any more")
        self._has_list = allowed is not None
        return (allowed or _List()).clients | self._own

    def _do_without(self, why: str) -> None:
        if self._looking.seconds - self._read_at < _PATIENCE_SECONDS:
            self.trouble = f"{why}; the last list stays in force for {_PATIENCE_SECONDS:g} s"
        else:
            self.clients = self._own
            self.trouble = f"{why}; until it can be read, no other host is admitted"


@contextmanager
def _changing(directory: Path, *, make: bool = False) -> Iterator[None]:
    """Lock the directory, so that nobody else changes it during the block.

    Raises:
        UsageError: another process keeps the lock, or the directory cannot be written to.
    """
    try:
        if make:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(directory)
        # Open to write, which NFS wants of a file that is to be locked.
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not take_lock(lock, _LOCK_TRIES, _LOCK_SECONDS):
                raise UsageError(
                    f"{directory}: another pdqn is changing the keys, and does not finish"
                )
            yield
        finally:
            os.close(lock)
    except OSError as error:
        raise UsageError(f"{error.filename or directory}: {error.strerror}") from error


def _make_keys(directory: Path, roles: Mapping[str, frozenset[str] | None]) -> list[Path]:
    """Make what is missing, in a directory that this process has locked; return the files made."""
    made, head, allowed = [], directory / HEAD, _read_list(directory) or _List()
    # A key that is here and is given roles keeps its file.
    complete = {n for n in allowed.keys if roles.get(n) and _key_path(directory, n).exists()}
    names = [name for name in roles if name not in complete]
    _check_free(directory, names)
    # Before keys are listed: none has roles that it is not meant to have, not even briefly.
    if (changed := allowed.with_roles(roles)) != allowed:
        _allow(directory, changed)
    if not head.exists():
        _write_draft(head, _secret_text({"name": "head", **asdict(KeyPair.new())}))
        made.append(_draft(head).replace(head))
    public = read_head(directory).public
    made.extend(_make_key(directory, name, public) for name in names)
    return made


def _check_free(directory: Path, names: Iterable[str]) -> None:
    """Check that a key can be made for each name, before any is made.

    Raises:
        UsageError: a name that is taken.
    """
    allowed = read_allowed(directory)
    for name in names:
        path = _key_path(directory, name)
        if name not in allowed:
            if path.exists() and not _is_left_over(path):
                raise UsageError(f"{path} exists, but is not a key file of this run; move it away")
        elif path.exists():
            raise UsageError(f"{path} exists; revoke it first, with --revoke")
        elif not _is_draft_of(_draft(path), allowed[name]):
            raise UsageError(
                f"{path} is no longer here, but whoever has it may join; "
                f"revoke it first, with --revoke {name}"
            )


def _make_key(directory: Path, name: str, head: str) -> Path:
    """Make the key file of a checked name, or finish it; return the file."""
    path, allowed = _key_path(directory, name), _read_list(directory) or _List()
    if name not in allowed.keys:
        pair = KeyPair.new()
        _write_draft(path, _secret_text({"name": name, **asdict(pair), "head": head}))
        _allow(directory, allowed.with_key(name, pair.public))
    return _draft(path).replace(path)


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and f"{name}.key" != HEAD


def _key_path(directory: Path, name: str) -> Path:
    return directory / f"{name}.key"


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.draft")


def _is_draft_of(draft: Path, public: str) -> bool:
    try:
        return read_key(draft).keys.public == public
    except UsageError:
        return False


def _is_left_over(path: Path) -> bool:
    """Tell whether a file whose key is not listed may go: it is this run's, or it is empty."""
    try:
        return not path.stat().st_size or read_key(path).head == read_head(path.parent).public
    except (OSError, UsageError):
        return False


def _read_list(directory: Path) -> _List | None:
    """Read the public keys that may join, and their roles; return None if there is no list.

    Raises:
        UsageError: the file can be written by others, or cannot be read; or the directory cannot be
            trusted.
    """
    check_private(directory)
    path = directory / ALLOWED
    try:
        if path.stat().st_mode & 0o022:
            raise UsageError(f"{path}: others can write to it; chmod 600 {path}")
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error
    keys, roles = content.get("keys"), content.get("roles", {})
    if keys is None:
        return None
    if not isinstance(keys, dict) or not all(_is_key(key) for key in keys.values()):
        raise UsageError(f"{path}: not every value is a public key; expected NAME = KEY")
    return _List(keys, _roles_in(path, roles))


def _roles_in(path: Path, content: object) -> dict[str, frozenset[str]]:
    """Check the part of the list that gives keys their roles."""
    if isinstance(content, dict):
        roles = {n: frozenset(v) for n, v in content.items() if _is_list_of_roles(v)}
        if len(roles) == len(content):
            return roles
    raise UsageError(
        f"{path}: [roles] has a value that is not a list of roles; expected NAME = [ROLE, ...] "
        f"with roles of {', '.join(KEY_ROLES)}"
    )


def _is_list_of_roles(value: object) -> bool:
    return isinstance(value, list) and all(role in KEY_ROLES for role in value)


def _host_key(path: Path, content: dict[str, object]) -> HostKey:
    head = content.get("head")
    if not _is_key(head):
        raise UsageError(f"{path} names no run that it is for; expected a file made by pdqn keys")
    return HostKey(str(content.get("name")), _pair(path, content), str(head))


def _allow(directory: Path, allowed: _List) -> None:
    path = directory / ALLOWED
    content: dict[str, dict[str, Any]] = {"keys": dict(allowed.keys)}
    if allowed.roles:
        content["roles"] = {name: sorted(roles) for name, roles in allowed.roles.items()}
    _write_draft(path, tomli_w.dumps(content))
    _draft(path).replace(path)


def _secret_text(content: dict[str, str]) -> str:
    return f"# Secret: copy it to its host over a secure channel only.\n{tomli_w.dumps(content)}"


def _write_draft(path: Path, text: str) -> None:
    """Write a draft that only its owner can ever read, in place of a leftover one."""
    draft = _draft(path)
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
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
        raise UsageError(f"{path}: not a key file ({error})") from error


def _pair(path: Path, content: dict[str, object]) -> KeyPair:
    public, secret = content.get("public"), content.get("secret")
    pair = KeyPair(str(public), str(secret))
    if not _is_key(public) or not _is_key(secret) or not _belong_together(pair):
        raise UsageError(f"{path}: not a key file; expected one made by pdqn keys")
    return pair


def _belong_together(pair: KeyPair) -> bool:
    return zmq.curve_public(pair.secret.encode("ascii")).decode("ascii") == pair.public


def _is_key(value: object) -> bool:
    return isinstance(value, str) and _KEY.fullmatch(value) is not None
