"""The limit on events: no member fills the disk, or takes the place of what others have to say."""

from __future__ import annotations

from collections import Counter

from launcher.coordinator.membership import Event
from launcher.metrics.allowance import Allowance
from launcher.numbers import plural
from pdqn.messages import ROLES

LEFT_OUT = "left_out"
# A line of events.jsonl has as many characters beside its text.
_LINE = 100
# One place: a thousand short events at once, later 86 MB a day. A key: ten thousand joins at once.
_OF_PLACE = (100_000, 1_000)
_OF_KEY = (4_000_000, 5_000)
_NOTICE_SECONDS = 10.0
_MOST_PLACES = 10_000

Place = tuple[str, int]


class EventLimit:
    """The events that are written down; the others are counted, and a notice names who sent them.

    What comes of the messages of one key has an allowance, and of that each place that they are
    about. Refused processes of a key share one. No key uses up what another has to say about a
    place.

    Attributes:
        left_out: number of events that were not written down, by place.
    """

    def __init__(self) -> None:
        self.left_out: Counter[Place] = Counter()
        self._places: dict[tuple[str, Place], Allowance] = {}  # by key and place
        self._keys: dict[str, Allowance] = {}  # as many as a person has made
        self._next_notice = 0.0

    def take(self, event: Event, now: float, user: str = "") -> list[Event]:
        """Return what is to be written down: the event, nothing, or a notice in its place.

        Args:
            event: the event.
            now: the present time.
            user: public key of the sender whose message it comes of; empty for the launcher, or if
                nothing is encrypted.
        """
        # A refused process may name any role.
        place = (event.role if event.role in ROLES else "", event.index)
        own, size = self._of(user, place, now), _LINE + len(event.text)
        of_key = self._keys.setdefault(user, Allowance(*_OF_KEY))
        if size <= min(own.left(now), of_key.left(now)):
            own.use(size, now)
            of_key.use(size, now)
            return [event]
        if place not in self.left_out and len(self.left_out) >= _MOST_PLACES:
            place = ("", -1)
        self.left_out[place] += 1
        if now < self._next_notice:
            return []
        self._next_notice = now + _NOTICE_SECONDS
        events = plural(self.left_out[place], "event")
        return [Event(LEFT_OUT, *place, f"{events} left out so far: more than a place may write")]

    def _of(self, user: str, place: Place, now: float) -> Allowance:
        """Find a place's allowance; forget those that are whole, which are as good as new ones."""
        name = (user, place)
        if name not in self._places and len(self._places) >= _MOST_PLACES:
            self._places = {key: one for key, one in self._places.items() if not one.is_whole(now)}
        return self._places.setdefault(name, Allowance(*_OF_PLACE))
