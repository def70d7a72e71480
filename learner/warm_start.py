"""A learner that begins with the parameters of another run, as far as they fit its network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from pdqn.errors import UsageError
from pdqn.model import read_model
from pdqn.text import printable

_MOST_NAMED = 4


class _Network(Protocol):
    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Fit:
    """The parameters of a file that fit a network.

    Attributes:
        state: the network's parameters, with those of the file in place of its own where they fit.
        taken: names of the parts that come from the file.
        left: parts of the network that stay as they are, each with the reason.
        learner_steps: those of the file.
    """

    state: dict[str, Tensor]
    taken: tuple[str, ...]
    left: tuple[str, ...]
    learner_steps: int

    @property
    def text(self) -> str:
        """Say which parts come from the file, and why others do not."""
        parts = len(self.taken) + len(self.left)
        begun = f"parameters of learner step {self.learner_steps}"
        if not self.left:
            return f"begins with the {begun}, all {parts} parts"
        more = len(self.left) - _MOST_NAMED
        named = "; ".join(self.left[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        return f"begins with {len(self.taken)} of {parts} parts of the {begun}; new are: {named}"


def fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], learner_steps: int) -> Fit:
    """Take the given parts that have the name, the shape and the kind of numbers of own ones.

    Args:
        own: parameters of the network by name.
        given: parameters of a file by name.
        learner_steps: those of the file.
    """
    state, taken, left = dict(own), list[str](), list[str]()
    for name, mine in own.items():
        other = given.get(name)
        if other is None:
            left.append(f"{name}, which the file does not have")
        elif other.shape != mine.shape:
            left.append(f"{name}, {list(mine.shape)} and not {list(other.shape)}")
        elif other.is_floating_point() != mine.is_floating_point():
            left.append(f"{name}, of another type")
        else:
            state[name] = other
            taken.append(name)
    return Fit(state, tuple(taken), tuple(left), learner_steps)


def fit_file(path: Path, network: _Network) -> Fit:
    """Take the parameters of a model file that fit a network. Nothing that it names is imported.

    Raises:
        UsageError: it is not a model file, or nothing of it fits.
    """
    file = read_model(path)
    found = fit(network.state_dict(), file.parameters, file.parameter_version)
    if not found.taken:
        first = printable("; ".join(found.left[:_MOST_NAMED]))
        raise UsageError(f"{path}: none of its parameters fits this network: {first}")
    return found
