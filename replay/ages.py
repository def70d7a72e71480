"""The age of what a buffer holds: its batches by the parameters that acted. Pure."""

from __future__ import annotations

from collections import deque


class Ages:
    """The live batches that are young enough to be sampled, by the version of their parameters.

    Batches come in nearly the order of their versions. Actors and hosts differ in speed, and a
    journal may bring older ones back. Batches of one version grow too old together.

    Attributes:
        expired: live transitions that are too old, and wait for their turn to be evicted.
    """

    def __init__(self) -> None:
        self.expired = 0
        self._keys: dict[int, deque[range]] = {}
        # The oldest version, or an older one: what is older than this has expired.
        self._oldest = 0

    def add(self, version: int, keys: range) -> None:
        """Add a batch, newer than all others.

        Args:
            version: learner steps of the parameters that acted.
            keys: keys of its transitions.
        """
        self._keys.setdefault(version, deque()).append(keys)
        self._oldest = min(self._oldest, version)

    def remove(self, version: int, keys: range) -> None:
        """Remove a batch that is evicted, the oldest of all."""
        batches = self._keys.get(version)
        if not batches or batches[0] != keys:
            self.expired -= len(keys)
            return
        batches.popleft()
        if not batches:
            del self._keys[version]

    def expire(self, oldest_version: int) -> list[range]:
        """Return the keys of batches of older versions, which expire now."""
        if oldest_version <= self._oldest:
            return []
        old = [version for version in self._keys if version < oldest_version]
        ranges = [keys for version in old for keys in self._keys.pop(version)]
        self._oldest = oldest_version
        self.expired += sum(map(len, ranges))
        return ranges

    def has_expired(self, version: int, first_key: int) -> bool:
        """Return whether a live batch is too old.

        Args:
            version: its version.
            first_key: key of its first transition, the oldest of all live ones.
        """
        batches = self._keys.get(version)
        return not batches or batches[0].start != first_key

    def young_keys(self) -> list[range]:
        """List the keys of the batches that have not expired."""
        return [keys for batches in self._keys.values() for keys in batches]
