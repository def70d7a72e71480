"""The first line that a role on a leash reads: who it is, and its key."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pdqn.checks import check_text
from pdqn.errors import UsageError

_MAX_KEY = 10_000


@dataclass(frozen=True)
class Leash:
    """The name and key of a role that ends with its standard input.

    Attributes:
        agent: name under which it joins.
        key: text of its key file; empty where nothing is encrypted.

    Raises:
        WireError: one of them is not a text.
    """

    agent: str
    key: str

    def __post_init__(self) -> None:
        """Check the fields."""
        check_text(self.agent, "agent")
        check_text(self.key, "key", _MAX_KEY)

    def to_line(self) -> str:
        """Return the line, without its end."""
        return json.dumps(vars(self))

    @classmethod
    def from_line(cls, line: str) -> Leash:
        """Read the line.

        Raises:
            UsageError: it is another one.
        """
        try:
            return cls(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"--leash: standard input begins with another line ({error})"
            ) from None
