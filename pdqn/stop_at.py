"""The value of a figure at which a run ends, as a person writes it: ``return=475``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from pdqn.figures import BASELINE, BY_NAME, HEADLINE, find

# What people call the figures that they wait for; an evaluation's score has the headline's name.
RETURN, EVALUATION = "return", "evaluation"
_SIGNS = re.compile(r"(.+?)(>=|<=|=)(.+)")
WORDS = "FIGURE=VALUE: return=475 (of the last 100 episodes), evaluation=475 or train/loss<=0.01"


@dataclass(frozen=True)
class Target:
    """A figure and the value that it is to reach.

    Attributes:
        figure: its name, ``return`` or ``evaluation``.
        side: whether it is to come from below or from above.
        value: what it is to reach.
    """

    figure: str
    side: Literal["at least", "at most"]
    value: float

    def is_reached(self, value: float | None) -> bool:
        """Tell whether this value is on the right side; one that is not known is not."""
        if value is None or math.isnan(value):
            return False
        return value >= self.value if self.side == "at least" else value <= self.value

    def name(self, headline: str | None) -> str:
        """Return the name of the figure in metrics.jsonl.

        Args:
            headline: name of the environment's headline metric, if it has one.
        """
        if self.figure == RETURN:
            return "rollout/ep_rew_mean"
        if self.figure == EVALUATION:
            return "eval/return_mean" if headline is None else f"eval/{headline}"
        return self.figure


def parse_target(text: str) -> Target:
    """Read a target; ``=`` is ``>=``.

    Raises:
        ValueError: the text has another form, or there is no figure of this name.
    """
    match = _SIGNS.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    name, sign, number = match[1].strip(), match[2], float(match[3])
    is_known = name in (RETURN, EVALUATION) or find(name) is not None
    if not is_known or not math.isfinite(number):
        raise ValueError(text)
    return Target(name, "at most" if sign == "<=" else "at least", number)


def lacks_figure(target: Target, headline: str | None) -> bool:
    """Tell whether an environment with this headline metric has no such figure.

    Only names that the environment chooses, such as those of baselines, are not known before.
    """
    figure = find(target.name(headline))
    if target.figure in (RETURN, EVALUATION, *BY_NAME) or figure is None:
        return figure is None
    if HEADLINE not in figure.name or BASELINE in figure.name:
        return False
    return headline is None or target.figure != figure.name.replace(HEADLINE, headline)
