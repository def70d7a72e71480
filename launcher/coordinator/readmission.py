"""What somebody without a place in the run tells, until the place is given back."""

from __future__ import annotations


class Aside:
    """Messages by their sender, bounded in bytes: those of who spoke longest ago go first.

    Args:
        most_bytes: of all messages.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._messages: dict[bytes, list[bytes]] = {}

    def put(self, sender: bytes, message: bytes) -> None:
        """Keep a message."""
        messages = self._messages.pop(sender, [])
        messages.append(message)
        self._messages[sender] = messages  # now the last one
        self._bytes += len(message)
        while self._bytes > self._most_bytes:
            self.take(next(iter(self._messages)))

    def take(self, sender: bytes) -> list[bytes]:
        """A sender's messages, oldest first; they are not kept any longer."""
        messages = self._messages.pop(sender, [])
        self._bytes -= sum(map(len, messages))
        return messages
