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
# One place: a thousand short events at once, later 86 MB a day. All: ten thousand joins at once.
_OF_PLACE = (100_000, 1_000)
_OF_ALL = (4_000_000, 5_000)
_NOTICE_SECONDS = 10.0
_MOST_PLACES = 10_000

Place = tuple[str, int]


class EventLimit:
    """The events that are written down; the others are counted, and a notice names who sent them.

    Each place has an allowance, whoever holds it. Processes that were refused share one. Another
    allowance is for all of them together.

    Attributes:
        left_out: number of events that were not written down, by place.
    """

    def __init__(self) -> None:
        self.left_out: Counter[Place] = Counter()
        self._places: dict[Place, Allowance] = {}
        self._all = Allowance(*_OF_ALL)
        self._next_notice = 0.0

    def take(self, event: Event, now: float) -> list[Event]:
        """Return what is to be written down: the event, nothing, or a notice in its place."""
        # A refused process may name any role.
        place = (event.role if event.role in ROLES else "", event.index)
        own, size = self._of(place, now), _LINE + len(event.text)
        if size <= min(own.left(now), self._all.left(now)):
            own.use(size, now)
            self._all.use(size, now)
            return [event]
        if place not in self.left_out and len(self.left_out) >= _MOST_PLACES:
            place = ("", -1)
        self.left_out[place] += 1
        if now < self._next_notice:
            return []
        self._next_notice = now + _NOTICE_SECONDS
        events = plural(self.left_out[place], "event")
        return [Event(LEFT_OUT, *place, f"{events} left out so far: more than a place may write")]

    def _of(self, place: Place, now: float) -> Allowance:
        """Find a place's allowance; forget those that are whole, which are as good as new ones."""
        if place not in self._places and len(self._places) >= _MOST_PLACES:
            self._places = {key: one for key, one in self._places.items() if not one.is_whole(now)}
        return self._places.setdefault(place, Allowance(*_OF_PLACE))
