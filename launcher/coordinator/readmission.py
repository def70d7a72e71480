"""Reports of processes without a place in the run, until the place is given back. Pure."""

from __future__ import annotations

from pdqn.messages import Report


class Readmissions:
    """Reports by their sender, bounded in bytes: the oldest senders' go first.

    Args:
        most_bytes: size limit for all reports together.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._reports: dict[bytes, list[tuple[Report, int]]] = {}

    def put(self, sender: bytes, report: Report, size_bytes: int) -> None:
        """Keep a report.

        Args:
            sender: the connection.
            report: its report.
            size_bytes: size of the report's message.
        """
        reports = self._reports.pop(sender, [])
        reports.append((report, size_bytes))
        self._reports[sender] = reports  # now the last one
        self._bytes += size_bytes
        while self._bytes > self._most_bytes:
            self.take(next(iter(self._reports)))

    def take(self, sender: bytes) -> list[Report]:
        """Give up a sender's reports, oldest first."""
        reports = self._reports.pop(sender, [])
        self._bytes -= sum(size_bytes for _, size_bytes in reports)
        return [report for report, _ in reports]
