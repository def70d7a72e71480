"""The findings about an environment, apart from what finds them: this imports no environments."""

from __future__ import annotations

from dataclasses import dataclass

from pdqn.specs import EnvironmentSpec


@dataclass(frozen=True)
class Examination:
    """The findings about an environment.

    Attributes:
        spec: spec of the environment, with single frames.
        suggests: whether its info holds an expert's action, at the beginning or after a step.
        odd_suggestion: text of a suggestion that is not an action; empty without any.
        unsaved: the reason why its state cannot be saved; empty if it can.
        about: a sentence about the maps that it plays; empty for other environments.
        held_out_episodes: number of held-out seeds with different episodes; 0 for any number.
    """

    spec: EnvironmentSpec
    suggests: bool
    odd_suggestion: str = ""
    unsaved: str = ""
    about: str = ""
    held_out_episodes: int = 0
