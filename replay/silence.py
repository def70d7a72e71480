"""Shards that have not answered since a request. No sockets.

If one shard is silent for seconds while others answer, it may be alive but unreachable. The client
gives it up until it answers. If no shard answers, this host's own connection may be cut. There are
then no shards to continue with, and the client waits for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pdqn import transport
from pdqn.silence import ListeningClock

# The silence that is too long, and the rate of a slow line. All answers share one connection, so a
# silence may be longer by the time that the requested rows take.
_SILENCE_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 2e6
_log = logging.getLogger("learner")


@dataclass(eq=False)
class _Silence:
    """The silence of a shard since a request for its state.

    Attributes:
        listened: seconds that the client had listened for when the silence began.
        answered: seconds counted while any shard answered, when the silence began.
        said: whether it is in the log.
        given_up: whether the others give the shard's rows until it answers.
    """

    listened: float
    answered: float
    said: bool = False
    given_up: bool = False


class Silences:
    """Silences of shards, by index; a silence outlasts a connection."""

    def __init__(self) -> None:
        self._silences: dict[int, _Silence] = {}
        self._listening = ListeningClock(_SILENCE_SECONDS)
        # Advances only with answers: if no shard is heard, no single one counts as silent by it.
        self._answering = ListeningClock(_SILENCE_SECONDS)

    def asked(self, shard: int) -> None:
        """Begin a silence, unless there is one."""
        if shard not in self._silences:
            listened, answered = self._listening.seconds, self._answering.seconds
            self._silences[shard] = _Silence(listened, answered)

    def heard(self, shard: int) -> None:
        """End a shard's silence."""
        self._answering.turn()
        silence = self._silences.pop(shard, None)
        if silence is not None and silence.said:
            _log.info("replay %d answers now", shard)

    def forget(self, shard: int) -> None:
        """Forget a shard that is gone, or is now another process."""
        self._silences.pop(shard, None)

    def is_given_up(self, shard: int) -> bool:
        """Return whether the others give a shard's rows until it answers."""
        silence = self._silences.get(shard)
        return silence is not None and silence.given_up

    @property
    def unheard(self) -> str:
        """Names of the shards that have not answered for seconds; empty if there are none."""
        silent = sorted(shard for shard, silence in self._silences.items() if silence.said)
        if len(silent) < 2:
            return f"replay {silent[0]} does not answer" if silent else ""
        return f"replays {', '.join(map(str, silent))} do not answer"

    def turn(self, addresses: Mapping[int, str], bytes_asked: int) -> list[int]:
        """Note that all pending answers have been read.

        Args:
            addresses: addresses of all shards, by index.
            bytes_asked: bytes of requested rows; a shard's state comes after the rows sent before
                it.

        Returns:
            Shards that are given up from now on.
        """
        self._listening.turn()
        if not self._silences:
            return []
        patience = _SILENCE_SECONDS + bytes_asked / _SLOWEST_BYTES_PER_SECOND
        given_up = []
        # In the order of the shards, and not in that in which they fell silent.
        for shard, silence in sorted(self._silences.items()):
            if not silence.given_up and self._answering.seconds - silence.answered > patience:
                silence.given_up = True
                given_up.append(shard)
                self._say(shard, addresses[shard], "the others give its rows until it does")
        longest = (self._listening.seconds - s.listened > patience for s in self._silences.values())
        if len(self._silences) == len(addresses) and all(longest):
            for shard in sorted(self._silences):
                self._say(shard, addresses[shard], "it is waited for")
        return given_up

    def _say(self, shard: int, address: str, what_follows: str) -> None:
        silence = self._silences[shard]
        if not silence.said:
            silence.said = True
            where = transport.split(address)[0]
            _log.warning("replay %d does not answer at %s: %s", shard, where, what_follows)
