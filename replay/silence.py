"""The shards that have answered nothing since they were asked. No sockets.

A shard that is silent for seconds while others answer may live where this client cannot reach it.
The client gives it up until it answers. Where nobody answers, it may be this host's own line that
is cut. There is nobody to go on with, then, and the client waits for all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from pdqn import transport
from pdqn.silence import Listening

# Silence that is too long; and as answers go over one connection, what they take on a slow line.
_SILENCE_SECONDS = 10.0
_SLOWEST_BYTES_PER_SECOND = 2e6
_log = logging.getLogger("learner")


@dataclass(eq=False)
class _Silence:
    """Of a shard that was asked for its state and has answered nothing since.

    Attributes:
        listened: seconds that the client had listened for when it began.
        answered: seconds in which anybody had answered by then.
        said: it is in the log.
        given_up: the others give the shard's rows until it answers.
    """

    listened: float
    answered: float
    said: bool = False
    given_up: bool = False


class Silences:
    """Silences of shards, by index; a silence outlasts a connection."""

    def __init__(self) -> None:
        self._silences: dict[int, _Silence] = {}
        self._listening = Listening(_SILENCE_SECONDS)
        # Goes on with answers only: by it nobody is silent when nobody is heard.
        self._answering = Listening(_SILENCE_SECONDS)

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
        """Know nothing of a shard that is gone, or is another process now."""
        self._silences.pop(shard, None)

    def is_given_up(self, shard: int) -> bool:
        """Return whether the others give a shard's rows until it answers."""
        silence = self._silences.get(shard)
        return silence is not None and silence.given_up

    @property
    def unheard(self) -> list[int]:
        """Return the shards that have not answered for seconds, in order."""
        return sorted(shard for shard, silence in self._silences.items() if silence.said)

    def turn(self, addresses: Mapping[int, str], bytes_asked: int) -> list[int]:
        """Take note that all answers that are there have been heard.

        Args:
            addresses: of all shards, by index.
            bytes_asked: what is on its way: a shard's state comes after rows that it sent before.

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
