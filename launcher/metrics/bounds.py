"""The bounds on what members report: the number of names, and the size of values. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from pdqn.figures import FIGURES

# What the run counts by itself, beside the sources of its figures.
_COUNTED = (
    "bytes_received", "control_rejected", "environment_steps", "episodes", "figures_dropped",
    "learner_steps", "policy_lag_sum", "transitions_duplicate", "transitions_received",
    "transitions_made", "transitions_refused", "transitions_rejected", "transitions_sent",
    "transitions_unsent",
)  # fmt: skip
_KNOWN = frozenset(_COUNTED).union(*((figure.source, *figure.per) for figure in FIGURES))
# Names of one role beside those. A replay counts by reason and by the names of keys, and there are
# few of them. Of actors and hosts there are thousands, and the figures of all of them are kept.
_MOST_NAMES = {"replay": 400, "learner": 400, "coordinator": 400}
_MOST_OTHER_NAMES = 100
# Up to here every whole number is exact, and sums of them fit the 64 bits of a message. A learner
# that diverges has losses of any size, but adds up nothing that must be whole.
LARGEST = float(1 << 53)
LARGEST_REAL = 1e39


def largest(role: str) -> float:
    """Return the largest value that a role may report, and that its counters may come to."""
    return LARGEST_REAL if role == "learner" else LARGEST


class Bounds:
    """The names that each role has reported, and the limit on further ones."""

    def __init__(self) -> None:
        self._names: defaultdict[str, set[str]] = defaultdict(lambda: set(_KNOWN))

    def admits(self, role: str, name: str) -> bool:
        """Return whether a name is known, or becomes known now because there is room for it."""
        names = self._names[role]
        if name not in names:
            if len(names) - len(_KNOWN) >= _MOST_NAMES.get(role, _MOST_OTHER_NAMES):
                return False
            names.add(name)
        return True

    def kept(self, role: str, figures: Mapping[str, float], least: float) -> Mapping[str, float]:
        """Return the figures that are within bounds.

        Args:
            role: of the process that reports them.
            figures: finite values by name.
            least: the smallest value that is accepted.
        """
        most, values = largest(role), figures.values()
        # Nearly every report passes here, and there are thousands in a second.
        if figures.keys() <= self._names[role] and (
            not figures or (min(values) >= least and max(values) <= most)
        ):
            return figures
        return {
            name: value
            for name, value in figures.items()
            if least <= value <= most and self.admits(role, name)
        }
