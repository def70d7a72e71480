"""Reports of processes without a place in the run, until the place is given back. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict

from pdqn.messages import Report

_OfKey = dict[bytes, list[tuple[Report, int]]]


class Readmissions:
    """Reports by their sender, bounded in bytes for each key: its oldest senders' go first.

    Args:
        most_bytes: size limit for all reports of one key together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes: Counter[str] = Counter()
        self._reports: defaultdict[str, _OfKey] = defaultdict(dict)

    def put(self, sender: bytes, report: Report, size_bytes: int, user: str = "") -> None:
        """Keep a report.

        Args:
            sender: the connection.
            report: its report.
            size_bytes: size of the report's message.
            user: the sender's public key; empty if nothing is encrypted.
        """
        of_key = self._reports[user]
        reports = of_key.pop(sender, [])
        reports.append((report, size_bytes))
        of_key[sender] = reports  # now the last one
        self._bytes[user] += size_bytes
        while self._bytes[user] > self._most_bytes:
            self.take(next(iter(of_key)), user)

    def take(self, sender: bytes, user: str = "") -> list[Report]:
        """Give up a sender's reports, oldest first."""
        reports = self._reports[user].pop(sender, [])
        self._bytes[user] -= sum(size_bytes for _, size_bytes in reports)
        return [report for report, _ in reports]
