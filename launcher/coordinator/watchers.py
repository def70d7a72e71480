"""The consoles elsewhere that look on, and when each of them last asked for the run. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

_MOST_OF_KEY = 100


class Watchers:
    """The most recent watchers of each key: one that makes thousands drives out none of another."""

    def __init__(self) -> None:
        self._of_key: defaultdict[str, dict[bytes, float]] = defaultdict(dict)

    def note(self, identity: bytes, user: str, now: float) -> None:
        """Note that a watcher has asked.

        Args:
            identity: of its connection.
            user: its public key; empty if nothing is encrypted.
            now: the present time.
        """
        watchers = self._of_key[user]
        watchers.pop(identity, None)
        watchers[identity] = now  # now the last one
        if len(watchers) > _MOST_OF_KEY:
            del watchers[next(iter(watchers))]

    def since(self, then: float) -> Iterator[bytes]:
        """Iterate over the connections of those that have asked since a time."""
        everybody = (item for watchers in self._of_key.values() for item in watchers.items())
        return (identity for identity, asked in everybody if asked > then)
